"""Fates: what became of shards whose answer never came."""

import logging
from contextlib import closing
from datetime import datetime, timedelta
from itertools import islice
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
    candidates, now = _candidates(note, list(doubtful.values()), client)
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


def _candidates(note: Note, doubtful: list[NotedShard], client: "Client") -> tuple[list[Batch], datetime]:
    """List what may be the batch of one of the shards, by size and time, no sibling's; and say as of when."""
    earliest = min(shard.sent_at for shard in doubtful if shard.sent_at) - _SLACK
    not_these = {*note.ids, *note.cover.strangers}
    listed = client.recent()
    batch, now = next(listed, None), client.now()
    found = []
    while batch is not None and batch.created_at >= earliest:
        if batch.id not in not_these and any(_could_be(batch, shard) for shard in doubtful):
            found.append(batch)
        batch = next(listed, None)
    return found, now


def _could_be(batch: Batch, shard: NotedShard) -> bool:
    if shard.sent_at is None or shard.give_up_at is None or batch.request_counts.total != shard.requests:
        return False
    return shard.sent_at - _SLACK <= batch.created_at <= shard.give_up_at + GRACE


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
