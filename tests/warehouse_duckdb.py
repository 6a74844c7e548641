"""A DuckDB file."""

from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from warehouse import set_connection


class DuckDB:
    """Looks into the file with DuckDB itself."""

    kind, text, number, wrong = "duckdb", "VARCHAR", "BIGINT", "BOOLEAN"
    grows = 250  # its own bounded pages

    def __init__(self, path: Path) -> None:
        self.path = path

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(duckdb.connect(str(self.path))) as con:
            return con.execute(sql).fetchall()

    def execute(self, *statements: str) -> None:
        with closing(duckdb.connect(str(self.path))) as con:
            for statement in statements:
                con.execute(statement)

    def types(self, table: str = "t") -> dict[str, str]:
        return {found[1]: found[2] for found in self.query(f"PRAGMA table_info('{table}')")}


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> DuckDB:
    """Make the connection to a file that is not there yet."""
    path = folder / "warehouse.duckdb"
    set_connection(monkeypatch, "duckdb", host=path)
    return DuckDB(path)
