"""Submitting: requests become batches, each paid once."""

import errno
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from airflow_provider_claude_batch import preflight
from airflow_provider_claude_batch.draft import Draft
from airflow_provider_claude_batch.errors import (
    ApiRefused,
    ApiUnavailable,
    BatchGone,
    ClaudeBatchError,
    FateUnknown,
    Misconfigured,
    QueueFull,
    SourceUnavailable,
    TakenOver,
)
from airflow_provider_claude_batch.fate import RESULTS_LAST, Pause, settle, upload_seconds
from airflow_provider_claude_batch.note import Clear, Cover, Note, Notebook, NotedShard
from airflow_provider_claude_batch.order import Order
from airflow_provider_claude_batch.receipt import Receipt, replace
from airflow_provider_claude_batch.shard import SPOOL_BUFFER, Shard
from airflow_provider_claude_batch.words import counted

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

CONSOLE = "https://platform.claude.com/workspaces/default/batches"
_FIRST_WAIT, _LONGEST_WAIT, _MOST_ASKED = 15.0, 1800.0, 3600.0
_PATIENCE = timedelta(hours=48)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PUBLISHED = 200
_STAMP = "%Y%m%dT%H%M%S%f"
# What is taken up belongs to whom it is sent for now: of a retry, to a submission that may be newer than its batches.
_LINEAGE = (
    *("dag_id", "run_id", "submit_task", "map_index", "element", "logical_date"),
    *("attempt", "conn_id", "source", "left_out"),
)
_NAMED = 5

log = logging.getLogger(__name__)


def accepted(notebook: Notebook, clear: Clear, lineage: Receipt) -> Receipt | None:
    """Return the receipt of an earlier try that submitted everything, unless the task was cleared since."""
    noted = notebook.read()
    if noted is None or not noted.is_complete or not noted.is_current(clear, lineage):
        return None
    log.info("An earlier try submitted all of it: %s. Nothing was sent.", _named(noted))
    return noted.receipt


