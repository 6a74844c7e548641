"""Listings: submissions as the browser takes them, by filters and pages."""

from collections import Counter
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

import msgspec

from airflow_provider_claude_batch import spending
from airflow_provider_claude_batch.charts import day_of
from airflow_provider_claude_batch.entry import Step, step_of
from airflow_provider_claude_batch.rounds import add_up
from airflow_provider_claude_batch.submission import Looks, Round, Shard, State, Submission

_OF_THE_FIRST = (
    "submit_task",
    "map_index",
    "requests",
    "reused",
    "skipped",
    "unsent",
    "submitted_at",
    "estimate_usd",
    "preflight_usd",
    "preflight_unpriced",
)
_RUNNING = {State.IN_PROGRESS, State.CANCELING}


class Filter(msgspec.Struct, frozen=True):
    """Which submissions somebody wants to see."""

    dag_id: str | None = None
    run_id: str | None = None
    state: State | None = None
    model: str | None = None
    since: date | None = None
    until: date | None = None

    def holds(self, submission: Submission) -> bool:
        """Say whether everything but the state is as wanted."""
        if not any(self.is_in(dag_id, run_id) for dag_id, run_id in submission.places):
            return False
        if self.model is not None and self.model not in submission.models:
            return False
        day = day_of(submission.submitted_at)
        return (self.since is None or day >= self.since) and (self.until is None or day <= self.until)

    def is_in(self, dag_id: str, run_id: str) -> bool:
        """Say whether somebody wants to see this run."""
        return self.dag_id in {None, dag_id} and self.run_id in {None, run_id}


class Listing:
    """What one person asked for, at one moment."""

    def __init__(self, submissions: Iterable[Submission], wanted: Filter, looks: Looks, now: datetime) -> None:
        self._all = [one for one in submissions if wanted.holds(one)]
        self._states = {one.id: one.state(looks, now) for one in self._all}
        self._wanted, self._looks, self._now = wanted, looks, now

    @property
    def found(self) -> list[Submission]:
        if self._wanted.state is None:
            return self._all
        return [one for one in self._all if self._states[one.id] is self._wanted.state]

    def page(self, offset: int, limit: int) -> dict[str, Any]:
        """Write one page as JSON."""
        found, states = self.found, Counter(self._states.values())
        return {
            "total": len(found),
            "limit": limit,
            "offset": offset,
            "states": {state: states[state] for state in State},
            "never_loaded": sum(map(self._is_overdue, self._all)),
            "submissions": [self.show(one) for one in found[offset : offset + limit]],
        }

    def _is_overdue(self, submission: Submission) -> bool:
        has_ended = self._states[submission.id] is State.ENDED
        return has_ended and any(one.is_overdue(self._looks, self._now) for one in submission.rounds)

    def show(self, submission: Submission, *, whole: bool = False) -> dict[str, Any]:
        """Write a submission as JSON."""
        every, total = submission.rounds, submission.total
        shown = [show_round(one, self._looks, self._now, whole=whole) for one in every]
        state = submission.state(self._looks, self._now)
        first = submission.first
        return {
            **{name: shown[0][name] for name in _OF_THE_FIRST},
            "abandoned": _abandoned(every),
            "id": submission.id,
            "dag_id": first.first.dag_id,
            "run_id": first.first.run_id,
            "conn_id": first.receipt.conn_id,
            "state": state,
            "models": submission.models,
            "shards": {key: sum(one["shards"][key] for one in shown) for key in ("ended", "total")},
            "ended_at": None if state in _RUNNING else shown[-1]["ended_at"],
            "expires_at": shown[-1]["expires_at"],
            "loaded_at": shown[-1]["loaded_at"] if state is State.LOADED else None,
            "outcomes": submission.outcomes(self._looks),
            **_money(total),
            "days_left": min((one["days_left"] for one in shown if one["days_left"] is not None), default=None),
            "overdue": self._is_overdue(submission),
            "rounds": shown,
        }


