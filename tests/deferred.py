"""Writes deferred task instances straight into Airflow's database, as so many workers would have left them.

It is a program too, started with the environment of a stack, for this process may have another Airflow's.
"""

import json
import subprocess
import sys
from typing import Any, NamedTuple

from stack import Stack, StackError

RUN_ID = "deferred"


class Wait(NamedTuple):
    """A trigger by its class path and kwargs, as Airflow keeps it, and the method that hears of its event."""

    trigger: str
    kwargs: dict[str, Any]
    method: str = "resume"


def defer(stack: Stack, dag_id: str, task_id: str, waits: list[Wait]) -> None:
    """Let the run have one more mapped task instance for each wait."""
    _call(stack, "write", dag_id, task_id, json.dumps(waits))


def forget(stack: Stack, dag_id: str) -> None:
    """Let there be no run, and nothing that waits."""
    _call(stack, "delete", dag_id)


def _call(stack: Stack, *arguments: str) -> None:
    command = [sys.executable, __file__, *arguments[:3]]
    run = subprocess.run(
        command, input=arguments[-1], env=stack.env, cwd=stack.home, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise StackError(f"the rows were not written: {run.stderr}")


def write(dag_id: str, task_id: str) -> None:
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagbag import DBDagBag
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import func, select

    with create_session() as session:
        task = DBDagBag().get_latest_version_of_dag(dag_id, session=session).get_task(task_id)
        version = DagVersion.get_latest_version(dag_id, session=session)
        first = session.scalar(select(func.count(TaskInstance.id)).where(TaskInstance.dag_id == dag_id))
        if not first:
            session.add(_run(dag_id))
        for index, wait in enumerate([Wait(*fields) for fields in json.load(sys.stdin)], first):
            ti = TaskInstance(task, version.id, RUN_ID, TaskInstanceState.DEFERRED, index)
            ti.trigger = Trigger(classpath=wait.trigger, kwargs=wait.kwargs)
            ti.try_number, ti.next_method, ti.next_kwargs = 1, wait.method, {}
            session.add(ti)


def delete(dag_id: str) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from sqlalchemy import delete as rows

    with create_session() as session:
        session.execute(rows(TaskInstance).where(TaskInstance.dag_id == dag_id))
        session.execute(rows(DagRun).where(DagRun.dag_id == dag_id))
        session.execute(rows(Trigger))


def _run(dag_id: str) -> Any:
    from airflow._shared.timezones.timezone import utcnow
    from airflow.models.dagrun import DagRun
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunType

    now = utcnow()
    return DagRun(dag_id, RUN_ID, state=DagRunState.RUNNING, run_type=DagRunType.MANUAL, run_after=now, start_date=now)


if __name__ == "__main__":
    {"write": write, "delete": delete}[sys.argv[1]](*sys.argv[2:])
