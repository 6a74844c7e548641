"""DuckDB: rows are staged as an Arrow file, and the database is opened only for the swap."""

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa

from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.chunk import chunks
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.table import (
    Dialect,
    Statements,
    Table,
    fold_ascii,
    is_in_the_way,
    quote,
    refuse_odd_path,
)

_CHUNK_ROWS = 1_000
_CHUNK_CHARS = 4_000_000
_MEMORY_MB = 128
_DOUBLINGS = 7
_GROUP_ROWS, _VECTOR_ROWS = 122_880, 2_048
_GROUP_BYTES = 32_000_000
_HEAD_BYTES = 3 * 4_096
_PATIENCE, _SHORT_PATIENCE = 600.0, 3.0
_MISTAKES = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConstraintException,
    duckdb.ConversionException,
    duckdb.ParserException,
)
_TYPES: dict[Kind, str] = {
    "text": "VARCHAR",
    "bigint": "BIGINT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "decimal": "DECIMAL(38,9)",
    "money": "DECIMAL(18,12)",
    "json": "JSON",
}
_STAGED: dict[Kind, pa.DataType] = {
    "text": pa.large_string(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "decimal": pa.decimal128(38, 9),
    "money": pa.decimal128(18, 12),
    "json": pa.large_string(),
}
_STAGED_ROWS = "claude_batch_staged_rows"
_LASTING = re.compile(r"not a valid DuckDB database|Corrupt database|database file with [a-z ]*version")
_TOKEN = re.compile(r"(motherduck_token=)[^\s&'\"]+")

log = logging.getLogger(__name__)


class DuckDBWriter:
    """Write rows into one table of a DuckDB file, or of MotherDuck."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        self._hook = hook
        self._table = table
        self._sql = Statements(table, columns, Dialect(_TYPES))
        self._database = hook.get_database()
        if self._database.startswith(":memory:"):
            raise Misconfigured(
                "A DuckDB database in memory is gone with the task: put the path of a file into the connection's host."
            )
        self._is_file = not self._database.startswith("md:")
        if self._is_file:
            refuse_odd_path(self._database, hook.get_conn_id())

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Replace the rows of the batches; a crash leaves the old rows or the new."""
        if self._is_read_only:
            raise Misconfigured(
                f"Connection {self._hook.get_conn_id()!r} is read_only, so nothing can be loaded through it: name a "
                "connection that may write."
            )
        with TemporaryDirectory(prefix="claude_batch_") as folder:
            staged = Path(folder, "rows.arrow")
            group_rows = _stage(rows, self._sql.columns, staged)
            with self._open(group_rows) as con:
                self._define(con)
                self._swap_in_bounds(con, batch_ids, staged)

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        with self._open() as con:
            found = con.execute(self._sql.select_retryable(len(batch_ids)), list(batch_ids)).fetchall()
        yield from found

    def answered(self, before: datetime) -> Iterator[Answer]:
        """Read which requests had a usable answer at a moment, by id and hash."""
        with self._open() as con:
            there = self._columns(con, self._sql.table)
            found = con.execute(self._sql.select_answered(before, there)).fetchall() if there else []
        yield from found

    def exists(self) -> bool:
        """Say whether the table is there."""
        with self._open() as con:
            return bool(self._columns(con, self._sql.table))

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]:
        """Read some rows of the batches for people to look at."""
        with self._open(is_to_read=True) as con:
            if not (found := self._columns(con, self._sql.table)):
                return []
            sql = self._sql.select_sample(len(batch_ids), self._sql.missing(found), failed=failed, limit=limit)
            return list(map(Sample.of, con.execute(sql, list(batch_ids)).fetchall()))

    @property
    def _is_read_only(self) -> bool:
        mode = str(self._hook.get_connect_config().get("access_mode", ""))
        return self._hook.read_only or mode.lower() == "read_only"

    def _swap_in_bounds(self, con: duckdb.DuckDBPyConnection, batch_ids: Sequence[str], staged: Path) -> None:
        """Give DuckDB little memory, and more where rows are too long; its own limit is most of the machine's."""
        settings = self._hook.get_connect_config()
        if "threads" not in settings:
            con.execute("SET threads = 1")  # more only wait for each other
        if "memory_limit" in settings or not self._is_file:
            return self._swap(con, batch_ids, staged)
        *limits, last = (_MEMORY_MB << doubling for doubling in range(_DOUBLINGS))
        for limit in limits:
            con.execute(f"SET memory_limit = '{limit}MB'")
            with suppress(duckdb.OutOfMemoryException, duckdb.TransactionException):
                return self._swap(con, batch_ids, staged)
            log.info("The rows are too long for %d MB of memory; taking twice as much.", limit)
        con.execute(f"SET memory_limit = '{last}MB'")
        return self._swap(con, batch_ids, staged)

    def _swap(self, con: duckdb.DuckDBPyConnection, batch_ids: Sequence[str], staged: Path) -> None:
        with pa.OSFile(str(staged)) as source, _transaction(con):
            con.execute(self._sql.delete(len(batch_ids)), list(batch_ids))
            con.register(_STAGED_ROWS, pa.ipc.open_stream(source))
            con.execute(self._sql.insert_from(_STAGED_ROWS))

    def _define(self, con: duckdb.DuckDBPyConnection) -> None:
        """Bring table and views to today's columns, where they are not there yet."""
        found = self._columns(con, self._sql.table)
        missing = self._sql.missing(found)
        if self._shows(con, found) and not missing:
            return
        con.begin()
        schema = self._table.parts[:-1]
        if schema and schema != con.execute("SELECT current_database()").fetchone():
            con.execute(f"CREATE SCHEMA IF NOT EXISTS {'.'.join(map(quote, schema))}")
        if not found:
            con.execute(self._sql.create())
        for column in missing if found else ():
            con.execute(self._sql.add(column))
        for view, select in self._sql.views([*found, *(column.name for column in missing)]).items():
            con.execute(f"CREATE OR REPLACE VIEW {view} AS {select}")
        con.commit()

    def _columns(self, con: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
        try:
            return {fold_ascii(row[0]): row[1] for row in con.execute(f"DESCRIBE {table}").fetchall()}
        except duckdb.CatalogException:
            return {}

    def _shows(self, con: duckdb.DuckDBPyConnection, columns: dict[str, str]) -> bool:
        """Say whether the views show all columns of the table; refuse a table that has the name of a view."""
        shown = []
        for view in self._sql.views(()):
            with suppress(duckdb.BinderException):  # which says that a column is gone, or of another type
                shown.append([*self._columns(con, view)])
                if shown[-1] and "rowid" not in shown[-1]:  # which a table has, and a view has not
                    con.execute(f"SELECT rowid FROM {view} LIMIT 0")
                    raise is_in_the_way(view, self._sql.table)
        return shown == [[*columns]] * len(self._sql.views(()))

    @contextmanager
    def _open(self, group_rows: int = _GROUP_ROWS, *, is_to_read: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._connect(group_rows, is_to_read=is_to_read) as con:
                # Else a table that is missing is taken for a variable of ours that has its name.
                con.execute("SET python_enable_replacements = false")
                yield con
        except duckdb.Error as error:
            is_lasting = isinstance(error, _MISTAKES) or _LASTING.search(str(error))
            cls = Misconfigured if is_lasting else WarehouseUnavailable
            raise cls(f"DuckDB could not use connection {self._hook.get_conn_id()!r}: {_first_line(error)}.") from None

    @contextmanager
    def _connect(self, group_rows: int, *, is_to_read: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the file; while another process holds it, wait for it."""
        waited, patience = 0.0, _SHORT_PATIENCE if is_to_read else _PATIENCE
        while True:
            try:
                with ExitStack() as opened:
                    con = (
                        opened.enter_context(closing(self._connect_to_read()))
                        if is_to_read
                        else self._connect_unchanged(opened, group_rows)
                    )
                    if con is not None:
                        kept = opened.pop_all()
                        break
            except duckdb.IOException as error:
                if "Could not set lock" not in str(error) or waited >= patience:
                    raise
                if not waited:
                    log.info("Another process holds the DuckDB file; waiting for it, %.0f s at most.", patience)
                pause = min(0.1 + waited / 10, 2.0)
                time.sleep(pause)
                waited += pause
        with kept:
            yield con

    def _connect_unchanged(self, opened: ExitStack, group_rows: int) -> duckdb.DuckDBPyConnection | None:
        """Open the file, unless its head was changed meanwhile: DuckDB reads that before it has locked the file.

        What another load commits in between would be lost. The head is let go last, for that ends all locks.
        """
        if self._is_file and not self._hook.read_only and not Path(self._database).exists():
            self._create_file()
        head: Any = None
        if self._is_file:
            with suppress(OSError):
                head = opened.enter_context(Path(self._database).open("rb", buffering=0))  # noqa: SIM115
        before = head and os.pread(head.fileno(), _HEAD_BYTES, 0)
        con = opened.enter_context(closing(self._connect_once(group_rows)))
        return con if before == (head and os.pread(head.fileno(), _HEAD_BYTES, 0)) else None

    def _connect_once(self, group_rows: int) -> duckdb.DuckDBPyConnection:
        if self._is_file and group_rows < _GROUP_ROWS and not self._hook.read_only:
            with suppress(duckdb.BinderException, duckdb.InvalidInputException, duckdb.OperationalError):
                return self._attach(group_rows)
        con: duckdb.DuckDBPyConnection = self._hook.get_conn()
        return con

    def _create_file(self) -> None:
        """Create the file whole and at once: DuckDB would overwrite one that another load creates at this moment."""
        path = Path(self._database)
        with suppress(OSError), TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            new = Path(folder, path.name)
            duckdb.connect(str(new), config=self._hook.get_connect_config()).close()
            os.link(new, path)  # which replaces nothing; where there are no links, DuckDB creates the file itself

    def _connect_to_read(self) -> duckdb.DuckDBPyConnection:
        """Open the file beside others that read it; it is neither created nor changed."""
        if self._is_file:
            return duckdb.connect(self._database, read_only=True, config=self._hook.get_connect_config())
        return self._connect_once(_GROUP_ROWS)

    def _attach(self, group_rows: int) -> duckdb.DuckDBPyConnection:
        """Open the file so that long rows are written in small groups: DuckDB holds a whole group in memory."""
        con: duckdb.DuckDBPyConnection = duckdb.connect(config=self._hook.get_connect_config())
        try:
            self._hook.load_extensions(con)
            self._hook.configure_secrets(con)
            con.execute(f"ATTACH {_literal(self._database)} (ROW_GROUP_SIZE {group_rows})")
            (name,) = con.execute("SELECT database_name FROM duckdb_databases() WHERE path IS NOT NULL").fetchone() or (
                "",
            )
            con.execute(f"USE {quote(name)}")
            if "temp_directory" not in self._hook.get_connect_config():
                con.execute(f"SET temp_directory = {_literal(self._database + '.tmp')}")
        except duckdb.Error:
            con.close()
            raise
        return con


@contextmanager
def _transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    con.begin()
    try:
        yield
        con.commit()
    except duckdb.Error:
        with suppress(duckdb.Error):
            con.rollback()
        raise


def _stage(rows: Iterable[Row], columns: Sequence[Column], path: Path) -> int:
    """Write the rows down, and return how many of them fill a group where they are longest."""
    schema = pa.schema([(column.name, _STAGED[column.kind]) for column in columns])
    longest = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for chunk in chunks(rows, _CHUNK_ROWS, _CHUNK_CHARS):
            batch = _record_batch(chunk, schema)
            stream.write_batch(batch)
            longest = max(longest, batch.nbytes // len(chunk))
    vectors = _GROUP_BYTES // max(longest, 1) // _VECTOR_ROWS
    is_small = path.stat().st_size <= _GROUP_BYTES
    return _GROUP_ROWS if is_small else min(max(vectors, 1) * _VECTOR_ROWS, _GROUP_ROWS)


def _record_batch(rows: list[Row], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*map(Row.cells, rows), strict=True)
    return pa.RecordBatch.from_arrays(
        [_array(cells, field.type) for cells, field in zip(columns, schema, strict=True)], schema=schema
    )


def _array(cells: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    """Turn a column into Arrow; what all rows of a batch share, such as its moments, is turned once."""
    first = cells[0]
    if isinstance(first, str | datetime) and cells.count(first) == len(cells):
        return pa.repeat(pa.scalar(first, kind), len(cells))
    return pa.array(cells, kind)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    if isinstance(error, duckdb.ConversionException):
        return "a value does not fit its column"  # which DuckDB would quote
    said = mask(str(error)).splitlines()[0] if str(error) else type(error).__name__
    return _TOKEN.sub(r"\1***", said).rstrip(".!")
