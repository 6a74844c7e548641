"""What others learn of a load: OpenLineage, and those who wait for an asset."""

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, dag
from runs import xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchResultsOperator, ClaudeBatchSensor
from airflow_provider_claude_batch.lineage import dataset_of
from airflow_provider_claude_batch.writers.table import Table

EMULATOR = ("--batch-seconds", "0")
LABELS = Asset("labels", uri="file:///labels")


def pipeline(**arguments: Any) -> Any:
    @dag(schedule=None)
    def pipeline() -> None:
        submit = ClaudeBatchOperator(task_id="submit", requests=some_requests(), defaults=DEFAULTS)
        wait = ClaudeBatchSensor(task_id="wait", batch=submit.output)
        ClaudeBatchResultsOperator(
            task_id="load", batch=wait.output, warehouse_conn_id="warehouse", table="answers", **arguments
        )

    return pipeline()


def test_an_asset_event_carries_the_receipt(
    emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    connect_warehouse("sqlite", tmp_path, monkeypatch)
    run = run_dag(pipeline(outlets=[LABELS]))
    assert run.state == "success"
    with create_session() as session:
        (extra,) = session.scalars(select(AssetEvent.extra).where(AssetEvent.source_run_id == run.run_id))
    assert extra["claude_batch"] == xcom(run, "load")
    assert extra["claude_batch"]["counts"] == {"succeeded": 3}


def test_openlineage_gets_the_table_as_an_output(
    emulator: Any, run_dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.openlineage.extractors.manager import ExtractorManager

    connect_warehouse("duckdb", tmp_path, monkeypatch)
    pipe = pipeline()
    run = run_dag(pipe)
    instance = next(ti for ti in run.get_task_instances() if ti.task_id == "load")
    found = ExtractorManager().extract_metadata(
        dagrun=run, task=pipe.get_task("load"), task_instance_state="success", task_instance=instance
    )
    (output,) = found.outputs
    assert (output.namespace, output.name) == (f"duckdb://{tmp_path}/warehouse.duckdb", "answers")


@pytest.mark.parametrize(
    ("connection", "table", "dataset"),
    [
        ({"conn_type": "sqlite", "host": "/data/w.sqlite?timeout=5"}, "t", ("sqlite:///data/w.sqlite", "t")),
        ({"conn_type": "postgres", "host": "db", "schema": "w"}, "t", ("postgres://db:5432", "w.public.t")),
        (
            {"conn_type": "postgres", "host": "db", "port": 7, "schema": "w"},
            "marts.t",
            ("postgres://db:7", "w.marts.t"),
        ),
        ({"conn_type": "gcpbigquery", "extra": {"project": "p"}}, "d.t", ("bigquery", "p.d.t")),
        ({"conn_type": "google_cloud_platform", "extra": {"project": "p"}}, "q.d.t", ("bigquery", "q.d.t")),
        ({"conn_type": "iceberg", "host": "http://catalog"}, "n.t", ("http://catalog", "n.t")),
        (
            {"conn_type": "iceberg", "host": "https://user:pw@catalog:8/api?token=secret#secret"},
            "n.t",
            ("https://catalog:8/api", "n.t"),
        ),
        ({"conn_type": "odd", "host": "https://user:pw@cat/api?token=x"}, "t", ("odd://https://cat/api", "t")),
        ({"conn_type": "trino", "host": "trino", "port": 80, "schema": "s"}, "t", ("trino://trino:80", "s.t")),
    ],
)
def test_tables_have_the_names_that_openlineage_gives_them(connection: Any, table: str, dataset: Any) -> None:
    from airflow.sdk import Connection

    made = Connection.from_json(json.dumps(connection), conn_id="w")
    assert dataset_of(made, Table.parse(table)) == dataset
