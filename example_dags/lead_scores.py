"""For a sales team that wants the leads of the last hour scored, in the table where the leads are."""

import random
from typing import Any, Literal

import pendulum
from airflow.sdk import BaseHook, dag, task
from airflow.timetables.interval import CronDataIntervalTimetable
from pydantic import BaseModel, Field

from airflow_provider_claude_batch import SqlRequests, claude_batch

CREATE = "CREATE TABLE IF NOT EXISTS leads (lead_id TEXT, created_at TIMESTAMPTZ, note TEXT, score INT, stage TEXT)"
OF_THE_HOUR = """SELECT lead_id, note FROM leads
WHERE created_at >= '{{ data_interval_start }}' AND created_at < '{{ data_interval_end }}' ORDER BY lead_id"""
WRITE_BACK = """UPDATE leads SET score = found.score, stage = found.stage FROM lead_scores_latest AS found
WHERE found.custom_id = leads.lead_id AND found.submission = ? AND found.score IS NOT NULL"""
COMPANIES = ["O'Brien & Söhne", "Łódź Logistics", "四国製作所", 'Ñandú "Wines" S.A.', "Réseau 7 <SAS>", "Bluebird; Ltd"]
WISHES = ["wants a demo for 40 seats this week", "is there a free plan?", "compares us with two others, budget 12k €"]
NIGHT = range(6)
DEFAULTS = {"model": "claude-haiku-4-5", "max_tokens": 200, "system": "Score how likely the lead is to buy."}
TABLE: dict[str, Any] = {"warehouse_conn_id": "warehouse", "table": "lead_scores"}


class Score(BaseModel):
    """How likely a lead is to buy."""

    score: int = Field(ge=0, le=100)
    stage: Literal["curious", "comparing", "ready"]


# With a bare cron expression, an interval begins where it ends: this timetable has the hour before each run.
@dag(schedule=CronDataIntervalTimetable("@hourly", "UTC"), start_date=pendulum.datetime(2026, 1, 1), catchup=False)
def lead_scores() -> None:
    """Requests from a query over the data interval, scores written back; an hour without leads skips everything."""

    @task
    def receive_leads(data_interval_start: Any = None) -> None:
        """Make up what an hour brings, and nothing at night; real leads are in their table already."""
        chance, hour, hook = random.Random(2026), data_interval_start, BaseHook.get_hook("warehouse")  # noqa: S311
        hook.run(CREATE)
        for n in range(0 if hour.hour in NIGHT else chance.randint(5, 12)):
            note = f"{chance.choice(COMPANIES)}: {chance.choice(WISHES)}"
            lead = [f"lead-{hour:%y%m%d%H}-{n}", hour.add(minutes=4 * n), note]
            hook.run("INSERT INTO leads (lead_id, created_at, note) VALUES (?, ?, ?)", parameters=lead)

    @task
    def write_back(receipt: Any) -> None:
        BaseHook.get_hook("warehouse").run(WRITE_BACK, parameters=[receipt["submission"]])

    leads = SqlRequests("warehouse", OF_THE_HOUR, custom_id="lead_id", prompt="note")
    scores = claude_batch("scores", requests=leads, defaults=DEFAULTS, columns=Score, **TABLE)
    receive_leads() >> scores
    write_back(scores.output)


lead_scores()
