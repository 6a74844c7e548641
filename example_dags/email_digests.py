"""For a product that mails each of its customers a digest of their week, on Sunday night."""

import random
from typing import Any

import pendulum
from airflow.sdk import BaseHook, dag, task

from airflow_provider_claude_batch import claude_batch

CUSTOMERS = ["Ödegård & Fils", "Café “Zür Post”", "株式会社みどり", "O'Neill; Sons", "<b>Bold</b> SA"]
EVENTS = ["invited {n} colleagues", "hit the quota {n} times", "shared {n} boards", "paid invoice {{{{ no_{n} }}}}"]
AREAS = ["boards", "automations", "billing", "integrations", "the mobile app", "permissions", "reports", "search"]
MOMENTS = {
    "a first use": "congratulate in half a sentence and name the one setting that most customers change next",
    "a heavy week": "give the number, compare it with the week before, and say what it saved in hours, rounded down",
    "a failure": "say plainly what went wrong and when, without an apology longer than three words, and what to do now",
    "a limit": "name the limit and the date on which it is reached at this pace; offer the larger plan only once",
    "silence": "do not mention what was not used; choose one tip that fits the customer's other areas instead",
}
RULES = [f"When the week has {moment} in {area}: {rule}." for area in AREAS for moment, rule in MOMENTS.items()]
GUIDE = "\n".join(["You write short weekly digests for the customers of a planning tool.", *RULES])
DEFAULTS = {"model": "claude-sonnet-4-6", "max_tokens": 600, "system": GUIDE}
TABLE: dict[str, Any] = {"warehouse_conn_id": "warehouse", "table": "email_digests"}
USABLE = """SELECT custom_id, text FROM email_digests_latest
WHERE submission = ? AND status = 'succeeded' AND problem IS NULL"""


@dag(schedule="0 22 * * 0", start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False, tags=["claude-batch"])
def email_digests() -> None:
    """A long guide that all requests share: one request caches it, the others read it for a tenth."""

    @task(show_return_value_in_logs=False)
    def build_requests(customers: int = 40) -> list[dict[str, Any]]:
        chance, requests = random.Random(2026), []  # noqa: S311
        for number in range(customers):
            week = "; ".join(event.format(n=chance.randint(1, 60)) for event in chance.sample(EVENTS, 3))
            messages = [{"role": "user", "content": f"{chance.choice(CUSTOMERS)}, this week: {week}."}]
            requests.append({"custom_id": f"customer-{number:05}", "params": {"messages": messages}})
        return requests

    @task
    def send(receipt: Any) -> int:
        digests = BaseHook.get_hook("warehouse").get_records(USABLE, parameters=[receipt["submission"]])
        return len(digests)  # a real Dag hands them to whatever sends its mail

    digests = claude_batch("digests", requests=build_requests(), defaults=DEFAULTS, prime_cache=True, **TABLE)
    send(digests.output)


email_digests()
