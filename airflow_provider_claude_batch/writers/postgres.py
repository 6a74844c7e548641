"""PostgreSQL: old rows are deleted and new ones copied straight into the table, in one transaction."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime
from itertools import repeat
from typing import Any

import psycopg
from psycopg.copy import LibpqWriter

from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.table import (
    OLD_VIEWS_STAY,
    Dialect,
    Part,
    Statements,
    Table,
    fold_ascii,
    is_in_the_way,
)

_CHUNK_ROWS = 1_000
_CHUNK_CHARS = 64_000  # with more, Python asks the system for memory again and again, and is half as fast
_PATIENCE, _SHORT_PATIENCE = "600s", "3s"
_LONGEST_NAME = 63
_MOST_LOCKS = 100  # a server has a few thousand for all its sessions
_TYPES: dict[Kind, str] = {
    "text": "text",
    "bigint": "bigint",
    "double": "double precision",
    "boolean": "boolean",
    "date": "date",
    "timestamp": "timestamp with time zone",  # a moment stays the same moment whatever the zone of the session
    "decimal": "numeric(38,9)",
    "money": "numeric(18,12)",
    "json": "json",  # jsonb would keep neither the order of keys nor \u0000
}
_BE_PATIENT = "SELECT set_config('lock_timeout', $1, true) WHERE current_setting('lock_timeout') = '0'"
_BATCH_IDS = "SELECT unnest($1::text[])"
_LOCK = """SELECT pg_advisory_xact_lock{mode}(key) FROM (
    SELECT DISTINCT hashtextextended(name, 0) AS key FROM unnest($1::text[]) AS name ORDER BY key) AS keys"""
_RELATIONS = "SELECT name, oid, relkind FROM unnest($1::text[]) AS name JOIN pg_class ON oid = to_regclass(name)"
_PLACE = """SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = to_regclass($1)"""
_SHOWN = """SELECT relkind, array(SELECT attname::text FROM pg_attribute
    WHERE attrelid = shown.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum), EXISTS (
        SELECT FROM pg_rewrite JOIN pg_depend ON pg_depend.objid = pg_rewrite.oid
        WHERE classid = 'pg_rewrite'::regclass AND refclassid = 'pg_class'::regclass
        AND ev_class = shown.oid AND refobjid = to_regclass($2))
    FROM pg_class AS shown WHERE shown.oid = to_regclass($1)"""
_HAS_POLICIES = "SELECT row_security_active(to_regclass($1)::oid)"
_COLUMNS = """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_ESCAPES = {
    "\\": r"\\",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\0": "\N{REPLACEMENT CHARACTER}",  # no text of PostgreSQL holds it
}
_MATERIALIZED = "m"
_VIEWS = ("v", _MATERIALIZED)
_STAGED = "pg_temp.claude_batch_staged_rows"
_PASSING_STATES = ("08", "25", "40", "53", "55P", "55006", "57", "58", "HY", "XX")
_STATES_WITHOUT_VALUES = ("0A", "23", "28", "3D", "3F", "42", "55", "2B")
_REFUSALS = re.compile(
    r"authentication failed|does not exist|no pg_hba.conf entry|not permitted to log in|"
    r"invalid (\w+ )?value|invalid port|unrecognized configuration parameter"
)


log = logging.getLogger(__name__)


