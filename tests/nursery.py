"""A process that has imported Airflow once, and forks a new one for each step of a task instance.

A step is what one process does in production: a worker runs `execute`, a triggerer runs a trigger, a worker resumes.
Each may be killed; the next finds what is left in Airflow's database, as the scheduler would. `processes.py` starts it.
"""

import asyncio
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from skipping import skip_pauses

RUN_ID = "crash"
PRELOADED = [
    "airflow.providers.anthropic.hooks.anthropic",
    "airflow_provider_claude_batch.client",
    "airflow_provider_claude_batch.operators",
    "airflow_provider_claude_batch.sensor",
    "airflow_provider_claude_batch.trigger",
]


def serve(modules: list[str]) -> None:
    """Answer one JSON line for each that comes: fork a process, or say how one ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Airflow prints is no answer
    warm_up(modules)
    outcomes: dict[int, Path] = {}
    reply(answers, {"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "poll":
            reply(answers, poll(order["pid"], outcomes))
        elif pid := os.fork():
            outcomes[pid] = Path(order["outcome"])
            reply(answers, {"pid": pid})
        else:
            run_child(order)
    for pid in outcomes:  # nobody asks for them any more
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)  # there is nothing to tidy up, and much to take apart


def reply(answers: IO[str], answer: Any) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def poll(pid: int, outcomes: dict[int, Path]) -> Any:
    """Return None while it lives, then what it left behind; of one that was killed, the signal."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        return None
    path = outcomes.pop(pid)
    return json.loads(path.read_text()) if path.exists() else {"killed": os.WTERMSIG(status)}


def warm_up(modules: list[str]) -> None:
    """Pay for imports and for the Execution API once, without a thread or a connection that forks would share."""
    from airflow.sdk.execution_time.supervisor import in_process_api_server

    database = in_child(initialise_database)
    for module in PRELOADED + modules:
        importlib.import_module(module)
    asyncio.run(call_once(in_process_api_server().app))
    rehearse()
    os.waitpid(database, 0)
    if threading.active_count() != 1:
        raise RuntimeError("a thread is running: forks would be unsafe")


def in_child(function: Any) -> int:
    if pid := os.fork():
        return pid
    function()
    os._exit(0)


def initialise_database() -> None:
    from airflow.settings import dispose_orm
    from airflow.utils.db import initdb

    initdb()
    dispose_orm()


def rehearse() -> None:
    """Load what Airflow loads when it first needs it: its mappers, plugins and the names of its metrics."""
    from airflow.models.taskinstance import stats
    from airflow.sdk import DAG, BaseOperator
    from airflow.serialization.serialized_objects import DagSerialization
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    with DAG("rehearsal") as dag:
        BaseOperator(task_id="nothing")
    DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    stats.incr("ti_failures", tags={"dag_id": "rehearsal", "task_id": "nothing"})


async def call_once(app: Any) -> None:
    """Make the app build its routes."""
    import httpx

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://in-process.invalid.") as client:
        await client.get("/nowhere")


def run_child(order: dict[str, Any]) -> None:
    """Do what was ordered, leave the outcome behind, and end at once."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(order["env"])
    try:
        connect(order["database"])
        skip_pauses(order["clock_url"])
        for patch in order["patches"]:
            load(patch)()
        outcome = globals()[order["do"]](order)
    except BaseException:  # noqa: BLE001  # whatever it is, the parent has to be told
        outcome = {"broken": traceback.format_exc()}
    path = Path(order["outcome"])
    path.with_suffix(".tmp").write_text(json.dumps(outcome))
    path.with_suffix(".tmp").rename(path)
    os._exit(0)


def connect(database: str) -> None:
    """Turn Airflow to the database of this story."""
    from airflow import settings

    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{database}"
    settings.configure_vars()
    settings.configure_orm()


def load(name: str) -> Any:
    """Import `module:function`."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def step(order: dict[str, Any]) -> dict[str, Any]:
    """Take one task instance one process further: run it, run its trigger, or resume it."""
    from airflow.utils.session import create_session

    dag = load(order["dag"])(**order["arguments"])
    with create_session() as session:
        ti = find(order, dag, session)
        if order["bury"]:
            bury(ti, session)
        schedule(ti, session)
        state, task_instance, trigger_id = ti.state, sdk_of(ti), ti.trigger_id
    if state == "deferred":
        run_trigger(trigger_id, task_instance)
    elif state == "scheduled":
        run_task(dag, task_instance)
    with create_session() as session:
        ti = find(order, dag, session)
        ti.dag_run.update_state(session=session)
        return {"before": state, "state": ti.state, "try_number": ti.try_number}


