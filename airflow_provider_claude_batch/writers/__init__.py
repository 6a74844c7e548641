"""Warehouses behind one door: the type of a connection names the writer, which is loaded on demand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Protocol

from airflow_provider_claude_batch.row import Column, Row
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

Retryable = tuple[str, str | None, int | None]
Answer = tuple[str, str, datetime | str]


class Writer(Protocol):
    """Replaces the rows of given batches in one table, in one transaction; reads ids and hashes back."""

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None: ...

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]: ...

    def answered(self) -> Iterator[Answer]: ...


def answered_before(writer: Writer, moment: datetime) -> set[tuple[str, str]]:
    """Return what had a usable answer at a moment, by id and hash."""
    return {(custom_id, request_hash) for custom_id, request_hash, since in writer.answered() if _utc(since) < moment}


def _utc(moment: datetime | str) -> datetime:
    """Read a moment as the warehouse gives it: all of ours are UTC, with or without saying so."""
    moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def find_writer(conn_type: str) -> Callable[[Any, Table, Sequence[Column]], Writer]:
    """Return the writer for a type of connection: it takes the hook that Airflow offers for it, a table and columns."""
    module, _, name = _WRITERS.get(conn_type, _ANY_DATABASE).partition(".")
    writer: Callable[[Any, Table, Sequence[Column]], Writer] = getattr(import_module(f"{__name__}.{module}"), name)
    return writer
