"""Queries: a SQL statement, each row of whose result is one request, and the columns that make a request."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from importlib import import_module
from typing import Any, ClassVar

import msgspec
from airflow.providers.common.compat.sdk import AirflowException
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions.xcom_arg import XComArg
from jinja2 import TemplateNotFound

from airflow_provider_claude_batch.connection import find_connection
from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured, SourceUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.request import MAX_BYTES
from airflow_provider_claude_batch.unreadable import TOO_DEEP, too_large

ROWS_AT_ONCE = 200  # of 20 kB each, 4 MB; and 500 round trips for 100,000 rows
BYTES_AT_ONCE = 32_000_000
_FIRST_ROWS = 20
_NAMED_COLUMNS = 20
_QUOTED_CHARACTERS = 300
_SQLITE_ERROR = 1
_SQLITE_PASSING = {5, 6, 10}  # busy, locked, input or output failed
_MYSQL_FINAL = {1044, 1045, 1049, 1054, 1064, 1142, 1146}  # no such user, database, column, table; a typing mistake
_PASSING_STATES = {"08", "25", "40", "53", "55", "57", "58", "HY", "XX"}
_STATES_OF_THE_QUERY = {"0A", "28", "3D", "3F", "42"}
_DUCKDB_ON_THE_QUERY = {"BinderException", "CatalogException", "ParserException"}
_FINAL_CLASSES = {"ProgrammingError", "DataError", "IntegrityError", "NotSupportedError"}
_STATE_LENGTH = 5


class SqlRequests(ResolveMixin):
    """Take the requests of a submission from the rows of a query, streamed, in any database that Airflow speaks SQL to.

    Columns that are not named here are ignored, so ``SELECT *`` is fine; names match whatever their case, where none
    matches exactly. An id may be a number, a date or a UUID: its text is the ``custom_id``. Give the query an
    ``ORDER BY``, so that a retry reads the same requests in the same order.

    :param conn_id: the connection of the database. (templated)
    :param sql: the query, or the name of a file ``.sql`` with it, beside the Dag. (templated)
    :param custom_id: the column with the id of each request.
    :param prompt: the column with a text, which is sent as the one message of the user.
    :param params: the column with the params, instead of `prompt`: JSON, as a text or as the driver decodes it.
    :param parameters: what goes into the query's placeholders, in the driver's own style. (templated)
    """

    template_fields: ClassVar[tuple[str, ...]] = ("conn_id", "sql", "parameters")

    def __init__(
        self,
        conn_id: str,
        sql: str,
        *,
        custom_id: str = "custom_id",
        prompt: str | None = None,
        params: str | None = None,
        parameters: Any = None,
    ) -> None:
        content = prompt or params
        if not content or (prompt and params):
            raise Misconfigured("SqlRequests takes prompt= or params=, one of the two: the column to make requests of.")
        self.conn_id = conn_id
        self.sql = sql
        self.parameters = parameters
        self.columns = Columns(custom_id, content, is_prompt=bool(prompt))

    def iter_references(self) -> Iterator[tuple[Any, str]]:
        """Tell Airflow what is upstream: the output of a task may stand in any template field."""
        for field in self.template_fields:
            yield from XComArg.iter_xcom_references(getattr(self, field))

    def resolve(self, context: Any) -> "SqlRequests":
        """Render the template fields into a copy, for mapped tasks share what was written in the Dag."""
        rendered, task = copy(self), context["task"]
        rendered.sql = self._text(task)
        for field in self.template_fields:
            setattr(rendered, field, task.render_template(getattr(rendered, field), context))
        return rendered

    def _text(self, task: Any) -> Any:
        """Return the query, out of its file where it names one; `template_ext` would open what prompts name, too."""
        if not isinstance(self.sql, str) or not self.sql.endswith(".sql"):
            return self.sql
        templates = task.get_template_env()
        try:
            return templates.loader.get_source(templates, self.sql)[0]
        except TemplateNotFound:
            raise Misconfigured(
                f"There is no file {self.sql}: it is looked for beside the Dag, and in the Dag's template_searchpath."
            ) from None

    def read(self) -> Iterator[dict[str, Any]]:
        """Run the query and stream its rows as requests; nothing of it stays open when the reader stops early."""
        hook = find_hook(self.conn_id)
        to_request = None
        for names, rows in self._blocks(hook):
            if to_request is None:
                to_request = self._to_request(names, rows)
            yield from map(to_request, rows)

    def serialize(self) -> str:
        """Stand in the serialized Dag and in the rendered fields, lines as they were written."""
        return str(self)

    def __str__(self) -> str:
        return f"{self.conn_id}: {self.sql}"

    __repr__ = __str__

    def _blocks(self, hook: Any) -> Iterator[tuple[list[str], Sequence[Any]]]:
        """Run the query; whatever a driver raises becomes an error of ours."""
        arguments = (self.sql,) if self.parameters is None else (self.sql, self.parameters)
        try:
            with closing(hook.get_conn()) as connection, closing(_open_cursor(connection)) as cursor:
                cursor.execute(*arguments)
                rows: Sequence[Any] = [None]
                count, largest = _FIRST_ROWS, 1
                while rows:
                    rows = cursor.fetchmany(count)
                    largest = max([largest, *map(_size, rows)])
                    count = rows_at_once(largest)
                    yield [column[0] for column in cursor.description or ()], rows
        except Exception as error:  # noqa: BLE001 - each driver has errors of its own, and no common root
            raise explained(error, self.conn_id) from None

    def _to_request(self, names: Sequence[str], rows: Sequence[Any]) -> Callable[[Any], dict[str, Any]]:
        """Find the columns; a connection may be set to give rows as dicts."""
        columns = self.columns
        keys: Any = columns.find(names, f"The query on connection {self.conn_id!r}")
        if rows and isinstance(rows[0], Mapping):
            keys = [names[key] for key in keys]
        custom_id, content = keys
        return lambda row: columns.to_request(row[custom_id], row[content])


class Columns(msgspec.Struct, frozen=True):
    """Which columns of a table make a request."""

    custom_id: str
    content: str
    is_prompt: bool

    def find(self, names: Sequence[str], table: str) -> list[int]:
        """Return where the two columns stand."""
        return [_find_column(names, self.custom_id, table), _find_column(names, self.content, table)]

    def to_request(self, custom_id: Any, content: Any) -> dict[str, Any]:
        """Make a request of two values; where they make none, it is left to the reader of requests to say so."""
        params = self._of_prompt(content) if self.is_prompt else _decoded(content)
        return {"custom_id": _id(custom_id), "params": params}

    def _of_prompt(self, content: Any) -> Any:
        if isinstance(content, dict | list):
            raise Misconfigured(f"Column {self.content!r} holds a {type(content).__name__}, no text: is it the params?")
        if (size := _size([content])) > MAX_BYTES:
            return too_large(size)
        text = _text(content)
        return None if text is None else {"messages": [{"role": "user", "content": text}]}


def find_hook(conn_id: str) -> Any:
    """Return the hook of a connection that takes SQL."""
    from airflow.providers.common.sql.hooks.sql import DbApiHook

    connection = find_connection(conn_id, "requests")
    try:
        hook = connection.get_hook()
    except (AirflowException, ImportError):
        raise Misconfigured(
            f"What connections of type {connection.conn_type!r} need is not installed: install its Airflow provider."
        ) from None
    if not isinstance(hook, DbApiHook):
        raise Misconfigured(
            f"Connection {conn_id!r} is of type {connection.conn_type!r}, which takes no SQL: name one of a database."
        )
    return hook


def rows_at_once(largest: int) -> int:
    """Say how many rows of this many bytes are fetched together."""
    return max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // max(1, largest)))


def _size(row: Any) -> int:
    """Count what texts and bytes of a row take, about; what a driver has decoded is not counted."""
    values = row.values() if isinstance(row, Mapping) else row
    return sum(len(value) for value in values if isinstance(value, str | bytes | bytearray | memoryview))


def _open_cursor(connection: Any) -> Any:
    """Keep the result on the server, where an ordinary cursor would fetch all of it at once."""
    driver = type(connection).__module__.partition(".")[0]
    if driver in {"psycopg", "psycopg2"}:
        cursor = connection.cursor(name="claude_batch_requests")
        _forgive_deep_json(driver, cursor)
        return cursor
    if driver in {"MySQLdb", "pymysql"}:
        return connection.cursor(import_module(f"{driver}.cursors").SSCursor)
    return connection.cursor()


def _forgive_deep_json(driver: str, cursor: Any) -> None:
    """Let a value of JSON that is nested too deeply be one offence, where the driver would fail on all its rows."""
    if driver == "psycopg":
        import_module("psycopg.types.json").set_json_loads(_loads, cursor)
    else:
        extras = import_module("psycopg2.extras")
        extras.register_default_json(cursor, loads=_loads)
        extras.register_default_jsonb(cursor, loads=_loads)


def _loads(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        return TOO_DEEP


def _find_column(names: Sequence[str], name: str, table: str) -> int:
    found = [index for index, one in enumerate(names) if one == name]
    found = found or [index for index, one in enumerate(names) if one.lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise Misconfigured(f"{table} has {len(found)} columns {name!r}: name them apart.")
    some = ", ".join(names[:_NAMED_COLUMNS]) or "none at all"
    raise Misconfigured(f"{table} has no column {name!r}, but {some}: add it, or name another.")


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bytes | bytearray | memoryview):
        return str(value)
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        return None


def _id(value: Any) -> str | None:
    """Write an id as text; a binary one in hexadecimal."""
    text = _text(value)
    return bytes(value).hex() if text is None and value is not None else text


def _decoded(value: Any) -> Any:
    """Decode JSON text; what is none is passed on, to be named as an offence with the id of its row."""
    if not isinstance(value, str | bytes | bytearray | memoryview):
        return value
    if len(value) > MAX_BYTES:
        return too_large(len(value))
    try:
        return msgspec.json.decode(value)
    except RecursionError:
        return TOO_DEEP
    except (msgspec.DecodeError, UnicodeDecodeError):
        return value


def explained(error: Exception, conn_id: str, what: str = "query") -> ClaudeBatchError:
    """Make one error of ours of whatever a driver raises, without what stands in a row."""
    if isinstance(error, ClaudeBatchError):
        return error
    if isinstance(error, RecursionError):
        return Misconfigured(
            f"The {what} on connection {conn_id!r} returns a value that is nested too deeply: select it as text."
        )
    state = _state(error)
    kind = type(error).__name__ + (f" {state}" if state else "")
    if not _is_final(error, state):
        return SourceUnavailable(
            f"The database of connection {conn_id!r} cannot be reached, or is busy ({kind}): try again, and check the "
            "connection if that does not help."
        )
    said = f": {_first_line(error)}" if _is_on_the_query(error, state) else ""
    return Misconfigured(f"The {what} on connection {conn_id!r} fails ({kind}){said}. Mend it, then clear the task.")


def _is_final(error: Exception, state: str) -> bool:
    """Tell an error that would come back from one that may pass; where nobody can know, another try costs nothing."""
    if state:
        return state[:2] not in _PASSING_STATES
    if sqlite := getattr(error, "sqlite_errorcode", None):
        return sqlite & 0xFF not in _SQLITE_PASSING
    if mysql := _mysql_code(error):
        return mysql in _MYSQL_FINAL
    classes = {one.__name__ for one in type(error).__mro__}
    return bool(classes & _FINAL_CLASSES) or isinstance(error, AirflowException | ImportError)


def _is_on_the_query(error: Exception, state: str) -> bool:
    """Tell the messages that speak of the query's text: others may quote what stands in the rows."""
    return (
        state[:2] in _STATES_OF_THE_QUERY
        or type(error).__name__ in _DUCKDB_ON_THE_QUERY
        or getattr(error, "sqlite_errorcode", None) == _SQLITE_ERROR
        or _mysql_code(error) in _MYSQL_FINAL
    )


def _mysql_code(error: Exception) -> int:
    first = error.args[0] if error.args else 0
    return first if isinstance(first, int) and not isinstance(error, OSError) else 0


def _state(error: Exception) -> str:
    """Return the SQLSTATE, wherever the driver put it: psycopg, psycopg2, ODBC."""
    given = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or (error.args and error.args[0])
    return given if isinstance(given, str) and len(given) == _STATE_LENGTH and given.isalnum() else ""


def _first_line(error: Exception) -> str:
    return (mask(str(error)).splitlines() or [""])[0][:_QUOTED_CHARACTERS].rstrip(". ")
