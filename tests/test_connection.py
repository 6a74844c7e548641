"""Connections that cannot work: one sentence each, the same on a worker and in the triggerer."""

import asyncio
import json
from typing import Any

import pytest
from emulator import CONNECTION

from airflow_provider_claude_batch.connection import open_async_client, open_client
from airflow_provider_claude_batch.errors import ApiUnavailable, ClaudeBatchError, Misconfigured
from airflow_provider_claude_batch.roll_call import AskForBatch

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"password": ""}, "has no API key: put one into its password."),
    "another type": ({"conn_type": "http"}, "is of type 'http': the API needs one of type anthropic."),
    "another platform": ({"extra": {"platform": "bedrock"}}, "is for bedrock, which has no Message Batches"),
    "odd identity": ({"extra": {"workload_identity": "odd"}}, "does not make a client of the API: "),
    "no region": ({"extra": {"platform": "aws"}}, "does not make a client of the API: No AWS region was provided"),
    "odd argument": ({"extra": {"anthropic_client_kwargs": {"colour": 1}}}, "does not make a client of the API: "),
    "no scheme": ({"host": "localhost:1"}, "is no address: write it with http:// or https://."),
    "another scheme": ({"host": "ftp://localhost"}, "is no address: write it with http:// or https://."),
    "no port": ({"host": "http://[::1"}, "does not make a client of the API: Invalid port: ':1'"),
}


async def ask(conn_id: str) -> Any:
    async with await open_async_client(conn_id) as client:
        return await client.look("msgbatch_1")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_wherever_it_is_met(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, said = MISTAKES[mistake]
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_MISTAKEN", json.dumps({**CONNECTION, "host": "http://127.0.0.1:1", **change}))
    with pytest.raises(Misconfigured) as in_the_triggerer:
        asyncio.run(ask("mistaken"))
    with pytest.raises(Misconfigured) as on_a_worker, open_client("mistaken") as client:
        client.look("msgbatch_1")
    assert str(on_a_worker.value) == str(in_the_triggerer.value).replace("AsyncAnthropic", "Anthropic")
    assert said in str(on_a_worker.value)
    assert "'mistaken'" in str(on_a_worker.value)


def test_an_address_where_nobody_answers_may_answer_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LATER", json.dumps({**CONNECTION, "host": "http://127.0.0.1:1"}))
    with open_client("later") as client:
        answer = client.answer(AskForBatch("msgbatch_1"))
    assert isinstance(answer, ApiUnavailable)
    assert str(answer).startswith("The API at http://127.0.0.1:1 (connection 'later') cannot be reached: ")
    assert isinstance(asyncio.run(answered("later")), ApiUnavailable)


async def answered(conn_id: str) -> ClaudeBatchError | Any:
    async with await open_async_client(conn_id) as client:
        return await client.answer(AskForBatch("msgbatch_1"))
