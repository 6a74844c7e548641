"""Links: from a task to the Claude Console, and to its run on the page."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

from airflow_provider_claude_batch.submit import CONSOLE

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

PAGE = "plugin/claude-batches"


class ClaudeConsoleLink(BaseOperatorLink):
    """Lead to the Console, which lists all batches of the workspace."""

    name = "Claude Console"

    def get_link(self, operator: Any, *, ti_key: "TaskInstanceKey") -> str:
        del operator, ti_key
        return CONSOLE


class ClaudeBatchesLink(BaseOperatorLink):
    """Lead to what a run has submitted, on the page."""

    name = "Claude Batches"

    def get_link(self, operator: Any, *, ti_key: "TaskInstanceKey") -> str:
        del operator
        base = str(conf.get("api", "base_url", fallback="/")).rstrip("/")
        return f"{base}/{PAGE}?{urlencode({'dag_id': ti_key.dag_id, 'run_id': ti_key.run_id})}"


LINKS = (ClaudeConsoleLink(), ClaudeBatchesLink())
