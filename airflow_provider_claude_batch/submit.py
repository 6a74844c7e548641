"""Submitting: requests become batches, each paid once."""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from airflow_provider_claude_batch import request as requests
from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.errors import (
    ApiRefused,
    ApiUnavailable,
    FateUnknown,
    GuardExceeded,
    Misconfigured,
)
from airflow_provider_claude_batch.estimate import Survey
from airflow_provider_claude_batch.note import Note, Notebook, NotedShard
from airflow_provider_claude_batch.price import PriceList, dollars
from airflow_provider_claude_batch.receipt import Estimate, Receipt
from airflow_provider_claude_batch.request import Defaults
from airflow_provider_claude_batch.shard import Shard, cut

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

CONSOLE = "https://platform.claude.com/workspaces/default/batches"

log = logging.getLogger(__name__)


class Order(msgspec.Struct, frozen=True):
    """What is to be submitted, for whom, and within which limits."""

    receipt: Receipt
    deployment: str
    task_instance: tuple[str, str, str, int]
    clear_number: int
    prices: PriceList
    defaults: Defaults
    shard_size: int | None = None
    max_requests: int | None = None
    max_cost_usd: float | None = None

    def mark(self, shard: Shard, generation: int) -> str:
        """Prove on the API's side whose shard it is, content and all."""
        parts = [self.deployment, *self.task_instance, shard.index, shard.digest, generation]
        return wire_id.mark_of(msgspec.json.encode(parts))


def accepted(notebook: Notebook, clear_number: int) -> Receipt | None:
    """Return the receipt of an earlier try that submitted everything, unless the task was cleared since."""
    noted = notebook.read()
    if noted is None or not noted.is_complete or noted.clear_number != clear_number:
        return None
    log.info("An earlier try submitted all of it: %s. Nothing was sent.", _ids(noted))
    return noted.receipt


def submit(
    order: Order, raw: Iterable[Any], client: "Client", notebook: Notebook, publish: Callable[[Receipt], None]
) -> Receipt | None:
    """Submit what was not submitted yet; None where there is nothing to send."""
    noted = notebook.read()
    with TemporaryFile(prefix="claude_batch_") as spool:
        survey = Survey()
        shards = cut(survey.observe(requests.read(raw, order.defaults)), spool, order.defaults.betas, order.shard_size)
        note = _reconcile(order, shards, noted)
        if note is None and shards:
            note = _open_note(order, shards, survey, client, generation=noted.generation if noted else 0)
        if noted is not None and (note is None or note.digests != noted.digests):
            _cancel(noted, client)
        if note is None:
            return None
        notebook.write(note)
        return _send_all(shards, note, client, notebook, publish)


def new_submission(now: datetime) -> str:
    """Name a submission so that names sort by time."""
    return f"sub_{now:%Y%m%dT%H%M%S%f}_{uuid4().hex[:8]}"


def _reconcile(order: Order, shards: list[Shard], noted: Note | None) -> Note | None:
    """Take the noted submission up where the requests are the same; None where a new one is due."""
    if noted is None:
        return None
    if noted.digests == [shard.digest for shard in shards]:
        _refuse_doubt(noted)
        return msgspec.structs.replace(noted, clear_number=order.clear_number)
    if noted.clear_number == order.clear_number:
        if any(shard.sent_at for shard in noted.shards):
            raise Misconfigured(
                f"The requests are not those of the try before, of which {_ids(noted)} may be running: nothing "
                "was sent. Give the source an order of its own, or clear the task to submit anew."
            )
        return None
    _refuse_doubt(noted)
    return None


def _refuse_doubt(noted: Note) -> None:
    for index, shard in enumerate(noted.shards):
        if shard.in_doubt:
            raise FateUnknown(
                f"Shard {index} of {shard.requests:,} requests was sent at {shard.sent_at:%Y-%m-%d %H:%M:%S} UTC, and "
                f"the answer never came: it may be paid and running, so it is not sent again. Look for it at {CONSOLE}."
            )


