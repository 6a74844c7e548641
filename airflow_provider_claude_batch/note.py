"""Notes: what a task instance remembers of its submission across tries."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from airflow_provider_claude_batch.errors import Misconfigured, TakenOver
from airflow_provider_claude_batch.receipt import Part, Receipt, as_json, replace

KEY = "claude_batch"
FORGET = f"{KEY}_forget"
_CLAIM = f"{KEY}_claim"
_SETTLED = f"{KEY}_settled"
_SHARDS_ON_A_PAGE = 50


Clear = tuple[int, int]
"""How often the run was cleared, and how many tries Airflow allows: clearing this very task changes both."""


class Store(Protocol):
    """The part of Airflow's task_state_store that a note needs."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...


class NotedShard(msgspec.Struct, omit_defaults=True):
    """One shard: what it holds, when it was sent, until when it could arrive, and the id that the API gave it.

    `not_before` and `not_after` bound the creation of its batch. They are read off the API's own list.
    """

    mark: str
    digest: str
    requests: int
    bytes: int
    sent_at: datetime | None = None
    give_up_at: datetime | None = None
    id: str | None = None
    ids_hash: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None

    @property
    def in_doubt(self) -> bool:
        """Sent, and nobody knows whether it arrived."""
        return self.sent_at is not None and self.id is None

    def withdraw(self) -> None:
        """Take note that the API does not have it."""
        self.sent_at = self.give_up_at = self.not_before = self.not_after = None


class Cover(msgspec.Struct, omit_defaults=True):
    """What a note says of the whole submission; its shards stand on pages of their own, for a value holds 64 KiB."""

    clear: Clear
    submission: Receipt
    begun_at: datetime
    generation: int = 0
    forget_seen: str | None = None
    obsolete: bool = False
    strangers: list[str] = []
    preflight: int = 0
    preflight_usd: float = 0.0
    preflight_unpriced: int = 0
    waits: int = 0
    pages: int = 0
    author: str = ""
    as_of: datetime | None = None
    kept: Receipt | None = None


class Note(msgspec.Struct):
    """One submission: written before the first byte is sent, and after every answer."""

    cover: Cover
    shards: list[NotedShard]
    forgotten: bool = False

    def is_current(self, clear: Clear, lineage: Receipt) -> bool:
        """Tell another try from a task that was cleared, that submits for another lineage, or anew for a person."""
        was_cleared = all(now != before for now, before in zip(clear, self.cover.clear, strict=True))
        is_of_another = lineage.submission not in {"", self.cover.submission.submission}
        return not (was_cleared or is_of_another or self.is_void)

    @property
    def is_void(self) -> bool:
        """It is never taken up again: a person said so, or its batches were cancelled by ourselves."""
        return self.forgotten or self.cover.obsolete

    @property
    def receipt(self) -> Receipt:
        """The submission with the batches that the API has accepted so far."""
        ends = accumulate(shard.requests for shard in self.shards)
        parts = tuple(
            Part(shard.id, shard.requests, shard.bytes, shard.mark, first=end - shard.requests, ids_hash=shard.ids_hash)
            for shard, end in zip(self.shards, ends, strict=True)
            if shard.id
        )
        own = replace(
            self.cover.submission,
            batches=parts,
            preflight_usd=self.cover.preflight_usd or None,
            preflight_unpriced=self.cover.preflight_unpriced or None,
        )
        kept = self.cover.kept
        if kept is None:
            return own
        of = (*(kept.of or ()), *(own.of or ()))
        return replace(own, batches=kept.batches + parts, requests=kept.requests + own.requests, of=of)

    def kept_for(self, loaded: Sequence[Receipt]) -> Receipt | None:
        """Return what this retry has sent for some of these batches: it is kept, and only the others are retried."""
        if self.is_void or self.cover.submission.submission != loaded[0].submission:
            return None
        sent, batch_ids = self.receipt, {batch_id for receipt in loaded for batch_id in receipt.batch_ids}
        return sent if self.is_complete and sent.of and {*sent.of} < batch_ids else self.cover.kept

    @property
    def digests(self) -> list[str]:
        return [shard.digest for shard in self.shards]

    @property
    def ids(self) -> list[str]:
        return [shard.id for shard in self.shards if shard.id]

    @property
    def in_doubt(self) -> dict[int, NotedShard]:
        """Shards that are in doubt, by their place."""
        return {index: shard for index, shard in enumerate(self.shards) if shard.in_doubt}

    @property
    def is_complete(self) -> bool:
        return all(shard.id for shard in self.shards)

    @property
    def all_sent(self) -> bool:
        """Everything was sent, whatever became of it."""
        return all(shard.sent_at for shard in self.shards)

    @property
    def any_sent(self) -> bool:
        """Something was sent, and may be paid."""
        return any(shard.sent_at for shard in self.shards)


