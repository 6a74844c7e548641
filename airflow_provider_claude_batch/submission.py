"""Submissions: what the receipts of all steps say together of what was sent, waited for, loaded and sent again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from itertools import groupby

from airflow_provider_claude_batch import rounds
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.entry import Entry, Step, step_of
from airflow_provider_claude_batch.receipt import Part, Receipt

LIFETIME = timedelta(hours=24)
RETENTION = timedelta(days=29)
_GRACE = timedelta(hours=1)
_SOON = timedelta(hours=1)

Looks = Mapping[str, Batch]


class State(StrEnum):
    """How a submission stands: in the API's words as long as it has not loaded what it paid for."""

    IN_PROGRESS = "in_progress"
    CANCELING = "canceling"
    ENDED = "ended"
    GONE = "gone"
    LOADED = "loaded"


class Shard:
    """One batch of a round: what the receipts say of it, and who noticed its end and loaded it."""

    def __init__(self, part: Part, submitted_at: datetime | None) -> None:
        self.part = part
        self.noticed_at: datetime | None = None
        self.loaded_at: datetime | None = None
        self._submitted_at = submitted_at

    def add(self, part: Part, step: Step, at: datetime) -> None:
        """Take in what a later step says."""
        if part.ended_at or not self.part.ended_at:
            self.part = part
        if step is Step.WAIT and part.ended_at:
            self.noticed_at = min(at, self.noticed_at or at)
        if step is Step.LOAD:
            self.loaded_at = max(at, self.loaded_at or at)

    @property
    def born_at(self) -> datetime | None:
        return self.part.created_at or self._submitted_at

    @property
    def expires_at(self) -> datetime | None:
        born = self.born_at
        return self.part.expires_at or (born + LIFETIME if born else None)

    def seen(self, looks: Looks) -> Part:
        """Add what the API said last, where no step has seen the end."""
        look = looks.get(self.part.id)
        return self.part if look is None or self.part.ended_at else self.part.seen(look)

    def state(self, looks: Looks, now: datetime) -> State:
        """Say how the batch stands; nothing runs longer than the API lets it."""
        look, expires = looks.get(self.part.id), self.expires_at
        has_ended = self.part.ended_at or self.loaded_at or (look and look.ended)
        if has_ended or (expires and expires + _GRACE < now):
            return State.ENDED
        return State.CANCELING if look and look.processing_status == State.CANCELING else State.IN_PROGRESS

    def days_left(self, now: datetime) -> float | None:
        """Tell how long the API keeps the results."""
        born = self.born_at
        return (born + RETENTION - now) / timedelta(days=1) if born else None


class Round:
    """One attempt of a submission; the Dag that submitted speaks first, and others may have waited and loaded."""

    def __init__(self, entries: Sequence[Entry], dag_id: str) -> None:
        self.entries = sorted(entries, key=lambda entry: entry.at)
        self.first = self._first()
        loads = (entry for entry in self.entries if step_of(entry) is Step.LOAD)
        self.loads = _distinct(loads, dag_id)
        self.shards = self._merged()
        self.is_loaded = bool(self.loads) and all(shard.loaded_at for shard in self.shards)

    def _first(self) -> Entry:
        """Choose who speaks for all: the submission itself, or else the first who said anything."""
        return next((entry for entry in self.entries if step_of(entry) is Step.SUBMIT), self.entries[0])

    def _merged(self) -> list[Shard]:
        shards: dict[str, Shard] = {}
        for entry in self.entries:
            step = step_of(entry)
            if step is Step.LOAD and entry not in self.loads:
                continue
            for part in entry.receipt.batches:
                shard = shards.setdefault(part.id, Shard(part, entry.receipt.submitted_at))
                shard.add(part, step, entry.at)
        return list(shards.values())

    @property
    def receipt(self) -> Receipt:
        return self.first.receipt

    @cached_property
    def loaded(self) -> list[Receipt]:
        return [entry.receipt for entry in self.loads]

    @property
    def requests(self) -> int:
        """How many were to be sent; who speaks of one shard of many does not know."""
        return max(self.receipt.requests, self._accepted)

    @property
    def unsent(self) -> int:
        """How many are in no batch: the submission waits half way, or has failed there."""
        return self.requests - self._accepted

    @property
    def _accepted(self) -> int:
        return sum(shard.part.total for shard in self.shards)

    @property
    def submitted_at(self) -> datetime:
        return self.receipt.submitted_at or min((s.born_at for s in self.shards if s.born_at), default=self.first.at)

    @property
    def loaded_at(self) -> datetime | None:
        return max((entry.at for entry in self.loads), default=None) if self.is_loaded else None

    @property
    def noticed_at(self) -> datetime | None:
        return max((shard.noticed_at for shard in self.shards if shard.noticed_at), default=None)

    def state(self, looks: Looks, now: datetime) -> State:
        """Say how the round stands: what runs comes first, then what nobody has loaded."""
        if self.is_loaded:
            return State.LOADED
        states = {shard.state(looks, now) for shard in self.shards}
        if running := states - {State.ENDED}:
            return State.CANCELING if State.CANCELING in running else State.IN_PROGRESS
        days = self.days_left(now)
        return State.GONE if days is not None and days <= 0 else State.ENDED

    def days_left(self, now: datetime) -> float | None:
        """Tell how long the API keeps what nobody has loaded."""
        days = (shard.days_left(now) for shard in self.shards if not shard.loaded_at)
        return min((left for left in days if left is not None), default=None)

    def is_overdue(self, looks: Looks, now: datetime) -> bool:
        """Say whether results have been there for a while, and nobody has loaded them."""
        left = [shard for shard in self.shards if not shard.loaded_at]
        ends = [shard.seen(looks).ended_at or shard.expires_at for shard in left]
        return self.state(looks, now) is State.ENDED and any(end + _SOON < now for end in ends if end)

    def outcomes(self, looks: Looks) -> Counter[str]:
        """Count how the requests stand: as they were loaded, or else by what the API says."""
        counts = Counter[str]()
        for receipt in self.loaded:
            counts.update(usable(receipt))
        for shard in self.shards:
            if not shard.loaded_at:
                counts.update(_counted(shard.seen(looks)))
        return +counts


