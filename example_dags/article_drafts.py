"""For a content team whose application queues briefs all day, and finds drafts of the good ones in the morning."""

from itertools import product
from typing import Any

import pendulum
from airflow.sdk import BaseHook, dag, task

from airflow_provider_claude_batch import BatchQueue, claude_batch

QUEUE = BatchQueue("content_db", "briefs")
SUBJECTS = ["sourdough at 2,400 m", "Kraków on €40 a day", "the {{ author }} of one's CV", "¿Qué es la IA?", "金継ぎ"]
ANGLES = ["for people in a hurry", "as told by those who failed", "in numbers; no advice", 'what "experts" leave out']
VOICES = ["how-to", "portrait", "travel piece", "column", "explainer", "report", "review", "essay", "news item"]
RULES = """open with something that a reader can see or hear, and never with a question, a dream or the weather
keep sentences under 25 words, use one number a paragraph, and say what each of the numbers means to a reader
quote nobody who is not named in the outline, and mark with [check] whatever an editor has to verify before print
end on the next thing that a reader can do today, in one sentence, without summing up what stands above"""
GUIDE = "\n".join(f"In a {voice}, {rule}." for voice, rule in product(VOICES, RULES.splitlines()))
GOOD = {"model": "claude-sonnet-4-6", "max_tokens": 4_000, "system": f"You write first drafts.\n{GUIDE}"}
CHEAP = {"model": "claude-haiku-4-5", "max_tokens": 1_000, "system": "You judge briefs for articles, as an editor."}
NIGHT: dict[str, Any] = {"warehouse_conn_id": "warehouse", "rounds": 5}
FIELDS = {"is_worth_writing": {"type": "boolean"}, "title": {"type": "string"}, "outline": {"type": "string"}}
VERDICT = {"type": "object", "properties": FIELDS, "required": [*FIELDS]}


@dag(schedule="0 23 * * *", start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False, tags=["claude-batch"])
def article_drafts() -> None:
    """A queue drained at night: a cheap model sorts, a good one writes with a cached guide, retried until done."""

    @task
    def play_application() -> None:
        """Queue what editors ask for; a real application does this where it once called the API."""
        for number, (subject, angle) in enumerate(product(SUBJECTS, ANGLES)):
            QUEUE.put(f"brief-{number}", {"messages": [{"role": "user", "content": f"{subject}, {angle}"}]})

    @task(show_return_value_in_logs=False)
    def choose(receipt: Any) -> list[dict[str, Any]]:
        sql = "SELECT custom_id, title || ': ' || outline FROM triage_latest WHERE submission = ? AND is_worth_writing"
        passed = sorted(BaseHook.get_hook("warehouse").get_records(sql, parameters=[receipt["submission"]]))
        return [{"custom_id": one, "params": {"messages": [{"role": "user", "content": text}]}} for one, text in passed]

    @task
    def hand_over(receipt: Any) -> list[str]:
        sql = "SELECT custom_id FROM drafts_latest WHERE submission = ? AND status = 'succeeded' AND problem IS NULL"
        return [row[0] for row in BaseHook.get_hook("warehouse").get_records(sql, parameters=[receipt["submission"]])]

    triage = claude_batch("triage", requests=QUEUE.drain(), defaults=CHEAP, columns=VERDICT, table="triage", **NIGHT)
    play_application() >> triage
    chosen = choose(triage.output)
    drafts = claude_batch("drafts", requests=chosen, defaults=GOOD, prime_cache=True, table="drafts", **NIGHT)
    hand_over(drafts.output)


article_drafts()