def show_round(one: Round, looks: Looks, now: datetime, *, whole: bool = False) -> dict[str, Any]:
    """Write a round as JSON."""
    receipt, state = one.receipt, one.state(looks, now)
    ends = [shard.seen(looks).ended_at for shard in one.shards]
    ended = [shard.state(looks, now) is State.ENDED for shard in one.shards]
    shown = {
        "attempt": receipt.attempt,
        "submit_task": one.first.task_id,
        "map_index": one.first.map_index,
        "state": state,
        "models": receipt.models,
        "requests": one.requests,
        "reused": receipt.reused or 0,
        "skipped": sum(map(len, (receipt.invalid or {}).values())),
        "unsent": one.unsent,
        "shards": {"ended": sum(ended), "total": len(ended)},
        "submitted_at": one.submitted_at,
        "ended_at": max((end for end in ends if end), default=None) if all(ended) else None,
        "expires_at": max((shard.expires_at for shard in one.shards if shard.expires_at), default=None),
        "noticed_at": one.noticed_at,
        "loaded_at": one.loaded_at,
        "outcomes": one.outcomes(looks),
        **_money(add_up([one.loaded]) if one.loaded else None),
        "estimate_usd": receipt.estimate_usd,
        "preflight_usd": receipt.preflight_usd,
        "preflight_unpriced": receipt.preflight_unpriced or 0,
        "abandoned": _abandoned([one]),
        "days_left": one.days_left(now) if state is State.ENDED else None,
        "overdue": one.is_overdue(looks, now),
        "tasks": _tasks(one),
    }
    return {**shown, **_details(one, looks, now)} if whole else shown


def _money(loaded: Any) -> dict[str, Any]:
    names = ("cost_usd", "live_cost_usd", "saved_usd", "unpriced", "cache_hit_rate")
    return {name: getattr(loaded, name, None) for name in names}


def _abandoned(rounds: Iterable[Round]) -> dict[str, Any]:
    """Sum up the batches that were abandoned for this submission; loads know what they cost."""
    found = spending.abandoned(next((load for load in one.loaded if load.abandoned), one.receipt) for one in rounds)
    usd, unpriced = spending.of_abandoned(found)
    return {"batches": len(found), "usd": usd, "unpriced": unpriced}


def _tasks(one: Round) -> list[dict[str, Any]]:
    """Name the tasks that left receipts, of those that are mapped the last one of each."""
    newest = {(step_of(entry), entry.task_id): entry for entry in one.entries}
    order = list(Step)
    return [
        {"step": step, "task_id": task_id, "map_index": entry.map_index, "at": entry.at}
        for (step, task_id), entry in sorted(newest.items(), key=lambda item: (order.index(item[0][0]), item[1].at))
    ]


def _details(one: Round, looks: Looks, now: datetime) -> dict[str, Any]:
    loaded = add_up([one.loaded]) if one.loaded else None
    examples = (loaded.error_examples if loaded else None) or {}
    tables = {(receipt.table, receipt.warehouse_conn_id) for receipt in one.loaded if receipt.table}
    models = (loaded.by_model if loaded else None) or {}
    return {
        "batches": [_show_shard(shard, looks, now) for shard in one.shards],
        "errors": [
            {"error": error, "count": count, "examples": examples.get(error, ())}
            for error, count in (loaded.errors if loaded else None) or ()
        ],
        "by_model": [{"model": name, **msgspec.to_builtins(used)} for name, used in models.items()],
        "tables": [{"table": table, "warehouse_conn_id": conn_id} for table, conn_id in sorted(tables, key=str)],
        "invalid": one.receipt.invalid or {},
    }


def _show_shard(shard: Shard, looks: Looks, now: datetime) -> dict[str, Any]:
    part = shard.seen(looks)
    return {
        "id": part.id,
        "requests": part.total,
        "bytes": part.bytes,
        "state": shard.state(looks, now),
        "counts": part.counts,
        "created_at": part.created_at,
        "ended_at": part.ended_at,
        "expires_at": shard.expires_at,
        "noticed_at": shard.noticed_at,
        "loaded_at": shard.loaded_at,
    }
