"""Snowflake: rows are staged as Parquet files, and old rows swapped for them in one transaction."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from snowflake.connector import errors

from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.parquet import write_files
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.table import (
    OLD_VIEWS_STAY,
    VIEWS,
    Dialect,
    Part,
    Statements,
    Table,
    is_in_the_way,
)

_LONGEST_TEXT = 16_777_216  # bytes of a VARCHAR without a length
_PATIENCE = 600
_TRIES = 10
_TYPES: dict[Kind, str] = {
    "text": "VARCHAR",
    "bigint": "NUMBER(38,0)",
    "double": "FLOAT",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP_NTZ",
    "decimal": "NUMBER(38,9)",
    "money": "NUMBER(18,12)",
    "json": "VARCHAR",  # a VARIANT would keep neither the order of keys nor the digits of a number
}
_SIZED = re.compile(r"(VARCHAR|TIMESTAMP_NTZ)\((\d+)\)(?: COLLATE .*)?")
_ENOUGH = {"VARCHAR": _LONGEST_TEXT, "TIMESTAMP_NTZ": 6}
_MARK = "\0"  # the one character that no name can hold
_FORMAT = "TYPE = PARQUET USE_LOGICAL_TYPE = TRUE NULL_IF = ()"  # by default, a text of \N would become NULL
_ABSENT = {2003, 2043}
_MISTAKES = (
    errors.DataError,
    errors.ForbiddenError,
    errors.IntegrityError,
    errors.NotSupportedError,
    errors.ProgrammingError,
)
_PASSING_STATES = ("08", "40", "53", "57014", "58", "XX")
_OF_DATA = range(100_000, 101_000)
_LOGIN_REFUSED = range(390_100, 390_400)
_SESSION_GONE = {390_111, 390_112, 390_113, 390_114}

log = logging.getLogger(__name__)


class SnowflakeWriter:
    """Write rows into one table of a Snowflake database."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        self._hook = hook
        self._table = table
        self._dialect = Dialect(_TYPES, mark=_MARK, fold=str.upper, zone="", unless="IF NOT EXISTS ")
        self._sql = Statements(table, columns, self._dialect)

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Replace the rows of the batches; a crash leaves the old rows or the new."""
        with TemporaryDirectory(prefix="claude_batch_") as folder, self._open() as cursor:
            self._bound_waiting(cursor)
            self._define(cursor)
            with self._stage(cursor) as stage:
                staged = 0
                for path, written in write_files(rows, self._sql.columns, Path(folder), longest=_LONGEST_TEXT):
                    cursor.execute(f"PUT {_file_url(path)} @{stage} AUTO_COMPRESS = FALSE")
                    path.unlink()
                    staged += written
                self._swap(cursor, batch_ids, stage, staged)

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        with self._open() as cursor:
            found = _bound(cursor, self._sql.select_retryable(len(batch_ids)), batch_ids).fetchall()
        yield from found

    def answered(self, before: datetime) -> Iterator[Answer]:
        """Read which requests had a usable answer at a moment, by id and hash."""
        with self._open() as cursor:
            there = _columns(cursor, self._sql.table)
            found = cursor.execute(self._sql.select_answered(before, there)).fetchall() if there else []
        yield from found

    def exists(self) -> bool:
        """Say whether the table is there."""
        with self._open() as cursor:
            return bool(_columns(cursor, self._sql.table))

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]:
        """Read some rows of the batches for people to look at."""
        with self._open() as cursor:
            if not (found := _columns(cursor, self._sql.table)):
                return []
            sql = self._sql.select_sample(len(batch_ids), self._missing(found), failed=failed, limit=limit)
            return list(map(Sample.of, _bound(cursor, sql, batch_ids).fetchall()))

    def _swap(self, cursor: Any, batch_ids: Sequence[str], stage: str, staged: int) -> None:
        with _transaction(cursor):
            _bound(cursor, self._sql.delete(len(batch_ids)), batch_ids)
            files = cursor.execute(self._copy(stage)).fetchall()
            loaded = sum(int(file[3]) for file in files if len(file) > 1)  # without files, it says only that
            if loaded != staged:
                raise WarehouseUnavailable(
                    f"Snowflake took {loaded:,} of {staged:,} rows from its stage, so all was left as it was."
                )

    def _copy(self, stage: str) -> str:
        cells = ", ".join(f'$1:"c{n}"::{_TYPES[column.kind]}' for n, column in enumerate(self._sql.columns))
        return (
            f"COPY INTO {self._sql.table} ({self._sql.names}) FROM (SELECT {cells} FROM @{stage}) "
            f"FILE_FORMAT = ({_FORMAT}) ON_ERROR = ABORT_STATEMENT"
        )

    @contextmanager
    def _stage(self, cursor: Any) -> Iterator[str]:
        """Make a stage that is gone, with its files, when the session is, whatever ends it."""
        name = Part(f"CLAUDE_BATCH_{uuid4().hex.upper()}", is_exact=True)
        stage = self._dialect.spell(Table((*self._table.parts[:-1], name)))
        cursor.execute(f"CREATE TEMPORARY STAGE {stage}")
        try:
            yield stage
        finally:
            with suppress(errors.Error):
                cursor.execute(f"DROP STAGE {stage}")

    def _bound_waiting(self, cursor: Any) -> None:
        """Wait some minutes for the lock of another load; by default it would be half a day."""
        parameters = self._hook.get_connection(self._hook.get_conn_id()).extra_dejson.get("session_parameters") or {}
        if "LOCK_TIMEOUT" not in map(str.upper, parameters):
            cursor.execute(f"ALTER SESSION SET LOCK_TIMEOUT = {_PATIENCE}")

    def _define(self, cursor: Any) -> None:
        """Bring table and views to today's columns, where they are not there yet."""
        self._refuse_tables(cursor)
        found = _columns(cursor, self._sql.table)
        has_all = bool(found) and not self._missing(found)
        shown = self._shown(cursor, found)
        if has_all and shown == {True}:
            return
        if not found:
            self._create(cursor)
            found = _columns(cursor, self._sql.table)
        for column in self._missing(found):
            cursor.execute(self._sql.add(column))
        try:
            self._create_views(cursor)
        except errors.ProgrammingError as error:
            if not has_all or None in shown:
                raise
            log.warning(OLD_VIEWS_STAY, self._sql.table, _line(error.raw_msg))

    def _refuse_tables(self, cursor: Any) -> None:
        """Leave a table of the user's alone that has the name of a view: it may even have our columns."""
        schema = [str(self._dialect.exact(part)) for part in self._table.parts[-2:-1]]
        database = "".join(f"{self._dialect.spell(part)}." for part in self._table.parts[:-2])
        views = [str(self._dialect.exact(self._table.sibling(suffix).name)) for suffix in VIEWS]
        sql = (
            f"SELECT table_name FROM {database}information_schema.tables WHERE table_type LIKE '%TABLE' "
            f"AND table_name IN ({', '.join(_MARK * len(views))}) "
            f"AND table_schema = {_MARK if schema else 'CURRENT_SCHEMA()'}"
        )
        for (name,) in _bound(cursor, sql, [*views, *schema]).fetchall():
            raise is_in_the_way(name, self._table)

    def _shown(self, cursor: Any, columns: dict[str, str]) -> set[bool | None]:
        """Say of each view whether it shows what the table has; None where it is not there."""
        return {self._is_shown(cursor, view, columns) for view in self._sql.views(())}

    def _is_shown(self, cursor: Any, view: str, columns: dict[str, str]) -> bool | None:
        try:
            shown = _columns(cursor, view)
        except errors.ProgrammingError:  # it may not be told what a view is that lost a column
            return False
        return None if not shown else shown.keys() == columns.keys()

    def _create_views(self, cursor: Any) -> None:
        """Create the views, and again where another load adds columns meanwhile, or replaces them by older ones."""
        shown, tries = None, 0
        while shown != (found := _columns(cursor, self._sql.table)):
            views = self._sql.views(Part(name, is_exact=True) for name in found)
            latest, *others = (f"CREATE OR REPLACE VIEW {view} COPY GRANTS AS {views[view]}" for view in views)
            cursor.execute(latest)
            try:
                for create in others:
                    cursor.execute(create)
                shown = found
            except errors.ProgrammingError:
                tries += 1
                if tries == _TRIES:
                    raise

    def _create(self, cursor: Any) -> None:
        """Create the table, and its schema where that is named and missing."""
        try:
            cursor.execute(self._sql.create())
        except errors.ProgrammingError as error:
            if error.errno not in _ABSENT or len(self._table.parts) == 1:
                raise
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {self._dialect.spell(Table(self._table.parts[:-1]))}")
            cursor.execute(self._sql.create())

    def _missing(self, found: dict[str, str]) -> list[Column]:
        """Compare names as Snowflake does: another case is another column."""
        folded = {column.name: self._dialect.fold(column.name) for column in self._sql.columns}
        return self._sql.missing({name.lower(): found[exact] for name, exact in folded.items() if exact in found})

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with closing(self._connect()) as con, closing(con.cursor()) as cursor:
                yield cursor
        except errors.Error as error:
            raise _explained(error, self._hook.get_conn_id()) from None

    def _connect(self) -> Any:
        """Connect as the hook does, which reads keys and asks for tokens before the driver is asked."""
        conn_id = self._hook.get_conn_id()
        try:
            return self._hook.get_conn()
        except (TypeError, ValueError, FileNotFoundError, PermissionError) as error:
            raise Misconfigured(f"Connection {conn_id!r} cannot work as it is: {_line(error)}.") from None
        except OSError as error:
            raise WarehouseUnavailable(
                f"The token of connection {conn_id!r} is not to be had for now ({type(error).__name__})."
            ) from None


