"""ClaudeBatchTrigger by itself: what it is made of, and what it does when killed."""

import asyncio
import json
from typing import Any

import pytest
from runs import xcom
from test_operators import some_requests, submit_dag

from airflow_provider_claude_batch import ClaudeBatchTrigger
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.trigger import ClaudeBatchPause

KWARGS = {
    "batch_ids": ["msgbatch_1", "msgbatch_2"],
    "conn_id": "anthropic_default",
    "interval": 60.0,
    "deadline": "2026-11-22T00:00:00+00:00",
    "on_timeout": "cancel",
    "cancel_on_kill": True,
}


def test_a_trigger_is_its_kwargs_and_nothing_else() -> None:
    path, kwargs = ClaudeBatchTrigger(**KWARGS).serialize()  # type: ignore[arg-type]
    assert path == "airflow_provider_claude_batch.trigger.ClaudeBatchTrigger"
    assert json.loads(json.dumps(kwargs)) == KWARGS


@pytest.mark.parametrize("deadline", ["2030-01-01T00:00:00", "2030-01-01", "tomorrow", 5])
def test_a_deadline_without_a_time_zone_is_refused_where_it_is_given(deadline: Any) -> None:
    with pytest.raises(Misconfigured, match="deadline takes a moment with its time zone, such as"):
        ClaudeBatchTrigger(**{**KWARGS, "deadline": deadline})
    with pytest.raises(Misconfigured, match="until takes a moment with its time zone, such as"):
        ClaudeBatchPause(until=deadline, batch_ids=[], conn_id="anthropic_default")


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_a_kill_cancels_only_where_it_was_asked_for(cancel_on_kill: bool, emulator: Any, run_dag: Any) -> None:
    emulator.clock(freeze=True)
    batch_id = xcom(run_dag(submit_dag(requests=some_requests())), "submit")["batches"][0]["id"]
    trigger = ClaudeBatchTrigger(
        batch_ids=[batch_id], conn_id="anthropic_default", interval=60, cancel_on_kill=cancel_on_kill
    )
    asyncio.run(trigger.on_kill())
    assert [call["batch_id"] for call in emulator.journal(operation="cancel")] == [batch_id] * cancel_on_kill
