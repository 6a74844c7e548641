"""Reuse: a table of answers that is missing is new at first, and a mistake where no load of the task makes it."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from airflow_provider_claude_batch.errors import Misconfigured

ReuseMissing = Literal["fail", "ok"]

log = logging.getLogger(__name__)


def judge_missing(place: tuple[str, str], context: Mapping[str, Any], *, may_fail: bool) -> None:
    """Warn that nothing is reused; refuse a table that loads of this task did not make when they succeeded."""
    conn_id, table = place
    said = f"There is no table {table} in connection {conn_id!r} to reuse answers from"
    loads = _loads(context)
    if may_fail and place not in loads.values() and _has_succeeded(context, list(loads)):
        elsewhere = ", ".join(sorted({str(name) for _, name in loads.values()}))
        raise Misconfigured(
            f"{said}, although answers of this task were loaded before, into {elsewhere}. Nothing was sent. Correct "
            "the name in reuse_from=, or set reuse_missing='ok' to send all requests."
        )
    log.warning("%s yet: all requests are sent.", said)


def _loads(context: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Find the loads behind this task in its Dag, and where they write, as far as that can be known before them."""
    task, found = context["task"], {}
    for one in task.get_flat_relatives(upstream=False):
        if getattr(getattr(one, "operator_class", type(one)), "loads_rows", False):
            given = getattr(one, "partial_kwargs", None) or vars(one)
            place = given.get("warehouse_conn_id"), given.get("table")
            found[one.task_id] = tuple(
                task.render_template(name, context) if isinstance(name, str) else name for name in place
            )
    return found


def _has_succeeded(context: Mapping[str, Any], task_ids: list[str]) -> bool:
    """Ask Airflow about all runs: of several side by side, each is the first until one of them is loaded."""
    ti = context["ti"]
    return bool(task_ids) and ti.get_ti_count(dag_id=ti.dag_id, task_ids=task_ids, states=["success"]) > 0
