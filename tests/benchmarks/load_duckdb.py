"""Load 100,000 rows into a DuckDB file: our writer, the same rows as finished Arrow tables, and the hook's insert_rows.

    python tests/benchmarks/load_duckdb.py [rows] [rounds] [rows for the hook]

Each measurement is a process and a file of its own. The Arrow tables are inserted as plainly as can be: the same table,
one transaction of DELETE and INSERT, nothing staged on disk, DuckDB with all the memory that it likes. The hook gets
fewer rows, and its time is scaled up; both tables are there before the clock runs.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from airflow_provider_claude_batch.row import COLUMNS, Row

BATCH_ID, NOW = "msgbatch_01", datetime(2026, 11, 21, 23, tzinfo=UTC)
WORDS = ["invoice", "charged", "twice", "please", "refund", "export", "fails", "with", "again", "thanks.\n"]
NAMES = [column.name for column in COLUMNS]


def rows(count: int) -> list[Row]:
    """Make rows of about 1.8 kB, half of it the text once more in the content; each third has letters beyond ASCII."""
    rng = random.Random(7)
    made = []
    for n in range(count):
        words = [*rng.choices(WORDS, k=106), "naïve" if n % 3 == 0 else "naive"]
        made.append(row(f"ticket-{n}", " ".join(words), rng.randrange(50, 900)))
    return made


def row(custom_id: str, text: str, tokens: int) -> Row:
    cost = Decimal(tokens) / 10**6
    return Row(
        *("dag", "run", "submit", -1, "", NOW, "sub_1", 1, BATCH_ID, custom_id, "succeeded"),
        model="claude-haiku-4-5-20251001",
        message_id=f"msg_01{custom_id}",
        text=text,
        content=json.dumps([{"type": "text", "text": text}], ensure_ascii=False),
        stop_reason="end_turn",
        input_tokens=tokens,
        output_tokens=300,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        cache_read_tokens=2_048,
        service_tier="batch",
        cost_usd=cost,
        live_cost_usd=2 * cost,
        request_hash="hA-h_1",
        submitted_at=NOW,
        ended_at=NOW,
        loaded_at=NOW,
    )


def by_us(path: str, count: int) -> tuple[float, float]:
    from airflow_provider_claude_batch.connection import open_warehouse

    writer = open_warehouse("warehouse", "t")
    writer.replace([BATCH_ID], rows(10))
    made = rows(count)
    return timed(lambda: writer.replace([BATCH_ID], made))


def by_arrow(path: str, count: int) -> tuple[float, float]:
    import duckdb
    import pyarrow as pa

    from airflow_provider_claude_batch.writers.duckdb import _STAGED

    by_us(path, 10)
    schema = pa.schema([(column.name, _STAGED[column.kind]) for column in COLUMNS])
    tables = [pa.table(list(map(list, columns)), schema) for columns in columns_of(rows(count), 10_000)]

    def insert() -> None:
        with duckdb.connect(path) as con:
            con.begin()
            con.execute("DELETE FROM t WHERE batch_id = ?", [BATCH_ID])
            for table in tables:
                con.register("finished", table)
                con.execute(f"INSERT INTO t ({', '.join(NAMES)}) SELECT {', '.join(NAMES)} FROM finished")
            con.commit()

    return timed(insert)


def columns_of(made: list[Row], size: int) -> Iterator[Any]:
    for start in range(0, len(made), size):
        yield zip(*(row.cells() for row in made[start : start + size]), strict=True)


def by_the_hook(path: str, count: int) -> tuple[float, float]:
    from airflow.providers.duckdb.hooks.duckdb import DuckDBHook

    by_us(path, 10)
    values = [row.cells() for row in rows(count)]
    hook = DuckDBHook(duckdb_conn_id="warehouse")
    return timed(lambda: hook.insert_rows("t", values, target_fields=NAMES))


def timed(act: Callable[[], Any]) -> tuple[float, float]:
    """Return how long it took, and how much of that this process computed."""
    begin, busy = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - begin, time.process_time() - busy


WAYS = {"our writer": by_us, "finished Arrow tables": by_arrow, "DuckDBHook.insert_rows": by_the_hook}


def measure(way: str, count: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "warehouse.duckdb")
        connection = json.dumps({"conn_type": "duckdb", "host": path})
        env = os.environ | {"AIRFLOW_CONN_WAREHOUSE": connection, "AIRFLOW_HOME": folder, "TMPDIR": folder}
        env["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"
        command = [sys.executable, __file__, "--child", way, path, str(count)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    found: list[float] = json.loads(output.splitlines()[-1])
    return found


def main(count: int = 100_000, rounds: int = 5, for_hook: int = 1_000) -> None:
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, results in found.items():
            wanted = for_hook if way.startswith("DuckDBHook") else count
            results.append([seconds * count / wanted for seconds in measure(way, wanted)])
    print(f"{count:,} rows; medians of {rounds} runs; of the hook's, {for_hook:,} rows were measured and scaled up")
    medians = {
        way: [statistics.median(column) for column in zip(*results, strict=True)] for way, results in found.items()
    }
    ours, ours_busy = medians["our writer"]
    for way, (seconds, busy) in medians.items():
        print(
            f"  {way:24} {seconds:8.2f} s, ours is {ours / seconds:.3f} of it; "
            f"{busy:8.2f} s computing, ours is {ours_busy / busy:.3f} of it"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(WAYS[sys.argv[2]](sys.argv[3], int(sys.argv[4]))))
    else:
        main(*map(int, sys.argv[1:]))
