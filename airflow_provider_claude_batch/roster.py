"""Rosters: which requests a batch consisted of, read again from where they came from."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from airflow_provider_claude_batch.batch_queue import Drain
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt import Part, Receipt, Source
from airflow_provider_claude_batch.source import SqlRequests, open_source

_CANNOT = "Which requests they are cannot be told: "


class Roster:
    """Read the ids of the requests of a submission again."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __call__(self, receipt: Receipt, part: Part) -> list[str]:
        """Return the ids of the requests of one batch, in the order in which they were sent."""
        if receipt.source is None or part.first is None:
            raise Misconfigured(f"{_CANNOT}the receipt does not say where they came from.")
        if receipt.attempt > 1:
            raise Misconfigured(f"{_CANNOT}this was a retry, of some requests of its source.")
        ids = self._ids(receipt)
        return list(islice(ids, part.first, part.first + part.total))

    def _ids(self, receipt: Receipt) -> Iterator[str]:
        """Yield the ids of requests that were sent: each once, and none that was skipped."""
        ids = filter(None, map(_custom_id, self._open(receipt.source or Source(), receipt)))
        if receipt.invalid is None:
            return ids
        skipped = {name for names in receipt.invalid.values() for name in names}
        return (custom_id for custom_id in dict.fromkeys(ids) if custom_id not in skipped)

    def _open(self, source: Source, receipt: Receipt) -> Iterator[Any]:
        if source.uri:
            return open_source(source.uri)
        if source.conn_id and source.sql and source.custom_id:
            ids = source.custom_id
            return open_source(SqlRequests(source.conn_id, source.sql, custom_id=ids, prompt=ids))
        if len(source.tasks) == 1:
            return open_source(self._pull(source.tasks[0], receipt.map_index))
        if source.conn_id and source.queue:
            return Drain(source.conn_id, source.queue).read_again(receipt)
        raise Misconfigured(f"{_CANNOT}their source cannot be read again.")

    def _pull(self, task_id: str, map_index: int) -> Any:
        value = self._context["ti"].xcom_pull(task_ids=task_id)
        if map_index < 0 or isinstance(value, str | None):
            return value
        return value[map_index]


def _custom_id(item: Any) -> str | None:
    if isinstance(item, bytes):
        try:
            item = msgspec.json.decode(item)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    custom_id = item.get("custom_id") if isinstance(item, Mapping) else None
    return custom_id if isinstance(custom_id, str) else None
