"""Queue sessions: one connection to the database of a queue, PostgreSQL or SQLite, and what each spells differently."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from string import ascii_lowercase, ascii_uppercase
from typing import Any, NamedTuple

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.query import explained, find_hook
from airflow_provider_claude_batch.writers.table import Table, quote

_PATIENCE = 60.0
_FOLDED = str.maketrans(ascii_uppercase, ascii_lowercase)

_CREATE = """CREATE TABLE {table} (id {key}, custom_id text NOT NULL, params text NOT NULL, queued_at {moment} NOT NULL,
    dag_id text, run_id text, task_id text, map_index integer, deployment text, claimed_at {moment}, submission text,
    submitted_at {moment})"""
_INDEXES = ("waiting", "custom_id", "owner", "claimed")
_CREATE_INDEXES = (
    "CREATE UNIQUE INDEX {waiting} ON {table} (custom_id) WHERE claimed_at IS NULL",
    "CREATE INDEX {custom_id} ON {table} (custom_id)",
    "CREATE INDEX {owner} ON {table} (dag_id, run_id, task_id, map_index, id) WHERE claimed_at IS NOT NULL",
    "CREATE INDEX {claimed} ON {table} (claimed_at) WHERE submitted_at IS NULL",
)
_NOT_ALLOWED = "42501"
_ADD_DEPLOYMENT = "ALTER TABLE {table} ADD COLUMN deployment text"
_OURS = {"custom_id", "params", "queued_at", "claimed_at", "submission", "submitted_at"}
_PLACE = "dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? AND claimed_at IS NOT NULL"
# What was claimed before the table had this column belongs to whichever Airflow asks first.
_OWN = f"{_PLACE} AND (deployment = ? OR deployment IS NULL)"


class _Engine(NamedTuple):
    """What one database spells in its own way; one without a lock of its own lets one writer in at a time."""

    key: str
    moment: str
    now: str
    day_ago: str
    skip_locked: str
    begin: str
    columns: str
    next_id: str
    listed: str
    mark: str
    lock: str = ""
    lock_table: str = ""


_ENGINES = {
    "postgres": _Engine(
        key="bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        moment="timestamp with time zone",
        now="now()",
        day_ago="now() - interval '1 day'",
        skip_locked="FOR UPDATE SKIP LOCKED",
        begin="BEGIN ISOLATION LEVEL READ COMMITTED",
        columns="SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(?) AND attnum > 0 AND NOT attisdropped",
        next_id="DEFAULT",
        listed="SELECT json_array_elements_text(?::json)",
        mark="%s",
        lock="SELECT pg_advisory_xact_lock(hashtextextended(?, 0))",
        lock_table="LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE",
    ),
    "sqlite": _Engine(
        key="INTEGER PRIMARY KEY AUTOINCREMENT",
        moment="text",
        now="strftime('%Y-%m-%d %H:%M:%f', 'now')",
        day_ago="strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 day')",
        skip_locked="",
        begin="BEGIN IMMEDIATE",
        columns="SELECT name FROM pragma_table_info(?)",
        next_id="id + (SELECT max(id) FROM {table})",
        listed="SELECT value FROM json_each(?)",
        mark="?",
    ),
}


@contextmanager
def open_session(conn_id: str, table: Table) -> "Iterator[Session]":
    """Connect for a few statements; what a driver raises becomes an error of ours, and undoes what is not committed."""
    hook = find_hook(conn_id)
    engine = _ENGINES.get(hook.conn_type)
    if engine is None:
        raise Misconfigured(
            f"Connection {conn_id!r} is of type {hook.conn_type!r}: a queue takes PostgreSQL or SQLite."
        )
    try:
        with closing(hook.get_conn()) as connection:
            session = Session(connection, engine, table)
            session.prepare()
            yield session
    except Exception as error:  # noqa: BLE001 - each driver has errors of its own, and no common root
        raise explained(error, conn_id, "queue") from None


class Session:
    """One connection, on which every statement is a transaction unless one was begun."""

    def __init__(self, connection: Any, engine: _Engine, table: Table) -> None:
        self._connection = connection
        self._engine = engine
        self._table = table
        self._is_sqlite = engine is _ENGINES["sqlite"]
        self._spelled = self._spell()
        self._names = {"table": self._spelled, **self._name_indexes(), **engine._asdict(), "deployment": "deployment"}
        self._lacks_deployment = False

    def prepare(self) -> None:
        """Take transactions into our own hands, and create the table where it is missing."""
        if self._is_sqlite:
            self._connection.isolation_level = None
            self.query(f"PRAGMA busy_timeout = {int(_PATIENCE * 1000)}")
            self._refuse_memory()
        else:
            self._connection.autocommit = True
        columns = self._columns()
        if not columns:
            self._create()
        elif columns >= _OURS and "deployment" not in columns:
            self._lacks_deployment, self._names["deployment"] = True, "NULL"

    def need_deployment(self) -> None:
        """Add the column to a table of an earlier version; to put or to find requests, it is not needed."""
        if not self._lacks_deployment:
            return
        try:
            with self.transaction():
                self.lock("create")
                if "deployment" not in self._columns():
                    self.change(_ADD_DEPLOYMENT)
        except Exception as error:
            if getattr(error, "sqlstate", None) == _NOT_ALLOWED or getattr(error, "pgcode", None) == _NOT_ALLOWED:
                raise Misconfigured(
                    f"The queue {self._table} was created by an earlier version, and lacks a column that only the "
                    f"table's owner may add: run {self._written(_ADD_DEPLOYMENT)}."
                ) from None
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done inside at once; after an error the connection is closed, and nothing was done."""
        self.change(self._engine.begin)
        yield
        self.change("COMMIT")

    def lock(self, what: str) -> None:
        """Let nobody else do the same with this table until the transaction ends."""
        if self._engine.lock:
            self.query(self._engine.lock, f"claude_batch queue {self._spelled} {what}")

    def lock_table(self) -> None:
        """Let nobody else write into the table until the transaction ends."""
        if self._engine.lock_table:
            self.change(self._engine.lock_table)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read rows, whatever the connection makes of them."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(self._written(sql), values)
            rows = cursor.fetchall()
        return [tuple(row.values() if isinstance(row, Mapping) else row) for row in rows]

    def change(self, sql: str, *values: Any) -> int:
        """Run a statement that returns nothing, and say how many rows it changed."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(self._written(sql), values)
            return int(cursor.rowcount)

    def change_many(self, sql: str, values: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement once for each."""
        with closing(self._connection.cursor()) as cursor:
            cursor.executemany(self._written(sql), values)

    def _written(self, sql: str) -> str:
        fragments = {
            "{own}": _OWN,
            "{place}": _PLACE,
            "{next_id}": self._engine.next_id,
            "{listed}": self._engine.listed,
        }
        for name, fragment in fragments.items():
            sql = sql.replace(name, fragment)
        return sql.replace("?", self._engine.mark).format(**self._names)

    def _columns(self) -> set[str]:
        """Name the columns of the table: it has none where it is missing."""
        name = self._table.name if self._is_sqlite else self._spelled
        return {column for (column,) in self.query(self._engine.columns, name)}

    def _create(self) -> None:
        """Create the table and its indexes; who comes second finds them."""
        with self.transaction():
            self.lock("create")
            if self._columns():
                return
            for sql in (_CREATE, *_CREATE_INDEXES):
                self.change(sql)

    def _spell(self) -> str:
        """Quote the name, folded as the database would fold it."""
        most = 1 if self._is_sqlite else 2
        if len(self._table.parts) > most:
            raise Misconfigured(f"The queue {self._table} has too many parts: name {'schema.' * (most - 1)}table.")
        parts = [part if part.is_exact else part.translate(_FOLDED) for part in self._table.parts]
        return ".".join(quote(part) for part in parts)

    def _name_indexes(self) -> dict[str, str]:
        """Name them after the table; PostgreSQL finds names itself, which it would otherwise cut off."""
        return {name: quote(f"{self._table.name}_{name}") if self._is_sqlite else "" for name in _INDEXES}

    def _refuse_memory(self) -> None:
        if not any(row[1] == "main" and row[2] for row in self.query("PRAGMA database_list")):
            raise Misconfigured(
                "A SQLite database in memory is gone with its connection: put the path of a file into its host."
            )
