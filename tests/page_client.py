"""The page as its server answers: Airflow's own API application in this process, and somebody who is logged in."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from history import History

# What is imported here, all tests would need, also those that run in environments of their own.
NOW = datetime.now(UTC).replace(microsecond=0)
PAGE = "/claude-batch"
SECRET = "x" * 64


@contextmanager
def client(username: str | None, role: str | None = None) -> Iterator[Any]:
    """Talk to Airflow's API server as a user of a role, or as nobody."""
    from airflow.api_fastapi.app import create_app, get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from starlette.testclient import TestClient

    from airflow_provider_claude_batch.plugin import ClaudeBatchPlugin

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", SECRET)
        app = create_app()
        ClaudeBatchPlugin.fastapi_apps[0]["app"]._app = None  # begin with nothing remembered
        with TestClient(app) as http:
            if username is not None:
                token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=username, role=role))
                http.headers["Authorization"] = f"Bearer {token}"
            yield http


@pytest.fixture
def history(airflow_db: None) -> "Iterator[History]":
    """Airflow's database with two Dags, without what other tests have left in it."""
    from history import History

    _empty()
    history = History()
    history.add_dags("nightly", "secret")
    yield history
    _empty()


@pytest.fixture
def viewer(history: "History") -> Iterator[Any]:
    """Somebody who may read all Dags."""
    with client("viewer", "VIEWER") as http:
        yield http


def listed(http: Any, **query: Any) -> dict[str, Any]:
    """Return the list of submissions."""
    answer = http.get(f"{PAGE}/submissions", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(http: Any, **query: Any) -> list[str]:
    """Return the ids of the submissions in the list."""
    return [one["id"] for one in listed(http, **query)["submissions"]]


def detail(http: Any, name: str, run_id: str, dag_id: str = "nightly", **query: Any) -> dict[str, Any]:
    """Return what a submission's own page shows."""
    answer = http.get(f"{PAGE}/submissions/{name}", params={"dag_id": dag_id, "run_id": run_id, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def write(history: "History", *runs: tuple[str, dict[str, Any]], at: datetime = NOW - timedelta(hours=3)) -> list[str]:
    """Write runs with their receipts, and return their ids."""
    run_ids = [history.add_run(dag_id, at, receipts) for dag_id, receipts in runs]
    history.write()
    return run_ids


def _empty() -> None:
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        session.query(DagRun).delete()
        session.query(DagModel).delete()


class Counted:
    """Count the queries that Airflow's database is asked."""

    def __init__(self) -> None:
        self._queries = 0

    def __enter__(self) -> Self:
        from airflow import settings
        from sqlalchemy import event

        event.listen(settings.engine, "before_cursor_execute", self._count)
        return self

    def __exit__(self, *_: object) -> None:
        from airflow import settings
        from sqlalchemy import event

        event.remove(settings.engine, "before_cursor_execute", self._count)

    def take(self) -> int:
        """Return how many there were since the last time."""
        queries, self._queries = self._queries, 0
        return queries

    def _count(self, *_: Any) -> None:
        self._queries += 1
