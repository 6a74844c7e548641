"""Requests that are nested too deeply: one rule for all sources."""

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from asked import NOTHING, PARAMS
from pyarrow import parquet
from queues import connect_queue
from sources import connect

from airflow_provider_claude_batch import BatchQueue, SqlRequests
from airflow_provider_claude_batch.errors import InvalidRequests
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.request import Reading
from airflow_provider_claude_batch.source import open_source
from airflow_provider_claude_batch.unreadable import custom_id_of

WHY = "params are nested more than 200 levels deep"


def params(levels: int) -> str:
    """Return params as JSON, of so many levels, their own included."""
    return json.dumps(PARAMS)[:-1] + ', "metadata": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def decoded(levels: int) -> dict[str, Any]:
    nested: list[Any] = []
    for _ in range(levels - 2):
        nested = [nested]
    return {**PARAMS, "metadata": nested}


def lines(rows: list[tuple[str, int]]) -> bytes:
    return "".join(f'{{"custom_id": "{name}", "params": {params(levels)}}}\n' for name, levels in rows).encode()


def of_list(folder: Path, rows: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> Any:
    return open_source([{"custom_id": name, "params": decoded(levels)} for name, levels in rows])


def of_lines(folder: Path, rows: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "x.jsonl").write_bytes(lines(rows))
    return open_source(folder / "x.jsonl")


def of_gzip(folder: Path, rows: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines(rows)))
    return open_source(folder / "x.jsonl.gz")


def of_parquet(folder: Path, rows: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> Any:
    columns = {"custom_id": [name for name, _ in rows], "params": [params(levels) for _, levels in rows]}
    parquet.write_table(pa.table(columns), folder / "x.parquet")
    return open_source(folder / "x.parquet")


def of_query(folder: Path, rows: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> Any:
    with closing(sqlite3.connect(folder / "x.sqlite")) as con:
        con.execute("CREATE TABLE asked (custom_id, params)")
        con.executemany("INSERT INTO asked VALUES (?, ?)", [(name, params(levels)) for name, levels in rows])
        con.commit()
    connect(monkeypatch, "db", "sqlite", folder / "x.sqlite")
    return open_source(SqlRequests("db", "SELECT * FROM asked ORDER BY rowid", params="params"))


def of_queue(folder: Path, rows: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Queue, as an older application may have done, what `put` refuses now."""
    database = connect_queue("sqlite", folder, monkeypatch)
    queue = BatchQueue("app_db", "claude_queue")
    for name, levels in rows:
        queue.put(name, PARAMS)
        database.query(f"UPDATE claude_queue SET params = '{params(levels)}' WHERE custom_id = '{name}'")
    return queue.drain().claim(Receipt("", dag_id="d", run_id="r", submit_task="t"))


SOURCES = {
    "list": of_list,
    "lines": of_lines,
    "gzip": of_gzip,
    "parquet": of_parquet,
    "query": of_query,
    "queue": of_queue,
}


@pytest.mark.parametrize("levels", [201, 2_000, 100_000])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_nested_too_deeply_is_skipped_by_its_name_wherever_it_comes_from(
    source: str, levels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("a", 3), ("deep", levels), ("c", 200)]
    reading = Reading(SOURCES[source](tmp_path, rows, monkeypatch), NOTHING, on_invalid="skip")
    assert [one.custom_id for one in reading] == ["a", "c"]
    assert reading.invalid == {WHY: ["deep"]}


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_nested_too_deeply_is_named_where_nothing_may_be_skipped(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequests, match=rf"request 1 \('deep'\): {WHY}"):
        list(Reading(SOURCES[source](tmp_path, [("a", 3), ("deep", 2_000)], monkeypatch), NOTHING))


def test_a_queue_refuses_what_is_nested_too_deeply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_queue("sqlite", tmp_path, monkeypatch)
    with pytest.raises(InvalidRequests, match=WHY):
        BatchQueue("app_db", "claude_queue").put("deep", decoded(2_000))


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        ('{"custom_id": "a", ', "a"),
        (' {"custom_id":"a\\u00fc\\"", ', 'aü"'),
        ('{"other": {"custom_id": "a"}, ', None),
        ('{"custom_id": "\\x", ', None),
        ('{"custom_id": 7, ', None),
    ],
)
def test_the_name_of_a_line_that_is_nested_too_deeply_is_the_one_that_it_begins_with(
    beginning: str, name: str | None
) -> None:
    assert custom_id_of(f'{beginning}"params": {params(2_000)}}}'.encode()) == name
