from decimal import Decimal

import pytest
from loads import row

from airflow_provider_claude_batch.receipt import INLINE_IDS, Receipt
from airflow_provider_claude_batch.tally import Tally


def tally_of(rows, missing=0):
    tally = Tally()
    list(tally.observe(rows))
    tally.miss(missing)
    return tally


def filled(rows, missing=0):
    return tally_of(rows, missing).fill(Receipt("s"))


def failed(custom_id, error_type="overloaded_error", **fields):
    fields = {"error_message": "busy", "retryable": True, **fields}
    return row(custom_id=custom_id, status="errored", error_type=error_type, **fields)


def test_rows_pass_through_unchanged_one_by_one():
    rows = [row(custom_id=str(n)) for n in range(3)]
    seen = Tally().observe(iter(rows))
    assert next(seen) is rows[0]
    assert list(seen) == rows[1:]


def test_every_outcome_is_counted_by_its_own_word():
    receipt = filled([row(), row(problem="truncated"), failed("c"), row(status="expired")], missing=2)
    assert receipt.rows == 4
    assert receipt.counts == {"succeeded": 2, "errored": 1, "expired": 1, "missing": 2}
    assert receipt.problems == {"truncated": 1}


def test_nothing_missing_is_not_mentioned():
    assert "missing" not in filled([row()]).counts


@pytest.mark.parametrize(
    ("rows", "missing", "failures", "rate"),
    [
        ([], 0, 0, 0.0),
        ([row()], 0, 0, 0.0),
        ([row(), row(problem="refused")], 0, 1, 0.5),
        ([row(), row(status="canceled"), row(status="unreadable", custom_id=None)], 1, 2, pytest.approx(2 / 3)),
        ([], 3, 3, 1.0),
    ],
)
def test_the_error_rate_is_the_share_without_a_usable_answer(rows, missing, failures, rate):
    tally = tally_of(rows, missing)
    assert (tally.failed, tally.error_rate) == (failures, rate)


def test_money_is_added_up_exactly_and_rounded_once():
    cent = Decimal("0.000000400000")
    receipt = filled([row(model="m", cost_usd=cent, live_cost_usd=2 * cent)] * 10)
    assert (receipt.cost_usd, receipt.live_cost_usd, receipt.saved_usd) == (4e-06, 8e-06, 4e-06)


def test_a_row_without_a_price_is_counted_and_adds_nothing():
    tally = tally_of([row(model="claude-nope", input_tokens=5), row(status="expired")])
    assert (tally.unpriced, tally.cost) == (1, 0)
    assert tally.fill(Receipt("s")).usage.input_tokens == 5


def test_the_hit_rate_is_the_share_of_the_prompts_that_was_read_from_the_cache():
    rows = [row(model="m", input_tokens=10, cache_write_5m_tokens=20, cache_write_1h_tokens=30, cache_read_tokens=40)]
    receipt = filled(rows * 2)
    assert receipt.cache_hit_rate == 0.4
    assert (receipt.usage.cache_read_tokens, receipt.usage.cache_write_1h_tokens) == (80, 60)
    assert filled([row(status="expired")]).cache_hit_rate is None


def test_ids_to_retry_stand_in_the_receipt_and_truncated_ones_with_what_they_used():
    rows = [failed("a"), row(custom_id="b", problem="truncated", retryable=True, output_tokens=64), row(custom_id="c")]
    receipt = filled(rows)
    assert (receipt.retryable, receipt.retry_ids, receipt.truncated_ids) == (2, ("a",), {"b": 64})


def test_beyond_what_is_small_ids_are_counted_and_not_listed():
    receipt = filled(failed(str(n)) for n in range(INLINE_IDS + 1))
    assert receipt.retryable == INLINE_IDS + 1
    assert len(receipt.retry_ids) == INLINE_IDS


def test_the_five_commonest_errors_are_named_with_their_counts():
    receipt = filled(failed(f"{n}-{i}", error_message=f"why {n}") for n in range(7) for i in range(n + 1))
    assert receipt.errors == tuple((f"overloaded_error: why {n}", n + 1) for n in (6, 5, 4, 3, 2))


def test_a_long_error_is_cut_in_the_receipt():
    ((error, _),) = filled([failed("a", error_message="x" * 5_000)]).errors
    assert len(error) == 200


@pytest.mark.parametrize(
    ("message", "alike"),
    [
        ("prompt is too long: {n} tokens > 200000 maximum", "prompt is too long: … tokens > … maximum"),
        ("Request req_011CSHoEe{n} failed", "Request … failed"),
        ("no file 0f3a7c2e-1111-4a2b-9c3d-0000000{n}", "no file …"),
    ],
)
def test_errors_that_differ_in_numbers_and_ids_are_counted_as_one(message, alike):
    receipt = filled(failed(str(n), error_message=message.format(n=n)) for n in range(20_000, 20_003))
    assert receipt.errors == ((f"overloaded_error: {alike}", 3),)


def test_an_error_that_is_always_the_same_keeps_its_numbers():
    said = "model: claude-haiku-4-5-20251001"
    assert filled([failed("a", error_message=said)] * 3).errors == ((f"overloaded_error: {said}", 3),)


def test_however_many_errors_differ_few_are_held_and_the_commonest_is_found():
    words = (
        f"{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]}{'uvwxyzabcd'[n // 100 % 10]}{n // 1000}"
        for n in range(9_000)
    )
    rows = (failed(str(n), error_message="busy" if n % 9 == 0 else word) for n, word in enumerate(words))
    tally = tally_of(rows)
    assert len(tally.errors) <= 1_000
    assert tally.fill(Receipt("s")).errors[0] == ("overloaded_error: busy", 1_000)
