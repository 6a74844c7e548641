"""Rosters: which requests a batch consisted of, read again from where they came from."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.batch_queue import Drain
from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured
from airflow_provider_claude_batch.receipt import Part, Receipt, Source
from airflow_provider_claude_batch.shard import hash_ids
from airflow_provider_claude_batch.source import SqlRequests, open_source

_CANNOT = "Which requests they are cannot be told: "
_TWICE = "custom_id stands twice"

Opening = Callable[[], Iterable[Any]]


class Roster:
    """Read the ids of the requests of a submission again."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __call__(self, receipt: Receipt, part: Part) -> list[str]:
        """Return the ids of the requests of one batch, in the order in which they were sent."""
        if receipt.source is None or part.first is None or part.ids_hash is None:
            raise Misconfigured(f"{_CANNOT}the receipt does not say where they came from.")
        if receipt.attempt > 1:
            raise Misconfigured(f"{_CANNOT}this was a retry, of some requests of its source.")
        problems: list[str] = []
        for opening in self._openings(receipt.source, receipt):
            try:
                ids = list(islice(_sent(opening(), receipt), part.first, part.first + part.total))
            except (LookupError, TypeError):
                continue  # the XCom has another shape
            except ClaudeBatchError as error:
                problems.append(str(error))
                continue
            if hash_ids(ids) == part.ids_hash:
                return ids
            problems.append("the source does not hold the requests of then any more.")
        raise Misconfigured(_CANNOT + (problems or ["the XCom is gone."])[0])

    def _openings(self, source: Source, receipt: Receipt) -> Iterator[Opening]:
        """Yield the ways to read the source; of an XCom it is not known whether the submission was mapped over it."""
        if source.uri:
            yield partial(open_source, source.uri)
        elif source.conn_id and source.sql and source.custom_id:
            ids = source.custom_id
            yield partial(open_source, SqlRequests(source.conn_id, source.sql, custom_id=ids, prompt=ids))
        elif len(source.tasks) == 1:
            yield from self._xcoms(source.tasks[0], receipt.map_index)
        elif source.conn_id and source.queue:
            yield partial(Drain(source.conn_id, source.queue).read_again, receipt)
        else:
            raise Misconfigured(f"{_CANNOT}their source cannot be read again.")

    def _xcoms(self, task_id: str, map_index: int) -> Iterator[Opening]:
        pull = partial(self._context["ti"].xcom_pull, task_ids=task_id)
        if map_index >= 0:
            yield lambda: _open(pull(map_indexes=map_index))
            yield lambda: _open(pull()[map_index])
        yield lambda: _open(pull())


def _open(value: Any) -> Iterator[Any]:
    if value is None:
        raise LookupError
    return open_source(value)


def _sent(raw: Iterable[Any], receipt: Receipt) -> Iterator[str]:
    """Yield the ids of requests that were sent: each once, at the first place where it was not skipped.

    What stands at a later place was skipped because the id stands twice, and that says nothing of the first.
    """
    invalid = receipt.invalid or {}
    skipped = Counter(name for why, names in invalid.items() if why != _TWICE for name in names)
    seen: set[str] = set()
    for custom_id in filter(_is_fit, map(_custom_id, raw)):
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


def _custom_id(item: Any) -> str:
    if isinstance(item, bytes):
        try:
            item = msgspec.json.decode(item)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
    custom_id = item.get("custom_id") if isinstance(item, Mapping) else None
    return custom_id if isinstance(custom_id, str) else ""
