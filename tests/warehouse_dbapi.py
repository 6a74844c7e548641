"""A PostgreSQL behind the writer of any database: the type of its connection has no writer of its own."""

from pathlib import Path

import pytest
import warehouse_postgres
from warehouse import GENERAL

from airflow_provider_claude_batch import writers


class AnyDatabase(warehouse_postgres.Postgres):
    """Looks into the database with psycopg; spells types as SQLAlchemy does."""

    kind, text, number, wrong = "dbapi", "TEXT", "BIGINT", "BOOLEAN"

    def types(self, table: str = "t") -> dict[str, str]:
        return {name: kind.upper() for name, kind in super().types(table).items()}


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AnyDatabase:
    """Make the connection to an empty database."""
    warehouse = warehouse_postgres.connect(folder, monkeypatch)
    hand_over("postgres", monkeypatch)
    return AnyDatabase(warehouse.host, warehouse.database)


def hand_over(conn_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let connections of a type go to the writer of any database, in forked loads too."""
    monkeypatch.delitem(writers._WRITERS, conn_type)
    monkeypatch.setenv(GENERAL, conn_type)
