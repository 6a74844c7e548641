"""Retrying: which requests of a loaded submission can succeed on another try."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from airflow_provider_claude_batch.errors import InvalidRequests, Misconfigured
from airflow_provider_claude_batch.receipt import Receipt, newest
from airflow_provider_claude_batch.request import MAX_SKIPPED, Defaults, Reading

_NAMED = 10

ReadBack = Callable[[Receipt], Iterable[tuple[str, str | None, int | None, str]]]
_Opened = tuple[str | None, Any, Any]


class Retry(msgspec.Struct, frozen=True):
    """The ids that may be tried again; for truncated answers, how many tokens they had used."""

    lineage: Receipt
    used_tokens: dict[str, int | None]

    @property
    def truncated(self) -> list[str]:
        """Name what was cut off, and is tried again only with more room."""
        return [custom_id for custom_id, tokens in self.used_tokens.items() if tokens is not None]

    @classmethod
    def of(cls, receipts: Sequence[Receipt], read_back: ReadBack, *, retry_canceled: bool = True) -> "Retry | None":
        """Collect the ids from the receipts, or from the table where there are too many; None where there are none."""
        receipts = newest(receipts)
        if len({receipt.submission for receipt in receipts}) > 1:
            raise Misconfigured("retry_of= takes the receipts of one submission: map the retry like the submission.")
        lineage = next_attempt(receipts, retry_canceled=retry_canceled)
        used = {
            custom_id: tokens
            for receipt in _last(receipts)
            for custom_id, tokens in _retryable(receipt, read_back, retry_canceled=retry_canceled)
        }
        return cls(lineage, used) if used else None

    def select(self, raw: Iterable[Any], defaults: Defaults) -> Iterator[Any]:
        """Keep the requests that may go better now; one that the source no longer has is an error."""
        lost = dict(self.used_tokens)
        wanted = (one for one in map(_open, raw) if one[0] in lost)
        for custom_id, request, item in _unfit_last(wanted, defaults):
            if custom_id in lost:
                used = lost.pop(custom_id)
                if used is None or _max_tokens(request, defaults) > used:
                    yield item
        if lost:
            named = ", ".join(sorted(lost)[:_NAMED])
            raise Misconfigured(
                f"{len(lost):,} requests are to be tried again and are not in the source any more: {named}."
            )


def canceled_at_deadline(receipts: Sequence[Receipt]) -> int:
    """Count the requests of the last attempt that a wait canceled at its deadline."""
    return sum(_canceled(receipt) for receipt in _last(receipts))


def _canceled(receipt: Receipt) -> int:
    return (receipt.retryable_by or {}).get("canceled", 0) if receipt.canceled_at_deadline else 0


def _last(receipts: Sequence[Receipt]) -> list[Receipt]:
    last = max(receipt.attempt for receipt in receipts)
    return [receipt for receipt in receipts if receipt.attempt == last]


def _retryable(receipt: Receipt, read_back: ReadBack, *, retry_canceled: bool) -> Iterator[tuple[str, int | None]]:
    if receipt.rounds is not None:
        raise Misconfigured("retry_of= takes the receipt of a load, and not a total: give the group more rounds.")
    if receipt.retryable is None:
        raise Misconfigured("retry_of= takes the receipt of a load: only there it is known what failed.")
    left_out = 0 if retry_canceled else _canceled(receipt)
    if left_out == receipt.retryable:
        return
    inline, truncated = receipt.retry_ids or (), receipt.truncated_ids or {}
    if not left_out and len(inline) + len(truncated) == receipt.retryable:
        yield from ((custom_id, None) for custom_id in inline)
        yield from truncated.items()
        return
    gone = receipt.retryable
    for custom_id, problem, output_tokens, status in read_back(receipt):
        gone -= 1
        if not (left_out and status == "canceled"):
            yield custom_id, (output_tokens or 0) if problem == "truncated" else None
    if gone > 0:
        named = ", ".join(receipt.batch_ids[:_NAMED])
        raise Misconfigured(
            f"{gone:,} of {receipt.retryable:,} rows of batch {named} that are to be tried again are not in the table "
            f"{receipt.table} any more: clear the load."
        )


def next_attempt(receipts: Sequence[Receipt], *, retry_canceled: bool = True) -> Receipt:
    """Carry on the lineage: the first submission's name and place, one attempt more."""
    first = receipts[0]
    return Receipt(
        submission=first.submission,
        dag_id=first.dag_id,
        run_id=first.run_id,
        submit_task=first.submit_task,
        map_index=first.map_index,
        element=first.element,
        logical_date=first.logical_date,
        attempt=max(receipt.attempt for receipt in receipts) + 1,
        of=tuple(batch_id for receipt in _last(receipts) for batch_id in receipt.batch_ids) or None,
        left_out=None if retry_canceled else canceled_at_deadline(receipts) or None,
    )


def _open(item: Any) -> _Opened:
    request = _of_line(item) if isinstance(item, bytes) else item
    custom_id = request.get("custom_id") if isinstance(request, Mapping) else None
    return custom_id if isinstance(custom_id, str) else None, request, item


def _unfit_last(wanted: Iterable[_Opened], defaults: Defaults) -> Iterator[_Opened]:
    """Put off what cannot be sent, as far as it may be skipped: of two that share an id, the other one was sent."""
    unfit: list[_Opened] = []
    for one in wanted:
        if len(unfit) < MAX_SKIPPED and not _is_fit(one[1], defaults):
            unfit.append(one)
        else:
            yield one
    yield from unfit


def _is_fit(request: Any, defaults: Defaults) -> bool:
    try:
        return any(True for _ in Reading([request], defaults))
    except InvalidRequests:
        return False


def _of_line(line: bytes) -> Any:
    """Read a line; one that cannot be read was never sent, so it is none that is tried again."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _max_tokens(item: Mapping[str, Any], defaults: Defaults) -> int:
    params = item.get("params")
    own = params.get("max_tokens") if isinstance(params, Mapping) else None
    value = own if own is not None else defaults.params.get("max_tokens")
    return value if isinstance(value, int) else 0
