from typing import Any

import pytest

from airflow_provider_claude_batch.receipt import Abandoned, ModelTotal, Part, Receipt, replace
from airflow_provider_claude_batch.retry import Retry
from airflow_provider_claude_batch.rounds import add_up, not_loaded
from airflow_provider_claude_batch.spending import told

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


def test_of_a_round_that_is_loaded_in_part_only_that_part_counts() -> None:
    failed = loaded(counts={"succeeded": 6, "errored": 4}, retryable_by={"errored": 4})
    total = add_up([[failed], [loaded(attempt=2, counts={"succeeded": 2})]])
    assert (total.counts, total.problems, total.retryable) == ({"succeeded": 8, "errored": 2}, {}, 2)


def test_what_was_left_out_of_a_round_counts_as_it_ended() -> None:
    by = {"canceled": 4, "errored": 2, "truncated": 1}
    first = loaded(counts={"succeeded": 3, "canceled": 4, "errored": 2}, retryable_by=by)
    first = replace(first, problems={"truncated": 1}, canceled_at_deadline=True)
    total = add_up([[first], [loaded(attempt=2, counts={"succeeded": 3}, left_out=4)]])
    assert (total.counts, total.problems) == ({"succeeded": 5, "canceled": 4}, {})
    assert (total.retryable_by, total.canceled_at_deadline, total.left_out) == ({"canceled": 4}, True, None)


def test_what_is_paid_and_not_loaded_is_missing_in_the_first_round_and_as_it_ended_in_the_next() -> None:
    first, again = loaded(**FAILED), loaded(attempt=2, counts={"succeeded": 1})
    late = Part("msgbatch_late", 2, first=3)
    whole = replace(first, batches=(*first.batches, late), requests=5, estimate_usd=7.0, retryable=None)
    (rest,) = not_loaded([whole], [first], is_first=True)
    (rest_again,) = not_loaded([again], [], is_first=False)
    total = add_up([[first, rest], [rest_again]])
    assert (total.requests, total.counts) == (5, {"succeeded": 2, "errored": 1, "missing": 2})
    assert total.not_loaded == ("msgbatch_late", *again.batch_ids)
    assert not_loaded([whole], [whole], is_first=True) == []


def test_problems_of_before_are_forgotten_when_they_were_mended() -> None:
    problems = {"invalid_output": 2, "truncated": 1}
    unfit = replace(loaded(retryable_by=problems), problems=problems)
    total = add_up([[unfit], [loaded(attempt=2, counts={"succeeded": 2})]])
    assert (total.counts, total.problems) == ({"succeeded": 3}, {"truncated": 1})
    assert total.retryable_by == {"truncated": 1}


def test_what_was_paid_beside_the_answers_is_added_up_once() -> None:
    unknown, known = Abandoned("msgbatch_x", 9), Abandoned("msgbatch_x", 9, cost_usd=0.5)
    first = [
        loaded(**FAILED, map_index=0, preflight_usd=0.25, preflight_unpriced=1, abandoned=(unknown,)),
        loaded(**FAILED, map_index=1, preflight_usd=0.5, abandoned=(known, Abandoned(requests=9))),
    ]
    total = add_up([first, [loaded(attempt=2, abandoned=(Abandoned("msgbatch_y", 1, cost_usd=0.125),))]])
    assert (total.preflight_usd, total.preflight_unpriced) == (0.75, 1)
    assert total.abandoned == (known, Abandoned(requests=9), Abandoned("msgbatch_y", 1, cost_usd=0.125))
    assert told(total).endswith("plus at least $0.75 for live preflight; plus at least $0.62 for 3 abandoned batches")


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


def test_what_each_model_cost_is_added_up_over_rounds() -> None:
    once = {"a": ModelTotal(rows=2, input_tokens=5, cost_usd=0.1, live_cost_usd=0.2)}
    again = {"b": ModelTotal(rows=9, output_tokens=1), "a": ModelTotal(rows=1, input_tokens=1, cost_usd=0.2)}
    total = add_up([[loaded(by_model=once, **FAILED)], [loaded(attempt=2, counts={"succeeded": 1}, by_model=again)]])
    assert total.by_model == {
        "b": ModelTotal(rows=9, output_tokens=1),
        "a": ModelTotal(rows=3, input_tokens=6, cost_usd=0.3, live_cost_usd=0.2),
    }


@pytest.mark.parametrize(
    ("costs", "unpriced", "expected"),
    [
        ([1.0, 2.0], [0, 0], (3.0, 0)),
        ([1.0, None], [0, 3], (1.0, 3)),
        ([None, None], [2, 1], (None, 3)),
        ([None, 0.0], [2, 0], (None, 2)),
        ([0.0, 0.0], [0, 0], (0.0, 0)),
        ([1.0, 2.0], [None, None], (3.0, 0)),
    ],
)
def test_what_has_no_price_is_counted_over_rounds(costs: Any, unpriced: Any, expected: Any) -> None:
    rounds = [
        [replace(loaded(attempt=n + 1, **FAILED), cost_usd=cost, live_cost_usd=cost, saved_usd=cost, unpriced=count)]
        for n, (cost, count) in enumerate(zip(costs, unpriced, strict=True))
    ]
    total = add_up(rounds)
    assert (total.cost_usd, total.unpriced) == expected
    assert total.cost_usd == total.live_cost_usd == total.saved_usd


def test_models_beyond_twenty_are_one_over_rounds_too() -> None:
    first = {f"model-{n:02}": ModelTotal(rows=100 - n, cost_usd=1.0) for n in range(20)} | {
        "other": ModelTotal(rows=999)
    }
    then = {"newest": ModelTotal(rows=85, cost_usd=2.0)}
    total = add_up([[loaded(by_model=first, map_index=0), loaded(by_model=then, map_index=1)]])
    assert total.by_model is not None
    assert len(total.by_model) == 21
    assert total.by_model["newest"] == then["newest"]
    assert list(total.by_model)[-1] == "other"
    assert total.by_model["other"] == ModelTotal(rows=999 + 81, cost_usd=1.0)


def test_the_commonest_errors_of_all_rounds_keep_examples() -> None:
    first = loaded(errors=(("busy", 3), ("odd", 1)), error_examples={"busy": ("a", "b"), "odd": ("c",)}, **FAILED)
    again = loaded(attempt=2, errors=(("busy", 4),), error_examples={"busy": ("b", "d", "e")})
    total = add_up([[first], [again]])
    assert total.errors == (("busy", 7), ("odd", 1))
    assert total.error_examples == {"busy": ("a", "b", "d"), "odd": ("c",)}


def test_errors_of_two_loads_that_are_alike_are_counted_as_one() -> None:
    one = loaded(map_index=0, errors=(("Request req_011CSHoEe1 failed", 1),))
    other = loaded(map_index=1, errors=(("Request … failed", 3),), error_examples={"Request … failed": ("a",)})
    total = add_up([[one, other]])
    assert total.errors == (("Request … failed", 4),)
    assert total.error_examples == {"Request … failed": ("a",)}


def test_receipts_of_an_older_version_name_no_models() -> None:
    total = add_up([[loaded(errors=(("busy", 3),))]])
    assert total.by_model is None
    assert total.error_examples == {"busy": ()}