def _cancel(noted: Note, client: "Client") -> None:
    """Stop what the changed requests made obsolete; only ids of our own note are touched."""
    for shard in noted.shards:
        if shard.id is None:
            continue
        try:
            if not client.retrieve(shard.id).ended:
                client.cancel(shard.id)
                log.warning("The requests changed: batch %s of before still ran and was cancelled.", shard.id)
        except ApiRefused as error:
            log.warning("The requests changed, and batch %s of before may still run. %s", shard.id, error)


def _open_note(order: Order, shards: list[Shard], survey: Survey, client: "Client", generation: int) -> Note:
    total = sum(map(len, shards))
    if order.max_requests is not None and total > order.max_requests:
        raise GuardExceeded("max_requests", f"{order.max_requests:,} requests", f"{total:,}")
    now = datetime.now(UTC)
    estimate = survey.estimate(client, order.defaults.betas, order.prices, now.date())
    _guard_cost(order, estimate)
    _announce(shards, survey, estimate)
    receipt = msgspec.structs.replace(
        order.receipt,
        submission=order.receipt.submission or new_submission(now),
        requests=total,
        models=survey.models,
        estimate_usd=estimate.usd,
        submitted_at=now,
    )
    noted = [NotedShard(order.mark(shard, generation), shard.digest, len(shard), shard.bytes) for shard in shards]
    return Note(order.clear_number, receipt, noted, generation)


def _guard_cost(order: Order, estimate: Estimate) -> None:
    if order.max_cost_usd is None:
        return
    if estimate.usd is None:
        raise GuardExceeded("max_cost_usd", dollars(order.max_cost_usd), "a model whose price is not known")
    if estimate.usd > order.max_cost_usd:
        raise GuardExceeded(
            "max_cost_usd",
            dollars(order.max_cost_usd),
            f"an estimate of about {dollars(estimate.usd)} ({estimate.basis})",
        )


def _announce(shards: list[Shard], survey: Survey, estimate: Estimate) -> None:
    log.info(
        "Submitting %s requests (%s bytes) as %d batch(es) for %s.",
        f"{sum(map(len, shards)):,}",
        f"{sum(shard.bytes for shard in shards):,}",
        len(shards),
        ", ".join(survey.models),
    )
    cost = (
        "an unknown amount, for a model's price is not known"
        if estimate.usd is None
        else f"about {dollars(estimate.usd)}"
    )
    log.info(
        "It may cost %s: about %s input tokens, at most %s output tokens (%s).",
        cost,
        f"{estimate.input_tokens:,}",
        f"{estimate.max_output_tokens:,}",
        estimate.basis,
    )


def _send_all(
    shards: list[Shard],
    note: Note,
    client: "Client",
    notebook: Notebook,
    publish: Callable[[Receipt], None],
) -> Receipt:
    if note.receipt.batches:
        publish(note.receipt)
    for shard, noted in zip(shards, note.shards, strict=True):
        if noted.id:
            log.info("Batch %s of %s requests was submitted before; nothing was sent.", noted.id, f"{noted.requests:,}")
            continue
        noted.id = _send(shard, noted, note, client, notebook)
        notebook.update(note, shard.index)
        publish(note.receipt)
        log.info(
            "Submitted batch %s of %s requests; the Claude Console lists it: %s",
            noted.id,
            f"{noted.requests:,}",
            CONSOLE,
        )
    return note.receipt


def _send(shard: Shard, noted: NotedShard, note: Note, client: "Client", notebook: Notebook) -> str:
    noted.sent_at = datetime.now(UTC)
    notebook.update(note, shard.index)
    try:
        return client.create(shard.body(noted.mark), shard.bytes, shard.betas).id
    except FateUnknown:
        raise
    except (ApiRefused, ApiUnavailable):
        noted.sent_at = None
        notebook.update(note, shard.index)
        raise


def _ids(note: Note) -> str:
    return ", ".join(shard.id for shard in note.shards if shard.id) or "a batch without an id"
