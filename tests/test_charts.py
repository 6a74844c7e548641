"""What the charts add up, with numbers."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from test_submission import NOON, entry, loaded, part, receipt

from airflow_provider_claude_batch.charts import Charts, draw
from airflow_provider_claude_batch.receipt import ModelTotal, replace
from airflow_provider_claude_batch.submission import gather

DAY = timedelta(days=1)


def cost(rows: int, dollars: float | None) -> ModelTotal:
    return ModelTotal(rows=rows, cost_usd=dollars, live_cost_usd=None if dollars is None else 2 * dollars)


def submission(name: str, at: datetime, seconds: float, **by_model: ModelTotal) -> Any:
    ended = replace(part(f"b_{name}", ended=at + timedelta(seconds=seconds)), created_at=at)
    of_load = replace(loaded(ended, by_model=by_model), submission=name, submitted_at=at)
    return entry(of_load, "load", at + DAY)


def drawn(*entries: Any) -> Charts:
    return draw(gather(entries), {}, date(2026, 11, 1), date(2026, 11, 30))


def test_spend_and_saving_are_summed_by_day_and_model() -> None:
    charts = drawn(
        submission("s1", NOON, 60, haiku=cost(5, 0.25), sonnet=cost(5, 3.0)),
        submission("s2", NOON, 60, haiku=cost(10, 0.5)),
        submission("s3", NOON + DAY, 60, haiku=cost(10, 1.0)),
    )
    assert [(one.day.day, one.model, one.rows, one.cost_usd, one.saved_usd) for one in charts.spend] == [
        (20, "haiku", 15, 0.75, 0.75),
        (20, "sonnet", 5, 3.0, 3.0),
        (21, "haiku", 10, 1.0, 1.0),
    ]
    assert (charts.totals.cost_usd, charts.totals.live_cost_usd, charts.totals.saved_usd) == (4.75, 9.5, 4.75)
    assert (charts.totals.submissions, charts.totals.batches, charts.totals.requests) == (3, 3, 30)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.integers(0, 10**9)), max_size=30))
def test_no_cent_is_lost_between_the_bars_and_the_total(spent: list[tuple[int, str, int]]) -> None:
    entries = [
        submission(f"s{number}", NOON + day * DAY, 60, **{model: cost(1, micro / 10**6)})
        for number, (day, model, micro) in enumerate(spent)
    ]
    charts = drawn(*entries)
    assert round(sum(one.cost_usd for one in charts.spend), 6) == charts.totals.cost_usd
    assert charts.totals.cost_usd == round(sum(micro for _, _, micro in spent) / 10**6, 6)


def test_a_receipt_of_before_is_its_only_models_or_that_of_several() -> None:
    one = entry(loaded(part("b1", ended=NOON)), "load", NOON)
    two = entry(replace(loaded(part("b2", ended=NOON)), submission="s2", models=("a", "b")), "load", NOON)
    assert {(one.model, one.cost_usd) for one in drawn(one, two).spend} == {("haiku", 1.0), ("several models", 1.0)}


def test_a_retry_after_midnight_is_paid_on_its_own_day() -> None:
    failed = {"counts": {"succeeded": 7, "errored": 3}, "retryable": 3, "retryable_by": {"errored": 3}}
    first = entry(loaded(part("b1", ended=NOON), **failed), "load", NOON)
    again = replace(loaded(part("b2", 3, ended=NOON + DAY), attempt=2), submitted_at=NOON + DAY)
    submissions = gather([first, entry(again, "load_2", NOON + DAY)])
    days = [draw(submissions, {}, NOON.date() + n * DAY, NOON.date() + n * DAY) for n in (0, 1)]
    assert [(one.totals.cost_usd, one.totals.batches, one.totals.submissions) for one in days] == [(1, 1, 1), (1, 1, 0)]
    assert [len(one.outcomes) for one in days] == [1, 0]


def test_a_model_without_a_price_costs_nothing_that_is_known() -> None:
    one = submission("s1", NOON, 60, new_one=cost(5, None))
    charts = drawn(replace(one, receipt=replace(one.receipt, unpriced=5)))
    assert charts.totals.unpriced == 5
    (only,) = charts.spend
    assert (only.rows, only.cost_usd, only.saved_usd) == (5, 0.0, 0.0)


def test_outcomes_are_counted_on_the_day_of_the_submission() -> None:
    running = entry(replace(receipt(part("b9")), submission="s9", submitted_at=NOON + DAY), "submit", NOON)
    charts = drawn(submission("s1", NOON, 60), submission("s2", NOON, 60), running)
    assert [(one.day.day, dict(one.outcomes)) for one in charts.outcomes] == [
        (20, {"succeeded": 20}),
        (21, {"processing": 10}),
    ]


def test_a_day_is_one_of_utc() -> None:
    east = NOON.astimezone().replace(tzinfo=UTC).replace(hour=23, minute=59)
    assert [one.day.day for one in drawn(submission("s1", east, 60, haiku=cost(1, 1.0))).spend] == [east.day]


def test_times_are_counted_by_steps_up_to_the_longest() -> None:
    seconds = [0, 60, 61, 600, 100_000]
    charts = drawn(*(submission(f"s{n}", NOON, one) for n, one in enumerate(seconds)))
    bars = {one.upto_seconds: one.batches for one in charts.durations}
    assert (bars[60], bars[120], bars[300], bars[600], bars[None]) == (2, 1, 0, 1, 1)
    assert sum(bars.values()) == len(seconds)
    assert (charts.median_seconds, charts.p95_seconds) == (61, 80_120.0)


def test_without_anything_there_is_nothing_to_draw() -> None:
    charts = drawn()
    assert (charts.spend, charts.durations, charts.median_seconds, charts.p95_seconds) == ([], [], None, None)
