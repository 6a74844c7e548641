"""The client, with a real SDK inside: how results are read, and from where."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from anthropic import Anthropic
from emulator import CONNECTION
from gateway import Gateway
from tries import Task, some_requests

from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.errors import ApiRefused, ApiUnavailable

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


def test_the_key_does_not_follow_to_another_host(emulator: Any, batch: Batch) -> None:
    with Gateway(emulator.base_url) as other, behind(gateway := Gateway(emulator.base_url)) as client:
        gateway.elsewhere = other.base_url
        with pytest.raises(ApiRefused, match="x-api-key header is required"):
            list(client.results(batch.id))
        assert other.paths == [f"/v1/messages/batches/{batch.id}/results"]


def test_results_without_an_address_are_where_they_always_were(emulator: Any, batch: Batch) -> None:
    with behind(gateway := Gateway(emulator.base_url, "/claude")) as client:
        assert len(list(client.results(batch.id))) == 3
    assert gateway.paths == [f"/claude/v1/messages/batches/{batch.id}/results"]


def test_an_address_that_is_none_is_an_answer_that_cannot_be_read(client: Client, batch: Batch) -> None:
    with pytest.raises(ApiUnavailable, match="could not be read"):
        list(client.results(batch.id, "https://api.anthropic.com/\x00"))
