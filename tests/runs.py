"""What tests look up in Airflow's own records of a run."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock


def states(run: Any) -> dict[str, Any]:
    """Return the state of each task."""
    return {ti.task_id: ti.state for ti in run.get_task_instances()}


def instances(run: Any) -> dict[tuple[str, int], Any]:
    """Return the state of each task instance, by task and map index."""
    return {(ti.task_id, ti.map_index): ti.state for ti in run.get_task_instances()}


def mark_success(run: Any, task_id: str) -> None:
    """Do as a person does in the UI."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    ours = (TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id, TaskInstance.task_id == task_id)
    with create_session() as session:
        session.execute(update(TaskInstance).where(*ours).values(state="success"))


def forget_receipts(run: Any, task_id: str, map_index: int) -> None:
    """Leave a task instance without XComs, as one that is marked a success before it has left any."""
    from airflow.models.xcom import XComModel as X
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    place = (X.dag_id == run.dag_id, X.run_id == run.run_id, X.task_id == task_id, X.map_index == map_index)
    with create_session() as session:
        session.execute(delete(X).where(*place))


def xcom(run: Any, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
    """Return an XCom as Airflow stores it, or None."""
    from airflow.models.xcom import XComModel as X
    from airflow.utils.session import create_session
    from sqlalchemy import select

    place = (X.dag_id == run.dag_id, X.run_id == run.run_id, X.task_id == task_id, X.map_index == map_index)
    with create_session() as session:
        value = session.scalar(select(X.value).where(*place, X.key == key))
    return json.loads(value) if isinstance(value, str) else value


def rendered(run: Any, task_id: str) -> list[dict[str, Any]]:
    """Return the rendered fields of a task, one dict for each map index."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Fields
    from airflow.utils.session import create_session
    from sqlalchemy import select

    place = (Fields.dag_id == run.dag_id, Fields.run_id == run.run_id, Fields.task_id == task_id)
    with create_session() as session:
        return list(session.scalars(select(Fields.rendered_fields).where(*place)))


def run_dag(dag: Any, **kwargs: Any) -> Any:
    """Run a Dag in this process, on real Airflow, triggers included."""
    _store(dag)
    with mock.patch.object(time, "sleep", _sleep_unless_skipping):
        return dag.test(**kwargs)


def clear_and_run(dag: Any, run: Any, *task_ids: str, held: Callable[[Any], bool] = lambda _: False) -> Any:
    """Clear tasks of a run with what is after them, as a person does in the UI, and let the run go on to its end.

    Task instances that are `held` do not begin: the run goes on as far as it can without them.
    """
    from airflow import settings
    from airflow.models import DagRun
    from airflow.models.dag_version import DagVersion
    from airflow.models.taskinstance import clear_task_instances
    from airflow.sdk.definitions.dag import _run_task
    from airflow.serialization.serialized_objects import DagSerialization
    from sqlalchemy import select

    _store(dag)
    session = settings.Session()
    session.expire_all()
    found = session.scalar(select(DagRun).where(DagRun.dag_id == dag.dag_id, DagRun.run_id == run.run_id))
    found.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    version = DagVersion.get_latest_version(dag.dag_id, session=session)
    found.verify_integrity(dag_version_id=version.id, session=session)
    cleared = {*task_ids}.union(*(found.dag.get_task(name).get_flat_relative_ids(upstream=False) for name in task_ids))
    clear_task_instances([ti for ti in found.get_task_instances(session=session) if ti.task_id in cleared], session)
    found.state, before = "running", None
    while found.state == "running":
        session.expire_all()
        for ti in found.update_state(session=session)[0]:
            ti.state, ti.try_number = "scheduled", ti.try_number + 1
        session.commit()
        for ti in found.get_task_instances(state=["scheduled"], session=session):
            if not held(ti):
                _run_task(ti=ti, task=dag.task_dict[ti.task_id], run_triggerer=True)
        session.expire_all()
        now = instances(found)
        if now == before:
            break
        before = now
    session.commit()
    return found


def _store(dag: Any) -> None:
    """Let Airflow know the Dag as it is now."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.collection import update_dag_parsing_results_in_db
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    with create_session() as session:
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


_sleep = time.sleep


def _sleep_unless_skipping(seconds: float) -> None:
    """`dag.test()` sleeps for a second before each task that is only skipped, and Dags with retries have many."""
    caller = sys._getframe(1).f_globals["__name__"]
    _sleep(0.01 if caller == "airflow.sdk.definitions.dag" else seconds)
