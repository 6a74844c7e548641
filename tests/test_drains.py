"""Queues that Dags drain: every request is in exactly one batch, whatever dies, fails or is cleared on the way."""

import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, dag
from crash import Verdict, paid
from emulator import Emulator
from processes import TESTS, Nursery, Task
from queues import Database, connect_queue, draining, open_queue, params, put
from runs import clear_and_run, rendered, states, xcom
from tries import DEFAULTS, Store
from warehouse import connect_warehouse
from wire import Wire

from airflow_provider_claude_batch import (
    BatchQueue,
    ClaudeBatchOperator,
    ClaudeBatchResultsOperator,
    ClaudeBatchSensor,
    claude_batch,
)
from airflow_provider_claude_batch.errors import SourceUnavailable, TakenOver
from airflow_provider_claude_batch.note import Notebook
from airflow_provider_claude_batch.queue_table import QueueTable

EMULATOR = ("--batch-seconds", "0")
IDS = [f"r-{n}" for n in range(5)]
DEATHS = [
    "die_before_the_claim",
    "die_within_the_claim",
    "die_after_the_claim",
    "die_after_the_note",
    "die_before_the_begin",
    "die_after_the_begin",
    "die_before_the_create",
    "die_after_the_create",
    "die_before_the_mark",
    "die_after_the_mark",
]


