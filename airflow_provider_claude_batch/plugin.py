"""The plugin that puts the page into Airflow: imported in every task process, so it loads nothing that is not there."""

from typing import Any
from urllib.parse import urlsplit

try:
    from airflow.sdk.configuration import conf
    from airflow.sdk.plugins_manager import AirflowPlugin
except ImportError:  # before Airflow 3.2
    from airflow.configuration import conf
    from airflow.plugins_manager import AirflowPlugin  # type: ignore[assignment]

PREFIX = "/claude-batch"
NAME = "Claude Batches"
ROUTE = "claude-batches"


class _Page:
    """The page's server, made when somebody first asks for something."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer as an ASGI application."""
        if self._app is None:
            from airflow_provider_claude_batch.page.app import build

            self._app = build()
        await self._app(scope, receive, send)


def _view(destination: str, suffix: str = "") -> dict[str, str]:
    """Describe one place: each has its own route, and Airflow may be served under a path of its own."""
    path = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
    bundle = f"{path}{PREFIX}/static/airflow.js"
    return {"name": NAME, "bundle_url": bundle, "destination": destination, "url_route": ROUTE + suffix}


class ClaudeBatchPlugin(AirflowPlugin):
    """The page in the navigation, and as a tab on Dags and their runs."""

    name = "claude_batch"
    fastapi_apps = [{"app": _Page(), "url_prefix": PREFIX, "name": NAME}]  # noqa: RUF012 - Airflow's own shape
    react_apps = [{**_view("nav"), "category": "browse"}, _view("dag", "-dag"), _view("dag_run", "-run")]  # noqa: RUF012
