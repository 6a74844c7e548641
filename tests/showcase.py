"""A real Airflow with submissions of every kind, of several days: what there is for the page to show."""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

import httpx
from emulator import CONNECTION, Emulator
from stack import Stack
from warehouse_postgres import airflow_database

DAG_IDS = ("labels", "public_digests", "injections", "forgotten", "running")
QUARTER, HOUR = 900, 3_600
USERS = "admin:admin,guest:viewer,reader:viewer"  # see limited_auth.py
DAGS = '''
from airflow.sdk import dag
from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchSensor, claude_batch

HAIKU, SONNET = "claude-haiku-4-5", "claude-sonnet-5"
INJECTED = "<img src=x onerror=__pwned=1>"


def asked(custom_id, content, model=HAIKU, **params):
    params |= {"model": model, "messages": [{"role": "user", "content": content}]}
    return {"custom_id": custom_id, "params": params}


def group(requests, table, **more):
    place = {"warehouse_conn_id": "warehouse", "table": table, "defaults": {"max_tokens": 300}}
    claude_batch("batch", requests=requests, **place, **more)


@dag(schedule=None)
def labels():
    tickets = [asked(f"ticket-{n:03}", f"Ticket {n}: it broke.", (HAIKU, SONNET)[n % 2]) for n in range(36)]
    group(tickets, "ticket_labels", shard_size=15, rounds=1, retry_defaults={"max_tokens": 1_000})


@dag(schedule=None)
def public_digests():
    group([asked(f"mail-{n:03}", f"Digest of mail {n}.") for n in range(8)], "digests", rounds=0)


@dag(schedule=None)
def injections():
    script = asked("<script>__pwned=1</script>", "Ticket 77")  # the emulator answers this one with a script
    error = asked(INJECTED, "Hello", **{INJECTED: 1})  # and this one with an error that names the parameter
    group([script, asked("<b>bold</b>", "Hello"), error], "injections", rounds=0)


@dag(schedule=None)
def forgotten():
    """Two submissions that are waited for and never loaded."""
    parts = [[asked(f"part-{part}-{n}", f"Hello {n}") for n in range(3)] for part in (1, 2)]
    submit = ClaudeBatchOperator.partial(task_id="submit", defaults={"max_tokens": 300}).expand(requests=parts)
    ClaudeBatchSensor.partial(task_id="wait").expand(batch=submit.output)


@dag(schedule=None)
def running():
    group([asked(f"slow-{n}", f"Slow {n}") for n in range(5)], "slow", rounds=0, poke_interval=3_600)


labels(), public_digests(), injections(), forgotten(), running()
'''


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It did not come true in time."
        time.sleep(0.2)


