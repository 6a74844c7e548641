"""Metrics: what Airflow's own metrics say of waiting, where they are switched on."""

from collections.abc import Collection
from datetime import datetime

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.watch import Look

_MILLISECONDS = 1000.0


def count_waiting(conn_id: str, waiting: int) -> None:
    """Tell how many batches a triggerer waits for."""
    Stats.gauge("claude_batch.waiting_batches", waiting, tags={"conn_id": conn_id})


def count_poll(conn_id: str, *, calls: int, looks: Collection[Look]) -> None:
    """Tell what asking for batches took."""
    tags, errors = {"conn_id": conn_id}, sum(not isinstance(look, Batch) for look in looks)
    Stats.incr("claude_batch.polls", calls, tags=tags)
    if errors:
        Stats.incr("claude_batch.poll_errors", errors, tags=tags)


def time_batch(conn_id: str, batch: Batch, noticed_at: datetime) -> None:
    """Tell how long a batch ran, and how long after its end that was noticed."""
    if batch.ended_at is None:
        return
    tags = {"conn_id": conn_id}
    duration, delay = batch.ended_at - batch.created_at, noticed_at - batch.ended_at
    Stats.timing("claude_batch.batch_duration", duration.total_seconds() * _MILLISECONDS, tags=tags)
    Stats.timing("claude_batch.notice_delay", max(0.0, delay.total_seconds() * _MILLISECONDS), tags=tags)
