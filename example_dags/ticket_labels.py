"""For a support team that labels every message of the day, each night."""

import random
from typing import Any, Literal

import pendulum
from airflow.sdk import BaseHook, dag, task
from pydantic import BaseModel, Field

from airflow_provider_claude_batch import claude_batch

OPENINGS = ["Hello,", "Hi team!", "URGENT:", "¡Buenas!", "Sorry to bother you again –", "こんにちは,"]
COMPLAINTS = [
    "my {thing} was charged twice on the last invoice",
    "the {thing} export fails with error 502 since the update",
    "I cannot log in after changing the email of the {thing}",
    "the refund for the {thing} has not arrived, billing says 5–7 days",
    'the API answers "{{ quota_exceeded }}" for every {thing} call',
]
THINGS = ["Pro plan", "team seat", "mobile app", "webhook", "storage add-on", "annual licence"]
SYSTEM = "You sort the messages of a software company's customers. Urgency 5: they cannot work, or they leave."
DEFAULTS = {"model": "claude-haiku-4-5", "max_tokens": 300, "system": SYSTEM}
MORE: dict[str, Any] = {"retry_defaults": {"max_tokens": 1_000}, "shard_size": 150, "poke_interval": 5}
TABLE: dict[str, Any] = {"warehouse_conn_id": "warehouse", "table": "ticket_labels"}


class Label(BaseModel):
    """What a support lead wants to know of a message."""

    label: Literal["billing", "technical", "account", "other"]
    urgency: int = Field(ge=1, le=5)
    wants_refund: bool
    summary: str


@dag(schedule="0 23 * * *", start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False, tags=["claude-batch"])
def ticket_labels() -> None:
    """Typed columns, ids that are unique though tickets repeat, a cap on batches, more room on a retry."""

    @task(show_return_value_in_logs=False)
    def build_requests(messages: int = 200) -> list[dict[str, Any]]:
        chance, requests = random.Random(2026), []  # noqa: S311
        for n in range(messages):
            text = f"{chance.choice(OPENINGS)} {chance.choice(COMPLAINTS).replace('{thing}', chance.choice(THINGS))}."
            ticket = chance.randint(48_000, 48_150)  # who writes again, writes under the same ticket
            params = {"messages": [{"role": "user", "content": text}]}
            requests.append({"custom_id": f"ticket-{ticket}-{n:04}", "params": params})
        return requests

    @task
    def publish(receipt: Any) -> dict[str, int]:
        sql = "SELECT label, count(*) FROM ticket_labels_latest WHERE submission = ? AND urgency >= 4 GROUP BY label"
        return dict(BaseHook.get_hook("warehouse").get_records(sql, parameters=[receipt["submission"]]))

    labels = claude_batch("labels", requests=build_requests(), defaults=DEFAULTS, columns=Label, **TABLE, **MORE)
    publish(labels.output)


ticket_labels()
