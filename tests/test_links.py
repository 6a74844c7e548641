"""What a task shows of itself in Airflow's UI: links, its receipt, its rendered fields."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from airflow.sdk import dag, task
from emulator import Emulator
from page_client import client

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchSensor
from airflow_provider_claude_batch.links import ClaudeBatchesLink, ClaudeConsoleLink
from airflow_provider_claude_batch.provider import get_provider_info

EMULATOR = ("--batch-seconds", "0")


@pytest.fixture
def run(run_dag: Callable[..., Any], emulator: Emulator) -> Any:
    """A run that has submitted something, and waited for it."""

    @dag(schedule=None)
    def linked() -> None:
        @task
        def build() -> list[dict[str, Any]]:
            return [{"custom_id": "one", "params": {"messages": [{"role": "user", "content": "Hello"}]}}]

        defaults = {"model": "claude-haiku-4-5", "max_tokens": 9, "system": "Today is {{ ds }}."}
        submit = ClaudeBatchOperator(task_id="submit", requests=build(), defaults=defaults)
        ClaudeBatchSensor(task_id="wait", batch=submit.output)

    run = run_dag(linked())
    assert run.state == "success"
    return run


@pytest.mark.filterwarnings("ignore")
def test_airflow_links_each_task_to_the_console_and_to_its_run_on_the_page(run: Any) -> None:
    with client("viewer", "VIEWER") as http:
        for task_id in ("submit", "wait"):
            path = f"/api/v2/dags/linked/dagRuns/{quote(run.run_id)}/taskInstances/{task_id}"
            links = http.get(f"{path}/links").json()["extra_links"]
            assert links["Claude Console"].startswith("https://platform.claude.com/")
            page = urlsplit(links["Claude Batches"])
            assert page.path.endswith("/plugin/claude-batches")
            assert parse_qs(page.query) == {"dag_id": ["linked"], "run_id": [run.run_id]}
        fields = http.get(path.replace("wait", "submit")).json()["rendered_fields"]
        assert fields["defaults"]["system"].startswith("Today is 20")
        assert "Hello" not in str(fields)


@pytest.mark.parametrize("base_url", ["https://airflow.example.com/team", "https://airflow.example.com/team/"])
def test_a_link_leads_to_where_airflow_is_served(run: Any, base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    link = ClaudeBatchesLink().get_link(None, ti_key=run.get_task_instances()[0].key)
    assert link.startswith("https://airflow.example.com/team/plugin/claude-batches?dag_id=linked&run_id=")


def test_the_links_are_told_to_airflow() -> None:
    known = {f"{link.__module__}.{link.__name__}" for link in (ClaudeConsoleLink, ClaudeBatchesLink)}
    assert set(get_provider_info()["extra-links"]) == known
