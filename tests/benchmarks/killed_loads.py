"""Kill loads with SIGKILL at any moment of theirs, and look what a reader sees: the old rows or the new, never half.

    python tests/benchmarks/killed_loads.py [kills of each kind] [seed]

A load is a process of its own; it is killed at a moment drawn over the time that a load takes here, in turn one that
replaces rows and one whose table is not there yet. After each kill a reader counts, and the next try must complete it.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from loads import fork, load_rows, row
from warehouse import Warehouse, connect_warehouse

from airflow_provider_claude_batch.row import Row

KINDS = ("duckdb", "postgres")
ROWS = 3_000
TEXT = "The invoice was charged twice, please refund it. " * 10
BESIDE = row("beside", "stays")


class Kill(NamedTuple):
    """A load that was killed: when, as a part of the time that it takes, what a reader saw, and the next try."""

    kind: str
    moment: float
    seen: Literal["old", "new", "half"]
    is_completed: bool


def rows(generation: int) -> Iterator[Row]:
    """Yield the rows of one generation, which is as many as no other."""
    return (row("b", f"id-{n}", attempt=generation, text=f"{n:06}{TEXT}") for n in range(ROWS + generation))


def replace(tell: Connection, env: dict[str, str], table: str, generation: int) -> None:
    """Load in a process that was just forked, and tell when it begins and when it is over."""
    os.environ.update(env)
    tempfile.tempdir = None  # what was forked may remember another TMPDIR
    from airflow_provider_claude_batch.connection import open_warehouse

    writer = open_warehouse("warehouse", table)
    tell.send("begins")
    writer.replace(["b"], rows(generation))
    tell.send("is over")


def seconds_of_a_load() -> float:
    """Measure some loads that nobody kills."""
    took = []
    for generation in range(3):
        begin = time.monotonic()
        load_rows(*rows(generation))
        took.append(time.monotonic() - begin)
    return statistics.median(took)


def kill(warehouse: Warehouse, folder: Path, table: str, generation: int, delay: float) -> str | None:
    """Kill a load after so many seconds, and say what a reader sees then; None where it was over before."""
    old = counts(warehouse, table)
    process, told = fork(replace, table, generation, TMPDIR=str(folder))
    assert told.recv() == "begins"
    time.sleep(delay)
    process.kill()
    process.join()
    with suppress(EOFError):
        if told.poll() and told.recv() == "is over":
            return None
    seen = {tuple(old): "old", tuple(whole(generation)): "new"}
    return seen.get(tuple(counts(warehouse, table)), "half")


def whole(generation: int) -> list[Any]:
    """Return what `counts` finds of a generation that is all there."""
    count = ROWS + generation
    return [(generation, count, count, count * (6 + len(TEXT)))]


def counts(warehouse: Warehouse, table: str) -> list[Any]:
    if not warehouse.query(f"SELECT 1 FROM information_schema.tables WHERE table_name = '{table}'"):
        return []
    return warehouse.query(
        f"SELECT attempt, count(*), count(DISTINCT custom_id), sum(length(text)) FROM {table} "
        "WHERE batch_id = 'b' GROUP BY attempt"
    )


def complete(warehouse: Warehouse, table: str, generation: int) -> bool:
    """Load once more, and see that all is there, with what stood beside it and in the views."""
    load_rows(*rows(generation), table=table)
    beside = warehouse.query("SELECT custom_id FROM t WHERE batch_id = 'beside'")
    latest = warehouse.query(f"SELECT count(*) FROM {table}_latest WHERE batch_id = 'b'")
    return (counts(warehouse, table), beside, latest) == (whole(generation), [("stays",)], [(ROWS + generation,)])


def kill_many(kind: str, folder: Path, kills: int, seed: object) -> Iterator[Kill]:
    """Kill one load after the other, until there were that many kills."""
    rng = random.Random(f"{kind} {seed}")
    with pytest.MonkeyPatch.context() as patch:
        warehouse = connect_warehouse(kind, folder, patch)
        load_rows(BESIDE)
        longest = 1.3 * seconds_of_a_load()  # a new process is slower, and the commit comes last
        generation, number = 2, 0
        while number < kills:
            generation += 1
            table = f"new_{generation}" if number % 2 else "t"
            delay = rng.uniform(0, longest)
            if seen := kill(warehouse, folder, table, generation, delay):
                number += 1
                is_completed = complete(warehouse, table, generation)
                yield Kill(kind, delay / longest, seen, is_completed)


def main(kills: int = 100, seed: int = 0) -> None:
    for kind in KINDS:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = list(kill_many(kind, Path(folder), kills, seed))
        seen, fifths = Counter(one.seen for one in found), Counter(int(one.moment * 5) for one in found)
        print(
            f"{kind}: {len(found)} kills, {', '.join(str(fifths[n]) for n in range(5))} in each fifth of a load; "
            f"a reader saw the old rows {seen['old']} times, the new {seen['new']}, half {seen['half']}; "
            f"the next try completed {sum(one.is_completed for one in found)}; {time.monotonic() - begin:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
