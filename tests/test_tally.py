import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loads import row

from airflow_provider_claude_batch.receipt import INLINE_IDS, ModelTotal, Receipt, UsageTotal
from airflow_provider_claude_batch.spending import told
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
    assert (tally.spent.unpriced, tally.spent.cost_usd) == (1, 0)
    assert tally.fill(Receipt("s")).usage.input_tokens == 5


def test_without_a_single_price_the_cost_is_not_known():
    receipt = filled([answer("a", cost=None), answer("a", cost=None), row(status="expired")])
    assert (receipt.cost_usd, receipt.live_cost_usd, receipt.saved_usd, receipt.unpriced) == (None, None, None, 2)
    assert told(receipt) == "not known"


def test_with_some_prices_the_cost_is_what_is_known_at_least():
    tally = tally_of([answer("b", cost=None), answer("a", cost="0.02"), answer("b", cost=None)])
    receipt = tally.fill(Receipt("s"))
    assert (receipt.cost_usd, receipt.live_cost_usd, receipt.saved_usd, receipt.unpriced) == (0.02, 0.04, 0.02, 2)
    assert told(receipt) == "at least $0.02; live it would have been at least $0.04: at least $0.02 saved"
    assert tally.unpriced_models == ["b"]


def test_what_has_no_answer_costs_nothing_and_that_is_known():
    receipt = filled([row(status="expired")])
    assert (receipt.cost_usd, receipt.saved_usd, receipt.unpriced) == (0.0, 0.0, 0)
    assert told(receipt) == "$0.00; live it would have been $0.00: $0.00 saved"


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


def test_each_error_that_is_named_has_three_requests_that_had_it():
    receipt = filled(failed(f"{n}-{i}", error_message=f"why {n}") for n in range(7) for i in range(n + 1))
    assert tuple(receipt.error_examples) == tuple(error for error, _ in receipt.errors)
    assert receipt.error_examples["overloaded_error: why 6"] == ("6-0", "6-1", "6-2")
    assert receipt.error_examples["overloaded_error: why 2"] == ("2-0", "2-1", "2-2")
    assert filled([row()]).error_examples == {}


def test_errors_that_are_alike_share_their_examples():
    receipt = filled(failed(str(n), error_message=f"Request req_011CSHoEe{n} failed") for n in range(20_000, 20_005))
    assert receipt.error_examples == {"overloaded_error: Request … failed": ("20000", "20001", "20002")}


def test_a_request_is_an_example_once_and_one_without_a_name_is_none():
    assert filled([failed("a"), failed(None), failed("a")]).error_examples == {"overloaded_error: busy": ("a",)}


def test_examples_of_the_commonest_error_survive_however_many_others_differ():
    errors = (f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyzabcdefghijklmno")
    rows = (failed(str(n), error_message="busy" if n % 3 == 0 else error) for n, error in enumerate(errors))
    assert filled(rows).error_examples["overloaded_error: busy"] == ("0", "3", "6")


def answer(model, n=1, cost="0.000001", **fields):
    money = {"cost_usd": cost and Decimal(cost), "live_cost_usd": cost and 2 * Decimal(cost)}
    return row(model=model, input_tokens=n, **money, **fields)


def test_what_each_model_used_and_cost_is_told_apart():
    receipt = filled([answer("a", 10), answer("b", 5, output_tokens=7), answer("a", 1), row(status="expired")])
    assert receipt.by_model == {
        "a": ModelTotal(rows=2, input_tokens=11, cost_usd=2e-06, live_cost_usd=4e-06),
        "b": ModelTotal(rows=1, input_tokens=5, output_tokens=7, cost_usd=1e-06, live_cost_usd=2e-06),
    }
    assert filled([row(status="expired")]).by_model == {}


def test_a_model_without_a_price_has_no_cost_and_one_with_some_has_that():
    by_model = filled([answer("a", cost=None), answer("b", cost=None), answer("b")]).by_model
    assert (by_model["a"].cost_usd, by_model["a"].live_cost_usd, by_model["a"].input_tokens) == (None, None, 1)
    assert (by_model["b"].cost_usd, by_model["b"].live_cost_usd, by_model["b"].rows) == (1e-06, 2e-06, 2)


def test_the_models_with_fewest_rows_are_one():
    names = [f"claude-{n:02}" for n in range(25)]
    receipt = filled(answer(name) for n, name in enumerate(names) for _ in range(n + 1))
    assert list(receipt.by_model) == [*reversed(names[5:]), "other"]
    assert receipt.by_model["other"] == ModelTotal(rows=15, input_tokens=15, cost_usd=1.5e-05, live_cost_usd=3e-05)


rows_of_models = st.lists(
    st.builds(
        answer,
        st.sampled_from([f"claude-{n}" for n in range(24)]) | st.just("other"),
        st.integers(0, 10**6),
        st.none() | st.decimals(0, 100, places=12),
        output_tokens=st.integers(0, 10**6),
        cache_read_tokens=st.none() | st.integers(0, 10**6),
    ),
    max_size=60,
)


@settings(max_examples=75, deadline=None)
@given(rows_of_models)
def test_the_models_add_up_to_the_receipt(rows):
    """Rows and tokens exactly; dollars are rounded for each model, and so off by half a millionth for each."""
    receipt = filled(rows)
    totals = receipt.by_model.values()
    assert sum(total.rows for total in totals) == receipt.rows == len(rows)
    for name in UsageTotal.__struct_fields__:
        assert sum(getattr(total, name) for total in totals) == getattr(receipt.usage, name)
    for name in ("cost_usd", "live_cost_usd"):
        known = [cost for total in totals if (cost := getattr(total, name)) is not None]
        assert (getattr(receipt, name) is None) == (bool(rows) and not known)
        assert sum(known) == pytest.approx(getattr(receipt, name) or 0.0, rel=0, abs=26 * 0.5e-06)


def test_a_receipt_stays_a_few_kilobytes_whatever_was_answered():
    long = "x" * 5_000
    models = [answer(f"claude-of-a-long-name-{n:040}", 10**9, output_tokens=10**9) for n in range(100)]
    errors = [failed(f"{n:064}", error_message=chr(97 + n % 26) + long, retryable=False) for n in range(1_000)]
    assert len(json.dumps(filled([*models, *errors]).to_dict())) < 12_000


def test_a_tally_that_is_told_twice_says_the_same():
    tally = tally_of([answer("a"), *(failed(str(n), error_message=f"{n} tokens") for n in range(20_000, 20_009))])
    assert tally.fill(Receipt("s")) == tally.fill(Receipt("s"))