@pytest.fixture(params=["sqlite", "psycopg"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """An empty database behind the connection `app_db`."""
    return connect_queue(request.param, tmp_path, monkeypatch)


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    return connect_queue("sqlite", tmp_path, monkeypatch)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """A process that has imported Airflow, and forks."""
    with Nursery("airflow.providers.postgres.hooks.postgres", "queues") as nursery:
        yield nursery


@pytest.fixture(scope="module")
def wire(process: Emulator) -> Iterator[Wire]:
    """The wire between the tasks and the emulator."""
    with Wire(process.base_url) as wire:
        yield wire


def sent(emulator: Emulator) -> Counter[str]:
    """Count how often the API took each request."""
    return Counter(line["custom_id"][:-16] for batch_id in paid(emulator) for line in emulator.submitted(batch_id))


def killed(task: Task, patch: str) -> bool:
    """Run a step that kills itself on its way."""
    process = task.start(patch)
    process.wait()
    return task.kill(process)


def found(*custom_ids: str) -> dict[str, list[str]]:
    return {name: [item.state for item in open_queue().find(name)] for name in custom_ids}


# On real Airflow


def test_a_queue_is_drained_and_says_so(emulator: Emulator, run_dag: Any, database: Database) -> None:
    put(*IDS)
    with DAG("drained", schedule=None) as drained:
        requests = BatchQueue("{{ 'app' }}_db", "{{ dag.dag_id[:0] }}claude_queue").drain()
        ClaudeBatchOperator(task_id="submit", requests=requests, defaults=DEFAULTS)
    run = run_dag(drained)
    receipt = xcom(run, "submit")
    assert receipt["source"] == {"conn_id": "app_db", "queue": "claude_queue"}
    assert rendered(run, "submit")[0]["requests"] == "app_db: claude_queue"
    (item,) = open_queue().find("r-3")
    assert (item.submission, item.owner) == (receipt["submission"], ("drained", run.run_id, "submit", -1))
    assert sent(emulator) == Counter(IDS)
    assert states(run_dag(drained)) == {"submit": "skipped"}


@pytest.mark.parametrize(
    ("custom_params", "options", "said"),
    [
        ({"thinking": 1, "max_tokens": 0}, {}, "max_tokens must be"),
        (params("Hi"), {"max_requests": 1}, "max_requests allows"),
        (params("Hi"), {"defaults": {"model": "no-such-model", "max_tokens": 8}}, "no-such-model"),
        (params("Hi"), {"conn_id": "nowhere"}, None),
    ],
)
def test_after_a_final_error_everything_waits_again(
    custom_params: Any, options: Any, said: Any, emulator: Emulator, run_dag: Any, sqlite: Database, capfd: Any
) -> None:
    put("a", "b")
    open_queue().put("c", params("Hi"))
    sqlite.execute(f"UPDATE claude_queue SET params = '{json.dumps(custom_params)}' WHERE custom_id = 'c'")
    run = run_dag(draining("final", **{**options, "retries": 3}))
    assert states(run) == {"submit": "failed"}
    assert open_queue().waiting() == 3
    if said:
        assert said in capfd.readouterr().out
    assert paid(emulator) == []


@pytest.mark.parametrize("patch", ["die_after_the_claim", "die_after_the_begin", "die_after_the_create"])
def test_two_airflows_with_dags_and_runs_of_one_name_drain_one_queue(
    patch: str, nursery: Nursery, emulator: Emulator, wire: Wire, database: Database
) -> None:
    put(*IDS)

    def drain_in(deployment: str, limit: int | None) -> Task:
        env = {**database.env, "AIRFLOW__CLAUDE_BATCH__DEPLOYMENT": deployment}
        return Task(nursery, emulator, "queues:draining", {"limit": limit}, wire=wire, env=env)

    blue, green = drain_in("blue", 3), drain_in("green", None)
    assert killed(blue, f"queues:{patch}")
    assert green.finish() == "success"
    assert blue.finish() == "success"
    assert sent(emulator) == Counter(IDS)
    assert sorted(part["requests"] for task in (blue, green) for part in task.receipt["batches"]) == [2, 3]
    assert open_queue().find("r-0")[0].deployment == "blue"


def test_a_try_that_can_go_better_keeps_its_claim_and_the_last_one_gives_it_back(
    nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    emulator.fault("status", status=500, operation="count_tokens", times=-1)
    task = Task(nursery, emulator, "queues:draining", {"retries": 1}, wire=wire, env=sqlite.env)
    assert task.end(task.start()) == "up_for_retry"
    put("late")
    assert found("r-0", "late") == {"r-0": ["claimed"], "late": ["waiting"]}
    assert task.finish() == "failed"
    assert open_queue().waiting() == 6
    emulator.clear_faults()
    task.clear()
    assert task.finish() == "success"
    assert sent(emulator) == Counter([*IDS, "late"])


@pytest.mark.parametrize(("retries", "waiting"), [(0, 5), (1, 0)])
def test_an_airflow_without_notes_gives_back_after_a_first_try_only(
    retries: int, waiting: int, nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    emulator.fault("status", status=500, operation="count_tokens", times=-1)
    arguments = {"retries": retries}
    task = Task(nursery, emulator, "queues:draining", arguments, wire=wire, env=sqlite.env, store=False)
    assert task.finish() == "failed"
    assert open_queue().waiting() == waiting


def test_a_task_that_runs_out_of_time_gives_back(emulator: Emulator, run_dag: Any, sqlite: Database) -> None:
    put(*IDS)
    emulator.fault("slow", operation="count_tokens", seconds=60)
    run = run_dag(draining("hurried", retries=0, execution_timeout=timedelta(seconds=8)))
    assert states(run) == {"submit": "failed"}
    assert open_queue().waiting() == 5


def test_a_try_that_was_taken_over_gives_nothing_back() -> None:
    store = Store()
    first, second = Notebook(store), Notebook(store)
    first.take_over()
    assert first.has_sent_nothing()
    assert second.has_sent_nothing()
    with pytest.raises(TakenOver):
        first.has_sent_nothing()


def test_a_queue_that_is_out_of_reach_does_not_hide_why_a_task_failed(
    emulator: Emulator, run_dag: Any, sqlite: Database, monkeypatch: Any, capfd: Any, caplog: Any
) -> None:
    put(*IDS)

    def gone(self: Any, owner: Any) -> int:
        raise SourceUnavailable("It is gone.")

    monkeypatch.setattr(QueueTable, "release", gone)
    assert states(run_dag(draining("unreachable", max_requests=1))) == {"submit": "failed"}
    assert "max_requests allows" in capfd.readouterr().out
    assert "stays claimed until this task is cleared. It is gone." in caplog.text
    assert open_queue().waiting() == 0


def test_what_was_sent_in_part_stays_claimed_until_the_task_is_cleared(
    nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    emulator.fault("status", status=400, operation="create", after=1)
    task = Task(nursery, emulator, "queues:draining", {"shard_size": 2}, wire=wire, env=sqlite.env)
    assert task.finish() == "failed"
    assert (open_queue().waiting(), sum(sent(emulator).values())) == (0, 2)
    put("r-0", "late")
    task.clear()
    assert task.finish() == "success"
    assert sent(emulator) == Counter(IDS)
    assert found("r-0", "r-4", "late") == {"r-0": ["waiting", "submitted"], "r-4": ["submitted"], "late": ["waiting"]}


def test_a_cleared_drain_is_the_same_batch_again(
    nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    task = Task(nursery, emulator, "queues:draining", wire=wire, env=sqlite.env)
    assert task.finish() == "success"
    before = task.receipt
    put("late")
    task.clear()
    assert task.finish() == "success"
    assert task.receipt["batches"] == before["batches"]
    assert Verdict.of(emulator, task, IDS).is_clean
    assert open_queue().waiting() == 1


def test_what_cannot_be_sent_is_skipped_once_and_not_for_ever(
    emulator: Emulator, run_dag: Any, sqlite: Database, answers: Any
) -> None:
    put("a", "b")
    open_queue().put("wrong", {"model": "claude-haiku-4-5"})

    @dag(schedule=None)
    def skipping() -> None:
        defaults = {**DEFAULTS, "tools": []}
        submit = ClaudeBatchOperator(
            task_id="submit", requests=open_queue().drain(), defaults=defaults, on_invalid="skip"
        )
        wait = ClaudeBatchSensor(task_id="wait", batch=submit.output)
        ClaudeBatchResultsOperator(task_id="load", batch=wait.output, warehouse_conn_id="warehouse", table="answers")

    run = run_dag(skipping())
    assert run.state == "success"
    assert found("a", "wrong") == {"a": ["submitted"], "wrong": ["submitted"]}
    assert dict(answers.query("SELECT custom_id, status FROM answers"))["wrong"] == "errored"


def test_rounds_of_retry_read_what_the_first_submission_took(
    emulator: Emulator, run_dag: Any, database: Database, answers: Any
) -> None:
    put(*IDS)
    emulator.fault("row", outcome="overloaded_error", match="hello r-[12]", times=2)
    emulator.fault("row", outcome="expired", match="hello r-2", times=1)

    @dag(schedule=None)
    def rounds() -> None:
        claude_batch(
            "labels",
            requests=open_queue().drain(limit=5),
            defaults=DEFAULTS,
            rounds=3,
            warehouse_conn_id="warehouse",
            table="answers",
        )

    put("late")
    run = run_dag(rounds())
    total = xcom(run, "labels.total")
    assert total["counts"] == {"succeeded": 5}
    assert [part["requests"] for part in total["batches"]] == [5, 2, 1]
    assert found("r-1", "late") == {"r-1": ["submitted"], "late": ["waiting"]}
    (item,) = open_queue().find("r-2")
    (loaded,) = answers.query("SELECT submission, status FROM answers_latest WHERE custom_id = 'r-2'")
    assert loaded == (item.submission, "succeeded")


def test_mapped_drains_share_a_queue_and_their_retries_read_their_own(
    emulator: Emulator, run_dag: Any, database: Database, answers: Any
) -> None:
    put(*IDS)
    emulator.fault("missing_lines", count=1, times=-1)

    @dag(schedule=None)
    def mapped() -> None:
        drain = open_queue().drain(limit=3)
        submits = ClaudeBatchOperator.partial(task_id="submit", requests=drain).expand(defaults=[DEFAULTS, DEFAULTS])
        waits = ClaudeBatchSensor.partial(task_id="wait").expand(batch=submits.output)
        loads = ClaudeBatchResultsOperator.partial(
            task_id="load", warehouse_conn_id="warehouse", table="answers"
        ).expand(batch=waits.output)
        ClaudeBatchOperator.partial(task_id="retry", requests=drain, defaults=DEFAULTS).expand(retry_of=loads.output)

    run = run_dag(mapped())
    assert run.state == "success"
    assert sorted(sent(emulator).values()) == [1, 1, 1, 2, 2]
    rows = answers.query("SELECT map_index, custom_id, status FROM answers")
    assert sorted(row[1] for row in rows) == IDS
    assert sorted(Counter(row[0] for row in rows).values()) == [2, 3]
    missing = {row[1] for row in rows if row[2] == "missing"}
    assert {name for name, times in sent(emulator).items() if times == 2} == missing


def test_a_queue_that_a_function_returns_is_refused(
    emulator: Emulator, run_dag: Any, sqlite: Database, capfd: Any
) -> None:
    from airflow.sdk import task

    put("a")

    @dag(schedule=None)
    def decorated() -> None:
        @task.claude_batch(defaults=DEFAULTS)
        def drained() -> Any:
            return open_queue().drain()

        drained()

    assert run_dag(decorated()).state == "failed"
    assert "requests=queue.drain()" in capfd.readouterr().out
    assert open_queue().waiting() == 1


def of_the_same_name(nursery: Nursery, emulator: Emulator, wire: Wire, env: dict[str, str], **more: Any) -> Task:
    """Begin the run anew, on an Airflow that knows nothing of the one before."""
    return Task(nursery, emulator, "queues:draining", more.pop("arguments", {}), wire=wire, env=env, **more)


@pytest.mark.parametrize("dies", [False, True])
def test_a_run_of_the_name_of_one_that_was_deleted_sends_nothing_again(
    dies: bool, nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    assert of_the_same_name(nursery, emulator, wire, sqlite.env).finish() == "success"
    put("late")
    task = of_the_same_name(nursery, emulator, wire, sqlite.env)
    if dies:  # before it has seen the queue
        assert killed(task, "queues:die_before_the_look")
    for _ in range(2):
        assert task.finish() == "failed"
        assert (
            "A run of this name has sent, or was about to send, requests of the queue claude_queue before" in task.log
        )
        task.clear()
    assert sent(emulator) == Counter(IDS)
    assert found("r-0", "late") == {"r-0": ["submitted"], "late": ["waiting"]}


@pytest.mark.parametrize("store", [True, False])
def test_a_run_of_the_name_of_one_that_was_deleted_half_way_sends_nothing_again(
    store: bool, nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    emulator.fault("status", status=400, operation="create", after=1)
    halves = {"arguments": {"shard_size": 2}, "store": store}
    assert of_the_same_name(nursery, emulator, wire, sqlite.env, **halves).finish() == "failed"
    nowhere = {"arguments": {"conn_id": "nowhere"}, "store": store}
    assert of_the_same_name(nursery, emulator, wire, sqlite.env, **nowhere).finish() == "failed"
    assert of_the_same_name(nursery, emulator, wire, sqlite.env, **halves).finish() == "failed"
    assert sent(emulator) == Counter(IDS[:2])
    assert found("r-0", "r-4") == {"r-0": ["claimed"], "r-4": ["claimed"]}


def test_what_a_deleted_run_had_claimed_and_not_sent_is_sent_by_one_of_its_name(
    nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    assert killed(of_the_same_name(nursery, emulator, wire, sqlite.env), "queues:die_after_the_note")
    assert of_the_same_name(nursery, emulator, wire, sqlite.env).finish() == "success"
    assert sent(emulator) == Counter(IDS)


@pytest.mark.parametrize("store", [True, False])
def test_a_drain_that_waits_for_room_takes_what_it_began_for_its_own(
    store: bool, nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    emulator.fault("queue_full", after=1, times=2)
    task = of_the_same_name(nursery, emulator, wire, sqlite.env, arguments={"shard_size": 2}, store=store)
    assert task.finish() == "success"
    assert sent(emulator) == Counter(IDS)
    assert found("r-0", "r-4") == {"r-0": ["submitted"], "r-4": ["submitted"]}


def test_a_drain_that_is_all_reused_may_be_cleared(
    emulator: Emulator, run_dag: Any, sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_warehouse("duckdb", tmp_path, monkeypatch)

    @dag(schedule=None)
    def reusing() -> None:
        place = {"warehouse_conn_id": "warehouse", "table": "digests", "reuse_from": ("warehouse", "digests")}
        claude_batch("digests", requests=open_queue().drain(), defaults=DEFAULTS, rounds=0, **place)

    put("d-1")
    assert run_dag(reusing()).state == "success"
    put("d-1")
    run = run_dag(reusing())
    assert run.state == "success"
    assert clear_and_run(reusing(), run, "digests.submit").state == "success"
    assert len(emulator.journal(operation="create")) == 1


def test_a_create_that_is_refused_gives_everything_back(emulator: Emulator, run_dag: Any, sqlite: Database) -> None:
    put(*IDS)
    emulator.fault("status", status=403, operation="create")
    assert states(run_dag(draining("refused", shard_size=2))) == {"submit": "failed"}
    assert found("r-0", "r-4") == {"r-0": ["waiting"], "r-4": ["waiting"]}
    assert states(run_dag(draining("refused", shard_size=2))) == {"submit": "success"}
    assert sent(emulator) == Counter(IDS)


# Processes that die


@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_drain_loses_nothing_and_sends_nothing_twice(
    death: str, nursery: Nursery, emulator: Emulator, wire: Wire, database: Database
) -> None:
    put(*IDS)
    task = Task(nursery, emulator, "queues:draining", wire=wire, env=database.env)
    assert killed(task, f"queues:{death}")
    put("late")
    assert task.finish() == "success"
    verdict = Verdict.of(emulator, task, IDS)
    assert verdict.is_clean, verdict
    is_before = death in {"die_before_the_claim", "die_within_the_claim"}
    assert sent(emulator) == Counter([*IDS, *(["late"] if is_before else [])])
    assert open_queue().waiting() == (not is_before)
    assert {item.submission for name in IDS for item in open_queue().find(name)} == {task.receipt["submission"]}


def test_a_drain_that_died_on_its_last_try_keeps_its_claim_until_it_is_cleared(
    nursery: Nursery, emulator: Emulator, wire: Wire, sqlite: Database
) -> None:
    put(*IDS)
    task = Task(nursery, emulator, "queues:draining", {"retries": 0}, wire=wire, env=sqlite.env)
    assert killed(task, "queues:die_after_the_create")
    other = Task(nursery, emulator, "queues:draining", {"dag_id": "other"}, wire=wire, env=sqlite.env)
    assert other.finish() == "skipped"
    task.clear()
    assert task.finish() == "success"
    assert Verdict.of(emulator, task, IDS).is_clean


def test_producers_and_two_drains_at_once_put_every_request_into_one_batch(
    nursery: Nursery, emulator: Emulator, wire: Wire, database: Database
) -> None:
    command = [sys.executable, str(TESTS / "queues.py")]
    producers = [subprocess.Popen([*command, name, "60"]) for name in ("a", "b", "c")]
    rounds, spare = 0, 180 // 50 + 2  # when nothing is added any more, each round takes fifty
    while (is_growing := any(producer.poll() is None for producer in producers)) or open_queue().waiting():
        rounds, spare = rounds + 1, spare - (not is_growing)
        assert spare > 0
        dags = [{"dag_id": f"{name}_{rounds}", "limit": 25} for name in ("odd", "even")]
        tasks = [Task(nursery, emulator, "queues:draining", one, wire=wire, env=database.env) for one in dags]
        for task, process in [(task, task.start()) for task in tasks]:
            task.end(process)
        assert {task.finish() for task in tasks} <= {"success", "skipped"}
    assert [producer.wait() for producer in producers] == [0, 0, 0]
    assert sent(emulator) == Counter(f"{name}-{n}" for name in "abc" for n in range(60))
    assert database.query("SELECT count(*), count(submission) FROM claude_queue") == [(180, 180)]


# The guide


GUIDE = (Path(__file__).parent.parent / "docs" / "queue.md").read_text()


def test_the_guide_runs_as_printed(
    emulator: Emulator, run_dag: Any, database: Database, answers: Any, tmp_path: Path
) -> None:
    application, pipeline, _ = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    exec(application, {})
    (tmp_path / "drain_the_queue.py").write_text(pipeline)
    run = run_dag(runpy.run_path(str(tmp_path / "drain_the_queue.py"))["drain_the_queue"]())
    assert run.state == "success"
    submission = open_queue().find("digest-4711")[0].submission
    (select,) = re.findall(r"^SELECT text .*?(?=  --)", GUIDE, re.MULTILINE)
    assert len(answers.query(select.replace("…", str(submission)))) == 1
    engine = "SQLite" if database.is_sqlite else "PostgreSQL"
    (prune,) = re.findall(rf"^DELETE .*?(?=; +-- {engine})", GUIDE, re.MULTILINE)
    for days, left in ((39, 1), (2, 0)):
        database.age(hours=24 * days, column="submitted_at")
        database.execute(prune)
        assert len(open_queue().find("digest-4711")) == left


def test_what_was_reused_is_found_as_the_guide_says(
    emulator: Emulator, run_dag: Any, sqlite: Database, answers: Any
) -> None:
    @dag(schedule=None)
    def reusing() -> None:
        place = {"warehouse_conn_id": "warehouse", "table": "digests", "reuse_from": ("warehouse", "digests")}
        claude_batch("digests", requests=open_queue().drain(), defaults=DEFAULTS, **place)

    nights = []
    for _ in range(2):
        put("digest-4711")
        nights.append(xcom(run_dag(reusing()), "digests.submit"))
    assert nights[1]["reused"] == 1
    assert open_queue().find("digest-4711")[0].submission == nights[1]["submission"]
    assert answers.query("SELECT DISTINCT submission FROM digests") == [(nights[0]["submission"],)]
    (select,) = re.findall(r"`(SELECT text FROM digests_current .*?)`", GUIDE, re.DOTALL)
    assert len(answers.query(select)) == 1


def test_the_guide_tells_how_to_take_out_what_stops_every_night(
    emulator: Emulator, run_dag: Any, sqlite: Database, capfd: Any
) -> None:
    put("a")
    open_queue().put("digest-4711", {**params("Hi"), "model": "claude-nonesuch"})
    assert states(run_dag(draining("poisoned", on_invalid="skip"))) == {"submit": "failed"}
    assert "Request 'digest-4711'" in capfd.readouterr().out
    assert open_queue().waiting() == 2
    (delete,) = re.findall(r"^DELETE FROM claude_queue WHERE custom_id .*?(?=;)", GUIDE, re.MULTILINE)
    sqlite.execute(delete)
    assert states(run_dag(draining("poisoned", on_invalid="skip"))) == {"submit": "success"}
    assert found("a", "digest-4711") == {"a": ["submitted"], "digest-4711": []}


def test_the_guide_names_every_column_and_every_call(sqlite: Database) -> None:
    put("a")
    table = GUIDE.split("| column |")[1].split("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert named == [row[1] for row in sqlite.query("PRAGMA table_info(claude_queue)")]
    calls = re.findall(r"^\| `(\w+)\(", GUIDE, re.MULTILINE)
    assert sorted(calls) == sorted(name for name in vars(BatchQueue) if not name.startswith("_"))
