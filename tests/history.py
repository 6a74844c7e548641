"""Histories: submissions of the past, written into Airflow's database just as their tasks have left them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_claude_batch.batch import Counts
from airflow_provider_claude_batch.receipt import XCOM_KEY, ModelTotal, Part, Receipt, UsageTotal, replace

MODELS = ("claude-haiku-4-5", "claude-sonnet-4-6")
HOUR = timedelta(hours=1)
AT_ONCE = 2_000
_last_run = [0]  # a number is never given twice, as in Airflow


class History:
    """Write Dags, runs, tasks and receipts, many at once."""

    def __init__(self) -> None:
        from airflow.utils.session import create_session

        tables = ("dag_run", "task_instance", "xcom", "rendered_task_instance_fields")
        self.rows: dict[str, list[dict[str, Any]]] = {table: [] for table in tables}
        with create_session(scoped=False) as session:
            _last_run[0] = max(_last_run[0], _highest_run(session))

    def add_dags(self, *dag_ids: str) -> None:
        """Make Dags known to Airflow."""
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.models.dag import DagModel
        from airflow.utils.session import create_session

        DagBundlesManager().sync_bundles_to_db()
        with create_session(scoped=False) as session:
            for dag_id in dag_ids:
                session.merge(DagModel(dag_id=dag_id, bundle_name="dags-folder", is_stale=False))

    def add_run(self, dag_id: str, at: datetime, receipts: dict[str, Any]) -> str:
        """Add a run whose tasks have left these receipts, each an hour after the one before; any other JSON will do."""
        _last_run[0] += 1
        number = _last_run[0]
        run_id = f"manual__{at.isoformat()}_{number}"
        place = {"dag_id": dag_id, "run_id": run_id}
        run = {"id": number, "run_type": "manual", "run_after": at, "clear_number": 0, "state": "success"}
        self.rows["dag_run"].append({**place, **run, "creating_job_id": None, "start_date": at})
        for nth, (task_id, value) in enumerate(receipts.items()):
            task = {**place, "task_id": task_id, "map_index": -1}
            self.rows["task_instance"].append({**task, "pool": "default_pool", "state": "success"})
            dicts = value.to_dict() if isinstance(value, Receipt) else value
            xcom = {"dag_run_id": number, "key": XCOM_KEY, "value": dicts, "timestamp": at + nth * HOUR}
            self.rows["xcom"].append({**task, **xcom})
            if isinstance(value, Receipt) and value.table:
                fields = {"warehouse_conn_id": value.warehouse_conn_id, "table": value.table}
                self.rows["rendered_task_instance_fields"].append({**task, "rendered_fields": fields})
        if len(self.rows["xcom"]) > AT_ONCE:
            self.write()
        return run_id

    def write(self) -> None:
        """Write what was added."""
        from airflow.models.dagrun import DagRun
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.models.taskinstance import TaskInstance
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import insert

        with create_session(scoped=False) as session:
            for model in (DagRun, TaskInstance, XComModel, RenderedTaskInstanceFields):
                if rows := self.rows[model.__tablename__]:
                    session.execute(insert(model), rows)
        for rows in self.rows.values():
            rows.clear()


def submission(number: int, at: datetime, *, steps: int = 3, requests: int = 100, **fields: Any) -> dict[str, Receipt]:
    """Return the receipts of one submission, as far as it has come: submit, wait, load."""
    name, model = f"sub_{at:%Y%m%dT%H%M%S%f}_{number:08x}", MODELS[number % len(MODELS)]
    batch_id = f"msgbatch_{number:024d}"
    base = Receipt(name, (Part(batch_id, requests, 12_345),), submit_task="submit", conn_id="anthropic_default")
    base = replace(base, requests=requests, models=(model,), submitted_at=at, estimate_usd=0.5, **fields)
    counts = Counts(succeeded=requests - 1, errored=1)
    seen = Part(batch_id, requests, 12_345, None, counts, at, at + HOUR, at + 24 * HOUR)
    cost = round(0.01 + number % 97 / 1000, 6)
    used = UsageTotal(input_tokens=requests * 20, output_tokens=requests * 30)
    by_model = {model: ModelTotal(20 * requests, 30 * requests, 0, 0, 0, requests - 1, cost, 2 * cost)}
    loaded = replace(
        replace(base, batches=(seen,)),
        table="answers",
        warehouse_conn_id="warehouse",
        rows=requests,
        counts={"succeeded": requests - 1, "errored": 1},
        problems={},
        retryable=0,
        retry_ids=tuple(f"ticket-{n}" for n in range(20)),
        usage=used,
        cost_usd=cost,
        live_cost_usd=2 * cost,
        saved_usd=cost,
        cache_hit_rate=0.5,
        errors=(("overloaded_error: Overloaded", 1),),
        by_model=by_model,
    )
    receipts = {"submit": base, "wait": replace(base, batches=(seen,)), "load": loaded}
    return dict(list(receipts.items())[:steps])


def replace_receipt(run_id: str, task_id: str, receipt: Receipt, at: datetime) -> None:
    """Put another receipt into an XCom, as a cleared task does, or a person."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        (xcom,) = session.query(XComModel).filter(XComModel.run_id == run_id, XComModel.task_id == task_id)
        xcom.value, xcom.timestamp = receipt.to_dict(), at


def fill(count: int, dags: int = 20) -> Iterator[str]:
    """Write many submissions, an hour apart up to now: some still run, and some were never loaded."""
    history, now = History(), datetime.now(UTC).replace(microsecond=0)
    history.add_dags(*(f"nightly_{n:02d}" for n in range(dags)))
    for number in range(count):
        at = now - (number // 14) * HOUR - timedelta(seconds=number % 14)
        steps = 1 if number < 5 else 2 if number % 100 == 7 else 3
        receipts = submission(number, at, steps=steps)
        history.add_run(f"nightly_{number % dags:02d}", at, receipts)
        yield receipts["submit"].submission
    history.write()


def _highest_run(session: Any) -> int:
    from airflow.models.dagrun import DagRun
    from sqlalchemy import func, select

    return session.scalar(select(func.max(DagRun.id))) or 0
