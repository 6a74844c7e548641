"""Fixtures: a real Airflow in this process, the emulator on the other side of the wire, real warehouses."""

import atexit
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import runs
from emulator import CONNECTION, HEADERS, Emulator
from warehouse import ELSEWHERE, KINDS, Warehouse, connect_warehouse

if TYPE_CHECKING:
    import httpx2
    from anthropic import Anthropic

    from airflow_provider_claude_batch.client import Client

pytest_plugins = ["pages", "page_client"]
collect_ignore = [f"test_{kind}.py" for kind in ELSEWHERE if kind not in KINDS]
_HOME = Path(tempfile.mkdtemp(prefix="claude_batch_airflow_"))
(_HOME / "dags").mkdir()
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
# How fast an example is drawn and run says something of the machine, and nothing of us.
hypothesis.settings.register_profile(
    "ours",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ours")
os.environ.update(
    {
        "AIRFLOW_HOME": str(_HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(_HOME / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME}/airflow.db",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(_HOME / "logs"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    }
)


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Create Airflow's own database, once."""
    from airflow.utils.db import initdb

    initdb()
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("airflow_provider_claude_batch") and isinstance(logger, logging.Logger):
            logger.disabled = False  # the migrations' logging setup silences what was imported before it


@pytest.fixture(autouse=True)
def no_secret_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without the secrets of other tests, and leave none to them."""
    from airflow_provider_claude_batch import masking

    monkeypatch.setattr(masking, "_known", {})
    monkeypatch.setattr(masking, "_longest_first", ())


@pytest.fixture(scope="module")
def process(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """One emulator for a file of tests, started with the options that the file names in EMULATOR."""
    with Emulator(*getattr(request.module, "EMULATOR", ())) as emulator:
        yield emulator


@pytest.fixture
def emulator(process: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The API on the other side of the wire, as new, behind the connection anthropic_default."""
    process.reset()
    monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", json.dumps({**CONNECTION, "host": process.base_url}))
    return process


@pytest.fixture
def stopped_clock(emulator: Emulator) -> None:
    """Stop the emulator's clock: time passes when the test says so."""
    emulator.clock(freeze=True)


@pytest.fixture
def sdk(emulator: Emulator) -> "Iterator[Anthropic]":
    """The SDK, without its own retries."""
    from anthropic import Anthropic

    with Anthropic(api_key="test-key", base_url=emulator.base_url, max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def http(emulator: Emulator) -> "Iterator[httpx2.Client]":
    """HTTP as it is, with the key of `sdk`."""
    import httpx2

    with httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=30) as http:
        yield http


@pytest.fixture
def client(emulator: Emulator) -> "Iterator[Client]":
    """Our client, with a real SDK inside, on a real socket."""
    from anthropic import Anthropic

    from airflow_provider_claude_batch.client import Client

    with Client(Anthropic(api_key=CONNECTION["password"], base_url=emulator.base_url), "anthropic_default") as client:
        yield client


@pytest.fixture(params=KINDS)
def warehouse(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    """A warehouse behind the connection `warehouse`; tests run once for each kind."""
    warehouse = connect_warehouse(request.param, tmp_path, monkeypatch)
    scenario = request.node.name.replace(f"{request.param}-", "").removesuffix(f"[{request.param}]")
    if reason := getattr(warehouse, "lacks", {}).get(scenario):
        pytest.skip(reason)
    return warehouse


@pytest.fixture
def run_dag(airflow_db: None) -> Callable[..., Any]:
    """Run a Dag in this process, on real Airflow, triggers included."""
    return runs.run_dag
