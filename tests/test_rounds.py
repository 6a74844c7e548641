from typing import Any

import pytest

from airflow_provider_claude_batch.receipt import Part, Receipt, replace
from airflow_provider_claude_batch.retry import Retry
from airflow_provider_claude_batch.rounds import add_up

OLD, NEW = "sub_20261121T010000000000_aaaaaaaa", "sub_20261121T020000000000_bbbbbbbb"


def loaded(submission: str = NEW, attempt: int = 1, map_index: int = -1, **fields: Any) -> Receipt:
    counts = fields.pop("counts", {"succeeded": 3})
    by = fields.pop("retryable_by", {})
    return Receipt(
        submission=submission,
        batches=(Part(f"msgbatch_{submission}_{attempt}_{map_index}", sum(counts.values())),),
        dag_id="d",
        run_id="r",
        submit_task="s",
        map_index=map_index,
        attempt=attempt,
        requests=sum(counts.values()),
        rows=sum(counts.values()),
        counts=counts,
        problems={},
        retryable=sum(by.values()),
        retryable_by=by,
        retry_ids=tuple(f"id-{n}" for n in range(sum(by.values()))),
        truncated_ids={},
        cost_usd=1.0,
        **fields,
    )


FAILED: dict[str, Any] = {"counts": {"succeeded": 2, "errored": 1}, "retryable_by": {"errored": 1}}


def test_what_was_sent_again_counts_as_it_ended() -> None:
    total = add_up([[loaded(**FAILED)], [loaded(attempt=2, counts={"succeeded": 1})]])
    assert (total.counts, total.requests, total.rows, total.retryable) == ({"succeeded": 3}, 3, 4, 0)
    assert (total.rounds, total.attempt, total.cost_usd, len(total.batches)) == (2, 2, 2.0, 2)


def test_problems_of_before_are_forgotten_when_they_were_mended() -> None:
    problems = {"invalid_output": 2, "truncated": 1}
    unfit = replace(loaded(retryable_by=problems), problems=problems)
    total = add_up([[unfit], [loaded(attempt=2, counts={"succeeded": 2})]])
    assert (total.counts, total.problems) == ({"succeeded": 3}, {"truncated": 1})
    assert total.retryable_by == {"truncated": 1}


def test_rounds_of_a_submission_that_was_replaced_are_left_out() -> None:
    """A run that is cleared keeps the XComs of rounds that are skipped now."""
    total = add_up([[loaded(NEW)], [loaded(OLD, attempt=2, counts={"succeeded": 1})]])
    assert (total.counts, total.requests, total.rounds, total.cost_usd) == ({"succeeded": 3}, 3, 1, 1.0)


def test_rounds_after_one_in_which_nothing_is_left_to_retry_are_left_out() -> None:
    total = add_up([[loaded(NEW)], [loaded(NEW, attempt=2, counts={"succeeded": 1})]])
    assert (total.counts, total.rounds) == ({"succeeded": 3}, 1)


def test_batches_of_a_submission_that_was_replaced_are_left_out() -> None:
    """Mapped tasks that a cleared run has no more keep their XComs, too."""
    total = add_up([[loaded(NEW, **FAILED), loaded(OLD), loaded(OLD)]])
    assert (total.requests, len(total.batches), total.submission) == (3, 1, NEW)


def test_mapped_submissions_are_added_up() -> None:
    total = add_up([[loaded(OLD, map_index=0), loaded(NEW, map_index=1)]])
    assert (total.counts, total.requests) == ({"succeeded": 6}, 6)


def test_a_retry_is_of_the_newest_submission() -> None:
    retry = Retry.of([loaded(NEW, **FAILED), loaded(OLD, **FAILED)], lambda _: pytest.fail("nothing is read back"))
    assert retry is not None
    assert (retry.lineage.submission, retry.lineage.attempt) == (NEW, 2)
