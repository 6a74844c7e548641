"""Preflight: a first few requests are answered before the rest is paid, so that a bad prompt costs little."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_claude_batch import result
from airflow_provider_claude_batch.errors import ApiRefused, PreflightFailed
from airflow_provider_claude_batch.note import Note, Notebook
from airflow_provider_claude_batch.order import Order
from airflow_provider_claude_batch.price import dollars
from airflow_provider_claude_batch.request import Request
from airflow_provider_claude_batch.result import Message
from airflow_provider_claude_batch.row import Reader, Unfit, is_retryable_error, problem_of

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

log = logging.getLogger(__name__)


def fly(requests: Sequence[Request], note: Note, order: Order, client: "Client", notebook: Notebook) -> None:
    """Have the first requests answered live, each once over all tries; stop where one has no usable answer."""
    failures = []
    least = ""
    due = requests[note.cover.preflight :]
    for request in due:
        try:
            message = client.message(request.params, order.defaults.betas)
        except ApiRefused as refused:
            raise PreflightFailed([f"{request.custom_id!r}: {refused}"]) from None
        cost = order.prices.cost(message.model, message.usage, client.now().date())
        note.cover.preflight_usd += float(cost.live_cost_usd) if cost else 0.0
        least = least if cost else "at least "
        if problem := _problem(message, order.reader):
            failures.append(f"{request.custom_id!r} was {problem}")
        note.cover.preflight += not failures
        notebook.save(note)
    if failures:
        raise PreflightFailed(failures)
    if due:
        log.info("%d requests were answered live first, for %s%s.", len(due), least, dollars(note.cover.preflight_usd))


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
