"""Preflight: a first few requests are answered before the rest is paid, so that a bad prompt costs little."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_claude_batch import result, spending
from airflow_provider_claude_batch.errors import ApiRefused, PreflightFailed, QueueFull
from airflow_provider_claude_batch.note import Note, Notebook
from airflow_provider_claude_batch.order import Order
from airflow_provider_claude_batch.request import Request
from airflow_provider_claude_batch.result import Message
from airflow_provider_claude_batch.row import Reader, Unfit, is_retryable_error, problem_of
from airflow_provider_claude_batch.words import counted

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

_PICO_DIGITS = 12

log = logging.getLogger(__name__)


def fly(requests: Sequence[Request], note: Note, order: Order, client: "Client", notebook: Notebook) -> None:
    """Have the first requests answered live, each once over all tries; stop where one has no usable answer."""
    failures = []
    cover, due = note.cover, requests[note.cover.preflight :]
    for request in due:
        message = _ask(request, note, order, client, notebook)
        if cost := order.prices.cost(message.model, message.usage, client.now().date()):
            cover.preflight_usd = round(cover.preflight_usd + float(cost.live_cost_usd), _PICO_DIGITS)
            cover.preflight_unpriced -= 1
        if problem := _problem(message, order.reader):
            failures.append(f"{request.custom_id!r} was {problem}")
        cover.preflight += not failures
        notebook.save(note)
    if due:
        said = spending.amount(cover.preflight_usd or None, cover.preflight_unpriced)
        log.info("%s answered live first. The task has paid %s for live requests.", counted(len(due), "request"), said)
    if failures:
        raise PreflightFailed(failures)


def _ask(request: Request, note: Note, order: Order, client: "Client", notebook: Notebook) -> Message:
    """Have one request answered. Until the answer is there its price is not known, and the note says so before."""
    note.cover.preflight_unpriced += 1
    notebook.save(note)
    try:
        return client.message(request.params, order.defaults.betas)
    except (ApiRefused, QueueFull) as refused:  # which costs nothing
        note.cover.preflight_unpriced -= 1
        notebook.save(note)
        if isinstance(refused, QueueFull):
            raise
        raise PreflightFailed([f"{request.custom_id!r}: {refused}"]) from None


def _problem(message: Message, reader: Reader | None) -> str | None:
    """Say why an answer is not usable, or None where it is."""
    try:
        text = result.text_of(message.content)
        if problem := problem_of(message, text):
            return f"{problem} ({message.stop_reason})"
        if reader is not None:
            reader.read(text)
    except (Unfit, *result.UNREADABLE) as unfit:
        return f"invalid_output ({unfit})"
    return None


def judge_prime(batch_id: str, client: "Client") -> None:
    """Stop before the others are sent where the first request, which primes the cache, was refused."""
    for line in client.results(batch_id):
        found = result.decode(line)
        if found is None:
            continue
        error = found.result.error
        if error is not None and not is_retryable_error(error.error.type):
            raise PreflightFailed([f"the one that primes the cache: {error.error.type}: {error.error.message}"])
        if found.result.message is None:
            log.warning("The request that primes the cache was %s: the others may write it anew.", found.result.type)
