"""Notes: what a task instance remembers of its submission across tries."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec

from airflow_provider_claude_batch.receipt import Receipt, as_json

_KEY = "claude_batch"


class Store(Protocol):
    """The part of Airflow's task_state_store that a note needs."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...


class NotedShard(msgspec.Struct, omit_defaults=True):
    """One shard: what it holds, when it was sent, and the id that the API gave it."""

    mark: str
    digest: str
    requests: int
    bytes: int
    sent_at: datetime | None = None
    id: str | None = None

    @property
    def in_doubt(self) -> bool:
        """Sent, and nobody knows whether it arrived."""
        return self.sent_at is not None and self.id is None


class Note(msgspec.Struct, omit_defaults=True):
    """One submission: written before the first byte is sent, and after every answer."""

    clear_number: int
    receipt: Receipt
    shards: list[NotedShard]
    generation: int = 0

    @property
    def digests(self) -> list[str]:
        return [shard.digest for shard in self.shards]

    @property
    def is_complete(self) -> bool:
        return all(shard.id for shard in self.shards)


class Notebook:
    """Keep the note of one task instance; without a store (Airflow before 3.3) nothing is remembered."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> "Notebook":
        """Find the store of the task that runs."""
        return cls(context.get("task_state_store"))

    def read(self) -> Note | None:
        """Return what an earlier try wrote down."""
        value = None if self._store is None else self._store.get(_KEY)
        return None if value is None else msgspec.convert(value, Note)

    def write(self, note: Note) -> None:
        """Write down where the submission stands."""
        if self._store is not None:
            self._store.set(_KEY, as_json(note))