class Showcase:
    """The emulator, Airflow, the warehouse, and the ids of the runs by Dag, oldest first."""

    def __init__(self, home: Path) -> None:
        (home / "dags").mkdir(parents=True, exist_ok=True)
        (home / "dags" / "showcase.py").write_text(DAGS)
        self.warehouse = home / "warehouse.duckdb"
        self.emulator = Emulator("--batch-seconds", "0")
        self.runs: dict[str, list[str]] = {}
        self.today = datetime.now(UTC)
        if self.today.hour == 23:  # what follows is all of one day, which must not end meanwhile
            self.today -= timedelta(hours=1)
        self._home = home
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.emulator.__enter__()
        connections = {
            "anthropic_default": {**CONNECTION, "host": self.emulator.base_url},
            "warehouse": {"conn_type": "duckdb", "host": str(self.warehouse)},
        }
        env = {
            "AIRFLOW__CORE__AUTH_MANAGER": "limited_auth.LimitedAuthManager",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": USERS,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._open.enter_context(airflow_database()),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        self.stack = Stack(self._home / "airflow", self._home / "dags", connections, env)
        try:
            self.stack.start()
            self.stack.wait_healthy()
            self._run_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.stop()
        self.emulator.stop()
        self.emulator.__exit__()
        self._open.close()

    @property
    def url(self) -> str:
        return self.stack.url

    def password(self, username: str) -> str:
        return json.loads(self.stack.passwords.read_text())[username]

    def token(self, username: str) -> str:
        """Log in without a browser."""
        login = {"username": username, "password": self.password(username)}
        answer = httpx.post(f"{self.url}/auth/token", json=login, timeout=90, trust_env=False)
        return answer.raise_for_status().json()["access_token"]

    def ask(self, username: str | None, path: str, **params: Any) -> httpx.Response:
        """Ask the page's server for JSON, as somebody or as nobody."""
        headers = {"Authorization": f"Bearer {self.token(username)}"} if username else {}
        url = f"{self.url}/claude-batch/{path}"
        return httpx.get(url, params=params, headers=headers, timeout=90, trust_env=False)

    def listed(self, **params: Any) -> list[dict[str, Any]]:
        return self.ask("admin", "submissions", **params).raise_for_status().json()["submissions"]

    def newest(self, dag_id: str) -> dict[str, Any]:
        """Return the newest submission of a Dag, as the list has it."""
        return self.listed(dag_id=dag_id)[0]

    def path_of_newest(self, dag_id: str) -> str:
        """Return where the page shows the newest submission of a Dag."""
        one = self.newest(dag_id)
        where = {"submission": one["id"], "dag_id": dag_id, "run_id": one["run_id"]}
        return f"/plugin/claude-batches?{urlencode(where)}"

    def path_of_run(self, dag_id: str, at: int = -1) -> str:
        """Return where Airflow shows one of the runs, by default the newest."""
        return f"/dags/{dag_id}/runs/{quote(self.runs[dag_id][at], safe='')}"

    def links(self, dag_id: str, task_id: str) -> dict[str, str]:
        """Return the extra links of a task."""
        path = f"/dags/{dag_id}/dagRuns/{quote(self.runs[dag_id][-1], safe='')}/taskInstances/{task_id}/links"
        return self.stack.api.get(path)["extra_links"]

    def task_instances(self, dag_id: str) -> list[dict[str, Any]]:
        return self.stack.api.task_instances(dag_id, self.runs[dag_id][-1])

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        import duckdb

        with duckdb.connect(str(self.warehouse), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def _run_all(self) -> None:
        """Run everything, at the moments that the emulated clock gives it."""
        api = self.stack.api
        for dag_id in DAG_IDS:
            api.wait_dag(dag_id)
        for days in (40, 10):
            self._at(days)
            self._submit("forgotten", batches=2)
        self._at(days=2)
        self._fail_some()
        api.wait_run("labels", self._trigger("labels"))
        self.emulator.clear_faults()
        self._at(days=1)
        self.emulator.fault("slow_batch", seconds=QUARTER)
        self._submit("public_digests", batches=1)
        self._at(days=0)
        for dag_id in ("public_digests", "injections"):
            self._trigger(dag_id)
        for dag_id, run_ids in self.runs.items():
            assert {api.wait_run(dag_id, run_id) for run_id in run_ids} == {"success"}, dag_id
        self.emulator.fault("slow_batch", seconds=2 * HOUR)
        run_id = self._trigger("running")
        wait_until(lambda: "deferred" in {one["state"] for one in api.task_instances("running", run_id)})

    def _at(self, days: float) -> None:
        self.emulator.clock(now=(self.today - timedelta(days=days)).isoformat())

    def _trigger(self, dag_id: str) -> str:
        run_id = self.stack.api.trigger(dag_id)
        self.runs.setdefault(dag_id, []).append(run_id)
        return run_id

    def _submit(self, dag_id: str, batches: int) -> None:
        """Start a run, and return as soon as its batches are with the API, which knows what day it is."""
        before = len(self.emulator.journal(operation="create"))
        self._trigger(dag_id)
        wait_until(lambda: len(self.emulator.journal(operation="create")) == before + batches)

    def _fail_some(self) -> None:
        fault = self.emulator.fault
        fault("row", outcome="overloaded_error", match="ticket-00[0-4]", times=5)
        fault("row", outcome="expired", match="ticket-01[0-1]", times=2)
        fault("row", outcome="truncated", match="ticket-02[0-1]", times=2)
        fault("row", outcome="invalid_request_error", match="ticket-03[0-2]", times=3)
