"""Declared: what the Dag's code says of the tasks upstream; a receipt is data, and only says which of them it means."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import Any

from airflow_provider_claude_batch import receipt
from airflow_provider_claude_batch.connection import DEFAULT_CONN_ID
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt import Receipt

_QUOTED = 80


def conn_id_of(context: Any, receipts: Sequence[Receipt], given: str | None) -> str:
    """Return the connection to ask with: the one that is given, or that of the receipts if the Dag declares it."""
    named = receipt.conn_id_of(receipts, given, DEFAULT_CONN_ID)
    if given or not any(one.conn_id for one in receipts):
        return named
    declared = [conn_id for (conn_id,) in _declared(context, receipts, "conn_id") if conn_id]
    if named in (declared or [DEFAULT_CONN_ID]):
        return named
    raise Misconfigured(
        f"The receipt names the connection {named[:_QUOTED]!r}, which no task upstream in this Dag declares, so it is "
        "not used. Name the connection in conn_id=."
    )


def table_of(context: Any, loaded: Receipt) -> tuple[str, str]:
    """Return the connection and the table of a load, if the load that declares them is upstream."""
    conn_id, table = loaded.warehouse_conn_id, loaded.table
    if not conn_id or not table:
        raise Misconfigured("retry_of= takes the receipt of a load: this one names no table.")
    if (conn_id, table) in _declared(context, [loaded], "warehouse_conn_id", "table"):
        return conn_id, table
    raise Misconfigured(
        f"The receipt names the table {table[:_QUOTED]!r} of the connection {conn_id[:_QUOTED]!r}, which no load "
        "upstream in this Dag declares, so nothing is read from it. Let the Dag that retries load the results, too."
    )


def submit_of(context: Any, submitted: Receipt) -> tuple[Any, Any]:
    """Return the task that submitted, its requests rendered in the present context, and its own view of the context."""
    for task in _upstream(context):
        is_it = (task.dag_id, task.task_id) == (submitted.dag_id, submitted.submit_task)
        if is_it and hasattr(_class_of(task), "read_again"):
            return _rendered(task, ("requests",), context, submitted.map_index)
    raise Misconfigured(
        "no task upstream in this Dag submitted them, and requests are read again only as the Dag's code declares them."
    )


def _declared(context: Any, receipts: Iterable[Receipt], *fields: str) -> Iterator[tuple[Any, ...]]:
    """Yield what the tasks upstream have in these fields, in the present context."""
    indexes = sorted({one.map_index for one in receipts})
    for task in _upstream(context):
        if {*fields} <= {*task.template_fields}:
            for index in indexes if task.is_mapped or task.get_closest_mapped_task_group() else indexes[:1]:
                yield tuple(_value(task, field, context, index) for field in fields)


def _upstream(context: Any) -> Iterator[Any]:
    """Yield the tasks above the running one, near and far, that leave receipts."""
    if (dag := context.get("dag")) is None:  # called by hand, outside of any Dag
        return
    for task_id in sorted(dag.get_task(context["task"].task_id).get_flat_relative_ids(upstream=True)):
        task = dag.get_task(task_id)
        if getattr(_class_of(task), "leaves_receipt", False):
            yield task


def _class_of(task: Any) -> type:
    return getattr(task, "operator_class", type(task))


def _value(task: Any, field: str, context: Any, map_index: int) -> Any:
    """Render one field; a mapped task is expanded, which may fetch all of its requests, only where it maps this one."""
    shared = getattr(task, "partial_kwargs", {})
    if field in shared:
        return task.render_template(shared[field], _context_of(task, context, map_index))
    if task.is_mapped and map_index < 0:
        return None
    try:
        return getattr(_rendered(task, (field,), context, map_index)[0], field)
    except LookupError:  # nothing is mapped to this index
        return None


def _rendered(task: Any, fields: Sequence[str], context: Any, map_index: int) -> tuple[Any, Any]:
    """Render some fields of a copy of a task as its own instance does, and expand it where it is mapped."""
    own = copy(task.prepare_for_execution())
    own.template_fields = tuple(field for field in task.template_fields if field in fields)
    its = _context_of(own, context, map_index)
    own.render_template_fields(its)
    return its["task"], its


def _context_of(task: Any, context: Any, map_index: int) -> dict[str, Any]:
    """Return the present context as an instance of another task of this run sees it."""
    ti = copy(context["ti"])
    ti.task_id, ti.map_index, ti.task = task.task_id, map_index, task
    if group := task.get_closest_mapped_task_group():
        ti._upstream_map_indexes = {one.task_id: map_index for one in group.iter_tasks()}  # noqa: SLF001 - Airflow's
    return {**context, "ti": ti, "task_instance": ti, "task": task}
