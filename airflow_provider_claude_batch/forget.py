"""Forgetting: a person lets a task submit anew, and pay again, what it has submitted already."""

import json
from datetime import UTC, datetime

import msgspec

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.note import FORGET, KEY, Cover


def forget(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Cover:
    """Mark a task's note as forgotten, and return what it said; Airflow's own database has to be within reach."""
    try:
        from airflow.state import TaskScope, get_state_backend
    except ImportError:
        raise Misconfigured("This Airflow keeps no notes (before 3.3), so there is nothing to forget.") from None
    backend, scope = get_state_backend(), TaskScope(dag_id, run_id, task_id, map_index)
    value = backend.get(scope, KEY)
    if value is None:
        which = f"{dag_id} {run_id} {task_id}" + (f" {map_index}" if map_index >= 0 else "")
        raise Misconfigured(
            f"There is no note of {which}: it has submitted nothing, or a name is not right, or --map-index is missing."
        )
    backend.set(scope, FORGET, json.dumps(datetime.now(UTC).isoformat()))
    return msgspec.convert(json.loads(value), Cover)