class Submission:
    """All rounds of a submission."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        dag_id = _dag_of(entries)
        ours = [entry for entry in entries if entry.dag_id == dag_id or step_of(entry) is not Step.SUBMIT]
        ordered = sorted(ours, key=lambda entry: entry.receipt.attempt)
        by_attempt = groupby(ordered, key=lambda entry: entry.receipt.attempt)
        self.rounds = list(_of_this_life(Round(list(of_one), dag_id) for _, of_one in by_attempt))

    @property
    def first(self) -> Round:
        return self.rounds[0]

    @cached_property
    def id(self) -> str:
        return self.first.receipt.submission

    @cached_property
    def places(self) -> frozenset[tuple[str, str]]:
        """Name the runs in which its receipts lie."""
        return frozenset((entry.dag_id, entry.run_id) for entry in self.entries)

    @cached_property
    def submitted_at(self) -> datetime:
        return self.first.submitted_at

    @cached_property
    def models(self) -> tuple[str, ...]:
        names = (name for one in self.rounds for name in (*one.receipt.models, *_answering(one.loaded)))
        return tuple(dict.fromkeys(names))

    def state(self, looks: Looks, now: datetime) -> State:
        """Say how the whole stands: the first thing that somebody has to wait for, or to look after."""
        states = {one.state(looks, now) for one in self.rounds}
        return next(state for state in State if state in states)

    @cached_property
    def total(self) -> Receipt | None:
        """Add up what was loaded; None while nothing was."""
        loaded = [one.loaded for one in self.rounds if one.loaded]
        return rounds.add_up(loaded) if loaded else None

    def outcomes(self, looks: Looks) -> Counter[str]:
        """Count how the requests of the first round stand after all that was loaded."""
        if self.total is None or not self.first.is_loaded:
            return self.first.outcomes(looks)
        return +usable(self.total)


def gather(entries: Iterable[Entry], before: Iterable[Submission] = ()) -> list[Submission]:
    """Put together what belongs together, newest first; a total adds up what the others say, and is left out.

    What was put together before, and has not changed since, is taken as it is.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.receipt.rounds is None:
            groups.setdefault(entry.receipt.submission, []).append(entry)
    known = {one.id: one for one in before}
    submissions = [
        known[name] if name in known and known[name].entries == group else Submission(group)
        for name, group in groups.items()
    ]
    return sorted(submissions, key=lambda one: (one.submitted_at, one.id), reverse=True)


def usable(receipt: Receipt) -> Counter[str]:
    """Count the outcomes of a load, with problems beside what can be used."""
    problems = receipt.problems or {}
    counts = Counter({**(receipt.counts or {}), **problems})
    counts["succeeded"] -= sum(problems.values())
    return counts


def _counted(part: Part) -> dict[str, int]:
    counts = part.counts
    if counts is None:
        return {"processing": part.total}
    return {name: getattr(counts, name) for name in counts.__struct_fields__}


def _dag_of(entries: Sequence[Entry]) -> str:
    """Tell which Dag submitted: what another one says later of the same submission is no submission."""
    return min(entries, key=lambda entry: (step_of(entry) is not Step.SUBMIT, entry.at)).dag_id


def _of_this_life(rounds: Iterable[Round]) -> Iterator[Round]:
    """Leave out what a run that was cleared has said before: after a load that left nothing to retry, nothing comes."""
    for one in rounds:
        yield one
        if one.is_loaded and not any(receipt.retryable for receipt in one.loaded):
            return


def _distinct(loads: Iterable[Entry], dag_id: str) -> list[Entry]:
    """Keep one load of each batch, the largest and newest, of its own Dag first: what was loaded again is paid once."""
    kept: list[Entry] = []
    known: set[str] = set()
    for entry in sorted(
        loads, key=lambda entry: (entry.dag_id == dag_id, len(entry.receipt.batches), entry.at), reverse=True
    ):
        ids = {*entry.receipt.batch_ids} or {entry.receipt.pseudo_batch}
        if not ids & known:
            known |= ids
            kept.append(entry)
    return sorted(kept, key=lambda entry: entry.at)


def _answering(loaded: Iterable[Receipt]) -> Iterable[str]:
    return (name for receipt in loaded for name in receipt.by_model or ())
