"""Rosters: which requests a batch consisted of, read again from where they came from."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from airflow_provider_claude_batch import declared, wire_id
from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured
from airflow_provider_claude_batch.receipt import Part, Receipt
from airflow_provider_claude_batch.shard import hash_ids
from airflow_provider_claude_batch.unreadable import custom_id_of

_CANNOT = "Which requests they are cannot be told: "
_TWICE = "custom_id stands twice"


class Roster:
    """Read the ids of the requests of a submission again."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __call__(self, receipt: Receipt, part: Part) -> list[str]:
        """Return the ids of the requests of one batch, in the order in which they were sent."""
        if part.first is None or part.ids_hash is None:
            raise Misconfigured(f"{_CANNOT}the receipt does not say where they came from.")
        if receipt.attempt > 1:
            raise Misconfigured(f"{_CANNOT}this was a retry, of some requests of its source.")
        try:
            ids = list(islice(_sent(self._requests(receipt), receipt), part.first, part.first + part.total))
        except ClaudeBatchError as error:
            raise Misconfigured(f"{_CANNOT}{error}") from None
        except Exception as error:  # noqa: BLE001 - a best effort: templates and XComs raise whatever they like
            raise Misconfigured(f"{_CANNOT}reading their source again fails ({type(error).__name__}).") from None
        if hash_ids(ids) != part.ids_hash:
            raise Misconfigured(f"{_CANNOT}the source does not hold the requests of then any more.")
        return ids

    def _requests(self, receipt: Receipt) -> Iterator[Any]:
        """Read the source as the Dag's code declares it: `receipt.source` is for people, and anybody may edit it."""
        task, context = declared.submit_of(self._context, receipt)
        requests: Iterator[Any] = task.read_again(context, receipt)
        return requests


def _sent(raw: Iterable[Any], receipt: Receipt) -> Iterator[str]:
    """Yield the ids of requests that were sent: each once, at the first place where it was not skipped.

    What stands at a later place was skipped because the id stands twice, and that says nothing of the first.
    """
    invalid = receipt.invalid or {}
    skipped = Counter(name for why, names in invalid.items() if why != _TWICE for name in names)
    seen: set[str] = set()
    for custom_id in (one for one in map(custom_id_of, raw) if one is not None and _is_fit(one)):
        if skipped[custom_id]:
            skipped[custom_id] -= 1
        elif custom_id not in seen:
            seen.add(custom_id)
            yield custom_id


def _is_fit(custom_id: str) -> bool:
    try:
        return bool(custom_id and wire_id.pack(custom_id))
    except wire_id.Unfit:
        return False
