"""Notes: what a task instance remembers of its submission across tries."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt import Part, Receipt, as_json, replace

_KEY = "claude_batch"
_SHARDS_ON_A_PAGE = 200


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
    submission: Receipt
    shards: list[NotedShard]
    generation: int = 0

    @property
    def receipt(self) -> Receipt:
        """The submission with the batches that the API has accepted so far."""
        parts = tuple(Part(shard.id, shard.requests, shard.bytes, shard.mark) for shard in self.shards if shard.id)
        return replace(self.submission, batches=parts)

    @property
    def digests(self) -> list[str]:
        return [shard.digest for shard in self.shards]

    @property
    def is_complete(self) -> bool:
        return all(shard.id for shard in self.shards)


class _Cover(msgspec.Struct):
    """What stands under the note's own key; the shards follow under others, for one value holds 64 KiB at most."""

    clear_number: int
    submission: Receipt
    pages: int
    generation: int


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
        if self._store is None or value is None:
            return None
        cover = msgspec.convert(value, _Cover)
        pages = [self._store.get(_page_key(cover.submission, number)) for number in range(cover.pages)]
        if None in pages:
            raise Misconfigured(
                "The note of an earlier try has lost a page, so nothing was sent: what it paid is unknown."
            )
        shards = [shard for page in pages for shard in msgspec.convert(page, list[NotedShard])]
        return Note(cover.clear_number, cover.submission, shards, cover.generation)

    def write(self, note: Note) -> None:
        """Write everything down, the cover last: what a crash leaves half written is not found."""
        pages = -(-len(note.shards) // _SHARDS_ON_A_PAGE)
        for number in range(pages):
            self._write_page(note, number)
        self._set(_KEY, _Cover(note.clear_number, note.submission, pages, note.generation))

    def update(self, note: Note, index: int) -> None:
        """Write down what became of one shard."""
        self._write_page(note, index // _SHARDS_ON_A_PAGE)

    def _write_page(self, note: Note, number: int) -> None:
        begin = number * _SHARDS_ON_A_PAGE
        self._set(_page_key(note.submission, number), note.shards[begin : begin + _SHARDS_ON_A_PAGE])

    def _set(self, key: str, value: Any) -> None:
        if self._store is not None:
            self._store.set(key, as_json(value))


def _page_key(submission: Receipt, number: int) -> str:
    """Name a page by its attempt too: a retry round belongs to the submission of the first."""
    return f"{_KEY}_{submission.submission}_{submission.attempt}_{number}"
