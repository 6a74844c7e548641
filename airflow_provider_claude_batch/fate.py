"""Fates: what became of shards whose answer never came."""

import logging
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime, timedelta
from itertools import chain, islice, takewhile
from typing import TYPE_CHECKING

import msgspec

from airflow_provider_claude_batch import result, wire_id
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import BatchGone, FateUnknown
from airflow_provider_claude_batch.note import Note, Notebook, NotedShard

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

# A create may be answered ten minutes after its upload, and appear in the list only then.
GRACE = timedelta(minutes=12)
RESULTS_LAST = timedelta(days=28)  # the API keeps them for 29
_SLACK = timedelta(minutes=1)
_LONGEST_RUN = timedelta(hours=26)
_RECHECK_SECONDS = 300.0
_CLOCK_SECONDS = 1.0
_LINES = 10
_REMEMBERED_STRANGERS = 300

log = logging.getLogger(__name__)


class Pause(msgspec.Struct, frozen=True):
    """Go on after so many seconds, or as soon as one of the batches has ended."""

    seconds: float
    why: str
    batch_ids: tuple[str, ...] = ()


def upload_seconds(size: int) -> float:
    """Allow an upload this long: at less than 2 Mbit/s it is given up."""
    return 120.0 + size / 250_000


def settle(note: Note, client: "Client", notebook: Notebook) -> Pause | None:
    """Find out what became of the shards that are in doubt; a pause where only time can tell.

    A batch is taken for a shard's only if its results bear the shard's mark. A shard of which the API has nothing when
    its upload is over, and some minutes have passed, never arrived: it is no longer in doubt.
    """
    doubtful = note.in_doubt
    if not doubtful:
        return None
    listed = client.recent()
    newest, now = next(listed, None), client.now()
    for index, shard in doubtful.items():
        if _narrow(shard, newest, now):
            notebook.update(note, index)
    candidates = _candidates(note, list(doubtful.values()), chain([newest] if newest else [], listed))
    by_mark = {shard.mark: shard for shard in doubtful.values()}
    suspects = [batch for batch in candidates if not _is_known(batch, by_mark, note, client)]
    pauses = []
    for index, shard in doubtful.items():
        if shard.id:
            log.info("Batch %s is ours: its results bear the mark of what was sent. Nothing is sent again.", shard.id)
        elif pause := _judge(shard, suspects, now):
            pauses.append(pause)
            continue
        notebook.update(note, index)
    notebook.save(note)
    _refuse_unprovable(note, suspects)
    return _first(pauses)


def _narrow(shard: NotedShard, newest: Batch | None, now: datetime) -> bool:
    """Bound the search for a shard's batch by the API's own list, and by no clock of a worker; say whether that is new.

    When nothing can arrive any more, the list holds the batch or never will: newer ones are not it.
    """
    if shard.sent_at is None or shard.give_up_at is None:
        return False
    if shard.not_before is None:  # an older version noted the times of a worker's clock
        shard.not_before = min(shard.sent_at, now - RESULTS_LAST)
        shard.give_up_at = now + timedelta(seconds=upload_seconds(shard.bytes))
        return True
    if shard.not_after is None and now >= shard.give_up_at + GRACE:
        shard.not_after = newest.created_at if newest else now
        return True
    return False


def _candidates(note: Note, doubtful: list[NotedShard], listed: Iterable[Batch]) -> list[Batch]:
    """Choose from the list, newest first, what may be the batch of one of the shards and is no sibling's."""
    earliest = min(shard.not_before for shard in doubtful if shard.not_before) - _SLACK
    not_these = {*note.ids, *note.cover.strangers}
    recent = takewhile(lambda batch: batch.created_at >= earliest, listed)
    return [one for one in recent if one.id not in not_these and any(_could_be(one, shard) for shard in doubtful)]


def _could_be(batch: Batch, shard: NotedShard) -> bool:
    """Compare sizes, and creation with the bounds; what was deleted before the shard was sent is another's."""
    if shard.sent_at is None or shard.not_before is None or batch.request_counts.total != shard.requests:
        return False
    if batch.created_at < shard.not_before - _SLACK or (shard.not_after and batch.created_at > shard.not_after):
        return False
    return batch.archived_at is None or batch.archived_at > shard.sent_at


def _is_known(batch: Batch, by_mark: dict[str, NotedShard], note: Note, client: "Client") -> bool:
    """Read from an ended batch's results whose it is; False while that cannot be told."""
    if not batch.ended:
        return False
    try:
        with closing(client.results(batch.id, batch.results_url)) as lines:
            found = [one for line in islice(lines, _LINES) if (one := result.decode(line))]
    except BatchGone:
        return False
    marks = {wire.mark for one in found if (wire := wire_id.parse(one.custom_id))}
    ours = [shard for mark, shard in by_mark.items() if mark in marks]
    for shard in ours:
        if shard.id:
            log.error("Batches %s and %s are the same shard: it was paid twice.", shard.id, batch.id)
        shard.id = shard.id or batch.id
    if found and not ours:
        note.cover.strangers = [*note.cover.strangers, batch.id][-_REMEMBERED_STRANGERS:]
    return bool(found)


def _refuse_unprovable(note: Note, suspects: list[Batch]) -> None:
    """Leave it to a person where the results that would prove whose a batch is are deleted."""
    for batch in suspects:
        if batch.archived_at and any(_could_be(batch, shard) for shard in note.in_doubt.values()):
            raise FateUnknown(
                f"A create was sent and its answer never came: batch {batch.id} may be it, and its results, which "
                "would prove it, are deleted. Nothing was sent again; `claude-batch forget DAG RUN TASK` lets the task "
                "submit anew when it is cleared."
            )


def _judge(shard: NotedShard, suspects: list[Batch], now: datetime) -> Pause | None:
    """Wait for what may be the shard's batch, or until it cannot arrive any more; then let go of the doubt."""
    own = [batch for batch in suspects if _could_be(batch, shard)]
    seconds = ((shard.give_up_at or now) + GRACE - now).total_seconds()
    if seconds <= 0 and not own:
        log.info("The API has no batch of these %s requests, and none can arrive any more.", f"{shard.requests:,}")
        shard.withdraw()
        return None
    if seconds <= 0:
        seconds = _LONGEST_RUN.total_seconds()
    if any(batch.ended for batch in own):
        seconds = min(seconds, _RECHECK_SECONDS)
    running = tuple(batch.id for batch in own if not batch.ended)
    told = f"whether a batch of {shard.requests:,} requests has arrived at the API"
    how = f"the results of {len(own)} listed will tell" if own else "it is not listed so far"
    return Pause(max(seconds, _CLOCK_SECONDS), f"It is not known {told}: {how}.", running)


def _first(pauses: list[Pause]) -> Pause | None:
    if not pauses:
        return None
    soonest = min(pauses, key=lambda pause: pause.seconds)
    suspects = dict.fromkeys(batch_id for pause in pauses for batch_id in pause.batch_ids)
    return Pause(soonest.seconds, soonest.why, tuple(suspects))