class Submission:
    """Submit what was not submitted yet, try after try."""

    def __init__(self, order: Order, client: "Client", notebook: Notebook, publish: Callable[[Receipt], None]) -> None:
        self._order = order
        self._client = client
        self._notebook = notebook
        self._publish = publish

    def run(self, raw: Iterable[Any], *, resumed: bool = False) -> Receipt | Pause | None:
        """Return the receipt, or a pause after which to run again; None where there is nothing to send."""
        noted = self._notebook.take_over()
        if noted is not None and not resumed:
            noted.cover.begun_at, noted.cover.waits = self._client.now(), 0
        if noted is not None and noted.all_sent and self._is_current(noted):
            if pause := settle(noted, self._client, self._notebook):
                return self._pause(noted, pause)
            if noted.is_complete:
                return self._done(noted)
        try:
            with TemporaryFile(buffering=SPOOL_BUFFER, prefix="claude_batch_") as spool:
                return self._submit(raw, spool, noted, resumed=resumed)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise SourceUnavailable(
                "The disk of temporary files is full: requests are spooled there before they are sent. Point TMPDIR to "
                "a larger one."
            ) from None

    def _submit(
        self, raw: Iterable[Any], spool: IO[bytes], noted: Note | None, *, resumed: bool
    ) -> Receipt | Pause | None:
        as_of = self._moment() if noted is None else noted.cover.as_of or self._moment()
        draft = Draft.read(raw, spool, self._order, as_of)
        note = self._reconcile(draft, noted)
        if note is None and noted is not None and self._order.answered is not None:
            # What was answered meanwhile is not asked for anew.
            draft = Draft.read(raw, spool, self._order, self._moment())
        if note is not None and not resumed:
            _tell_found(note)
        if note is not None:
            self._notebook.save(note)
        elif draft.shards:
            note = self._open(draft, noted)
        if noted is not None and note is not noted and not self._order.kept:
            self._abandon(noted)
        if note is None:
            return self._all_reused(draft, noted) if draft.reading.reused else None
        if note is not noted:
            self._notebook.write(note)
        if not note.any_sent:
            self._preflight(draft, note)
        if self._order.begin:
            self._order.begin(note.receipt)
        return self._send_all(draft.shards, note)

    def _preflight(self, draft: Draft, note: Note) -> None:
        """Have the first requests answered live; where that stops the submission, a receipt says what it cost."""
        try:
            preflight.fly(draft.survey.first, note, self._order, self._client, self._notebook)
        except ClaudeBatchError as error:
            receipt = note.receipt
            if (receipt.preflight_usd or receipt.preflight_unpriced) and not isinstance(error, TakenOver):
                self._publish(receipt)
            raise

    def _moment(self) -> datetime:
        """Say up to when answers in the table count; a slow clock would have them paid again, so the later one does."""
        now = datetime.now(UTC)
        return now if self._order.answered is None else max(now, self._client.now())

    def _all_reused(self, draft: Draft, before: Note | None) -> Receipt:
        """Return a receipt of nothing: every request has an answer, and there is nothing to wait for or to load."""
        from airflow_provider_claude_batch import abandoned

        draft.tell_reused()
        now, receipt = self._client.now(), self._order.receipt
        return replace(
            receipt,
            submission=receipt.submission or new_submission(now, before),
            invalid=draft.invalid,
            reused=draft.reading.reused,
            submitted_at=now,
            abandoned=abandoned.left_by(before),
            preflight_usd=(before and before.cover.preflight_usd) or None,
            preflight_unpriced=(before and before.cover.preflight_unpriced) or None,
        )

    def _reconcile(self, draft: Draft, noted: Note | None) -> Note | None:
        """Take the noted submission up where the requests are the same; None where a new one is due."""
        if noted is None or noted.is_void:
            return None
        is_current = self._is_current(noted)
        if noted.digests != [shard.digest for shard in draft.shards]:
            if is_current and noted.any_sent:
                raise Misconfigured(
                    f"The requests are not those of the try before, of which {_named(noted)} may be running: nothing "
                    "was sent. Give the source an order of its own, or clear the task to submit anew."
                )
            return None
        if not is_current:
            self._refuse_lost(noted)
        noted.cover.clear = self._order.clear
        draft.tell_skipped()
        before, now = noted.cover.submission, self._order.receipt
        lineage = {name: getattr(now, name) for name in _LINEAGE}
        noted.cover.submission = replace(
            before, submission=now.submission or before.submission, invalid=draft.invalid, **lineage
        )
        return noted

    def _is_current(self, noted: Note) -> bool:
        return noted.is_current(self._order.clear, self._order.receipt)

    def _refuse_lost(self, noted: Note) -> None:
        """Never pay again for answers that are gone: that is for a person to decide."""
        for batch_id in noted.ids:
            try:
                batch = self._client.retrieve(batch_id)
            except BatchGone as gone:
                raise BatchGone(f"{gone} Nothing was sent again; {self._order.way_to_forget}.") from None
            if batch.cancel_initiated_at:
                log.warning("Batch %s was cancelled, and is not paid again: %s.", batch_id, self._order.way_to_forget)
            if batch.archived_at:
                raise Misconfigured(
                    f"The requests are those of before, and the API deleted the results of batch {batch_id} on "
                    f"{batch.archived_at:%Y-%m-%d}. Nothing was sent again; {self._order.way_to_forget}."
                )

    def _abandon(self, noted: Note) -> None:
        """Stop what is obsolete, and never take it up again; only ids of our own note are touched."""
        noted.cover.obsolete = True
        self._notebook.save(noted)
        if noted.any_sent:
            log.warning("This is a new submission, in the place of one whose batches were paid: %s.", _named(noted))
        for batch_id in noted.ids:
            try:
                if not self._client.retrieve(batch_id).ended:
                    self._client.cancel(batch_id)
                    log.warning("Batch %s of before still ran and was cancelled.", batch_id)
            except ApiRefused as error:
                log.warning("Batch %s of before may still run. %s", batch_id, error)
        for shard in noted.in_doubt.values():
            said = counted(shard.requests, "request")
            log.warning("A batch of before, of %s, may run: its answer never came.", said)

    def _open(self, draft: Draft, before: Note | None) -> Note:
        from airflow_provider_claude_batch import abandoned

        shards, survey = draft.shards, draft.survey
        generation = 0 if before is None else before.cover.generation + 1
        order, total = self._order, sum(shard.requests for shard in shards)
        order.guard_size(total)
        today = self._client.now().date()
        estimate = survey.estimate(self._client, order.defaults.betas, order.prices, today)
        order.guard_cost(estimate)
        draft.announce(estimate)
        now = self._client.now()
        receipt = replace(
            order.receipt,
            submission=order.receipt.submission or new_submission(now, before),
            requests=total,
            models=survey.models,
            invalid=draft.invalid,
            reused=draft.reading.reused or None,
            estimate_usd=estimate.usd,
            estimate_basis=estimate.basis,
            submitted_at=now,
            abandoned=abandoned.left_by(before),
        )
        noted = [
            NotedShard(order.mark(one, generation), one.digest, one.requests, one.bytes, ids_hash=one.ids_hash)
            for one in shards
        ]
        if order.unremembered_since:
            _doubt_all(noted, order.unremembered_since, now)
        cover = Cover(order.clear, receipt, now, generation, self._notebook.forget)
        if before is not None:
            cover.preflight_usd, cover.preflight_unpriced = before.cover.preflight_usd, before.cover.preflight_unpriced
        cover.as_of, cover.kept = None if order.answered is None else draft.as_of, order.kept
        return Note(cover, noted)

    def _send_all(self, shards: list[Shard], note: Note) -> Receipt | Pause:
        """Send what is not in doubt, then find out about what is, until all of it has an id."""
        try:
            while not note.is_complete:
                for shard, noted in zip(shards, note.shards, strict=True):
                    if not noted.sent_at and (pause := self._send(shard, noted, note)):
                        return self._pause(note, pause)
                    if self._order.prime_cache and shard.index == 0 and noted.id is None:
                        break  # nothing goes before the request that primes the cache
                if pause := settle(note, self._client, self._notebook):
                    return self._pause(note, pause)
        except ClaudeBatchError as error:
            if note.ids and not isinstance(error, TakenOver):
                self._publish(note.receipt)
            raise
        return self._done(note)

    def _send(self, shard: Shard, noted: NotedShard, note: Note) -> Pause | None:
        if self._order.prime_cache and shard.index == 1 and (pause := self._prime(note.shards[0].id or "")):
            return pause
        try:
            newest = self._client.newest()
        except QueueFull as full:
            return self._wait_for_room(note, full)
        noted.sent_at = self._client.now()
        noted.give_up_at = noted.sent_at + timedelta(seconds=upload_seconds(shard.bytes))
        noted.not_before = newest.created_at if newest else _EPOCH  # the API lists what it takes above this one
        self._notebook.update(note, shard.index)
        self._notebook.check_claim()
        try:
            body, betas = shard.body(noted.mark), self._order.defaults.betas
            noted.id = self._client.create(body, shard.bytes, betas, until=noted.give_up_at).id
        except FateUnknown as doubt:
            with suppress(ClaudeBatchError):
                self._client.newest()
                noted.give_up_at = self._client.now()  # whatever is on its way left before now
            log.warning("%s It may be paid: it is looked for, and not sent again.", doubt)
            return None
        except QueueFull as full:
            noted.withdraw()
            return self._wait_for_room(note, full)
        except (ApiRefused, ApiUnavailable):
            noted.withdraw()
            raise
        finally:
            self._notebook.update(note, shard.index)
        note.cover.begun_at, note.cover.waits = self._client.now(), 0
        log.info("Submitted batch %s of %s.", noted.id, counted(noted.requests, "request"))
        if shard.index % (1 + len(note.shards) // _PUBLISHED) == 0:
            self._publish(note.receipt)
        return None

    def _prime(self, batch_id: str) -> Pause | None:
        """Hold the others back until the first request has been answered, and its prompt is in the cache."""
        if not self._client.retrieve(batch_id).ended:
            return Pause(_PATIENCE.total_seconds(), f"Batch {batch_id} primes the cache for the others.", (batch_id,))
        preflight.judge_prime(batch_id, self._client)
        return None

    def _wait_for_room(self, note: Note, full: QueueFull) -> Pause:
        seconds = min(_FIRST_WAIT * 2**note.cover.waits, _LONGEST_WAIT)
        note.cover.waits += 1
        self._notebook.save(note)
        asked = min(full.retry_after or 0.0, _MOST_ASKED)
        return Pause(max(seconds, asked), f"{full} The rest waits for room.")

    def _pause(self, note: Note, pause: Pause) -> Pause:
        if note.ids:
            self._publish(note.receipt)
        left = sum(shard.id is None for shard in note.shards)
        if self._client.now() - note.cover.begun_at > _PATIENCE:
            raise ApiUnavailable(
                f"For two days no batch was accepted, and {left} of {len(note.shards)} are left. {pause.why}"
            )
        accepted_so_far = f"{len(note.shards) - left} of {len(note.shards)}"
        latest = f"{self._client.now() + timedelta(seconds=pause.seconds):%Y-%m-%d %H:%M:%S} UTC"
        log.info("%s batches accepted. %s Going on at %s, if not before.", accepted_so_far, pause.why, latest)
        return pause

    def _done(self, note: Note) -> Receipt:
        self._publish(note.receipt)
        log.info("Accepted: %s. The Claude Console lists them: %s", _named(note), CONSOLE)
        return note.receipt


def new_submission(now: datetime, before: Note | None = None) -> str:
    """Name a submission so that names sort by time: after the one before, even if a wrong clock named that."""
    stamp = f"{now:{_STAMP}}"
    if before is not None and (last := before.cover.submission.submission.split("_")[1]) >= stamp:
        stamp = f"{datetime.strptime(last, _STAMP).replace(tzinfo=UTC) + timedelta(microseconds=1):{_STAMP}}"
    return f"sub_{stamp}_{uuid4().hex[:8]}"


def _doubt_all(shards: list[NotedShard], since: datetime, now: datetime) -> None:
    """An earlier try left no note: each shard may have been sent from the run's beginning on, or be on its way now."""
    since = max(since, now - RESULTS_LAST)
    longest = max(upload_seconds(shard.bytes) for shard in shards)
    for shard in shards:
        shard.sent_at = shard.not_before = since
        shard.give_up_at = now + timedelta(seconds=longest)
    log.info("This Airflow keeps no notes: what an earlier try may have sent is looked for among the API's batches.")


def _tell_found(note: Note) -> None:
    if note.is_complete:
        log.info("The requests are those of before, and all of them were submitted: %s. Nothing is sent.", _named(note))
    elif note.any_sent:
        log.info("The requests are those of before; what was submitted of them is not sent again: %s.", _named(note))


def _named(note: Note) -> str:
    ids = note.ids
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return (", ".join(ids[:_NAMED]) or "none that is known by its id") + more
