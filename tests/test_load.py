"""Loading: what the API does in between, and what becomes of it."""

from typing import Any

import httpx2
import pytest
from gateway import Gateway
from test_client import behind
from tries import Task, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import load
from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import ApiUnavailable, BatchGone, Misconfigured
from airflow_provider_claude_batch.load import Loader
from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.receipt import Receipt, read

EMULATOR = ("--batch-seconds", "0")
PAUSES = load._PAUSES
pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_PAUSES", (0.0,) * len(PAUSES))


@pytest.fixture
def answers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("sqlite", tmp_path, monkeypatch)


@pytest.fixture
def sent(client: Client, emulator: Any) -> Receipt:
    receipt, _ = Task(client, emulator).finish(some_requests(3))
    assert receipt is not None
    emulator.advance(60)
    return receipt


def write(client: Client, *receipts: Receipt) -> None:
    Loader(client, PRICES).load(receipts, open_warehouse("warehouse", "answers"))


def statuses(answers: Any) -> list[tuple[str, int]]:
    return answers.query("SELECT status, count(*) FROM answers GROUP BY 1")


# Results that break off


@pytest.mark.parametrize("cuts", [[30], [30, 31], [30, 400], [400, 30], [30, 400, 31]])
def test_results_that_end_in_the_middle_are_taken_up_again(
    cuts: list[int], emulator: Any, sent: Receipt, answers: Any
) -> None:
    """They end within the last line, or where one begins."""

    def cut(path: str, body: bytes) -> bytes:
        if not path.endswith("/results") or not cuts:
            return body
        nth = cuts.pop(0)
        return body[: body.rstrip().rindex(b"\n") + 1] if nth == 400 else body.rstrip()[:-nth]

    with behind(Gateway(emulator.base_url, change=cut)) as client:
        write(client, sent)
    assert statuses(answers) == [("succeeded", 3)]


def test_results_that_always_end_in_the_middle_of_a_line_leave_what_was_there(
    emulator: Any, client: Client, sent: Receipt, answers: Any
) -> None:
    write(client, sent)

    def cut(path: str, body: bytes) -> bytes:
        return body[:-30] if path.endswith("/results") else body

    with behind(Gateway(emulator.base_url, change=cut)) as cut_off, pytest.raises(ApiUnavailable, match="of a line"):
        write(cut_off, sent)
    assert statuses(answers) == [("succeeded", 3)]


def test_results_that_stall_are_taken_up_again(
    emulator: Any, client: Client, sent: Receipt, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_claude_batch.client._CALL_TIMEOUT", httpx2.Timeout(4.0, connect=60.0))
    emulator.fault("stall_results", rows=2)
    write(client, sent)
    assert len(emulator.journal(operation="results")) > 1
    assert answers.query("SELECT custom_id, status FROM answers ORDER BY 1") == [
        (f"r-{n}", "succeeded") for n in range(3)
    ]


def test_results_are_read_from_where_the_api_says(emulator: Any, sent: Receipt, answers: Any) -> None:
    def change(path: str, body: bytes) -> bytes:
        return body.replace(b"/results", b"/moved/") if path.count("/") == 4 else body

    with behind(gateway := Gateway(emulator.base_url, change=change)) as client:
        write(client, sent)
    assert gateway.paths[-1].endswith("/moved/")
    assert statuses(answers) == [("succeeded", 3)]


# A batch that the API does not know, or not now


def test_the_api_is_asked_for_a_minute_and_not_for_long() -> None:
    assert 45 < sum(PAUSES) < 90


@pytest.mark.parametrize("operation", ["retrieve", "results"])
@pytest.mark.parametrize("times", [1, 8])
def test_a_batch_that_the_api_does_not_know_for_a_moment_is_loaded(
    operation: str, times: int, client: Client, emulator: Any, sent: Receipt, answers: Any
) -> None:
    emulator.fault("not_found", operation=operation, times=times)
    write(client, sent)
    assert statuses(answers) == [("succeeded", 3)]


@pytest.mark.parametrize("operation", ["retrieve", "results"])
def test_a_batch_that_the_api_keeps_not_knowing_is_told(
    operation: str, client: Client, emulator: Any, sent: Receipt, answers: Any
) -> None:
    emulator.fault("not_found", operation=operation, times=-1)
    with pytest.raises(BatchGone, match=f"The API does not know batch {sent.batch_ids[0]}, or has no results of it"):
        write(client, sent)
    assert len(emulator.journal(operation=operation)) == 9


def test_a_bare_id_that_nobody_knows_is_told_soon(client: Client, emulator: Any, answers: Any) -> None:
    with pytest.raises(BatchGone):
        write(client, *read("msgbatch_unknown"))
    assert len(emulator.journal(operation="retrieve")) == 4


def test_results_that_are_past_their_29_days_are_asked_for_once(
    client: Client, emulator: Any, sent: Receipt, answers: Any
) -> None:
    emulator.advance(30 * 86_400)
    with pytest.raises(Misconfigured, match="the API keeps them for 29 days"):
        write(client, sent)
    assert len(emulator.journal(operation="retrieve")) == 1


def test_a_batch_that_is_gone_stops_the_load_before_anything_is_written(
    client: Client, emulator: Any, sent: Receipt, answers: Any
) -> None:
    write(client, sent)
    other, _ = Task(client, emulator, "other").finish(some_requests(2))
    (gone,) = read("msgbatch_gone")
    with pytest.raises(BatchGone, match="msgbatch_gone"):
        write(client, other, sent, gone)
    assert statuses(answers) == [("succeeded", 3)]
