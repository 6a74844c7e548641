"""A real Airflow on this machine: API server, scheduler, triggerer and Dag processor as processes of our own."""

import atexit
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psutil

PROGRAMS = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
}
HEALTH = {"metadatabase", "scheduler", "triggerer", "dag_processor"}
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StackError(RuntimeError):
    """Airflow did not do what was asked of it; `log` names the component's log file where one tells more."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


@contextmanager
def interruptions_held() -> Iterator[None]:
    """Deliver Ctrl-C and its kin only afterwards: a process must be written down before we may die of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    usual = {number: signal.signal(number, lambda n, _: held.append(n)) for number in INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def end_cleanly_when_terminated() -> None:
    """Make SIGTERM and a closed terminal raise KeyboardInterrupt like Ctrl-C, so that every `finally` runs."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; all are held until the last is chosen, so they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


class Component:
    """One Airflow process in a session of its own, so that all its descendants can be found again, orphans too."""

    def __init__(self, name: str, arguments: list[str], env: Mapping[str, str], home: Path) -> None:
        self.name = name
        self.log = home / "logs" / "components" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output, interruptions_held():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                cwd=home,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """Return every living process of this component's session."""
        return [p for p in psutil.process_iter() if self._owns(p)]

    def _owns(self, process: psutil.Process) -> bool:
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            return os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE
        return False

    def terminate(self) -> None:
        if self.running:
            self.process.terminate()

    def kill(self) -> None:
        """Kill the whole tree at once, without a chance to clean up."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.02)
        self.process.wait()

    def stop(self, deadline: float) -> None:
        """Give the tree until `deadline` (monotonic) to end after SIGTERM, then kill what is left of it."""
        self.terminate()
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.kill()


class Api:
    """Airflow's REST API as the stack's administrator."""

    def __init__(self, url: str, username: str, password: str) -> None:
        self.username = username
        self.password = password
        self.http = httpx.Client(base_url=url, timeout=90, trust_env=False)

    def token(self) -> str:
        answer = self.http.post("/auth/token", json={"username": self.username, "password": self.password})
        return answer.raise_for_status().json()["access_token"]

    def login(self) -> None:
        self.http.headers["Authorization"] = f"Bearer {self.token()}"

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        if "Authorization" not in self.http.headers:
            self.login()
        try:
            answer = self.http.request(method, f"/api/v2{path}", **kwargs)
        except httpx.TransportError as error:
            raise StackError(f"{method} {path} was not answered: {error}") from error
        if answer.is_error:
            raise StackError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, params=params)

    def health(self) -> dict[str, str]:
        """Return each part's status; empty while the API server does not answer."""
        try:
            answer = self.http.get("/api/v2/monitor/health", timeout=5)
        except httpx.TransportError:
            return {}
        return {} if answer.is_error else {part: status["status"] for part, status in answer.json().items()}

    def import_errors(self) -> dict[str, str]:
        """Return the stack traces of Dag files that could not be imported, by file name."""
        return {e["filename"]: e["stack_trace"] for e in self.get("/importErrors")["import_errors"]}

    def wait_dag(self, dag_id: str, timeout: float = 180) -> None:
        """Return once the Dag is parsed; fail at once if the file of its name cannot be imported."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if dag_id in {d["dag_id"] for d in self.get("/dags", dag_id_pattern=dag_id)["dags"]}:
                return
            for filename, trace in self.import_errors().items():
                if Path(filename).stem == dag_id:
                    raise StackError(f"Airflow cannot import {filename}:\n{trace}")
            time.sleep(0.2)
        raise StackError(f"Airflow did not find the Dag {dag_id} within {timeout:.0f} s: {self.import_errors()}")

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run and return its run id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return self.call("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"]

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return self.get(_run(dag_id, run_id))

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return self.get(f"{_run(dag_id, run_id)}/taskInstances", limit=100)["task_instances"]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.get(path, map_index=map_index, deserialize=True)["value"]

    def event_logs(self, dag_id: str, run_id: str, task_id: str) -> list[dict[str, Any]]:
        """Return Airflow's audit log of one task, oldest first."""
        found = self.get(
            "/eventLogs", dag_id=dag_id, run_id=run_id, task_id=task_id, order_by="event_log_id", limit=100
        )
        return found["event_logs"]

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> list[str]:
        """Return the messages of one try, tracebacks as they stand in Airflow's records."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}/logs/{try_number}"
        return [_line(entry) for entry in self.get(path, map_index=map_index, full_content=True)["content"]]

    def watch_run(self, dag_id: str, run_id: str, timeout: float = 300) -> Iterator[list[dict[str, Any]]]:
        """Yield the task instances several times a second, and once more after the run has ended."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            state = self.dag_run(dag_id, run_id)["state"]
            yield self.task_instances(dag_id, run_id)
            if state in {"success", "failed"}:
                return
            time.sleep(0.3)
        raise StackError(f"the run {run_id} of {dag_id} did not end within {timeout:.0f} s")

    def wait_run(self, dag_id: str, run_id: str, timeout: float = 300) -> str:
        """Return the state in which the run ended."""
        for _ in self.watch_run(dag_id, run_id, timeout):
            pass
        return self.dag_run(dag_id, run_id)["state"]

    def close(self) -> None:
        self.http.close()


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _line(entry: str | dict[str, Any]) -> str:
    if isinstance(entry, str):
        return entry
    details = [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail") or []]
    return "\n".join([str(entry.get("event", "")), *details])


class Stack:
    """A whole Airflow in one folder, on free ports, which leaves no process behind.

    `connections` are Airflow connections by id, each a dict with `conn_type`, `host` and so on; `env` goes to every
    component and wins over the stack's own settings.
    """

    def __init__(
        self,
        home: Path,
        dags_folder: Path,
        connections: Mapping[str, Mapping[str, Any]] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home.resolve()
        self.username = "admin"
        self.password = secrets.token_hex(6)
        self.components: dict[str, Component] = {}
        port, *log_ports = free_ports(3)
        self.url = f"http://127.0.0.1:{port}"
        self.api = Api(self.url, self.username, self.password)
        self.env = _inherited() | self._settings(dags_folder.resolve(), port, log_ports)
        self.env |= {f"AIRFLOW_CONN_{name.upper()}": json.dumps(conn) for name, conn in (connections or {}).items()}
        self.env |= env or {}

    def _settings(self, dags_folder: Path, port: int, log_ports: list[int]) -> dict[str, str]:
        return {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.passwords),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.username}:admin",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}",
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[0]),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[1]),
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }

    @property
    def passwords(self) -> Path:
        return self.home / "passwords.json"

    def start(self) -> None:
        """Start all components; whatever interrupts this stops them again."""
        end_cleanly_when_terminated()
        atexit.register(self.stop)
        try:
            self.prepare()
            for program in PROGRAMS:
                self.start_component(program)
        except BaseException:
            self.stop()
            raise

    def prepare(self) -> None:
        """Make the folder and Airflow's database in it."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.passwords.touch(mode=0o600)
        self.passwords.write_text(json.dumps({self.username: self.password}))
        if not (self.home / "airflow.db").exists():
            self._migrate()

    def _migrate(self) -> None:
        migration = self._add("migration", ["db", "migrate"])
        code = migration.process.wait()
        if code:
            raise StackError(f"airflow db migrate ended with {code}", migration.log)
        del self.components["migration"]

    def start_component(self, program: str, name: str | None = None) -> Component:
        """Start one of Airflow's programs, under another name if it is the second of its kind."""
        return self._add(name or program, PROGRAMS[program])

    def _add(self, name: str, arguments: list[str]) -> Component:
        if former := self.components.get(name):
            if former.running:
                raise StackError(f"{name} is running already")
            former.kill()
        with interruptions_held():
            self.components[name] = Component(name, arguments, self.env, self.home)
        return self.components[name]

    def stop_component(self, name: str, grace: float = 15) -> None:
        self.components[name].stop(time.monotonic() + grace)

    def wait_healthy(self, timeout: float = 240) -> None:
        """Return once every part reports healthy; fail at once if a component has ended."""
        deadline = time.monotonic() + timeout
        while {part for part, status in self.api.health().items() if status == "healthy"} < HEALTH:
            self.check_running()
            if time.monotonic() > deadline:
                raise StackError(f"Airflow was not healthy within {timeout:.0f} s: {self.api.health()}")
            time.sleep(0.2)

    def check_running(self) -> None:
        for component in self.components.values():
            if not component.running:
                raise StackError(f"{component.name} ended with {component.process.returncode}", component.log)

    def stop(self, grace: float = 3) -> None:
        """Stop every process of ours: asked first, killed after `grace` seconds; no interruption cuts this short."""
        with interruptions_held():
            for component in self.components.values():
                component.terminate()
            deadline = time.monotonic() + grace
            for component in self.components.values():
                component.stop(deadline)
            self.components.clear()
            self.api.close()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _inherited() -> dict[str, str]:
    """Return our environment without another Airflow's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
