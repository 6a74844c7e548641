"""A row to write, and a load in a process of its own: what a test may kill, measure or race."""

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

from airflow_provider_claude_batch.row import Row


def row(batch_id: str = "msgbatch_1", custom_id: str | None = "a", **fields: Any) -> Row:
    """One usable answer, or whatever the fields say."""
    place = {"dag_id": "dag", "run_id": "run", "submit_task": "submit", "map_index": -1, "logical_date": None}
    rest = {"submission": "sub_1", "attempt": 1, "status": "succeeded"}
    return Row(batch_id=batch_id, custom_id=custom_id, **(place | rest | fields))


def rows(batch_id: str, count: int, chars: int) -> Iterator[Row]:
    """Yield answers of a length."""
    for n in range(count):
        text = f"{n:08}" * (chars // 8)
        yield row(batch_id, f"id-{n}", text=text, content=f'[{{"type":"text","text":"{text}"}}]')


def stuck(batch_id: str) -> Iterator[Row]:
    """Yield rows until the process is killed."""
    yield from rows(batch_id, 20_000, 64)
    print("half way", flush=True)
    sleep(60)


class Peak:
    """Watch the resident memory of this process, in MB."""

    def __init__(self) -> None:
        self.start = self.most = self._now()
        self._over = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> "Peak":
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


def main(what: str, batch_id: str, count: str = "0") -> None:
    """Load into the table t of the connection `warehouse`."""
    from airflow_provider_claude_batch.connection import open_warehouse

    writer = open_warehouse("warehouse", "t")
    if what == "stuck":
        writer.replace([batch_id], stuck(batch_id))
        return
    if what == "measure":
        writer.replace(["warm"], rows("warm", 1_000, 64))
    with Peak() as peak:
        writer.replace([batch_id], rows(batch_id, int(count), 1_000 if what == "measure" else 8))
    print(round(peak.most - peak.start), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
