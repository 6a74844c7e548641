"""SQLite: rows are staged in a file of their own, and swapped in one transaction."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.table import (
    Dialect,
    Statements,
    Table,
    fold_ascii,
    is_in_the_way,
    refuse_odd_path,
    unquote,
)

_PATIENCE, _SHORT_PATIENCE = 600.0, 3.0
_TYPES: dict[Kind, str] = {
    "text": "TEXT",
    "bigint": "INTEGER",
    "double": "REAL",
    "boolean": "INTEGER",
    "date": "TEXT",
    "timestamp": "TEXT",
    "decimal": "TEXT",
    "money": "TEXT",
    "json": "TEXT",
}
_STAGED = "staged.rows_to_load"
_RELATION = "SELECT type, sql FROM main.sqlite_master WHERE lower(name) = lower(?) AND type IN ('table', 'view')"


class SQLiteWriter:
    """Write rows into one table of a SQLite file."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        self._hook = hook
        self._sql = Statements(table, columns, Dialect(_TYPES, zone=""))
        if len(table.parts) > 1:
            raise Misconfigured(f"SQLite has no schemas: name the table {table.name}, not {table}.")
        if (path := hook.get_uri().removeprefix("sqlite:///").partition("?")[0]).startswith("/"):
            refuse_odd_path(path, hook.get_conn_id())

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Replace the rows of the batches; a crash leaves the old rows or the new."""
        with TemporaryDirectory(prefix="claude_batch_") as folder, self._open() as con:
            con.execute("ATTACH ? AS staged", [str(Path(folder, "rows.sqlite"))])
            con.execute("PRAGMA staged.synchronous = OFF")
            con.execute("PRAGMA staged.journal_mode = OFF")
            self._stage(con, rows)
            con.execute("BEGIN IMMEDIATE")
            self._define(con)
            con.execute(self._sql.delete(len(batch_ids)), batch_ids)
            con.execute(self._sql.insert_from(_STAGED))
            con.execute("COMMIT")
            con.execute("DETACH staged")

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        with self._open() as con:
            found = con.execute(self._sql.select_retryable(len(batch_ids)), batch_ids).fetchall()
        yield from found

    def answered(self, before: datetime) -> Iterator[Answer]:
        """Read which requests had a usable answer at a moment, by id and hash."""
        with self._open() as con:
            there = self._columns(con)
            found = con.execute(self._sql.select_answered(before, there)).fetchall() if there else []
        yield from found

    def exists(self) -> bool:
        """Say whether the table is there."""
        with self._open() as con:
            return bool(self._columns(con))

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]:
        """Read some rows of the batches for people to look at."""
        with self._open(is_to_read=True) as con:
            if not (found := self._columns(con)):
                return []
            sql = self._sql.select_sample(len(batch_ids), self._sql.missing(found), failed=failed, limit=limit)
            return list(map(Sample.of, con.execute(sql, batch_ids)))

    def _stage(self, con: sqlite3.Connection, rows: Iterable[Row]) -> None:
        con.execute(f"CREATE TABLE {_STAGED} ({self._sql.definition})")
        con.execute("BEGIN")
        marks = ", ".join("?" * len(self._sql.columns))
        con.executemany(f"INSERT INTO {_STAGED} VALUES ({marks})", map(_values, rows))
        con.execute("COMMIT")

    def _define(self, con: sqlite3.Connection) -> None:
        """Bring table and views to today's columns, where they are not there yet."""
        found = self._columns(con)
        missing = self._sql.missing(found)
        if not found:
            con.execute(self._sql.create())
        for column in missing if found else ():
            con.execute(self._sql.add(column))
        self._show(con, [*found, *(column.name for column in missing)])

    def _show(self, con: sqlite3.Connection, columns: Sequence[str]) -> None:
        """Make each view again that is not as it would be made now: SQLite changes its text with a table's name."""
        for view, select in self._sql.views(columns).items():
            create = f"CREATE VIEW {view} AS {select}"
            kind, written = con.execute(_RELATION, [unquote(view)]).fetchone() or ("", None)
            if kind == "table":
                raise is_in_the_way(view, self._sql.table)
            if written != create:
                con.execute(f"DROP VIEW IF EXISTS main.{view}")
                con.execute(create)

    def _columns(self, con: sqlite3.Connection) -> dict[str, str]:
        found = con.execute(f"PRAGMA main.table_info({self._sql.table})")
        return {fold_ascii(row[1]): row[2].upper() for row in found}

    @contextmanager
    def _open(self, *, is_to_read: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect_to_read() if is_to_read else self._hook.get_conn()) as con:
                self._prepare(con, is_to_read=is_to_read)
                yield con
        except sqlite3.Error as error:
            cls = WarehouseUnavailable if _may_pass(error) else Misconfigured
            raise cls(f"SQLite could not use connection {self._hook.get_conn_id()!r}: {error}.") from None

    def _connect_to_read(self) -> sqlite3.Connection:
        """Open the file as the hook does, but do not create it; nobody needs the right to write."""
        uri = self._hook.get_uri().replace("sqlite:///", "file:")
        mode = "ro" if "mode=ro" in uri else "rw"
        return sqlite3.connect(f"{uri}{'&' if '?' in uri else '?'}mode={mode}", uri=True)

    def _prepare(self, con: sqlite3.Connection, *, is_to_read: bool) -> None:
        """Take transactions into our own hands, wait for other writers, and refuse a database without a file."""
        con.isolation_level = None
        con.execute(f"PRAGMA busy_timeout = {int(1_000 * (_SHORT_PATIENCE if is_to_read else _PATIENCE))}")
        con.execute(f"PRAGMA query_only = {is_to_read:d}")
        file = next((row[2] for row in con.execute("PRAGMA database_list") if row[1] == "main"), "")
        if not file:
            raise Misconfigured(
                "A SQLite database in memory is gone with the task: put the path of a file into the connection's host."
            )


def _may_pass(error: sqlite3.Error) -> bool:
    """A lock is let go and a disk comes back; a table that is a view stays one."""
    return isinstance(error, sqlite3.OperationalError) and any(
        word in str(error) for word in ("locked", "unable to open", "disk", "full")
    )


def _values(row: Row) -> list[Any]:
    return [_value(cell) for cell in row.cells()]


def _value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    if isinstance(value, date):
        return value.isoformat()
    return value
