"""Rendered fields: where loads write, as Airflow has noted it; a receipt can be edited, and opens no other table."""

from collections.abc import Iterable

from airflow_provider_claude_batch.entry import Entry
from airflow_provider_claude_batch.errors import Misconfigured

_MOST, _QUOTED = 1_000, 80

Table = tuple[str, str]


def check_tables(loads: Iterable[Entry]) -> None:
    """Refuse a table into which no instance of the task that left the receipt was told to write."""
    tables: dict[tuple[str, str], set[Table]] = {}
    for entry in loads:
        conn_id, table, task = entry.receipt.warehouse_conn_id, entry.receipt.table, (entry.dag_id, entry.task_id)
        if not conn_id or not table:
            continue
        if task not in tables:
            tables[task] = _tables_of(*task)
        if (conn_id, table) not in tables[task]:
            raise Misconfigured(
                f"The receipt names the table {table[:_QUOTED]!r} of the connection {conn_id[:_QUOTED]!r}, and "
                f"Airflow's rendered fields of task {entry.task_id!r} do not, so no rows are read. Airflow keeps these "
                "fields for the newest runs only: read the rows of older runs in the warehouse."
            )


def _tables_of(dag_id: str, task_id: str) -> set[Table]:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Fields
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(Fields.rendered_fields).where(Fields.dag_id == dag_id, Fields.task_id == task_id).limit(_MOST)
    with create_session(scoped=False) as session:
        rendered = [fields for fields in session.scalars(query) if isinstance(fields, dict)]
    return {(str(fields.get("warehouse_conn_id")), str(fields.get("table"))) for fields in rendered}
