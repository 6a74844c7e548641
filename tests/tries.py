"""A task instance whose tries share what Airflow keeps for them: to play retries, clears and deaths in this process."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.fate import Pause
from airflow_provider_claude_batch.note import Notebook
from airflow_provider_claude_batch.order import Order
from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.request import Defaults
from airflow_provider_claude_batch.submit import Submission, accepted

DEFAULTS = {"model": "claude-haiku-4-5", "max_tokens": 512}
VALUE_BYTES = 64 * 1024


def some_requests(count: int = 3, text: str = "Say hello") -> list[dict[str, Any]]:
    return [
        {"custom_id": f"r-{n}", "params": {"messages": [{"role": "user", "content": f"{text} {n}"}]}}
        for n in range(count)
    ]


class Store(dict[str, Any]):
    """Keeps JSON, as Airflow's task_state_store does."""

    def set(self, key: str, value: Any) -> None:
        encoded = msgspec.json.encode(value)
        assert len(encoded) <= VALUE_BYTES
        self[key] = msgspec.json.decode(encoded)

    def delete(self, key: str) -> None:
        self.pop(key, None)


class Task:
    """One task instance; without `remembers` it is one of an Airflow before 3.3."""

    def __init__(self, client: Client, emulator: Any, task_id: str = "submit", *, remembers: bool = True) -> None:
        self.client, self.emulator, self.task_id = client, emulator, task_id
        self.store = Store() if remembers else None
        self.clears, self.other_clears, self.deployment = 0, 0, "here"
        self.lineage = Receipt(submission="", dag_id="d", run_id="r", submit_task=task_id)
        self.published: list[Receipt] = []

    @property
    def clear(self) -> tuple[int, int]:
        """What Airflow counts: clears of anything in the run, and the tries that this task is allowed."""
        return self.clears + self.other_clears, self.clears

    def notebook(self, memo: dict[str, Any] | None = None) -> Notebook:
        return Notebook(self.store, msgspec.json.decode(msgspec.json.encode(memo)) if memo else None)

    def submission(self, notebook: Notebook, since: datetime | None = None, **limits: Any) -> Submission:
        defaults = limits.pop("defaults", DEFAULTS)
        order = Order(
            receipt=self.lineage,
            deployment=self.deployment,
            task_instance=("d", "r", self.task_id, -1),
            clear=self.clear,
            prices=PRICES,
            defaults=Defaults.of(defaults),
            unremembered_since=since,
            **limits,
        )
        return Submission(order, self.client, notebook, self.published.append)

    def run(self, requests: Iterable[Any], notebook: Notebook | None = None, **limits: Any) -> Any:
        """Run one try up to its end, or to its next pause."""
        resumed = limits.pop("resumed", False)
        notebook = notebook or self.notebook()
        done = accepted(notebook, self.clear, self.lineage)
        return done or self.submission(notebook, **limits).run(requests, resumed=resumed)

    def finish(self, requests: Iterable[Any], **limits: Any) -> tuple[Receipt | None, list[Pause]]:
        """Run one try to its end; the emulator's clock passes over what it waits for."""
        pauses: list[Pause] = []
        notebook = self.notebook()
        while isinstance(result := self.run(requests, notebook, **limits), Pause):
            pauses.append(result)
            assert len(pauses) < 20
            self.emulator.advance(3600 if result.batch_ids else result.seconds)
            notebook = self.notebook(notebook.memo)
            limits = {**limits, "since": None, "resumed": True}
        return result, pauses


def paid(emulator: Any) -> list[int]:
    """Return how many requests each batch holds that the API took, whoever got to know of it."""
    return [call["requests"] for call in emulator.journal(operation="create") if call["batch_id"]]


def cancelled(emulator: Any) -> list[str]:
    return [call["batch_id"] for call in emulator.journal(operation="cancel")]
