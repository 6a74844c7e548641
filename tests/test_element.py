"""What tells the elements of a mapped task apart, in the receipt that each of them leaves."""

from typing import Any

import pytest
from airflow.sdk import dag, get_current_context, task
from runs import xcom
from tries import DEFAULTS, some_requests
from warehouse import connect_warehouse

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchResultsOperator, ClaudeBatchSensor

EMULATOR = ("--batch-seconds", "0")


def mapped(**arguments: Any) -> Any:
    """Submit what two files hold, by a mapped task."""

    @dag(schedule=None, user_defined_macros={"of": {"emea": "Europe", "apac": "Asia"}})
    def mapped() -> None:
        @task.claude_batch(task_id="submit", defaults=DEFAULTS, **arguments)
        def submit(region: str) -> Any:
            get_current_context()["region_that_is_known_now"] = region
            return some_requests(1, region)

        submit.expand(region=["emea", "apac"])

    return mapped()


@pytest.mark.parametrize(
    ("arguments", "elements"),
    [
        ({}, ["0", "1"]),
        ({"map_index_template": "{{ task.op_kwargs.region }}"}, ["emea", "apac"]),
        ({"map_index_template": "{{ of[task.op_kwargs.region | string] }}"}, ["Europe", "Asia"]),
        ({"map_index_template": "{{ ds }}", "element": "{{ task.op_kwargs.region }}"}, ["emea", "apac"]),
    ],
)
def test_an_element_has_the_name_that_the_dag_gives_or_else_its_map_index(
    emulator: Any, run_dag: Any, arguments: dict[str, Any], elements: list[str]
) -> None:
    run = run_dag(mapped(**arguments))
    assert [xcom(run, "submit", map_index=n)["element"] for n in range(2)] == elements


def test_a_template_that_is_whole_only_after_the_task_leaves_the_map_index(
    emulator: Any, run_dag: Any, caplog: Any
) -> None:
    run = run_dag(mapped(map_index_template="region {{ region_that_is_known_now }}"))
    assert [xcom(run, "submit", map_index=n)["element"] for n in range(2)] == ["0", "1"]
    assert (
        "map_index_template names no element before the task runs ('region_that_is_known_now' is undefined)"
        in caplog.text
    )


def test_a_task_that_is_not_mapped_is_an_element_without_a_name(
    emulator: Any, run_dag: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    warehouse = connect_warehouse("sqlite", tmp_path, monkeypatch)

    @dag(schedule=None)
    def plain() -> None:
        submit = ClaudeBatchOperator(task_id="submit", requests=some_requests(1), defaults=DEFAULTS)
        wait = ClaudeBatchSensor(task_id="wait", batch=submit.output)
        ClaudeBatchResultsOperator(task_id="load", batch=wait.output, warehouse_conn_id="warehouse", table="t")

    run_dag(plain())
    assert warehouse.query("SELECT element FROM t") == [("",)]
