"""Warehouses behind the connection `warehouse`: each kind is a file of its own, `warehouse_<kind>.py`."""

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pytest

# The kinds that the default environment can run; those of other environments are named from outside.
KINDS = os.environ.get("CLAUDE_BATCH_WAREHOUSES", "dbapi,duckdb,postgres,sqlite").split(",")
GENERAL = "AIRFLOW_CLAUDE_BATCH_GENERAL"  # names a type of connection that goes to the writer of any database
ELSEWHERE = ("bigquery", "iceberg", "snowflake")


class Warehouse(Protocol):
    """A warehouse to look into with its own client, not with ours."""

    kind: str
    text: str  # the type of a column of texts, as `types` tells it
    number: str  # the same of whole numbers
    wrong: str  # a type that no column of ours has
    grows: int  # megabytes that a load of 200 MB may take
    lacks: Mapping[str, str] = {}  # scenarios that the engine, or what plays it, cannot run, and why

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Read rows."""
        ...

    def execute(self, *statements: str) -> None:
        """Change something, and commit."""
        ...

    def types(self, table: str = "t") -> dict[str, str]:
        """Return the columns of a table or view, in order, and their types."""
        ...


def connect_warehouse(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the connection `warehouse`, to something empty."""
    warehouse: Warehouse = import_module(f"warehouse_{kind}").connect(folder, monkeypatch)
    return warehouse


def set_connection(monkeypatch: pytest.MonkeyPatch, conn_type: str, **fields: Any) -> None:
    """Let the connection `warehouse` be this."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": conn_type, **_texts(fields)}))


def _texts(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
