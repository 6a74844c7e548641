"""The page as its server answers: Airflow's own API application in this process, and somebody who is logged in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy import event


@contextmanager
def client(username: str | None, role: str | None = None) -> Iterator[Any]:
    """Talk to Airflow's API server as a user of a role, or as nobody."""
    from airflow.api_fastapi.app import create_app, get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from starlette.testclient import TestClient

    from airflow_provider_claude_batch.plugin import ClaudeBatchPlugin

    app = create_app()
    ClaudeBatchPlugin.fastapi_apps[0]["app"].forget()
    with TestClient(app) as http:
        if username is not None:
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=username, role=role))
            http.headers["Authorization"] = f"Bearer {token}"
        yield http


class Counted:
    """Count the queries that Airflow's database is asked."""

    def __init__(self) -> None:
        self._queries = 0

    def __enter__(self) -> Self:
        from airflow import settings

        event.listen(settings.engine, "before_cursor_execute", self._count)
        return self

    def __exit__(self, *_: object) -> None:
        from airflow import settings

        event.remove(settings.engine, "before_cursor_execute", self._count)

    def take(self) -> int:
        """Return how many there were since the last time."""
        queries, self._queries = self._queries, 0
        return queries

    def _count(self, *_: Any) -> None:
        self._queries += 1
