"""For a platform team that has thousands of pull requests a week reviewed, each as it needs."""

import random
from typing import Any

import pendulum
from airflow.sdk import BaseHook, dag, task

from airflow_provider_claude_batch import claude_batch

DIFFS = {
    "payments": "-    total = sum(i.price for i in items)\n+    total = round(sum(i.price for i in items), 2)  # €, ¥?",
    "auth-service": '-if token == stored:\n+if hmac.compare_digest(token, stored or ""):  # naïve before',
    "charts": "-  image: {{ .Values.image }}\n+  image: {{ .Values.image }}@{{ .Values.digest | quote }}",
    "web": "-<p dangerouslySetInnerHTML={{__html: bio}} />\n+<p>{bio ?? '—'}</p>\t// \\u2028 breaks the old parser",
    "etl": "-DELETE FROM facts;\n+DELETE FROM facts WHERE day = '{{ ds }}' AND \"Größe\" <> 'n/a';",
}
REVIEW = "You review pull requests. Name file and line of every finding, the worst first."
AUDIT = "You audit changes to money and access. Name every finding, its risk, and a test that shows it."
USABLE = """SELECT custom_id, text FROM code_reviews_latest
WHERE submission = ? AND status = 'succeeded' AND problem IS NULL"""
CRITICAL = {"payments", "auth-service"}
DEFAULTS: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 300_000,
    "system": REVIEW,
    "betas": ["output-300k-2026-03-24"],
}
LIMITS: dict[str, Any] = {"max_cost_usd": 100, "max_error_rate": 0.01, "shard_size": 10, "fan_out": True}
TABLE: dict[str, Any] = {"warehouse_conn_id": "warehouse", "table": "code_reviews"}


@dag(schedule="0 20 * * 5", start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False, tags=["claude-batch"])
def code_reviews() -> None:
    """Several models and instructions in one batch, very long answers, limits on cost and errors, batch by batch."""

    @task(show_return_value_in_logs=False)
    def build_requests(pull_requests: int = 30) -> list[dict[str, Any]]:
        chance, requests = random.Random(2026), []  # noqa: S311
        for number in range(4_100, 4_100 + pull_requests):
            repository, diff = chance.choice([*DIFFS.items()])
            messages = [{"role": "user", "content": f"Pull request {number} of {repository}:\n{diff}"}]
            own = {"model": "claude-opus-4-7", "system": AUDIT} if repository in CRITICAL else {}
            requests.append({"custom_id": f"{repository}-{number}", "params": {"messages": messages, **own}})
        return requests

    @task
    def post_reviews(receipt: Any) -> int:
        reviews = BaseHook.get_hook("warehouse").get_records(USABLE, parameters=[receipt["submission"]])
        return len(reviews)  # a real Dag posts each to its pull request

    reviews = claude_batch("reviews", requests=build_requests(), defaults=DEFAULTS, **LIMITS, **TABLE)
    post_reviews(reviews.output)


code_reviews()
