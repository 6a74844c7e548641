"""Warehouses behind one door: the type of a connection names the writer, which is loaded on demand."""

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import Row
from airflow_provider_claude_batch.writers.table import Table

_WRITERS = {"duckdb": "DuckDBWriter", "sqlite": "SQLiteWriter"}

Retryable = tuple[str, str | None, int | None]


class Writer(Protocol):
    """Replaces the rows of given batches in one table, in one transaction; reads ids and hashes back."""

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None: ...

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]: ...

    def answered(self) -> Iterator[tuple[str, str]]: ...


def open_writer(conn_type: str, hook: Any, table: str) -> Writer:
    """Return the writer for a type of connection; `hook` is what Airflow offers for that connection."""
    if conn_type not in _WRITERS:
        raise Misconfigured(
            f"There is no writer for connections of type {conn_type!r}: rows can go to {', '.join(sorted(_WRITERS))}."
        )
    module = import_module(f"{__name__}.{conn_type}")
    writer: Writer = getattr(module, _WRITERS[conn_type])(hook, Table.parse(table))
    return writer
