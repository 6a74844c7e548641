"""A SQLite file."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from warehouse import set_connection


class SQLite:
    """Looks into the file with SQLite itself."""

    kind, text, number, wrong = "sqlite", "TEXT", "INTEGER", "REAL"
    grows = 20

    def __init__(self, path: Path) -> None:
        self.path = path

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as con:
            return con.execute(sql).fetchall()

    def execute(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as con:
            for statement in statements:
                con.execute(statement)
            con.commit()

    def types(self, table: str = "t") -> dict[str, str]:
        return {found[1]: found[2] for found in self.query(f"PRAGMA table_info('{table}')")}


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SQLite:
    """Make the connection to a file that is not there yet."""
    path = folder / "warehouse.sqlite"
    set_connection(monkeypatch, "sqlite", host=path)
    return SQLite(path)
