"""The client, with a real SDK inside: how results are read, and from where."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from anthropic import Anthropic, AsyncAnthropic
from emulator import CONNECTION
from gateway import Gateway
from tries import Task, paid, some_requests

from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.client import AsyncClient, Client
from airflow_provider_claude_batch.errors import ApiRefused, ApiUnavailable, Misconfigured
from airflow_provider_claude_batch.fate import Pause
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.redirect import find_target

EMULATOR = ("--batch-seconds", "0")


@pytest.fixture
def batch(client: Client, emulator: Any) -> Batch:
    receipt, _ = Task(client, emulator).finish(some_requests(3))
    return client.retrieve(receipt.batch_ids[0])


@contextmanager
def behind(gateway: Gateway) -> Iterator[Client]:
    with gateway, Client(Anthropic(api_key=CONNECTION["password"], base_url=gateway.base_url), "gateway") as client:
        yield client


def with_results(change: Callable[[bytes], bytes]) -> Callable[[str, bytes], bytes]:
    return lambda path, body: change(body) if path.endswith("/results") else body


# Where results end


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_results_that_end_in_the_middle_of_a_line_are_not_taken_for_whole(
    emulator: Any, batch: Batch, cut: int
) -> None:
    with behind(Gateway(emulator.base_url, change=with_results(lambda body: body.rstrip(b"\n")[:-cut]))) as client:
        lines = client.results(batch.id)
        assert len([json.loads(next(lines)) for _ in range(2)]) == 2
        with pytest.raises(ApiUnavailable, match=r"^The results ended in the middle of a line\.$"):
            next(lines)


@pytest.mark.parametrize(
    "last",
    [
        b"",
        b"\r\n",
        b'\n{"half of a pair": "\\ud83d"}',
        b'\n{"broken": "\xff"}',
        b'\n{"raw": "con\x01trol"}',
        b'\n{"bad": "\\q"}',
        b"\ngarbage",
        b"\n" + b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_a_last_line_that_is_whole_needs_no_line_feed(emulator: Any, batch: Batch, last: bytes) -> None:
    with behind(Gateway(emulator.base_url, change=with_results(lambda body: body.rstrip(b"\n") + last))) as client:
        assert len(list(client.results(batch.id))) == 3 + (len(last) > 2)


# Where results are


def test_a_gateway_may_have_a_path_that_the_api_has_too(emulator: Any, batch: Batch) -> None:
    with behind(Gateway(emulator.base_url, prefix="/v1")) as gateway:
        url = f"https://api.anthropic.invalid/v1/messages/batches/{batch.id}/results"
        assert len(list(gateway.results(batch.id, url))) == 3


def moved_to(url: str) -> Callable[[str, bytes], bytes]:
    def change(path: str, body: bytes) -> bytes:
        answer = json.loads(body) if path.count("/") < 6 else {}
        return json.dumps({**answer, "results_url": url}).encode() if "results_url" in answer else body

    return change


@pytest.mark.parametrize(
    "host", ["https://api.anthropic.invalid", "https://api.anthropic.invalid:8443/", "//elsewhere.invalid", ""]
)
def test_only_the_path_of_the_results_url_is_used(emulator: Any, batch: Batch, host: str) -> None:
    url = f"{host}/v1/messages/batches/{batch.id}/moved/?key=1"
    with behind(Gateway(emulator.base_url, change=moved_to(url))) as client:
        told = client.retrieve(batch.id)
        assert (told.results_url, len(list(client.results(batch.id, told.results_url)))) == (url, 3)


@pytest.mark.parametrize("place", ["https://api.anthropic.invalid", "https://gw.invalid/claude", "/claude"])
def test_the_path_of_a_gateway_stays_in_front(emulator: Any, batch: Batch, place: str) -> None:
    moved = f"/v1/messages/batches/{batch.id}/moved/"
    with behind(Gateway(emulator.base_url, "/claude", moved_to(place + moved))) as gateway:
        found = gateway.retrieve(batch.id)
        assert len(list(gateway.results(batch.id, found.results_url))) == 3


CALLS: dict[str, Callable[[Any, str], Any]] = {
    "list": lambda client, _: client.page(),
    "retrieve": lambda client, batch_id: client.retrieve(batch_id),
    "results": lambda client, batch_id: list(client.results(batch_id)),
    "cancel": lambda client, batch_id: client.cancel(batch_id),
    "count": lambda client, _: client.count_tokens(PARAMS),
    "live": lambda client, _: client.message(PARAMS),
    "create": lambda client, _: client.create(Twice(), len(BODY), until=LATER),
}
PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
BODY = json.dumps({"requests": [{"custom_id": "a", "params": PARAMS}]}).encode()
LATER = datetime(2100, 1, 1, tzinfo=UTC)


class Twice:
    """A body that can be sent twice, like a shard's."""

    def __iter__(self) -> Iterator[bytes]:
        yield BODY


