"""What receipts say together, with numbers: no Airflow, no clock."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_provider_claude_batch.batch import Batch, Counts
from airflow_provider_claude_batch.entry import Entry, Step, step_of
from airflow_provider_claude_batch.receipt import Part, Receipt, replace
from airflow_provider_claude_batch.submission import State, Submission, gather

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NAME = "sub_20261120T120000000000_aaaaaaaa"


def part(name: str, requests: int = 10, *, ended: datetime | None = None) -> Part:
    if ended is None:
        return Part(name, requests)
    counts = Counts(succeeded=requests)
    return Part(name, requests, counts=counts, created_at=NOON, ended_at=ended, expires_at=NOON + DAY)


def receipt(*parts: Part, attempt: int = 1, **fields: Any) -> Receipt:
    total = sum(one.total for one in parts)
    given = {"requests": total, "submit_task": "submit", "submitted_at": NOON, "models": ("haiku",), **fields}
    return Receipt(NAME, parts, "d", "r", attempt=attempt, conn_id="claude", **given)


def loaded(*parts: Part, counts: dict[str, int] | None = None, **fields: Any) -> Receipt:
    total = sum(one.total for one in parts)
    money = {"cost_usd": 1.0, "live_cost_usd": 2.0, "saved_usd": 1.0, "retryable": 0}
    return receipt(*parts, rows=total, counts=counts or {"succeeded": total}, **{**money, **fields})


def entry(of: Receipt, task_id: str, at: datetime, map_index: int = -1, dag_id: str = "d") -> Entry:
    return Entry(of, dag_id, "r", task_id, map_index, at)


def looked(name: str, status: str, now: datetime) -> Batch:
    ended = now if status == "ended" else None
    counts = Counts(succeeded=9, errored=1) if ended else Counts(processing=10)
    return Batch(name, status, counts, NOON, NOON + DAY, ended)


def one_of(*entries: Entry) -> Submission:
    (only,) = gather(entries)
    return only


SUBMITTED = entry(receipt(part("b1")), "submit", NOON)
WAITED = entry(receipt(part("b1", ended=NOON + HOUR)), "wait", NOON + 2 * HOUR)
LOADED = entry(loaded(part("b1", ended=NOON + HOUR)), "load", NOON + 3 * HOUR)


def test_each_step_is_known_by_what_its_receipt_says() -> None:
    empty = receipt(reused=10)
    steps = [step_of(one) for one in (SUBMITTED, WAITED, LOADED)]
    assert steps == [Step.SUBMIT, Step.WAIT, Step.LOAD]
    assert step_of(entry(empty, "submit", NOON)) is Step.SUBMIT
    assert step_of(entry(empty, "wait", NOON)) is Step.WAIT


@pytest.mark.parametrize(
    ("entries", "later", "state"),
    [
        ([SUBMITTED], HOUR, State.IN_PROGRESS),
        ([SUBMITTED], 26 * HOUR, State.ENDED),
        ([SUBMITTED], 28 * DAY, State.ENDED),
        ([SUBMITTED], 29 * DAY, State.GONE),
        ([SUBMITTED, WAITED], 2 * HOUR, State.ENDED),
        ([SUBMITTED, WAITED], 30 * DAY, State.GONE),
        ([SUBMITTED, WAITED, LOADED], 3 * HOUR, State.LOADED),
        ([SUBMITTED, WAITED, LOADED], 300 * DAY, State.LOADED),
        ([LOADED], 300 * DAY, State.LOADED),
    ],
)
def test_a_state_follows_from_receipts_and_the_time(entries: list[Entry], later: timedelta, state: State) -> None:
    assert one_of(*entries).state({}, NOON + later) is state


@pytest.mark.parametrize(
    ("status", "state"),
    [("in_progress", State.IN_PROGRESS), ("canceling", State.CANCELING), ("ended", State.ENDED)],
)
def test_while_no_step_has_seen_the_end_the_api_says_how_a_batch_stands(status: str, state: State) -> None:
    looks = {"b1": looked("b1", status, NOON + HOUR)}
    assert one_of(SUBMITTED).state(looks, NOON + HOUR) is state


def test_an_old_look_is_not_believed_longer_than_a_batch_can_run() -> None:
    looks = {"b1": looked("b1", "in_progress", NOON + HOUR)}
    submission = one_of(SUBMITTED)
    states = [submission.state(looks, NOON + days * DAY) for days in (0.5, 2, 40)]
    assert states == [State.IN_PROGRESS, State.ENDED, State.GONE]
    assert submission.first.is_overdue(looks, NOON + 3 * DAY)


def test_a_status_that_is_not_known_yet_is_one_of_a_batch_that_runs() -> None:
    looks = {"b1": looked("b1", "paused", NOON + HOUR)}
    assert one_of(SUBMITTED).state(looks, NOON + HOUR) is State.IN_PROGRESS


def test_of_many_shards_the_one_that_runs_decides() -> None:
    submitted = entry(receipt(part("b1"), part("b2")), "submit", NOON)
    looks = {"b1": looked("b1", "ended", NOON + HOUR)}
    submission = one_of(submitted)
    assert submission.state(looks, NOON + HOUR) is State.IN_PROGRESS
    assert submission.outcomes(looks) == {"succeeded": 9, "errored": 1, "processing": 10}
    assert submission.state({**looks, "b2": looked("b2", "ended", NOON)}, NOON + HOUR) is State.ENDED


def test_shards_that_are_loaded_one_by_one_add_up() -> None:
    parts = [part(name, ended=NOON + HOUR) for name in ("b1", "b2")]
    loads = [entry(loaded(one), "load", NOON + (2 + n) * HOUR, n) for n, one in enumerate(parts)]
    submitted = entry(receipt(part("b1"), part("b2")), "submit", NOON)
    half, whole = one_of(submitted, loads[0]), one_of(submitted, *loads)
    assert half.state({}, NOON + HOUR) is State.IN_PROGRESS
    assert half.outcomes({}) == {"succeeded": 10, "processing": 10}
    assert whole.state({}, NOON + HOUR) is State.LOADED
    assert whole.total is not None
    assert (whole.total.cost_usd, whole.first.requests, whole.first.loaded_at) == (2.0, 20, NOON + 3 * HOUR)


def test_what_was_loaded_twice_is_paid_once() -> None:
    again = entry(loaded(part("b1", ended=NOON + HOUR), cost_usd=1.5), "load_elsewhere", NOON + 5 * HOUR)
    total = one_of(SUBMITTED, WAITED, LOADED, again).total
    assert total is not None
    assert total.cost_usd == 1.5


def test_a_shard_that_is_loaded_again_does_not_hide_the_load_of_all() -> None:
    parts = [part(name, ended=NOON + HOUR) for name in ("b1", "b2")]
    whole, again = entry(loaded(*parts), "load", NOON), entry(loaded(parts[0]), "one_more", NOON + HOUR)
    total = one_of(whole, again).total
    assert total is not None
    assert (total.cost_usd, total.counts) == (1.0, {"succeeded": 20})


def test_retries_are_rounds_of_one_submission_and_count_as_they_ended() -> None:
    ended = part("b1", ended=NOON + HOUR)
    failed = loaded(ended, counts={"succeeded": 7, "errored": 3}, retryable=3, retryable_by={"errored": 3})
    again = part("b2", 3, ended=NOON + 4 * HOUR)
    rounds = [
        entry(receipt(part("b1")), "submit", NOON),
        entry(failed, "load", NOON + 2 * HOUR),
        entry(receipt(part("b2", 3), attempt=2), "submit_2", NOON + 3 * HOUR),
        entry(loaded(again, attempt=2), "load_2", NOON + 5 * HOUR),
        entry(replace(loaded(ended, again), rounds=2), "total", NOON + 6 * HOUR),
    ]
    submission = one_of(*rounds)
    assert [one.receipt.attempt for one in submission.rounds] == [1, 2]
    assert [one.first.task_id for one in submission.rounds] == ["submit", "submit_2"]
    assert submission.outcomes({}) == {"succeeded": 10}
    assert submission.total is not None
    assert submission.total.cost_usd == 2.0
    running = one_of(*rounds[:3])
    assert running.state({}, NOON + 4 * HOUR) is State.IN_PROGRESS
    assert running.outcomes({}) == {"succeeded": 7, "errored": 3}


def test_what_another_dag_says_of_a_submission_does_not_make_it_its_own() -> None:
    theirs = replace(receipt(part("b9", 999)), requests=9_999)
    claim = entry(theirs, "submit", NOON + HOUR, dag_id="other")
    fake = entry(loaded(part("b1", ended=NOON), cost_usd=50.0), "load", NOON + 9 * HOUR, dag_id="other")
    submission = one_of(SUBMITTED, claim, WAITED, LOADED, fake)
    assert (submission.first.first.dag_id, submission.first.requests) == ("d", 10)
    assert submission.total is not None
    assert submission.total.cost_usd == 1.0


def test_rounds_of_before_that_follow_a_load_without_failures_are_left_out() -> None:
    leftover = entry(loaded(part("b2", 3, ended=NOON), attempt=2), "load_2", NOON)
    assert len(one_of(SUBMITTED, LOADED, leftover).rounds) == 1


def test_loads_that_overlap_count_once_and_leave_the_rest_to_be_loaded() -> None:
    parts = [part(name, ended=NOON + HOUR) for name in ("b1", "b2", "b3")]
    submitted = entry(receipt(*(part(name) for name in ("b1", "b2", "b3"))), "submit", NOON)
    loads = [entry(loaded(*some), f"load_{n}", NOON + n * HOUR) for n, some in enumerate((parts[:2], parts[1:]))]
    submission = one_of(submitted, entry(receipt(*parts), "wait", NOON + HOUR), *loads)
    assert submission.state({}, NOON + HOUR) is State.ENDED
    assert submission.outcomes({}) == {"succeeded": 30}


def test_requests_that_no_batch_has_taken_are_counted() -> None:
    half = entry(receipt(part("b1"), requests=25), "submit", NOON)
    assert (one_of(half).first.unsent, one_of(SUBMITTED).first.unsent) == (15, 0)


def test_problems_stand_beside_what_can_be_used() -> None:
    unfit = loaded(part("b1", ended=NOON), counts={"succeeded": 9, "expired": 1}, problems={"truncated": 2})
    assert one_of(entry(unfit, "load", NOON)).outcomes({}) == {"succeeded": 7, "truncated": 2, "expired": 1}


def test_what_lies_unloaded_for_an_hour_is_overdue_and_has_days_left() -> None:
    (of_one,) = one_of(SUBMITTED, WAITED).rounds
    overdue = [of_one.is_overdue({}, NOON + hours * HOUR) for hours in (1, 2, 3)]
    assert overdue == [False, False, True]
    assert of_one.days_left(NOON + DAY) == 28.0
    (done,) = one_of(SUBMITTED, WAITED, LOADED).rounds
    assert (done.is_overdue({}, NOON + 9 * DAY), done.days_left(NOON)) == (False, None)


def test_a_step_that_looks_at_the_batch_again_does_not_move_the_moment_it_was_noticed() -> None:
    again = entry(WAITED.receipt, "wait_again", NOON + 9 * HOUR)
    (of_one,) = one_of(SUBMITTED, WAITED, again).rounds
    assert of_one.noticed_at == NOON + 2 * HOUR


def test_the_newest_submission_comes_first() -> None:
    older = replace(receipt(part("b0")), submission="sub_20261119T1", submitted_at=NOON - DAY)
    names = [one.id for one in gather([entry(older, "submit", NOON), SUBMITTED])]
    assert names == [NAME, "sub_20261119T1"]


def test_a_batch_that_was_submitted_elsewhere_is_a_submission_of_its_own() -> None:
    elsewhere = Receipt("msgbatch_1", (part("msgbatch_1", ended=NOON + HOUR),), "d", "r")
    submission = one_of(entry(elsewhere, "wait", NOON + 2 * HOUR))
    assert (submission.id, submission.submitted_at) == ("msgbatch_1", NOON)
    assert submission.state({}, NOON + 2 * HOUR) is State.ENDED
