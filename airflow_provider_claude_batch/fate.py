"""Fates: what became of shards whose answer never came."""

import logging
from contextlib import closing
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from airflow_provider_claude_batch import row as rows
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import BatchGone, FateUnknown
from airflow_provider_claude_batch.note import Note, Notebook, NotedShard

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_claude_batch.client import Client

GRACE = timedelta(minutes=5)
_SLACK = timedelta(minutes=1)
_PATIENCE = timedelta(minutes=30)
_LONGEST_RUN = timedelta(hours=26)
_RECHECK_SECONDS = 60.0
_CLOCK_SECONDS = 1.0
_LINES = 10

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

    A batch is taken for a shard's only if its first result line bears the shard's mark. A shard of which the API has
    nothing when its upload is over, and some minutes have passed, never arrived: it is no longer in doubt.
    """
    doubtful = note.in_doubt
    if not doubtful:
        return None
    candidates = _candidates(note, list(doubtful.values()), client)
    by_mark = {shard.mark: shard for shard in doubtful.values()}
    suspects = [batch for batch in candidates if not batch.ended or not _is_proved(batch, by_mark, client)]
    pauses = []
    for index, shard in doubtful.items():
        if shard.id:
            log.info("Batch %s is ours: its results bear the mark of what was sent. Nothing is sent again.", shard.id)
        elif pause := _judge(shard, suspects, client.now()):
            pauses.append(pause)
            continue
        notebook.update(note, index)
    return _first(pauses)


def _candidates(note: Note, doubtful: list[NotedShard], client: "Client") -> list[Batch]:
    """List what may be the batch of one of the shards: of its size, of its time, and no sibling's."""
    earliest = min(shard.sent_at for shard in doubtful if shard.sent_at) - _SLACK
    noted = set(note.ids)
    found = []
    for batch in client.recent():
        if batch.created_at < earliest:
            break
        if batch.id not in noted and any(_could_be(batch, shard) for shard in doubtful):
            found.append(batch)
    return found


def _could_be(batch: Batch, shard: NotedShard) -> bool:
    if shard.sent_at is None or shard.give_up_at is None or batch.request_counts.total != shard.requests:
        return False
    return shard.sent_at - _SLACK <= batch.created_at <= shard.give_up_at + GRACE


def _is_proved(batch: Batch, by_mark: dict[str, NotedShard], client: "Client") -> bool:
    """Read from an ended batch's first lines whose it is; False where the API does not show them."""
    try:
        with closing(client.results(batch.id)) as lines:
            marks = {rows.mark_of_line(line) for line in islice(lines, _LINES)}
    except BatchGone:
        _refuse_too_old(batch, client.now())
        return False
    for shard in (shard for mark, shard in by_mark.items() if mark in marks):
        if shard.id:
            log.error("Batches %s and %s are the same shard: it was paid twice.", shard.id, batch.id)
        shard.id = shard.id or batch.id
    return True


def _refuse_too_old(batch: Batch, now: "datetime") -> None:
    if batch.archived_at is None and now - (batch.ended_at or batch.created_at) < _PATIENCE:
        return
    raise FateUnknown(
        f"A create was sent and its answer never came: batch {batch.id} may be it, and its results, which would prove "
        "it, are not there. Nothing was sent again; `claude-batch forget` lets the task submit anew."
    )


def _judge(shard: NotedShard, suspects: list[Batch], now: "datetime") -> Pause | None:
    """Wait for what may be the shard's batch, or until it cannot arrive any more; then let go of the doubt."""
    own = [batch for batch in suspects if _could_be(batch, shard)]
    seconds = ((shard.give_up_at or now) + GRACE - now).total_seconds()
    if seconds <= 0 and not own:
        log.info("A batch of %s requests never arrived at the API: it is sent again.", f"{shard.requests:,}")
        shard.withdraw()
        return None
    if seconds <= 0:
        seconds = _LONGEST_RUN.total_seconds()
    if any(batch.ended for batch in own):
        seconds = min(seconds, _RECHECK_SECONDS)
    running = tuple(batch.id for batch in own if not batch.ended)
    return Pause(
        max(seconds, _CLOCK_SECONDS),
        f"The answer to a create of {shard.requests:,} requests never came. {len(own)} batches may be it: the first "
        "line of the results will tell.",
        running,
    )


def _first(pauses: list[Pause]) -> Pause | None:
    if not pauses:
        return None
    soonest = min(pauses, key=lambda pause: pause.seconds)
    suspects = dict.fromkeys(batch_id for pause in pauses for batch_id in pause.batch_ids)
    return Pause(soonest.seconds, soonest.why, tuple(suspects))