@contextmanager
def asked_already(gateway: Gateway) -> Iterator[Client]:
    """A client that knows the API's clock, so that a create is one call."""
    with behind(gateway) as client:
        client.now()
        gateway.paths.clear()
        yield client


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("call", CALLS)
def test_a_path_that_moved_on_the_same_host_is_followed(call: str, status: int, emulator: Any, batch: Batch) -> None:
    paid_before = len(paid(emulator))
    with asked_already(gateway := Gateway(emulator.base_url)) as client:
        gateway.moved, gateway.status = "/moved-here", status
        assert CALLS[call](client, batch.id)
    first, second = gateway.paths
    assert second == f"/moved-here{first}"
    assert len(paid(emulator)) == paid_before + (call == "create")


@pytest.mark.parametrize("status", [301, 302, 303])
@pytest.mark.parametrize("call", CALLS)
def test_only_a_question_follows_where_a_redirect_may_come_after_the_deed(
    call: str, status: int, emulator: Any, batch: Batch
) -> None:
    with asked_already(gateway := Gateway(emulator.base_url)) as client:
        gateway.moved, gateway.status = "/moved-here", status
        if call in {"list", "retrieve", "results"}:
            assert CALLS[call](client, batch.id)
            return
        with pytest.raises(Misconfigured, match=rf"redirect \({status}\), which does not say whether"):
            CALLS[call](client, batch.id)
    assert len(gateway.paths) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("call", CALLS)
def test_nothing_follows_to_another_host(call: str, status: int, emulator: Any, batch: Batch) -> None:
    with Gateway(emulator.base_url) as other, asked_already(gateway := Gateway(emulator.base_url)) as client:
        gateway.elsewhere, gateway.status = other.base_url, status
        with pytest.raises((ApiRefused, Misconfigured), match="correct the host in the connection") as refused:
            CALLS[call](client, batch.id)
        assert not refused.value.retryable
        assert other.paths == []


@pytest.mark.parametrize("place", ["", "http://[::1", "http://127.0.0.1:99999", "https://127.0.0.1/", "ftp://x"])
def test_a_redirect_to_nowhere_is_final(place: str) -> None:
    with pytest.raises(ApiRefused, match="correct the host in the connection"):
        find_target(307, place, "http://127.0.0.1:80/v1/messages/batches", "gateway", is_post=True)


def test_a_redirect_names_no_password() -> None:
    with pytest.raises(ApiRefused, match="to https://gw:8443, and the key") as refused:
        find_target(307, "https://a:canary@gw:8443/x?token=canary", "http://gw/v1", "gateway", is_post=False)
    assert "canary" not in str(refused.value)


def test_the_default_port_is_no_other_host() -> None:
    found = find_target(308, "https://GW:443/x?limit=2", "https://gw/v1", "gateway", is_post=True)
    assert found == "https://GW:443/x?limit=2"


