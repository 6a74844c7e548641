"""Label the day's support tickets: submit, wait without a worker, load, and send again what failed."""

import random
from typing import Any

import pendulum
from airflow.sdk import dag, task

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchResultsOperator, ClaudeBatchSensor

DEFAULTS = {
    "model": "claude-haiku-4-5",
    "max_tokens": 64,
    "system": "Label the ticket with one word: billing, technical, account or other.",
}
TABLE: dict[str, Any] = {"warehouse_conn_id": "warehouse", "table": "ticket_labels"}
OPENINGS = ["Hello,", "Hi team!", "Good morning –", "URGENT:", "¡Buenas!", "Sorry to bother you again,", "こんにちは,"]
COMPLAINTS = [
    "my {thing} was charged twice on the last invoice",
    "the {thing} export fails with error 502 since the update",
    "I cannot log in to my account after changing the email of the {thing}",
    "could you tell me when the {thing} ships to Réunion?",
    "the refund for the {thing} has not arrived, billing says 5–7 days",
    'the API answers "{{ quota_exceeded }}" for every {thing} call',
]
THINGS = ["Pro plan", "team seat", "mobile app", "webhook", "storage add-on", "sandbox", "annual licence"]


@dag(schedule="0 23 * * *", start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False, tags=["claude-batch"])
def ticket_labels() -> None:
    """Answer every ticket of the day once, at half price."""

    @task(show_return_value_in_logs=False)
    def build_requests(tickets: int = 200) -> list[dict[str, Any]]:
        """Make up the tickets; a real Dag reads them from where they are."""
        chance = random.Random(2026)  # noqa: S311
        texts = [
            f"{chance.choice(OPENINGS)} {chance.choice(COMPLAINTS).replace('{thing}', chance.choice(THINGS))}. #{n}"
            for n in range(tickets)
        ]
        return [
            {"custom_id": f"ticket-{n:04}", "params": {"messages": [{"role": "user", "content": text}]}}
            for n, text in enumerate(texts)
        ]

    requests = build_requests()
    submit = ClaudeBatchOperator(task_id="submit", requests=requests, defaults=DEFAULTS)
    wait = ClaudeBatchSensor(task_id="wait", batch=submit.output, poke_interval=5)
    load = ClaudeBatchResultsOperator(task_id="load", batch=wait.output, **TABLE)

    submit_again = ClaudeBatchOperator(
        task_id="submit_again", requests=requests, defaults=DEFAULTS, retry_of=load.output
    )
    wait_again = ClaudeBatchSensor(task_id="wait_again", batch=submit_again.output, poke_interval=5)
    ClaudeBatchResultsOperator(task_id="load_again", batch=wait_again.output, **TABLE)


ticket_labels()