class PostgresWriter:
    """Write rows into one table of a PostgreSQL database."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        self._hook = hook
        self._dialect = Dialect(_TYPES, mark=_BATCH_IDS, fold=fold_ascii)
        self._sql = Statements(table, columns, self._dialect)
        self._table = table
        for name in (table.sibling("_current").name, *(column.name for column in columns)):
            if len(name.encode()) > _LONGEST_NAME:
                raise Misconfigured(
                    f"PostgreSQL would cut {name!r} off at {_LONGEST_NAME} bytes: choose a shorter name."
                )

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Replace the rows of the batches; a crash leaves the old rows or the new."""
        with self._open() as con:
            self._define(con)
            with _transaction(con):
                self._lock(con, batch_ids)
                con.execute(self._sql.delete(1), [list(batch_ids)])
                if con.execute(_HAS_POLICIES, [self._sql.table]).fetchone() == (True,):
                    self._insert(con, batch_ids, rows)
                else:
                    self._copy(con, self._sql.table, rows)

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        with self._open() as con:
            found = con.execute(self._sql.select_retryable(1), [list(batch_ids)]).fetchall()
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
        with self._open() as con, _transaction(con, _SHORT_PATIENCE):
            if not (found := self._columns(con)):
                return []
            sql = self._sql.select_sample(1, self._missing(found), failed=failed, limit=limit)
            return list(map(Sample.of, con.execute(sql, [list(batch_ids)])))

    def _copy(self, con: psycopg.Connection[Any], table: str, rows: Iterable[Row]) -> None:
        with con.cursor() as cursor:
            copy = f"COPY {table} ({self._sql.names}) FROM STDIN"
            with cursor.copy(copy, writer=_Writer(cursor)) as stream:
                for chunk in encode(rows, self._sql.columns):
                    stream.write(chunk)

    def _insert(self, con: psycopg.Connection[Any], batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Write rows where the policies of a table apply to us: PostgreSQL takes no COPY there."""
        left = f"SELECT FROM {self._sql.table} WHERE {self._dialect.spell('batch_id')} IN ({_BATCH_IDS}) LIMIT 1"
        if con.execute(left, [list(batch_ids)]).rowcount:
            raise Misconfigured(
                f"The policies of {self._sql.table} do not let this role delete the old rows of its batches: add a "
                "policy FOR DELETE. Nothing was written."
            )
        con.execute(f"CREATE TEMPORARY TABLE {_STAGED} ({self._sql.definition}) ON COMMIT DROP")
        self._copy(con, _STAGED, rows)
        con.execute(self._sql.insert_from(_STAGED))

    def _lock(self, con: psycopg.Connection[Any], batch_ids: Sequence[str]) -> None:
        """Let nobody else replace the same batches meanwhile; very many are locked as a whole table."""
        table = f"claude_batch {self._relations(con, self._sql.table)}"
        is_few = len(batch_ids) <= _MOST_LOCKS
        _lock(con, [table], "_shared" if is_few else "")
        _lock(con, [f"{table} {batch_id}" for batch_id in batch_ids] if is_few else [])

    def _define(self, con: psycopg.Connection[Any]) -> None:
        """Bring table and views to today's columns, where they are not there yet."""
        if any(kind in _VIEWS for _, _, kind in self._relations(con, self._sql.table)):
            raise Misconfigured(f"{self._sql.table} is a view: choose another name for the table.")
        found = self._columns(con)
        if found and not self._missing(found) and self._shown(con, self._views(con)) == {True}:
            return
        with _transaction(con):
            _lock(con, ["claude_batch definitions"])
            found = self._columns(con)
            missing = self._missing(found)
            if not found:
                self._create(con)
            for column in missing if found else ():
                con.execute(self._sql.add(column))
            self._show(con, must=bool(missing))

    def _views(self, con: psycopg.Connection[Any]) -> dict[str, str]:
        """Select what the views show: they stand beside the table, wherever the search path finds that."""
        place = con.execute(_PLACE, [self._sql.table]).fetchone() or ()
        table = Table(tuple(Part(name, is_exact=True) for name in place))
        columns = (Part(name, is_exact=True) for name in self._columns(con))
        return Statements(table, self._sql.columns, self._dialect).views(columns)

    def _shown(self, con: psycopg.Connection[Any], views: Iterable[str]) -> set[bool | None]:
        """Say of each view whether it shows our table, and all of it; None where it is not there."""
        columns, latest = {*self._columns(con)}, next(iter(views), "")
        bases = (self._sql.table, self._sql.table, latest)
        return {self._is_shown(con, view, base, columns) for view, base in zip(views, bases, strict=True)}

    def _is_shown(self, con: psycopg.Connection[Any], view: str, base: str, columns: set[str]) -> bool | None:
        kind, shown, is_of_base = con.execute(_SHOWN, [view, base]).fetchone() or (None, (), False)
        if kind not in {None, *_VIEWS}:
            raise is_in_the_way(view, self._sql.table)
        return kind and (kind == _MATERIALIZED or ({*shown} == columns and is_of_base))

    def _show(self, con: psycopg.Connection[Any], *, must: bool) -> None:
        """Make the views again; where somebody forbids that, rows matter more than what old views do not show."""
        views = self._views(con)
        if (shown := self._shown(con, views)) == {True}:
            return
        try:
            with con.transaction():
                self._create_views(con, views)
        except (psycopg.errors.DependentObjectsStillExist, psycopg.errors.InsufficientPrivilege) as error:
            if must or None in shown:
                raise
            log.warning(OLD_VIEWS_STAY, self._sql.table, error.diag.message_primary)

    def _create(self, con: psycopg.Connection[Any]) -> None:
        """Create the table, and its schema; what a load deletes is found by an index."""
        for schema in map(self._dialect.spell, self._table.parts[-2:-1]):
            if con.execute("SELECT to_regnamespace($1)", [schema]).fetchone() == (None,):
                con.execute(f"CREATE SCHEMA {schema}")
        con.execute(self._sql.create())
        con.execute(f"CREATE INDEX ON {self._sql.table} ({self._dialect.spell('batch_id')})")

    def _create_views(self, con: psycopg.Connection[Any], views: dict[str, str]) -> None:
        kinds = {name: kind for name, _, kind in self._relations(con, *views)}
        ours = {view: select for view, select in views.items() if kinds.get(view) != _MATERIALIZED}
        try:
            with con.transaction():
                for view, select in ours.items():
                    con.execute(f"CREATE OR REPLACE VIEW {view} AS {select}")
        except psycopg.errors.InvalidTableDefinition:  # a view is replaced by one that begins with the same columns
            for view in reversed(ours):
                con.execute(f"DROP VIEW IF EXISTS {view}")
            for view, select in ours.items():
                con.execute(f"CREATE VIEW {view} AS {select}")

    def _missing(self, found: dict[str, str]) -> list[Column]:
        """Compare names as PostgreSQL does: another case is another column."""
        folded = {column.name: self._dialect.fold(column.name) for column in self._sql.columns}
        return self._sql.missing({name.lower(): found[exact] for name, exact in folded.items() if exact in found})

    def _columns(self, con: psycopg.Connection[Any]) -> dict[str, str]:
        return dict(con.execute(_COLUMNS, [self._sql.table]).fetchall())

    def _relations(self, con: psycopg.Connection[Any], *names: str) -> list[tuple[str, int, str]]:
        return con.execute(_RELATIONS, [list(names)]).fetchall()

    @contextmanager
    def _open(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            with closing(self._connect()) as con:
                yield con
        except psycopg.Error as error:
            raise _explained(error, self._hook.get_conn_id()) from None

    def _connect(self) -> psycopg.Connection[Any]:
        """Connect as the hook does, which may know another driver than psycopg 3, or another kind of rows."""
        hook = self._hook
        connection = hook.get_connection(hook.get_conn_id())
        extra = connection.extra_dejson
        login, password, port = connection.login, connection.password, connection.port
        if extra.get("iam"):
            login, password, port = hook.get_iam_token(connection)
        arguments = {
            "host": connection.host,
            "port": port,
            "user": login,
            "password": password,
            "dbname": hook.database or connection.schema,
            **{name: value for name, value in extra.items() if name not in hook.ignored_extra_options},
            "client_encoding": "utf8",
        }
        con = psycopg.connect(**arguments, autocommit=True, cursor_factory=psycopg.RawCursor)
        con.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return con


class _Writer(LibpqWriter):
    """Breaks off where rows do, without a word: psycopg would send what went wrong into the server's log."""

    def finish(self, exc: BaseException | None = None) -> None:
        if exc is None:
            super().finish()
        else:
            self.connection.close()


@contextmanager
def _transaction(con: psycopg.Connection[Any], patience: str = _PATIENCE) -> Iterator[None]:
    with con.transaction():
        con.execute(_BE_PATIENT, [patience])
        yield


def _lock(con: psycopg.Connection[Any], names: Sequence[str], mode: str = "") -> None:
    """Take locks until the end of the transaction, in the same order everywhere."""
    con.execute(_LOCK.format(mode=mode), [list(names)])


def encode(rows: Iterable[Row], columns: Sequence[Column]) -> Iterator[bytes]:
    """Write rows in the text format of COPY, some at a time."""
    writers = [_WRITERS.get(column.kind, str) for column in columns]
    for chunk in _chunks(rows):
        cells = zip(*(row.cells() for row in chunk), strict=True)
        written = map(_column, cells, writers)
        yield _utf8("\n".join(map("\t".join, zip(*written, strict=True))) + "\n")


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    chars = 0
    for row in rows:
        chunk.append(row)
        chars += len(row.text or "") + len(row.content or "")
        if chars >= _CHUNK_CHARS or len(chunk) >= _CHUNK_ROWS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _column(cells: tuple[Any, ...], write: Callable[[Any], str]) -> Iterable[str]:
    """Write one column; most say the same in all rows of a batch."""
    first = cells[0]
    if cells.count(first) == len(cells):
        return repeat(r"\N" if first is None else write(first), len(cells))
    return [r"\N" if cell is None else write(cell) for cell in cells]


def _escape(text: str) -> str:
    for character, written in _ESCAPES.items():
        if character in text:
            text = text.replace(character, written)
    return text


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


_WRITERS: dict[Kind, Callable[[Any], str]] = {
    "text": _escape,
    "json": _escape,
    "date": date.isoformat,
    "timestamp": lambda moment: moment.isoformat(),
}


def _explained(error: psycopg.Error, conn_id: str) -> ClaudeBatchError:
    """Say what is wrong, but never with a value in it: what the server says of data may quote an answer."""
    state = error.sqlstate or ""
    is_final = not state.startswith(_PASSING_STATES) if state else _is_refused(error)
    if is_final and state and not state.startswith(_STATES_WITHOUT_VALUES):
        said = "the server refused what it was given"
    else:
        said = error.diag.message_primary or (mask(str(error)).splitlines() or ["nothing was said"])[0].rstrip(".")
    kind = f"{type(error).__name__} {state}".rstrip()
    cls = Misconfigured if is_final else WarehouseUnavailable
    return cls(f"PostgreSQL could not use connection {conn_id!r}: {said} ({kind}).")


def _is_refused(error: psycopg.Error) -> bool:
    """Tell a connection that cannot work from one that does not work now: before it stands, there is only a text."""
    return not isinstance(error, psycopg.OperationalError) or bool(_REFUSALS.search(str(error)))
