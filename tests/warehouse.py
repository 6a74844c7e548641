"""An embedded warehouse behind the connection `warehouse`."""

import json
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


def connect_warehouse(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "Warehouse":
    """Make the connection `warehouse`; nothing but its type and its file differs from kind to kind."""
    path = folder / f"warehouse.{kind}"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": kind, "host": str(path)}))
    return Warehouse(kind, path)


class Warehouse:
    """A file to look into with the warehouse's own client, not with ours."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind, self.path = kind, path

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Read rows."""
        module = import_module("duckdb" if self.kind == "duckdb" else "sqlite3")
        with closing(module.connect(str(self.path))) as con:
            return con.execute(sql).fetchall()
