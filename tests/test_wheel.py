"""The built wheel in an empty environment: Airflow lists it, and the README's first Dag runs there as printed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator import Emulator

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1_800)]
ROOT = Path(__file__).parent.parent


def call(*command: str | Path, **options: Any) -> str:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel with its DuckDB extra, and what these need."""
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    call(sys.executable, "-m", "venv", folder / "venv")
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet"]
    call(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[duckdb]", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def settings(environment: Path) -> Iterator[dict[str, str]]:
    """The environment variables of an Airflow of its own, with the README's two connections."""
    text = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert text
    (environment / "dags").mkdir()
    (environment / "dags" / "first.py").write_text(text[1])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    with Emulator("--speed", "3600") as emulator:
        anthropic = {"conn_type": "anthropic", "password": "emulator-key", "host": emulator.base_url}
        warehouse = {"conn_type": "duckdb", "host": str(environment / "warehouse.duckdb")}
        yield {
            **inherited,
            "AIRFLOW_HOME": str(environment / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(environment / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_ANTHROPIC_DEFAULT": json.dumps(anthropic),
            "AIRFLOW_CONN_WAREHOUSE": json.dumps(warehouse),
        }


def test_airflow_shows_the_provider_with_its_parts(environment: Path, settings: dict[str, str]) -> None:
    airflow = environment / "venv/bin/airflow"
    name = "airflow-provider-claude-batch"
    (shown,) = json.loads(call(airflow, "providers", "get", name, "--full", "--output", "json", env=settings))
    modules = [part["python-modules"] for kind in ("operators", "sensors", "triggers") for part in shown[kind]]
    assert modules == [[f"airflow_provider_claude_batch.{module}"] for module in ("operators", "sensor", "trigger")]


def test_the_page_is_in_the_wheel_with_all_of_its_files(environment: Path, settings: dict[str, str]) -> None:
    shown = json.loads(call(environment / "venv/bin/airflow", "plugins", "--output", "json", env=settings))
    assert "claude_batch" in {plugin["name"] for plugin in shown}
    static = Path("airflow_provider_claude_batch", "page", "static")
    (installed,) = environment.glob(f"venv/lib/python3*/site-packages/{static}")
    assert {path.name for path in installed.iterdir()} == {path.name for path in (ROOT / static).iterdir()}


def test_the_readmes_first_dag_runs_as_printed(environment: Path, settings: dict[str, str]) -> None:
    venv = environment / "venv/bin"
    call(venv / "airflow", "db", "migrate", env=settings)
    call(venv / "airflow", "dags", "test", "label_tickets", env=settings)
    query = (
        "import duckdb, sys; print(duckdb.connect(sys.argv[1]).sql('SELECT text FROM ticket_labels_latest').fetchall())"
    )
    rows = call(venv / "python", "-c", query, environment / "warehouse.duckdb")
    assert sorted(eval(rows)) == [("billing",), ("billing",), ("technical",)]


def test_the_command_is_there(environment: Path) -> None:
    assert "emulate" in call(environment / "venv/bin/claude-batch", "--help")
