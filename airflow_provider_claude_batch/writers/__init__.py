"""Warehouses behind one door: the type of a connection names the writer, which is loaded on demand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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


def find_writer(conn_type: str) -> Callable[[Any, Table], Writer]:
    """Return the writer for a type of connection: it takes the hook that Airflow offers for it, and a table."""
    if conn_type not in _WRITERS:
        raise Misconfigured(
            f"There is no writer for connections of type {conn_type!r}: rows can go to {', '.join(sorted(_WRITERS))}."
        )
    writer: Callable[[Any, Table], Writer] = getattr(import_module(f"{__name__}.{conn_type}"), _WRITERS[conn_type])
    return writer
