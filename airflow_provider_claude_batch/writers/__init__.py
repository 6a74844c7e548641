"""Warehouses behind one door: the type of a connection names the writer, which is loaded on demand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from importlib import import_module
from typing import Any, Protocol

from airflow_provider_claude_batch.row import Column, Row
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.table import Table

_WRITERS = {
    "duckdb": "duckdb.DuckDBWriter",
    "gcpbigquery": "bigquery.BigQueryWriter",
    "google_cloud_platform": "bigquery.BigQueryWriter",
    "iceberg": "iceberg.IcebergWriter",
    "postgres": "postgres.PostgresWriter",
    "snowflake": "snowflake.SnowflakeWriter",
    "sqlite": "sqlite.SQLiteWriter",
}
_ANY_DATABASE = "dbapi.DbApiWriter"

Retryable = tuple[str, str | None, int | None, str]
Answer = tuple[str, str]


class Writer(Protocol):
    """Replaces the rows of given batches in one table, in one transaction; reads some of what is there back."""

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None: ...

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]: ...

    def answered(self, before: datetime) -> Iterator[Answer]: ...

    def exists(self) -> bool: ...

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]: ...


class Answered:
    """What had a usable answer at a moment, by id and hash; eight bytes of each pair tell them apart."""

    def __init__(self, writer: Writer, moment: datetime) -> None:
        self._pairs = {hash(pair) for pair in writer.answered(moment)}

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def __contains__(self, pair: object) -> bool:
        return hash(pair) in self._pairs


def find_writer(conn_type: str) -> Callable[[Any, Table, Sequence[Column]], Writer]:
    """Return the writer for a type of connection: it takes the hook that Airflow offers for it, a table and columns."""
    module, _, name = _WRITERS.get(conn_type, _ANY_DATABASE).partition(".")
    writer: Callable[[Any, Table, Sequence[Column]], Writer] = getattr(import_module(f"{__name__}.{module}"), name)
    return writer
