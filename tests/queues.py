"""What the tests of queues share: databases behind the connection `app_db`, Dags that drain, and deaths on the way."""

import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tries import DEFAULTS

KINDS = ("sqlite", "psycopg", "psycopg2")
RETRIES: dict[str, Any] = {"retries": 3, "retry_delay": 0}


class Database:
    """A database to look into with its own driver."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.is_sqlite, self.path = kind, kind == "sqlite", folder / "app.sqlite"
        self.connection: dict[str, Any] = {"conn_type": "sqlite", "host": str(self.path)}
        if not self.is_sqlite:
            from warehouse_postgres import new_database, shared_server

            self._postgres = new_database(shared_server())
            place = {"host": self._postgres.host, "schema": self._postgres.database}
            self.connection = {"conn_type": "postgres", "login": "postgres", **place}

    @property
    def env(self) -> dict[str, str]:
        return {"AIRFLOW_CONN_APP_DB": json.dumps(self.connection)}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        if not self.is_sqlite:
            return self._postgres.query(sql)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as con:
            return con.execute(sql).fetchall()

    def execute(self, sql: str) -> None:
        if self.is_sqlite:
            self.query(sql)
        else:
            self._postgres.execute(sql)

    def age(self, hours: int, column: str = "claimed_at") -> None:
        """Let what was claimed, or submitted, have been so longer ago."""
        ago = f"datetime({column}, '-{hours} hours')" if self.is_sqlite else f"{column} - interval '{hours} hours'"
        self.execute(f"UPDATE claude_queue SET {column} = {ago}")


def connect_queue(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Make the connection `app_db`, to something empty."""
    database = Database(kind, folder)
    if not database.is_sqlite:
        from airflow.providers.postgres.hooks import postgres

        monkeypatch.setattr(postgres, "USE_PSYCOPG3", kind == "psycopg")
    for name, value in database.env.items():
        monkeypatch.setenv(name, value)
    return database


def params(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def open_queue() -> Any:
    from airflow_provider_claude_batch import BatchQueue

    return BatchQueue("app_db", "claude_queue")


def put(*custom_ids: str, text: str = "Say hello") -> None:
    open_queue().put_all({"custom_id": name, "params": params(f"{text} {name}")} for name in custom_ids)


def draining(dag_id: str = "crash", limit: int | None = None, **options: Any) -> Any:
    """Build a Dag of one task that drains the queue."""
    from airflow.sdk import DAG

    from airflow_provider_claude_batch import ClaudeBatchOperator

    with DAG(dag_id, schedule=None) as dag:
        drain = open_queue().drain(limit)
        ClaudeBatchOperator(task_id="submit", requests=drain, **{"defaults": DEFAULTS, **RETRIES, **options})
    return dag


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(kind: Any, name: str) -> None:
    setattr(kind, name, _die)


def _after(kind: Any, name: str) -> None:
    whole = getattr(kind, name)

    def deadly(*arguments: Any, **options: Any) -> None:
        whole(*arguments, **options)
        _die()

    setattr(kind, name, deadly)


def die_before_the_look() -> None:
    from airflow_provider_claude_batch.queue_table import QueueTable

    _before(QueueTable, "submission")


def die_before_the_claim() -> None:
    from airflow_provider_claude_batch.queue_table import QueueTable

    _before(QueueTable, "claim")


def die_within_the_claim() -> None:
    """Die when everything is claimed and nothing is committed."""
    from airflow_provider_claude_batch.queue_session import Session

    change = Session.change

    def deadly(self: Any, sql: str, *values: Any) -> int:
        if sql == "COMMIT":
            _die()
        return change(self, sql, *values)

    Session.change = deadly  # type: ignore[method-assign]


def die_after_the_claim() -> None:
    from airflow_provider_claude_batch.queue_table import QueueTable

    _after(QueueTable, "claim")


def die_after_the_note() -> None:
    from airflow_provider_claude_batch.note import Notebook

    _after(Notebook, "write")


def die_before_the_begin() -> None:
    from airflow_provider_claude_batch.queue_table import QueueTable

    _before(QueueTable, "begin")


def die_after_the_begin() -> None:
    from airflow_provider_claude_batch.queue_table import QueueTable

    _after(QueueTable, "begin")


def die_before_the_create() -> None:
    from airflow_provider_claude_batch.client import Client

    _before(Client, "create")


def die_after_the_create() -> None:
    from airflow_provider_claude_batch.client import Client

    _after(Client, "create")


def die_before_the_mark() -> None:
    from airflow_provider_claude_batch.queue_table import QueueTable

    _before(QueueTable, "settle")


def die_after_the_mark() -> None:
    from airflow_provider_claude_batch.queue_table import QueueTable

    _after(QueueTable, "settle")


def produce(name: str, count: int) -> None:
    """Queue so many requests, one by one and by the handful, as an application does."""
    queue = open_queue()
    for n in range(0, count, 4):
        queue.put(f"{name}-{n}", params(f"Say hello {name} {n}"))
        put(*(f"{name}-{more}" for more in range(n + 1, min(n + 4, count))))


if __name__ == "__main__":
    produce(sys.argv[1], int(sys.argv[2]))
