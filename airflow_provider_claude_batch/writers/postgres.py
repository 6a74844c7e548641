"""PostgreSQL: old rows are deleted and new ones copied straight into the table, in one transaction."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime
from itertools import repeat
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import psycopg
from psycopg.copy import LibpqWriter

from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.table import Dialect, Part, Statements, Table

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
_FOLDED = str.maketrans(ascii_uppercase, ascii_lowercase)
_BE_PATIENT = "SELECT set_config('lock_timeout', $1, true) WHERE current_setting('lock_timeout') = '0'"
_BATCH_IDS = "SELECT unnest($1::text[])"
_LOCK = """SELECT pg_advisory_xact_lock{mode}(key) FROM (
    SELECT DISTINCT hashtextextended(name, 0) AS key FROM unnest($1::text[]) AS name ORDER BY key) AS keys"""
_RELATIONS = "SELECT name, oid, relkind FROM unnest($1::text[]) AS name JOIN pg_class ON oid = to_regclass(name)"
_COLUMNS = """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_ESCAPES = {
    "\\": r"\\",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\0": "\N{REPLACEMENT CHARACTER}",  # no text of PostgreSQL holds it
}
_VIEWS = ("v", "m")
_PASSING_STATES = ("08", "25", "40", "53", "55P", "55006", "57", "58", "HY", "XX")
_STATES_WITHOUT_VALUES = ("0A", "23", "28", "3D", "3F", "42", "55", "2B")
_REFUSALS = re.compile(
    r"authentication failed|does not exist|no pg_hba.conf entry|not permitted to log in|"
    r"invalid (\w+ )?value|invalid port|unrecognized configuration parameter"
)


class PostgresWriter:
    """Write rows into one table of a PostgreSQL database."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        self._hook = hook
        self._dialect = Dialect(_TYPES, mark=_BATCH_IDS, fold=lambda name: name.translate(_FOLDED))
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
            with _transaction(con), con.cursor() as cursor:
                self._lock(con, batch_ids)
                con.execute(self._sql.delete(1), [list(batch_ids)])
                copy = f"COPY {self._sql.table} ({self._sql.names}) FROM STDIN"
                with cursor.copy(copy, writer=_Writer(cursor)) as stream:
                    for chunk in encode(rows, self._sql.columns):
                        stream.write(chunk)

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        with self._open() as con:
            found = con.execute(self._sql.select_retryable(1), [list(batch_ids)]).fetchall()
        yield from found

    def answered(self, before: datetime) -> Iterator[Answer]:
        """Read which requests had a usable answer at a moment, by id and hash."""
        with self._open() as con:
            found = con.execute(self._sql.select_answered(before)).fetchall() if self._columns(con) else []
        yield from found

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]:
        """Read some rows of the batches for people to look at."""
        with self._open() as con, _transaction(con, _SHORT_PATIENCE):
            if not (found := self._columns(con)):
                return []
            sql = self._sql.select_sample(1, self._missing(found), failed=failed, limit=limit)
            return list(map(Sample.of, con.execute(sql, [list(batch_ids)])))

    def _lock(self, con: psycopg.Connection[Any], batch_ids: Sequence[str]) -> None:
        """Let nobody else replace the same batches meanwhile; very many are locked as a whole table."""
        table = f"claude_batch {self._relations(con, self._sql.table)}"
        is_few = len(batch_ids) <= _MOST_LOCKS
        _lock(con, [table], "_shared" if is_few else "")
        _lock(con, [f"{table} {batch_id}" for batch_id in batch_ids] if is_few else [])

    def _define(self, con: psycopg.Connection[Any]) -> None:
        """Bring table and views to today's columns, where they are not there yet."""
        if self._has_views(con) and not self._missing(self._columns(con)):
            return
        with _transaction(con):
            _lock(con, ["claude_batch definitions"])
            found = self._columns(con)
            missing = self._missing(found)
            if not found:
                self._create(con)
            for column in missing if found else ():
                con.execute(self._sql.add(column))
            exact = (Part(name, is_exact=True) for name in found)
            self._create_views(con, [*exact, *(column.name for column in missing)])

    def _has_views(self, con: psycopg.Connection[Any]) -> bool:
        views = self._sql.views(())
        kinds = {name: kind for name, _, kind in self._relations(con, self._sql.table, *views)}
        if kinds.get(self._sql.table) in _VIEWS:
            raise Misconfigured(f"{self._sql.table} is a view: choose another name for the table.")
        return all(kinds.get(view) in _VIEWS for view in views)

    def _create(self, con: psycopg.Connection[Any]) -> None:
        """Create the table, and its schema; what a load deletes is found by an index."""
        for schema in map(self._dialect.spell, self._table.parts[-2:-1]):
            if con.execute("SELECT to_regnamespace($1)", [schema]).fetchone() == (None,):
                con.execute(f"CREATE SCHEMA {schema}")
        con.execute(self._sql.create())
        con.execute(f"CREATE INDEX ON {self._sql.table} ({self._dialect.spell('batch_id')})")

    def _create_views(self, con: psycopg.Connection[Any], columns: Sequence[str]) -> None:
        views = self._sql.views(columns)
        try:
            with con.transaction():
                for view, select in views.items():
                    con.execute(f"CREATE OR REPLACE VIEW {view} AS {select}")
        except psycopg.errors.InvalidTableDefinition:  # a view is replaced by one that begins with the same columns
            for view in reversed(views):
                con.execute(f"DROP VIEW IF EXISTS {view}")
            for view, select in views.items():
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
