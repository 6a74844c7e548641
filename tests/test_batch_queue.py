"""A queue in a user's own database: what is put, claimed, settled, released and found, whatever the engine."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from queues import KINDS, Database, connect_queue, open_queue, params, put
from sources import connect, growth

from airflow_provider_claude_batch import BatchQueue
from airflow_provider_claude_batch.batch_queue import Drain
from airflow_provider_claude_batch.errors import ClaudeBatchError, InvalidRequests, Misconfigured, SourceUnavailable
from airflow_provider_claude_batch.receipt import Receipt, replace


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """An empty database behind the connection `app_db`."""
    return connect_queue(request.param, tmp_path, monkeypatch)


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    return connect_queue("sqlite", tmp_path, monkeypatch)


@pytest.fixture
def queue(database: Database) -> BatchQueue:
    return open_queue()


def place(run_id: str = "r", submit_task: str = "submit", **more: Any) -> Receipt:
    return Receipt(submission=f"sub_{run_id}", dag_id="d", run_id=run_id, submit_task=submit_task, **more)


def claim(run_id: str = "r", limit: int | None = None, **more: Any) -> list[str]:
    return [item["custom_id"] for item in open_queue().drain(limit).claim(place(run_id, **more))]


def test_what_is_put_is_read_as_it_was_oldest_first(queue: BatchQueue) -> None:
    odd = {
        "messages": [{"role": "user", "content": "é\u2028 \0 {{ x }} %s ?"}],
        "metadata": None,
        "big": 2**70,
        "f": 0.1,
    }
    queue.put("b", odd)
    queue.put_all([{"custom_id": "ü n", "params": params("2")}, {"custom_id": "a", "params": params("3")}])
    assert queue.waiting() == 3
    assert list(queue.drain().claim(place())) == [
        {"custom_id": "b", "params": odd},
        {"custom_id": "ü n", "params": params("2")},
        {"custom_id": "a", "params": params("3")},
    ]
    assert queue.waiting() == 0


def test_put_again_replaces_what_waits_and_adds_to_what_was_taken(queue: BatchQueue) -> None:
    put("a", "b")
    queue.put("a", params("newer"))
    queue.put_all({"custom_id": "b", "params": params(text)} for text in ("newer", "newest"))
    assert queue.waiting() == 2
    read = [item["params"]["messages"][0]["content"] for item in queue.drain().claim(place())]
    assert read == ["newer", "newest"]
    queue.put("a", params("another"))
    assert queue.waiting() == 1
    assert [item.state for item in queue.find("a")] == ["waiting", "claimed"]
    assert claim("next") == ["a"]


def test_an_owner_reads_what_is_its_own_on_every_try_and_claims_no_more(queue: BatchQueue) -> None:
    put(*(f"r-{n}" for n in range(450)))
    first = list(queue.drain().claim(place()))
    put("late", "r-3")
    assert list(queue.drain().claim(place())) == first
    queue.drain().settle(place())
    assert list(queue.drain().claim(place())) == first
    assert list(queue.drain().read_again(place())) == first
    assert queue.waiting() == 2


def test_a_limit_leaves_the_rest_to_the_next(queue: BatchQueue) -> None:
    put(*"abcde")
    assert claim("1", limit=2) == ["a", "b"]
    assert claim("2", limit=2) == ["c", "d"]
    assert claim("1", limit=5) == ["a", "b"]
    assert claim("2", map_index=1) == ["e"]
    assert claim("3") == []


def test_find_tells_what_became_of_a_request(queue: BatchQueue) -> None:
    assert queue.find("a") == []
    put("a")
    (item,) = queue.find("a")
    assert (item.custom_id, item.state, item.owner, item.claimed_at, item.submission) == (
        "a",
        "waiting",
        None,
        None,
        None,
    )
    assert abs(item.queued_at - datetime.now(UTC)) < timedelta(minutes=1)
    claim(map_index=3)
    (item,) = queue.find("a")
    assert (item.state, item.owner) == ("claimed", ("d", "r", "submit", 3))
    assert item.claimed_at is not None
    assert item.queued_at <= item.claimed_at <= datetime.now(UTC) + timedelta(minutes=1)
    queue.drain().settle(place(map_index=3))
    (item,) = queue.find("a")
    assert (item.state, item.submission) == ("submitted", "sub_r")
    assert item.submitted_at is not None
    assert item.submitted_at >= item.claimed_at


def test_marking_twice_keeps_the_first_moment_and_another_submission_takes_over(
    queue: BatchQueue, database: Database
) -> None:
    put("a", "b")
    claim()
    moments = []
    for submission in ("sub_r", "sub_r", "sub_anew"):
        queue.drain().settle(replace(place(), submission=submission))
        moments.append(database.query("SELECT DISTINCT submission, submitted_at FROM claude_queue"))
    assert moments[0] == moments[1]
    assert [found[0][0] for found in moments] == ["sub_r", "sub_r", "sub_anew"]
    assert all(len(found) == 1 for found in moments)


def test_what_is_given_back_waits_in_its_place_and_what_was_put_anew_stands_instead(queue: BatchQueue) -> None:
    put("a", "b", "c")
    claim()
    put("d")
    queue.put("b", params("newer"))
    queue.drain().give_back(place())
    assert queue.waiting() == 4
    found = {item["custom_id"]: item["params"] for item in queue.drain().claim(place("next"))}
    assert list(found) == ["a", "c", "d", "b"]
    assert found["b"] == params("newer")


def test_a_person_releases_what_was_not_submitted(queue: BatchQueue) -> None:
    put("a", "b")
    claim("1", limit=1)
    claim("2")
    queue.drain().settle(place("2"))
    assert queue.release("d", "2", "submit") == 0
    assert queue.release("d", "1", "submit", map_index=1) == 0
    assert queue.release("d", "1", "submit") == 1
    assert queue.waiting() == 1


def test_what_was_begun_counts_as_claimed_until_all_of_it_is_accepted(queue: BatchQueue, database: Database) -> None:
    put("a", "b")
    claim()
    for _ in range(2):
        queue.drain().begin(place())
    (item,) = queue.find("a")
    assert (item.state, item.submission, item.submitted_at) == ("claimed", "sub_r", None)
    queue.drain().settle(place())
    (item,) = queue.find("a")
    assert (item.state, item.submission) == ("submitted", "sub_r")
    queue.drain().begin(replace(place(), submission="sub_anew"))
    assert queue.find("a") == [item]
    assert queue.release("d", "r", "submit") == 0


def test_what_another_life_of_the_run_has_begun_is_neither_sent_nor_given_back(
    queue: BatchQueue, database: Database, caplog: Any
) -> None:
    put("a", "b")
    claim()
    queue.drain().begin(place())
    with pytest.raises(
        Misconfigured,
        match=r"requests of the queue claude_queue before, as sub_r, and was deleted: nothing was sent again",
    ):
        next(queue.drain().claim(place(), is_new=True))
    queue.drain().give_back(place(), is_new=True)
    assert queue.waiting() == 0
    database.age(hours=25)
    put("c")
    assert claim("today") == ["c"]
    assert "2 by release('d', 'r', 'submit', -1)" in caplog.text
    assert queue.release("d", "r", "submit") == 2
    assert [(item.state, item.submission) for item in queue.find("a")] == [("waiting", None)]


def be_airflow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CLAUDE_BATCH__DEPLOYMENT", name)


def test_two_airflows_with_a_run_of_one_name_never_take_the_same(
    queue: BatchQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(*"abc")
    be_airflow("blue", monkeypatch)
    assert claim(limit=2) == ["a", "b"]
    be_airflow("green", monkeypatch)
    assert [item["custom_id"] for item in queue.drain().claim(place(), is_new=True)] == ["c"]
    queue.drain().begin(place())
    queue.drain().settle(place())
    assert {name: queue.find(name)[0].state for name in "abc"} == {"a": "claimed", "b": "claimed", "c": "submitted"}
    assert {name: queue.find(name)[0].deployment for name in "abc"} == {"a": "blue", "b": "blue", "c": "green"}
    be_airflow("blue", monkeypatch)
    assert [item["custom_id"] for item in queue.drain().claim(place(), is_new=True)] == ["a", "b"]
    queue.drain().give_back(place())
    assert queue.waiting() == 2
    assert queue.find("a")[0].deployment is None


def test_who_releases_says_which_airflow_only_where_there_are_two(
    queue: BatchQueue, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    put(*"abc")
    for name in ("blue", "green"):
        be_airflow(name, monkeypatch)
        claim(limit=1)
    with pytest.raises(Misconfigured, match="Say which, as deployment=: 'blue', 'green'"):
        queue.release("d", "r", "submit")
    database.age(hours=25)
    claim("today")
    assert "1 by release('d', 'r', 'submit', -1, deployment='blue')" in caplog.text
    assert "1 by release('d', 'r', 'submit', -1)" in caplog.text
    assert queue.release("d", "r", "submit", deployment="blue") == 1
    assert queue.release("d", "r", "submit") == 1
    assert [queue.find(name)[0].state for name in "abc"] == ["waiting", "waiting", "claimed"]


def make_as_before(database: Database) -> None:
    """Take away the column that tables of earlier versions do not have."""
    database.execute("ALTER TABLE claude_queue DROP COLUMN deployment")


def test_a_table_of_an_earlier_version_gains_the_column_and_what_was_claimed_goes_to_who_asks_first(
    queue: BatchQueue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(*"abc")
    claim(limit=2)
    make_as_before(database)
    put("c", "d")
    assert (queue.waiting(), queue.find("a")[0].state) == (2, "claimed")
    be_airflow("blue", monkeypatch)
    assert claim(limit=1) == ["a", "b"]
    be_airflow("green", monkeypatch)
    assert claim() == ["c", "d"]
    assert [queue.find(name)[0].deployment for name in "abcd"] == ["blue", "blue", "green", "green"]


def test_what_an_earlier_version_had_begun_is_not_sent_by_a_run_without_a_note(
    queue: BatchQueue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a", "b")
    claim()
    queue.drain().begin(place())
    make_as_before(database)
    be_airflow("green", monkeypatch)
    with pytest.raises(Misconfigured, match="before, as sub_r"):
        next(queue.drain().claim(place(), is_new=True))
    queue.drain().settle(place())
    assert [(item.state, item.deployment) for item in queue.find("a")] == [("submitted", "green")]


def test_who_may_not_add_the_column_puts_all_the_same_and_reads_how_to_add_it(
    busy: ExitStack, queue: BatchQueue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a")
    make_as_before(database)
    database.execute("DROP ROLE IF EXISTS limited")
    database.execute("CREATE ROLE limited LOGIN")
    database.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON claude_queue TO limited")
    monkeypatch.setitem(database.connection, "login", "limited")
    monkeypatch.setenv("AIRFLOW_CONN_APP_DB", database.env["AIRFLOW_CONN_APP_DB"])
    put("a", "b")
    assert (queue.waiting(), queue.find("a")[0].state) == (2, "waiting")
    with pytest.raises(Misconfigured, match='run ALTER TABLE "claude_queue" ADD COLUMN deployment text'):
        claim()
    database.execute('ALTER TABLE "claude_queue" ADD COLUMN deployment text')
    assert claim() == ["a", "b"]
    database.execute("DROP OWNED BY limited")


def test_every_drain_warns_once_of_claims_that_are_older_than_a_day(
    queue: BatchQueue, database: Database, caplog: Any
) -> None:
    put(*"abcdef")
    for run_id in ("submitted", "stale"):
        claim(run_id, limit=2)
    claim("mapped", limit=1, map_index=7)
    queue.drain().settle(place("submitted"))
    assert "a day ago" not in caplog.text
    database.age(hours=25)
    assert claim("today") == ["f"]
    assert claim("today") == ["f"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for stale in ("2 by release('d', 'stale', 'submit', -1)", "1 by release('d', 'mapped', 'submit', 7)"):
        assert stale in warning
    assert "BatchQueue('app_db', 'claude_queue').release(...)" in warning
    assert "submitted'" not in warning


def test_what_no_batch_would_take_is_refused_at_once(sqlite: Database) -> None:
    for custom_id, given, expected in [
        ("", params("x"), "request 0: custom_id must be a text that is not empty"),
        (7, params("x"), "custom_id must be a text"),
        ("x" * 49 + " ", params("x"), "a custom_id takes up to 48"),
        ("a\0b", params("x"), "holds a NUL"),
        ("\ud800", params("x"), "a custom_id takes up to 48"),
        ("a", [1], "request 0 ('a'): params must be a dict"),
        ("a", {"metadata": {1, 2}}, "params cannot be written as JSON"),
        ("a", {"metadata": {1: 2}}, "params cannot be written as JSON"),
        ("a", {"top": float("nan")}, "numbers finite"),
        ("a", {"system": datetime.now(UTC)}, "params cannot be written as JSON"),
        ("a", {"stream": True}, "batches do not take stream"),
        ("a", {"messages": []}, "messages must be a list"),
    ]:
        with pytest.raises(InvalidRequests) as caught:
            open_queue().put(custom_id, given)
        assert expected in str(caught.value)
    assert not sqlite.path.exists()


def test_of_many_all_are_queued_or_none(queue: BatchQueue) -> None:
    good = [{"custom_id": f"r-{n}", "params": params("x")} for n in range(3)]
    with pytest.raises(InvalidRequests, match=r"request 3 \('bad'\): params must be a dict"):
        queue.put_all([*good, {"custom_id": "bad", "params": None}])
    with pytest.raises(InvalidRequests, match="nothing but custom_id and params"):
        queue.put_all([*good, {"custom_id": "bad", "params": {}, "model": "x"}])
    queue.put_all([])
    assert queue.waiting() == 0


def test_producers_that_race_create_one_table(database: Database) -> None:
    errors: list[BaseException] = []
    begin = threading.Barrier(6)

    def produce(n: int) -> None:
        begin.wait()
        try:
            put(f"r-{n}", "same")
        except ClaudeBatchError as error:
            errors.append(error)

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert open_queue().waiting() == 7


@pytest.fixture
def busy(database: Database) -> Iterator[ExitStack]:
    if database.is_sqlite:
        pytest.skip("SQLite lets one writer in at a time")
    with ExitStack() as stack:
        yield stack


def test_a_drain_passes_over_what_another_is_taking(busy: ExitStack, queue: BatchQueue, database: Database) -> None:
    put(*"abc")
    other = busy.enter_context(database._postgres.open(autocommit=False))
    other.execute("SELECT 1 FROM claude_queue WHERE custom_id = 'a' FOR UPDATE")
    assert claim() == ["b", "c"]
    other.rollback()
    assert claim("next") == ["a"]


def test_what_is_put_while_it_is_taken_becomes_a_new_item(
    busy: ExitStack, queue: BatchQueue, database: Database
) -> None:
    put("a")
    other = busy.enter_context(database._postgres.open(autocommit=False))
    other.execute(
        "UPDATE claude_queue SET dag_id = 'd', run_id = 'r', task_id = 't', map_index = -1, claimed_at = now()"
    )
    producer = threading.Thread(target=put, args=("a",), kwargs={"text": "newer"})
    producer.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while database.query(waiting) == [(0,)]:
        assert producer.is_alive()
    other.commit()
    producer.join()
    assert [item.state for item in queue.find("a")] == ["waiting", "claimed"]


def test_two_drains_at_once_never_take_the_same(queue: BatchQueue) -> None:
    put(*(f"r-{n}" for n in range(400)))
    begin, taken = threading.Barrier(8), {}

    def drain(n: int) -> None:
        begin.wait()
        taken[n] = claim(f"run {n % 4}", limit=60)

    threads = [threading.Thread(target=drain, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        assert taken[n] == taken[n + 4]
    every = [custom_id for n in range(4) for custom_id in taken[n]]
    assert len(every) == len(set(every)) == 240
    assert queue.waiting() == 160


def test_each_trouble_is_one_clear_sentence(sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "duck", "duckdb", tmp_path / "x.duckdb")
    connect(monkeypatch, "no_folder", "sqlite", tmp_path / "no" / "folder.sqlite")
    sqlite.execute("CREATE TABLE other (id INTEGER)")
    for conn_id, table, expected in [
        ("nowhere", "q", "There is no connection 'nowhere'"),
        ("duck", "q", "is of type 'duckdb': a queue takes PostgreSQL or SQLite"),
        ("no_folder", "q", "The queue on connection 'no_folder' fails (OperationalError)"),
        ("app_db", "other", "no such column: claimed_at"),
        ("app_db", "schema.q", "has too many parts: name table"),
    ]:
        with pytest.raises(Misconfigured) as caught:
            BatchQueue(conn_id, table).waiting()
        assert expected in str(caught.value)
    with pytest.raises(Misconfigured, match="is not a table name"):
        BatchQueue("app_db", "q; DROP TABLE q")
    with pytest.raises(Misconfigured, match="a limit of at least 1"):
        open_queue().drain(0)


def test_a_database_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "memory", "sqlite", ":memory:", schema="")
    with pytest.raises(Misconfigured, match="in memory is gone with its connection"):
        BatchQueue("memory", "q").put("a", params("x"))


def test_a_database_that_is_down_may_be_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, "down", "postgres", tmp_path, login="postgres", schema="x")
    with pytest.raises(SourceUnavailable, match="The database of connection 'down' cannot be reached"):
        BatchQueue("down", "q").waiting()


def test_odd_names_and_schemas(database: Database) -> None:
    tables = ['"Order"', "MixedCase", '"a b{c}?"']
    if not database.is_sqlite:
        database.execute("CREATE SCHEMA app")
        tables += ["order", "app.claude_queue", f"app.{'x' * 63}"]
    for n, table in enumerate(tables):
        queue = BatchQueue("app_db", table)
        queue.put_all({"custom_id": f"r-{m}", "params": {}} for m in range(n + 1))
        assert queue.waiting() == n + 1


def test_a_connection_set_to_other_rows_is_read_all_the_same(database: Database, monkeypatch: Any) -> None:
    if database.is_sqlite:
        pytest.skip("there is one kind of rows")
    put("a")
    for kind in ("dictcursor", "namedtuplecursor", *(("realdictcursor",) if database.kind == "psycopg2" else ())):
        monkeypatch.setitem(database.connection, "extra", {"cursor": kind})
        monkeypatch.setenv("AIRFLOW_CONN_APP_DB", database.env["AIRFLOW_CONN_APP_DB"])
        assert open_queue().find("a")[0].custom_id == "a"
        assert claim() == ["a"]


def test_an_application_without_airflows_database_can_put(sqlite: Database, tmp_path: Path) -> None:
    program = "from airflow_provider_claude_batch import BatchQueue; BatchQueue('app_db', 'claude_queue').put('a', {})"
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {"AIRFLOW_HOME": str(tmp_path / "airflow"), **sqlite.env}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert open_queue().waiting() == 1
    assert not (tmp_path / "airflow" / "airflow.db").exists()


def test_a_drain_shows_as_connection_and_table() -> None:
    assert str(BatchQueue("app_db", "q").drain()) == Drain("app_db", "q").serialize() == "app_db: q"
    assert str(BatchQueue("app_db", "q").drain(5_000)) == "app_db: q (at most 5,000)"


def test_40_mb_of_requests_do_not_stay_in_memory(database: Database) -> None:
    if database.kind == "psycopg2":
        pytest.skip("pages are pages")
    text = "x" * 2_000
    open_queue().put_all({"custom_id": f"r-{n}", "params": params(f"{text} {n}")} for n in range(20_000))
    code = """
from airflow_provider_claude_batch import BatchQueue
from airflow_provider_claude_batch.receipt import Receipt, replace
source = BatchQueue("app_db", "claude_queue").drain().claim(Receipt("s", dag_id="d", run_id="r", submit_task="t"))
"""
    count, megabytes = growth(code)
    assert count == 20_000
    assert megabytes < 10
