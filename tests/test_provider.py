"""What Airflow is told about the package, and what importing it costs."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import airflow
import jsonschema

import airflow_provider_claude_batch as package
from airflow_provider_claude_batch.provider import get_provider_info

LOADED = """
import json, sys
import airflow.sdk
airflow.sdk.task(lambda: None)  # what a Dag with a task of its own has loaded already
before = set(sys.modules)
import airflow_provider_claude_batch as package
for name in package.__all__:
    getattr(package, name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
TASK = """
import json, sys
import airflow.sdk.execution_time.task_runner, airflow.sdk.plugins_manager
before = set(sys.modules)
import airflow_provider_claude_batch.plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded(code: str) -> set[str]:
    """Return what an interpreter of its own loads after Airflow."""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.splitlines()[-1]))


def test_airflow_accepts_what_it_is_told() -> None:
    schema = json.loads(Path(airflow.__file__).with_name("provider_info.schema.json").read_text())
    assert list(jsonschema.Draft7Validator(schema).iter_errors(get_provider_info())) == []


def test_airflow_finds_the_provider_and_all_its_modules() -> None:
    (entry,) = entry_points(group="apache_airflow_provider", name="provider_info").select(
        module="airflow_provider_claude_batch.provider"
    )
    info = entry.load()()
    parts = [part for kind in ("operators", "sensors", "triggers") for part in info[kind]]
    assert [module for part in parts for module in part["python-modules"] if import_module(module)] == [
        f"airflow_provider_claude_batch.{name}" for name in ("operators", "sensor", "trigger")
    ]


def test_every_public_name_is_there_and_no_other() -> None:
    assert {name for name in package.__all__ if getattr(package, name)} == set(dir(package))
    assert not hasattr(package, "ClaudeBatchNothing")


def test_importing_the_package_alone_imports_neither_airflow_nor_anthropic() -> None:
    code = "import sys, airflow_provider_claude_batch; print({'airflow', 'anthropic'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_importing_all_public_classes_loads_little_of_airflow_and_nothing_of_others() -> None:
    modules = loaded(LOADED)
    others = {name for name in modules if not name.startswith(package.__name__)}
    assert {name.split(".")[0] for name in others} <= {"airflow", "gc", "pydantic"}
    assert len(others) < 15
    assert len(modules) < 65


def test_the_plugin_loads_nothing_into_a_task_process_but_itself() -> None:
    assert loaded(TASK) - {package.__name__} == {f"{package.__name__}.plugin"}
