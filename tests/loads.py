"""A row to write, and a load in a process of its own: what a test may kill, measure or race."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any, Self

from warehouse import GENERAL, Warehouse

from airflow_provider_claude_batch.row import COLUMNS, Column, Row
from airflow_provider_claude_batch.writers import Writer

MORNING = datetime(2026, 11, 21, 6, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def row(batch_id: str = "msgbatch_1", custom_id: str | None = "a", **fields: Any) -> Row:
    """One usable answer, or whatever the fields say."""
    place = {"dag_id": "dag", "run_id": "run", "submit_task": "submit", "map_index": -1, "element": ""}
    rest = {"logical_date": None, "submission": "sub_1", "attempt": 1, "status": "succeeded", "loaded_at": MORNING}
    return Row(batch_id=batch_id, custom_id=custom_id, **(place | rest | fields))


def load_rows(*rows: Row, batches: Sequence[str] = (), table: str = "t", columns: Sequence[Column] = COLUMNS) -> Writer:
    """Load rows into a table of the connection `warehouse`."""
    from airflow_provider_claude_batch.connection import open_warehouse

    writer = open_warehouse("warehouse", table, columns)
    writer.replace(batches or list(dict.fromkeys(one.batch_id for one in rows)), iter(rows))
    return writer


def ids(warehouse: Warehouse, table: str = "t") -> list[tuple[Any, ...]]:
    """Return which rows there are, by batch and id."""
    return sorted(warehouse.query(f"SELECT batch_id, custom_id FROM {table}"), key=str)


def rows(batch_id: str, count: int, chars: int) -> Iterator[Row]:
    """Yield answers of a length."""
    for n in range(count):
        text = f"{n:08}" * (chars // 8)
        yield row(batch_id, f"id-{n}", text=text, content=f'[{{"type":"text","text":"{text}"}}]')


def stuck(batch_id: str, tell: Connection) -> Iterator[Row]:
    """Yield rows until the process is killed."""
    yield from rows(batch_id, 20_000, 64)
    tell.send("half way")
    sleep(60)


class Peak:
    """Watch the resident memory of this process, in MB."""

    def __init__(self) -> None:
        self.start = self.most = self._now()
        self._over = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, self._now())

    def _now(self) -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096 / 1e6


def load(tell: Connection, env: dict[str, str], what: str, batch_id: str) -> None:
    """Load into the table t of the connection `warehouse`, in a process that was just forked."""
    os.environ.update(env)
    tempfile.tempdir = None  # what was forked may remember another TMPDIR
    from airflow_provider_claude_batch import writers
    from airflow_provider_claude_batch.connection import open_warehouse

    writers._WRITERS.pop(os.environ.get(GENERAL, ""), None)
    writer = open_warehouse("warehouse", "t")
    match what:
        case "stuck":
            writer.replace([batch_id], stuck(batch_id, tell))
        case "race":
            writer.replace([batch_id], rows(batch_id, 500, 8))
        case "measure":
            writer.replace(["warm"], rows("warm", 1_000, 64))
            with Peak() as peak:
                writer.replace([batch_id], rows(batch_id, 100_000, 1_000))
            tell.send(round(peak.most - peak.start))


def start(what: str, batch_id: str, **env: str) -> tuple[BaseProcess, Connection]:
    """Load in a process of its own."""
    return fork(load, what, batch_id, **env)


def fork(target: Callable[..., None], *arguments: Any, **env: str) -> tuple[BaseProcess, Connection]:
    """Fork a process off one that has imported Airflow and nothing that minds being forked."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["airflow.providers.sqlite.hooks.sqlite", "airflow_provider_claude_batch.connection"]
    )
    here, there = context.Pipe()
    env = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW")} | env
    process = context.Process(target=target, args=(there, env, *arguments))
    process.start()
    return process, here
