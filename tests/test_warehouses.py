"""Warehouses that need an environment of their own: the one list of scenarios, and the surprises of each kind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from warehouse import ELSEWHERE

ROOT = Path(__file__).parent.parent
TOOLS = ("httpx", "hypothesis", "psutil", "pytest", "pytest-timeout")


class Needs(NamedTuple):
    """What an engine's environment holds beside this package; it may want other versions than we are tested with."""

    requirements: tuple[str, ...] = ()
    freed: tuple[str, ...] = ()  # packages whose line in constraints.txt does not count


NEEDS = {
    "snowflake": Needs(("fakesnow==0.12.1", "snowflake-connector-python[pandas]<5"), freed=("pandas",)),
    "bigquery": Needs(
        (
            *("bqemulator==1.4.0", "duckdb==1.5.5", "duckdb-extensions==1.5.5"),
            *("duckdb-extension-spatial==1.5.5", "pandas", "testcontainers"),
        ),
        freed=("duckdb", "fastapi"),
    ),
    "iceberg": Needs(("duckdb", "pyiceberg[sql-sqlite,pyarrow]")),
}


def call(*command: str | Path, **options: Any) -> str:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-3000:]
    return run.stdout


def make_environment(folder: Path, kind: str) -> Path:
    """Return the interpreter of an environment that holds this package with an extra, and an engine to run it on."""
    python, constraints = folder / "venv/bin/python", folder / "constraints.txt"
    requirements, freed = NEEDS[kind]
    pinned = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    constraints.write_text("".join(line for line in pinned if re.split(r"[=\s]", line)[0] not in freed))
    call(sys.executable, "-m", "venv", folder / "venv")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    pip = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    call(*pip, "--quiet", "--constraint", constraints, "--editable", f"{ROOT}[{kind}]", *TOOLS, *requirements)
    return python


@pytest.mark.warehouses
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_every_scenario_runs_on_its_engine(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    with TemporaryDirectory(prefix=f"{kind}_", ignore_cleanup_errors=True) as folder:
        said = call(
            *(make_environment(Path(folder), kind), "-m", "pytest", "-m", "", "-W", "default"),
            *("-q", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider"),
            *("tests/test_writers.py", f"tests/test_{kind}.py"),
            env={**inherited, "CLAUDE_BATCH_WAREHOUSES": kind, "TMPDIR": folder},
            cwd=ROOT,
        )
    summary = said.splitlines()[-1]
    with capfd.disabled():
        print(f"\n{kind}: {summary}")
    assert re.search(r"\d+ passed", summary)
