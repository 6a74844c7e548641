"""Measure what 10,000 requests in an XCom cost: in the rendered fields, in the pull, and in the submission around it.

Run it with `.venv/bin/python tests/benchmarks/xcom_requests.py [requests] [rounds]`. An ordinary operator with the same
list in a template field stands beside ours.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # read when Airflow is imported, below

import pytest
from airflow.sdk import BaseOperator, dag, task
from airflow.utils.db import initdb
from emulator import CONNECTION, Emulator
from runs import rendered, run_dag

from airflow_provider_claude_batch import ClaudeBatchOperator
from airflow_provider_claude_batch.task import Unrendered

PROMPT = "The customer writes that the export of {n} rows stops at once, and asks for a refund. " * 6
DEFAULTS = {"model": "claude-haiku-4-5", "max_tokens": 64}
seconds: dict[str, list[float]] = {}


@contextmanager
def measured(name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds.setdefault(name, []).append(time.perf_counter() - begin)


class Ordinary(BaseOperator):
    """An operator as they usually are: its data is a template field."""

    template_fields = ("requests",)

    def __init__(self, *, requests: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.requests = requests

    def execute(self, context: Any) -> None:
        assert self.requests


class Ours(ClaudeBatchOperator):
    def execute(self, context: Any) -> Any:
        with measured("ours: execute, the pull, the checks and the upload included"):
            return super().execute(context)


def many(requests: int) -> Any:
    @dag(schedule=None)
    def many_requests() -> None:
        @task(show_return_value_in_logs=False)
        def build() -> list[dict[str, Any]]:
            return [
                {"custom_id": f"r-{n}", "params": {"messages": [{"role": "user", "content": PROMPT.format(n=n)}]}}
                for n in range(requests)
            ]

        built = build()
        Ordinary(task_id="ordinary", requests=built) >> Ours(task_id="ours", requests=built, defaults=DEFAULTS)

    return many_requests()


def time_methods(patch: pytest.MonkeyPatch) -> None:
    """Time Airflow's own steps where they happen."""
    from airflow.sdk.execution_time import task_runner

    serialize, open_ = task_runner._serialize_rendered_fields, Unrendered.open

    def timed_serialize(operator: Any) -> Any:
        with measured(f"{operator.task_id}: rendered fields written down"):
            return serialize(operator)

    def timed_open(self: Unrendered, context: Any) -> Any:
        with measured("ours: the pull of the XCom"):
            return open_(self, context)

    patch.setattr(task_runner, "_serialize_rendered_fields", timed_serialize)
    patch.setattr(Unrendered, "open", timed_open)


def main(requests: int = 10_000, rounds: int = 5) -> None:
    sizes: dict[str, int] = {}
    with Emulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", json.dumps({**CONNECTION, "host": emulator.base_url}))
        initdb()
        time_methods(patch)
        for _ in range(rounds):
            run = run_dag(many(requests))
            assert run.state == "success"
            sizes = {name: len(json.dumps(rendered(run, name))) for name in ("ordinary", "ours")}
            for ti in run.get_task_instances():
                seconds.setdefault(f"{ti.task_id}: the whole task", []).append(ti.duration)
        body = emulator.journal(operation="create")[0]["body_bytes"]
    print(f"{requests:,} requests, {body / 1e6:.1f} MB as a batch; medians of {rounds} runs\n")
    for name, values in sorted(seconds.items()):
        print(f"{median(values):8.3f} s  {name}")
    for name, size in sizes.items():
        print(f"{size:8,} B  {name}: rendered fields stored")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
