"""The stack runs a deferring Dag through a real triggerer and leaves no process behind."""

from pathlib import Path

import psutil
import pytest
from stack import Stack

pytestmark = pytest.mark.whole
DAG = """
from datetime import timedelta
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, dag, task

class Sleep(BaseOperator):
    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="wake")

    def wake(self, context, event):
        return {"awake": True}

@dag(schedule=None)
def nap():
    @task
    def report(dream):
        return dream

    report(Sleep(task_id="sleep").output)

nap()
"""


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "nap.py").write_text(DAG)
    return Stack(tmp_path / "airflow", tmp_path / "dags")


def is_alive(process: psutil.Process) -> bool:
    """Tell the living from the gone and from zombies, whose reaping is the init process's business."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_deferring_dag_runs_and_no_process_is_left(stack: Stack) -> None:
    with stack:
        stack.wait_healthy()
        stack.api.wait_dag("nap")
        run_id = stack.api.trigger("nap")
        assert stack.api.wait_run("nap", run_id) == "success"
        assert stack.api.xcom("nap", run_id, "report") == {"awake": True}
        events = [event["event"] for event in stack.api.event_logs("nap", run_id, "sleep")]
        assert events == ["running", "deferred", "running", "success"]
        started = [process for component in stack.components.values() for process in component.processes()]
        assert len(started) >= 4
    assert not [process for process in started if is_alive(process)]
