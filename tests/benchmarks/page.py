"""What the page costs Airflow's API server with ever more submissions: seconds and queries for each answer.

python tests/benchmarks/page.py 100 1000 10000
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
ROUNDS = 15
ASKED = {
    "list": "/submissions",
    "list, a later page": "/submissions?offset=75",
    "list, by state": "/submissions?state=ended",
    "list, by Dag, model and date": "/submissions?dag_id=nightly_03&model=claude-haiku-4-5&since=2026-01-01",
    "charts, 30 days": "/charts",
    "charts, all": "/charts?since=2020-01-01",
}


def measure(count: int) -> None:
    from airflow.utils.db import initdb
    from history import fill
    from page_client import Counted, client

    initdb()
    ids = list(fill(count))
    with client("admin", "ADMIN") as http, Counted() as counted:
        began = time.perf_counter()
        answer = http.get("/claude-batch/submissions")
        first = time.perf_counter() - began
        assert answer.json()["total"] == count == len(ids)
        print(f"{count:>7,} submissions | the first answer after a start | {first * 1000:7.0f} ms | {counted.take()}")
        for name, path in ASKED.items():
            seconds, queries = ask(http, f"/claude-batch{path}", counted)
            print(f"{'':>19} | {name:<30} | {seconds * 1000:7.0f} ms | {queries} queries")
        seconds, queries = ask(http, "/claude-batch/submissions", counted, before=something_new)
        print(f"{'':>19} | {'list, after something new':<30} | {seconds * 1000:7.0f} ms | {queries} queries")


def something_new() -> None:
    from history import History, submission

    history = History()
    now = datetime.now(UTC)
    history.add_run("nightly_00", now, submission(now.microsecond + 10_000_000, now, steps=1))
    history.write()


def ask(http: Any, path: str, counted: Any, before: Callable[[], None] = lambda: None) -> tuple[float, int]:
    times = []
    for _ in range(ROUNDS):
        before()
        counted.take()
        began = time.perf_counter()
        assert http.get(path).status_code == 200
        times.append(time.perf_counter() - began)
    return statistics.median(times), counted.take()


if __name__ == "__main__":
    if len(sys.argv) > 2 or "AIRFLOW_HOME" not in os.environ:
        for count in sys.argv[1:] or ["100", "1000", "10000"]:
            with tempfile.TemporaryDirectory() as home:
                settings = {
                    "AIRFLOW_HOME": home,
                    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                    "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
                    "PYTHONWARNINGS": "ignore",
                }
                subprocess.run([sys.executable, __file__, count], env={**os.environ, **settings}, check=True)
    else:
        measure(int(sys.argv[1]))