class _Memory(dict[str, Any]):
    """Stands in for the store that Airflow before 3.3 does not have, for as long as one try lives."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


class _Lasting:
    """Airflow's store, told that a note must not expire: without it, what was paid would be paid again."""

    def __init__(self, store: Any) -> None:
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        self.get, self.delete = store.get, store.delete
        self.set = partial(store.set, retention=NEVER_EXPIRE)


class Notebook:
    """Keep the note of one task instance.

    A try may be alive when the next one begins: it was cut off, or marked failed. So each claims the note first and
    writes pages of its own. A try that writes down what it sends, and only then asks whether the claim is still its
    own, either finds that another has taken over, or the other finds on the page what was sent.
    """

    def __init__(self, store: Store | None, memo: Mapping[str, Any] | None = None) -> None:
        self.is_kept = store is not None
        self._memory = _Memory(memo or {})
        self._store: Store = self._memory if store is None else store
        self._me = uuid4().hex[:8]
        self._has_claimed = False

    @classmethod
    def of(cls, context: Mapping[str, Any], memo: Mapping[str, Any] | None = None) -> "Notebook":
        """Find the store of the task that runs; without one, what a trigger carried over is all there is."""
        store = context.get("task_state_store")
        return cls(None if store is None else _Lasting(store), memo)

    @property
    def memo(self) -> dict[str, Any] | None:
        """What a trigger has to carry, because nothing else keeps it."""
        return None if self.is_kept else dict(self._memory)

    @property
    def forget(self) -> str | None:
        """When a person last asked that the task submits anew."""
        moment = self._store.get(FORGET)
        return moment if isinstance(moment, str) else None

    @property
    def is_new(self) -> bool:
        """Say whether no try before has sent anything, or found that all of it is answered."""
        return self._store.get(KEY) is None and self._store.get(_SETTLED) is None

    def settle(self) -> None:
        """Note that everything is answered: where nothing is sent, no note of a submission says so."""
        self._store.set(_SETTLED, True)

    def read(self) -> Note | None:
        """Return what an earlier try wrote down."""
        value = self._store.get(KEY)
        if value is None:
            return None
        cover = msgspec.convert(value, Cover)
        if self.forget != cover.forget_seen:
            return Note(cover, self._read_shards(cover) or [], forgotten=True)
        shards = self._read_shards(cover)
        if shards is None:
            raise Misconfigured(
                "The note of an earlier try has lost a page, so nothing was sent: what it paid is unknown. "
                "`claude-batch forget DAG RUN TASK` lets the task submit anew."
            )
        return Note(cover, shards)

    def kept_for(self, loaded: Sequence[Receipt]) -> Receipt | None:
        """Return what a retry has sent before some of the batches were loaded: nothing of it is sent twice."""
        note = self.read()
        return None if note is None else note.kept_for(loaded)

    def take_over(self) -> Note | None:
        """Go on from what an earlier try wrote down; from here on it sends nothing more, should it be alive."""
        self._store.set(_CLAIM, self._me)
        self._has_claimed = True
        note = self.read()
        if note is not None:
            before = note.cover.pages, note.cover.author
            self.write(note)
            for number in range(before[0]):
                self._store.delete(_page_key(before[1], number))
        return note

    def has_sent_nothing(self) -> bool:
        """Say whether no try has sent anything, and none that may still be alive will."""
        if self._has_claimed:
            self.check_claim()
        note = self.read() if self._has_claimed else self.take_over()
        return note is None or not note.any_sent

    def write(self, note: Note) -> None:
        """Write everything down, the cover last: what a crash leaves half written is not found."""
        pages = -(-len(note.shards) // _SHARDS_ON_A_PAGE)
        for number in range(pages):
            self._write_page(note, number)
        note.cover.pages, note.cover.author = pages, self._me
        self.save(note)

    def save(self, note: Note) -> None:
        """Write down what changed for the whole submission."""
        self.check_claim()
        self._store.set(KEY, as_json(note.cover))

    def update(self, note: Note, index: int) -> None:
        """Write down what became of one shard."""
        self._write_page(note, index // _SHARDS_ON_A_PAGE)

    def check_claim(self) -> None:
        """Stop where another try has taken over."""
        if self._store.get(_CLAIM) != self._me:
            raise TakenOver

    def _read_shards(self, cover: Cover) -> list[NotedShard] | None:
        pages = [self._store.get(_page_key(cover.author, number)) for number in range(cover.pages)]
        return None if None in pages else [one for page in pages for one in msgspec.convert(page, list[NotedShard])]

    def _write_page(self, note: Note, number: int) -> None:
        begin = number * _SHARDS_ON_A_PAGE
        self._store.set(_page_key(self._me, number), as_json(note.shards[begin : begin + _SHARDS_ON_A_PAGE]))


def _page_key(author: str, number: int) -> str:
    return f"{KEY}_{author}_{number}"
