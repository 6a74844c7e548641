"""Abandoned batches: what they had answered before another submission replaced theirs is paid, and shown."""

import logging
from typing import TYPE_CHECKING

from airflow_provider_claude_batch import result
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import ClaudeBatchError
from airflow_provider_claude_batch.note import Note
from airflow_provider_claude_batch.price import PriceList
from airflow_provider_claude_batch.receipt import Abandoned, Receipt, replace
from airflow_provider_claude_batch.spending import Spent, amount

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

_MOST = 300  # a note's cover holds 64 KiB

log = logging.getLogger(__name__)


def left_by(note: Note | None) -> tuple[Abandoned, ...] | None:
    """Name the batches that a new submission leaves behind, with those that the submission before had left behind."""
    if note is None:
        return None
    sent = (Abandoned(shard.id, shard.requests) for shard in note.shards if shard.sent_at)
    every = (*(note.cover.submission.abandoned or ()), *sent)
    if len(every) > _MOST:
        log.warning("%d batches are abandoned, and paid. The receipt names only the last %d.", len(every), _MOST)
    return every[-_MOST:] or None


def priced(receipt: Receipt, client: "Client", prices: PriceList) -> Receipt:
    """Read from the API what the abandoned batches had answered, and add what that cost."""
    if receipt.abandoned is None:
        return receipt
    return replace(receipt, abandoned=tuple(_priced(one, client, prices) for one in receipt.abandoned))


def _priced(one: Abandoned, client: "Client", prices: PriceList) -> Abandoned:
    """Price one batch; whatever hinders that hinders no load, and the cost stays unknown."""
    if one.id is None or one.cost_usd is not None:
        return one
    try:
        batch = client.retrieve(one.id)
        if not batch.ended:
            log.warning("Abandoned batch %s has not ended yet, so its cost is not known.", one.id)
            return one
        cost, unpriced = _cost(batch, client, prices)
    except ClaudeBatchError as error:
        log.warning("The cost of abandoned batch %s is not known. %s", one.id, error)
        return one
    answered = batch.request_counts.succeeded
    log.info("Abandoned batch %s had answered %d of its requests: %s.", one.id, answered, amount(cost, unpriced))
    return replace(one, counts=batch.request_counts, cost_usd=cost, unpriced=unpriced)


def _cost(batch: Batch, client: "Client", prices: PriceList) -> tuple[float | None, int]:
    """Add up the dollars of a batch's answers, and count the answers without a price; only answers are billed."""
    if not batch.request_counts.succeeded:
        return 0.0, 0
    spent, seen = Spent(), set[str]()
    for line in client.results(batch.id, batch.results_url):
        found = result.decode(line)
        message = found.result.message if found else None
        if found is None or message is None or found.custom_id in seen:
            continue
        seen.add(found.custom_id)
        spent.rows += 1
        if cost := prices.cost(message.model, message.usage, batch.created_at.date()):
            spent.cost_usd += cost.cost_usd
        else:
            spent.unpriced += 1
    unread = max(batch.request_counts.succeeded - spent.rows, 0)
    spent.rows, spent.unpriced = spent.rows + unread, spent.unpriced + unread
    return spent.rounded.cost_usd, spent.unpriced