def test_a_redirect_in_a_circle_is_final(emulator: Any, batch: Batch) -> None:
    with behind(gateway := Gateway(emulator.base_url)) as client:
        gateway.moved, gateway.status = "/never#", 307
        with pytest.raises(ApiRefused, match=r"redirects in a circle \(5 times for one call\)"):
            client.retrieve(batch.id)
    assert len(gateway.paths) == 5


@pytest.mark.parametrize("status", [301, 302, 303, 307])
@pytest.mark.parametrize("call", ["list", "look", "cancel"])
def test_the_triggerer_follows_like_a_worker(call: str, status: int, emulator: Any, batch: Batch) -> None:
    async def ask() -> Any:
        sdk = AsyncAnthropic(api_key=CONNECTION["password"], base_url=gateway.base_url, max_retries=0)
        async with AsyncClient(sdk, "gateway") as client:
            return await (client.page() if call == "list" else getattr(client, call)(batch.id))

    with Gateway(emulator.base_url) as gateway:
        gateway.moved, gateway.status = "/moved-here", status
        if call == "cancel" and status != 307:
            with pytest.raises(Misconfigured, match="which does not say whether"):
                asyncio.run(ask())
        else:
            assert asyncio.run(ask())
        gateway.elsewhere = "http://127.0.0.1:1"
        with pytest.raises((ApiRefused, Misconfigured), match="correct the host in the connection"):
            asyncio.run(ask())


@pytest.mark.parametrize(("status", "shards"), [(307, 1), (308, 3)])
def test_a_submission_behind_a_moved_path_is_paid_once(status: int, shards: int, emulator: Any) -> None:
    with behind(gateway := Gateway(emulator.base_url)) as moved:
        gateway.moved, gateway.status = "/moved-here", status
        receipt, pauses = Task(moved, emulator).finish(some_requests(3), shard_size=3 // shards)
    assert (len(receipt.batches), pauses) == (shards, [])
    assert paid(emulator) == [3 // shards] * shards


def test_a_redirect_that_is_met_while_the_body_is_read_is_told_as_it_is(emulator: Any) -> None:
    with behind(gateway := Gateway(emulator.base_url)) as client:
        gateway.only, gateway.elsewhere = "GET", "http://127.0.0.1:1"
        with pytest.raises(ApiRefused, match="the key is never sent to another address"):
            CALLS["create"](client, "")
    assert paid(emulator) == []


def test_a_create_that_is_sent_elsewhere_fails_at_once_and_the_next_try_sends_it(emulator: Any) -> None:
    with behind(gateway := Gateway(emulator.base_url)) as client:
        task = Task(client, emulator)
        gateway.only, gateway.elsewhere, gateway.status = "POST /v1/messages/batches", "http://127.0.0.1:1", 307
        with pytest.raises(ApiRefused, match="the key is never sent to another address"):
            task.run(some_requests(3))
        gateway.only = "nothing"
        assert isinstance(task.run(some_requests(3)), Receipt)
    assert paid(emulator) == [3]


def test_a_create_that_may_have_been_carried_out_is_looked_for_and_not_sent_again(emulator: Any) -> None:
    with behind(gateway := Gateway(emulator.base_url)) as client:
        task = Task(client, emulator)
        gateway.only, gateway.moved, gateway.status = "POST /v1/messages/batches", "/done", 303
        with pytest.raises(Misconfigured, match=r"redirect \(303\), which does not say whether"):
            task.run(some_requests(3))
        assert isinstance(task.run(some_requests(3)), Pause)
    assert paid(emulator) == []


def test_results_without_an_address_are_where_they_always_were(emulator: Any, batch: Batch) -> None:
    with behind(gateway := Gateway(emulator.base_url, "/claude")) as client:
        assert len(list(client.results(batch.id))) == 3
    assert gateway.paths == [f"/claude/v1/messages/batches/{batch.id}/results"]


def test_an_address_that_is_none_is_an_answer_that_cannot_be_read(client: Client, batch: Batch) -> None:
    with pytest.raises(ApiUnavailable, match="could not be read"):
        list(client.results(batch.id, "https://api.anthropic.com/\x00"))