def clear(order: dict[str, Any]) -> dict[str, Any]:
    """Clear a task instance, as a user does."""
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.session import create_session

    dag = load(order["dag"])(**order["arguments"])
    with create_session() as session:
        ti = find(order, dag, session)
        clear_task_instances([ti], session)
        ti.dag_run.state = "running"
        return {"clear_number": ti.dag_run.clear_number}


def find(order: dict[str, Any], dag: Any, session: Any) -> Any:
    """Return the task instance; the run is created when it is not there yet."""
    from airflow.models import DagRun
    from airflow.serialization.serialized_objects import DagSerialization
    from sqlalchemy import select

    scheduled = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag.dag_id, DagRun.run_id == RUN_ID))
    run = run or create_run(dag, scheduled, session)
    run.dag = scheduled
    ti = run.get_task_instance(order["task_id"], session=session, map_index=order["map_index"])
    ti.task = scheduled.get_task(order["task_id"])
    return ti


def create_run(dag: Any, scheduled: Any, session: Any) -> Any:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.collection import update_dag_parsing_results_in_db
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    DagBundlesManager().sync_bundles_to_db(session=session)
    session.commit()
    update_dag_parsing_results_in_db(
        bundle_name="dags-folder",
        bundle_version=None,
        dags=[LazyDeserializedDAG.from_dag(dag)],
        import_errors={},
        parse_duration=0.1,
        warnings=set(),
        session=session,
    )
    now = datetime.now(UTC)
    return scheduled.create_dagrun(
        run_id=RUN_ID,
        logical_date=now,
        data_interval=(now, now),
        run_after=now,
        run_type=DagRunType.MANUAL,
        state="running",
        triggered_by=DagRunTriggeredByType.TEST,
        start_date=now,
        session=session,
    )


def bury(ti: Any, session: Any) -> None:
    """Do what the scheduler does when a task's heartbeat has stopped, or its executor lost it."""
    if ti.state in {"running", "restarting"}:
        ti.handle_failure("the worker was killed", session=session)
    elif ti.state == "queued":
        ti.state = "scheduled"
    session.commit()


def schedule(ti: Any, session: Any) -> None:
    ready, _ = ti.dag_run.update_state(session=session)
    if ti.key in {other.key for other in ready}:
        ti.try_number += 1
        ti.state = "scheduled"
    session.commit()


def sdk_of(ti: Any) -> Any:
    from airflow.sdk.api.datamodels._generated import TaskInstance

    names = ("id", "task_id", "dag_id", "run_id", "try_number", "map_index", "dag_version_id")
    return TaskInstance(**{name: getattr(ti, name) for name in names})


def run_task(dag: Any, task_instance: Any) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.sdk.execution_time.supervisor import run_task_in_process
    from airflow.utils.session import create_session

    with create_session() as session:  # the Execution API starts what is queued
        session.get(TaskInstance, task_instance.id).state = "queued"
    run_task_in_process(ti=task_instance, task=dag.get_task(task_instance.task_id))


def run_trigger(trigger_id: int, task_instance: Any) -> None:
    from airflow.models.trigger import Trigger
    from airflow.sdk._shared.module_loading import import_string
    from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor
    from airflow.utils.session import create_session

    with create_session() as session:
        row = session.get(Trigger, trigger_id)
        trigger = import_string(row.classpath)(**row.kwargs)
    event = InProcessTestSupervisor.run_trigger_in_process(trigger=trigger, ti=task_instance)
    with create_session() as session:
        Trigger.submit_event(trigger_id, event, session=session)


def forget_state() -> None:
    """Run as Airflow 3.1 and 3.2 do: they keep no state for a task."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    whole = RuntimeTaskInstance.get_template_context

    def without_store(self: Any) -> Any:
        context = whole(self)
        context.pop("task_state_store", None)
        return context

    RuntimeTaskInstance.get_template_context = without_store  # type: ignore[method-assign]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(sys.argv[1:])
