"""Loading: what the API does in between, and what becomes of it."""

from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from gateway import Gateway
from test_client import behind
from tries import DEFAULTS, Task, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import load
from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import ApiUnavailable, BatchGone, Misconfigured
from airflow_provider_claude_batch.load import Loader
from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.receipt import Receipt, read
from airflow_provider_claude_batch.wire_id import parse

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


# A batch that was given by its bare id


def foreign(emulator: Any, ids: list[str]) -> Receipt:
    """A batch of another program, with ids of its own."""
    requests = [{"custom_id": i, "params": {**DEFAULTS, **some_requests(1)[0]["params"]}} for i in ids]
    with Anthropic(api_key="emulator-key", base_url=emulator.base_url) as sdk:
        batch = sdk.messages.batches.create(requests=requests)  # type: ignore[arg-type]
    emulator.advance(60)
    (bare,) = read(batch.id)
    return bare


DOCUMENTS = [f"doc-p20260101{n:06d}" for n in range(5_000)]
PASSING = [one for one in DOCUMENTS if parse(one)]


@pytest.mark.parametrize("count", [1, 2, 500])
def test_a_foreign_batch_keeps_its_ids_though_its_first_lines_pass_for_ours(
    count: int, emulator: Any, answers: Any
) -> None:
    ids = [*PASSING[:2], *DOCUMENTS[1_000:1_498]][:count]
    bare = foreign(emulator, ids)

    def passing_first(path: str, body: bytes) -> bytes:
        lines = body.splitlines(keepends=True) if path.endswith("/results") else [body]
        return b"".join(sorted(lines, key=lambda line: not any(one.encode() in line for one in PASSING[:2])))

    with behind(Gateway(emulator.base_url, change=passing_first)) as client:
        write(client, bare)
    found = answers.query("SELECT custom_id, request_hash FROM answers")
    assert sorted(found) == [(one, None) for one in sorted(ids)]


@pytest.mark.parametrize(("count", "is_proved"), [(2, False), (3, True), (200, True)])
def test_our_own_batch_is_known_by_the_mark_on_all_of_its_lines(
    count: int, is_proved: bool, client: Client, emulator: Any, answers: Any
) -> None:
    receipt, _ = Task(client, emulator).finish(some_requests(count))
    assert receipt is not None
    emulator.advance(60)
    write(client, *read(receipt.batch_ids))
    found = answers.query("SELECT custom_id, request_hash IS NOT NULL FROM answers")
    sent = [one["custom_id"] for one in emulator.submitted(receipt.batch_ids[0])]
    wanted = [one[:-16] if is_proved else one for one in sent]
    assert sorted(found) == sorted((one, int(is_proved)) for one in wanted)
