"""The layers of DESIGN: arrows point down, from Airflow over the edges to the subject."""

import ast
import sys
from pathlib import Path

import pytest

import airflow_provider_claude_batch

ROOT = Path(airflow_provider_claude_batch.__file__).parent
PACKAGE = ROOT.name
BEHIND_ALL = {"__init__", "errors", "masking"}
SUBJECT = {
    "columns",
    "rounds",
    "cells",
    "json_schema",
    "validator",
    "request",
    "wire_id",
    "batch",
    "watch",
    "words",
    "roll_call",
    "result",
    "row",
    "price",
    "receipt",
    "receipt_bounds",
    "tally",
    "retry",
    "commonest",
    "spending",
    "entry",
    "submission",
    "charts",
    "arguments",
    "unreadable",
}
EDGES = {"client", "credentials", "redirect", "shard", "estimate", "json_lines", "load", "writers"}
AIRFLOW = {
    "abandoned",
    "batch_queue",
    "queue_session",
    "queue_table",
    "connection",
    "fan_out",
    "forget",
    "metrics",
    "note",
    "order",
    "poller",
    "fate",
    "declared",
    "decorator",
    "draft",
    "element",
    "task_group",
    "total",
    "lineage",
    "roster",
    "preflight",
    "reuse",
    "submit",
    "task",
    "operators",
    "query",
    "sensor",
    "source",
    "trigger",
    "links",
    "page",
    "plugin",
    "provider",
}
BY_HAND = {"cli", "emulator"}
IMPURE = {
    "asyncio",
    "http",
    "io",
    "logging",
    "os",
    "pathlib",
    "random",
    "socket",
    "subprocess",
    "tempfile",
    "time",
    "urllib",
}
HEAVY_HOMES = {
    "anthropic": {"client"},
    "httpx2": {"client"},
    "jsonschema": {"validator"},
    "pydantic": {"columns"},
    "duckdb": {"writers"},
    "pyarrow": {"writers", "source"},
    "psycopg": {"writers"},
    "sqlite3": {"writers", "emulator"},
    "fastapi": {"page"},
    "starlette": {"emulator"},
    "uvicorn": {"emulator"},
    "airflow": AIRFLOW,
}
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return every module that the file names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith(f"{PACKAGE}.")}
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()}


def others(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - {PACKAGE}


def in_layer(layer: set[str]) -> list[Path]:
    return [path for path in FILES if part(path) in layer]


def test_every_file_has_its_layer() -> None:
    assert {part(path) for path in FILES} == BEHIND_ALL | SUBJECT | EDGES | AIRFLOW | BY_HAND


@pytest.mark.parametrize("path", in_layer(SUBJECT), ids=part)
def test_the_subject_is_pure(path: Path) -> None:
    assert own(path) <= SUBJECT | BEHIND_ALL
    assert others(path) <= sys.stdlib_module_names - IMPURE | {"msgspec", "jsonschema", "pydantic"}


@pytest.mark.parametrize("path", in_layer(EDGES), ids=lambda path: path.stem)
def test_the_edges_know_no_airflow(path: Path) -> None:
    assert own(path) <= EDGES | SUBJECT | BEHIND_ALL


@pytest.mark.parametrize("path", in_layer(AIRFLOW), ids=part)
def test_airflows_files_know_neither_the_command_line_nor_the_emulator(path: Path) -> None:
    assert own(path) <= AIRFLOW | EDGES | SUBJECT | BEHIND_ALL


@pytest.mark.parametrize("path", in_layer({"emulator"}), ids=lambda path: path.stem)
def test_the_emulator_imports_nothing_of_ours(path: Path) -> None:
    assert own(path) <= {"emulator"}


@pytest.mark.parametrize("heavy", HEAVY_HOMES)
def test_what_is_heavy_is_imported_in_its_home_only(heavy: str) -> None:
    assert {part(path) for path in FILES if heavy in others(path)} <= HEAVY_HOMES[heavy]


def test_the_arrows_make_no_circle() -> None:
    arrows = {part(path): set() for path in FILES}
    for path in FILES:
        arrows[part(path)] |= own(path) - {part(path)}
    del arrows["__init__"]
    while free := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert arrows == {}
