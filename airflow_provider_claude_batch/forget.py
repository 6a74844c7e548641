"""Forgetting: a person lets a task submit anew, and pay again, what it has submitted already."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

import msgspec

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.note import FORGET, KEY, Cover

_REF = "__airflow_state_ref__"  # so Airflow marks what a worker's state backend keeps elsewhere

log = logging.getLogger(__name__)


def forget(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Cover | None:
    """Mark a task's note as forgotten, and return what it said; Airflow's own database has to be within reach.

    None where `[workers] state_store_backend` keeps the note at a place that this process cannot read.
    """
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
    cover = _cover(json.loads(value))
    backend.set(scope, FORGET, json.dumps(datetime.now(UTC).isoformat()))
    return cover


def _cover(stored: Any) -> Cover | None:
    """Read a note, which may be a reference to where the workers keep it."""
    if isinstance(stored, dict) and _REF in stored:
        stored = _fetch(stored[_REF])
    return None if stored is None else msgspec.convert(stored, Cover)


def _fetch(ref: str) -> Any:
    """Fetch a value from the workers' state backend; it may not be set up here, or fail in ways of its own."""
    from airflow.providers.common.compat.sdk import conf

    try:
        backend = conf.getimport("workers", "state_store_backend", fallback=None)
        return backend().deserialize_task_state_store_from_ref(ref) if backend else None
    except Exception as error:  # noqa: BLE001 - best effort: what it says is only shown, and a person waits
        log.warning("The state backend of the workers cannot be read here (%s).", type(error).__name__)
        return None