@contextmanager
def _transaction(cursor: Any) -> Iterator[None]:
    cursor.execute("BEGIN TRANSACTION")
    try:
        yield
        cursor.execute("COMMIT")
    except BaseException:  # of a task that is stopped too, for its locks would outlive it
        with suppress(errors.Error):
            cursor.execute("ROLLBACK")
        raise


def _bound(cursor: Any, sql: str, values: Sequence[str]) -> Any:
    """Execute with values in the place of marks; the driver takes any % for one."""
    return cursor.execute(sql.replace("%", "%%").replace(_MARK, "%s"), tuple(values))


def _columns(cursor: Any, relation: str) -> dict[str, str]:
    try:
        cursor.execute(f"DESCRIBE TABLE {relation}")
    except errors.ProgrammingError as error:
        if error.errno not in _ABSENT:
            raise
        return {}
    return {name: _plain(kind) for name, kind, *_ in cursor.fetchall()}


def _plain(kind: str) -> str:
    """Leave out a length that is enough for any of our values."""
    sized = _SIZED.fullmatch(kind)
    return sized[1] if sized and int(sized[2]) >= _ENOUGH[sized[1]] else kind


def _file_url(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'file://{escaped}'"


def _explained(error: errors.Error, conn_id: str) -> ClaudeBatchError:
    """Say what is wrong, but never with a value in it: what Snowflake says of data may quote an answer."""
    said = mask(str(error.raw_msg or "an error"))
    if (error.sqlstate or "").startswith("22") or error.errno in _OF_DATA:
        said = said.partition("'")[0]
    cls = WarehouseUnavailable if _may_pass(error) else Misconfigured
    what = f"{type(error).__name__} {error.errno}"
    return cls(f"Snowflake could not use connection {conn_id!r}: {_line(said)} ({what}).")


def _may_pass(error: errors.Error) -> bool:
    """Tell a lock, a timeout or a lost connection from what would come again; a login refused says 08 too."""
    if error.errno in _LOGIN_REFUSED or isinstance(error, errors.ForbiddenError):
        return error.errno in _SESSION_GONE
    return (error.sqlstate or "").startswith(_PASSING_STATES) or not isinstance(error, _MISTAKES)


def _line(said: object) -> str:
    return " ".join(mask(str(said)).split())[:300].rstrip(".: ")
