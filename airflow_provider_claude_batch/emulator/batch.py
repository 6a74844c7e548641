"""One Message Batch: what it is at a given moment follows from the clock alone."""

import sqlite3

from msgspec import Struct

from airflow_provider_claude_batch.emulator.clock import moment
from airflow_provider_claude_batch.emulator.settings import ARCHIVED_AFTER, DAY

RESULT_TYPES = ("succeeded", "errored", "canceled", "expired")


class Batch(Struct, frozen=True):
    """A row of the batches table; its counts are those of its end, which is known from the start."""

    number: int
    id: str
    workspace: str
    ordinal: int
    created_at: float
    duration: float
    ends_at: float
    cancel_initiated_at: float | None
    requests: int
    cutoff: int
    leftover: str
    succeeded: int
    errored: int
    canceled: int
    expired: int

    @classmethod
    def of(cls, row: sqlite3.Row) -> "Batch":
        return cls(*(row[name] for name in cls.__struct_fields__))

    def status(self, now: float) -> str:
        if now >= self.ends_at:
            return "ended"
        return "in_progress" if self.cancel_initiated_at is None else "canceling"

    def has_results(self, now: float) -> bool:
        return self.ends_at <= now < self.created_at + ARCHIVED_AFTER

    def finished(self, now: float) -> int:
        """Count the requests worked off by now, at the even pace of the batch."""
        if now - self.created_at >= self.duration:
            return self.requests
        return max(0, int(self.requests * (now - self.created_at) / self.duration))

    def counts(self, now: float, *, live: bool) -> dict[str, int]:
        """Say the counts: everything is processing until the end, unless they are to move."""
        final = {name: int(getattr(self, name)) for name in RESULT_TYPES}
        if now < self.ends_at:
            share = (now - self.created_at) / (self.ends_at - self.created_at) if live else 0.0
            final = {name: int(count * max(0.0, share)) for name, count in final.items()}
        return {"processing": self.requests - sum(final.values()), **final}

    def as_json(self, now: float, base_url: str, *, live: bool) -> dict[str, object]:
        """Write the object in the key order of the wire."""
        ended, archived_at = now >= self.ends_at, self.created_at + ARCHIVED_AFTER
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": self.status(now),
            "request_counts": self.counts(now, live=live),
            "ended_at": moment(self.ends_at) if ended else None,
            "created_at": moment(self.created_at),
            "expires_at": moment(self.created_at + DAY),
            "archived_at": moment(archived_at) if now >= archived_at else None,
            "cancel_initiated_at": None if self.cancel_initiated_at is None else moment(self.cancel_initiated_at),
            "results_url": f"{base_url}/v1/messages/batches/{self.id}/results" if ended else None,
        }
