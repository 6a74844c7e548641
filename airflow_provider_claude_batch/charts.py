"""Charts: what submissions cost and saved by day and model, how their requests ended, and how long batches ran."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime
from statistics import median, quantiles

import msgspec

from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.submission import Looks, Round, Submission

_STEPS = (60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 14_400, 28_800, 57_600, 86_400)
_DIGITS = 6
_SEVERAL = "several models"


class Spend(msgspec.Struct):
    """What the answers of one model cost that were submitted on one day."""

    day: date
    model: str
    rows: int = 0
    cost_usd: float = 0.0
    live_cost_usd: float = 0.0
    saved_usd: float = 0.0

    def add(self, rows: int, cost: float | None, live: float | None) -> None:
        self.rows += rows
        self.cost_usd = round(self.cost_usd + (cost or 0.0), _DIGITS)
        self.live_cost_usd = round(self.live_cost_usd + (live or 0.0), _DIGITS)
        self.saved_usd = round(self.live_cost_usd - self.cost_usd, _DIGITS)


class Outcomes(msgspec.Struct):
    """How the requests stand that were submitted on one day."""

    day: date
    outcomes: Counter[str]


class Duration(msgspec.Struct):
    """How many batches ran no longer than so many seconds, and longer than the step before."""

    upto_seconds: int | None
    batches: int = 0


class Totals(msgspec.Struct):
    """The sums over all days."""

    submissions: int = 0
    batches: int = 0
    requests: int = 0
    cost_usd: float = 0.0
    live_cost_usd: float = 0.0
    saved_usd: float = 0.0
    unpriced: int = 0


class Charts(msgspec.Struct):
    """Everything that is drawn."""

    since: date
    until: date
    spend: list[Spend]
    outcomes: list[Outcomes]
    durations: list[Duration]
    median_seconds: float | None
    p95_seconds: float | None
    totals: Totals


def draw(submissions: Iterable[Submission], looks: Looks, since: date, until: date) -> Charts:
    """Add everything up by days in UTC: money and batches on the day of their round, requests on that of the first."""
    spend: dict[tuple[date, str], Spend] = {}
    outcomes: dict[date, Counter[str]] = {}
    seconds: list[float] = []
    totals = Totals()
    for submission in submissions:
        if since <= (day := day_of(submission.submitted_at)) <= until:
            totals.submissions += 1
            totals.requests += submission.first.requests
            outcomes.setdefault(day, Counter()).update(submission.outcomes(looks))
        for one in submission.rounds:
            if since <= (day := day_of(one.submitted_at)) <= until:
                totals.batches += len(one.shards)
                totals.unpriced += sum(receipt.unpriced or 0 for receipt in one.loaded)
                _spend(one, day, spend)
                seconds += _durations(one, looks)
    _add_up(totals, spend.values())
    return Charts(
        since=since,
        until=until,
        spend=[spend[key] for key in sorted(spend)],
        outcomes=[Outcomes(day, outcomes[day]) for day in sorted(outcomes)],
        durations=_histogram(seconds),
        median_seconds=median(seconds) if seconds else None,
        p95_seconds=quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else None,
        totals=totals,
    )


def day_of(moment: datetime) -> date:
    """Return the day in UTC."""
    return moment.astimezone(UTC).date()


def _spend(one: Round, day: date, spend: dict[tuple[date, str], Spend]) -> None:
    for receipt in one.loaded:
        for model, rows, cost, live in _by_model(receipt):
            spend.setdefault((day, model), Spend(day, model)).add(rows, cost, live)


def _by_model(receipt: Receipt) -> list[tuple[str, int, float | None, float | None]]:
    if receipt.by_model is not None:
        return [(model, one.rows, one.cost_usd, one.live_cost_usd) for model, one in receipt.by_model.items()]
    if receipt.cost_usd is None:
        return []
    name = receipt.models[0] if len(receipt.models) == 1 else _SEVERAL
    return [(name, (receipt.counts or {}).get("succeeded", 0), receipt.cost_usd, receipt.live_cost_usd)]


def _durations(one: Round, looks: Looks) -> list[float]:
    parts = [shard.seen(looks) for shard in one.shards]
    return [(part.ended_at - part.created_at).total_seconds() for part in parts if part.ended_at and part.created_at]


def _histogram(seconds: list[float]) -> list[Duration]:
    """Count by steps, up to the longest that is needed."""
    if not seconds:
        return []
    steps: list[int | None] = [*_STEPS, None]
    bars = [Duration(step) for step in steps]
    for one in seconds:
        next(bar for bar in bars if bar.upto_seconds is None or one <= bar.upto_seconds).batches += 1
    last = max(index for index, bar in enumerate(bars) if bar.batches)
    return bars[: last + 1]


def _add_up(totals: Totals, spend: Iterable[Spend]) -> None:
    for one in spend:
        totals.cost_usd = round(totals.cost_usd + one.cost_usd, _DIGITS)
        totals.live_cost_usd = round(totals.live_cost_usd + one.live_cost_usd, _DIGITS)
    totals.saved_usd = round(totals.live_cost_usd - totals.cost_usd, _DIGITS)
