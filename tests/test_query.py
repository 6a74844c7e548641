"""Requests from queries: real databases, templates, streams, and one sentence for each trouble."""

import json
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from airflow.sdk import BaseOperator, ObjectStoragePath, dag, task
from runs import rendered, xcom
from sources import HI, SECRET, connect, growth, peak, request, sentence
from warehouse_postgres import shared_server

from airflow_provider_claude_batch import SqlRequests
from airflow_provider_claude_batch import query as query_module
from airflow_provider_claude_batch.errors import InvalidRequests, Misconfigured, SourceUnavailable
from airflow_provider_claude_batch.request import Defaults, Reading
from airflow_provider_claude_batch.source import open_source
from airflow_provider_claude_batch.task import Unrendered, open_argument


def test_a_query_has_one_column_to_make_requests_of() -> None:
    for columns in ({}, {"prompt": "a", "params": "b"}, {"prompt": ""}):
        with pytest.raises(Misconfigured, match="takes prompt= or params=, one of the two"):
            SqlRequests("db", "SELECT 1", **columns)


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SQLite file behind the connection `sqlite`, with three tickets."""
    path = tmp_path / "tickets.sqlite"
    with closing(sqlite3.connect(path)) as con:
        con.execute("CREATE TABLE tickets (id INTEGER, body TEXT, params TEXT)")
        con.executemany("INSERT INTO tickets VALUES (?, ?, ?)", [(n, f"Ticket {n}", json.dumps(HI)) for n in range(3)])
        con.commit()
    connect(monkeypatch, "sqlite", "sqlite", path)
    return path


def test_rows_become_requests_with_text_ids_and_other_columns_are_left_out(sqlite: Path) -> None:
    query = SqlRequests("sqlite", "SELECT * FROM tickets ORDER BY id", custom_id="id", prompt="body")
    assert list(open_source(query)) == [request(f"{n}", f"Ticket {n}") for n in range(3)]
    query = SqlRequests("sqlite", "SELECT ID, PARAMS FROM tickets", custom_id="id", params="params")
    assert [item["params"] for item in open_source(query)] == [HI] * 3


def test_parameters_go_into_the_placeholders(sqlite: Path) -> None:
    sql = "SELECT id AS custom_id, body FROM tickets WHERE id >= ?"
    query = SqlRequests("sqlite", sql, prompt="body", parameters=(2,))
    assert [item["custom_id"] for item in open_source(query)] == ["2"]


def test_a_null_id_stays_for_the_reader_to_name(sqlite: Path) -> None:
    assert list(open_source(SqlRequests("sqlite", "SELECT NULL AS custom_id, 'x' AS p", prompt="p"))) == [
        request(None, "x")
    ]
    assert list(open_source(SqlRequests("sqlite", "SELECT 1 AS custom_id, NULL AS p", prompt="p"))) == [
        {"custom_id": "1", "params": None}
    ]


def test_a_query_of_several_blocks_comes_whole_and_an_empty_one_is_checked_too(sqlite: Path) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i, 'x' AS p FROM n"
    assert len(list(open_source(SqlRequests("sqlite", numbers, custom_id="i", prompt="p")))) == 1000
    none = f"{numbers} WHERE i < 0"
    assert list(open_source(SqlRequests("sqlite", none, custom_id="i", prompt="p"))) == []
    assert "has no column 'body', but i, p" in sentence(SqlRequests("sqlite", none, custom_id="i", prompt="body"))


def test_each_trouble_with_a_query_is_one_clear_sentence(
    sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "no_folder", "sqlite", tmp_path / "no" / "folder.sqlite")
    connect(monkeypatch, "http", "http", "localhost")
    connect(monkeypatch, "fs", "fs")
    connect(monkeypatch, "unheard", "unheard_of")
    for conn_id, sql, expected in [
        ("nowhere", "SELECT 1", "There is no connection 'nowhere'"),
        ("unheard", "SELECT 1", "What connections of type 'unheard_of' need is not installed"),
        ("fs", "SELECT 1", "is of type 'fs', which takes no SQL"),
        ("sqlite", "SELEKT 1", "The query on connection 'sqlite' fails (OperationalError): near \"SELEKT\""),
        ("sqlite", "SELECT * FROM gone", "no such table: gone"),
        ("sqlite", "SELECT 1 AS id", "has no column 'custom_id', but id"),
        ("sqlite", "SELECT 1 AS x, 2 AS custom_id, 3 AS custom_id, '' AS prompt", "has 2 columns 'custom_id'"),
        ("sqlite", "DELETE FROM tickets WHERE id > 9", "has no column 'custom_id', but none at all"),
        ("sqlite", "SELECT 1; SELECT 2", "fails (ProgrammingError)"),
        ("sqlite", f"SELECT 1 AS custom_id, CAST(x'ff' AS TEXT) || '{SECRET}' AS prompt", "OperationalError"),
        ("no_folder", "SELECT 1", "fails (OperationalError)"),
    ]:
        kind = SourceUnavailable if "x'ff'" in sql else Misconfigured
        assert expected in sentence(SqlRequests(conn_id, sql, prompt="prompt"), kind)


def test_a_locked_database_may_be_free_on_another_try(sqlite: Path) -> None:
    with closing(sqlite3.connect(sqlite, isolation_level=None)) as con:
        con.execute("PRAGMA locking_mode = EXCLUSIVE")
        con.execute("BEGIN EXCLUSIVE")
        query = SqlRequests("sqlite", "SELECT id AS custom_id, body FROM tickets", prompt="body")
        assert "cannot be reached, or is busy (OperationalError)" in sentence(query, SourceUnavailable)
    assert SourceUnavailable.retryable


def test_duckdb_gives_json_structs_and_uuids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "duck", "duckdb", tmp_path / "x.duckdb")
    with closing(duckdb.connect(str(tmp_path / "x.duckdb"))) as con:
        con.execute(
            """CREATE TABLE t AS SELECT '0b8e4d5e-6c1f-4a4f-9b3a-2f1f4f0e8c11'::UUID AS custom_id, 'Hi' AS prompt,
            '{"messages": [{"role": "user", "content": "Hi"}]}'::JSON AS json,
            {'messages': [{'role': 'user', 'content': 'Hi'}]} AS struct"""
        )
    expected = [request("0b8e4d5e-6c1f-4a4f-9b3a-2f1f4f0e8c11")]
    for column in ({"prompt": "prompt"}, {"params": "json"}, {"params": "struct"}):
        assert list(open_source(SqlRequests("duck", "FROM t", **column))) == expected
    assert "Table with name gone does not exist" in sentence(SqlRequests("duck", "FROM gone", prompt="prompt"))
    assert "ConversionException" in sentence(
        SqlRequests("duck", f"SELECT 1 AS custom_id, '{SECRET}'::INT AS prompt", prompt="prompt")
    )


# PostgreSQL


@pytest.fixture(scope="module")
def server() -> str:
    """The PostgreSQL that all tests share; the folder of its socket."""
    return shared_server().host


@pytest.fixture(params=["psycopg", "psycopg2"])
def postgres(request: pytest.FixtureRequest, server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection `pg`, opened with each driver that Airflow's hook knows."""
    from airflow.providers.postgres.hooks import postgres

    monkeypatch.setattr(postgres, "USE_PSYCOPG3", request.param == "psycopg")
    connect_postgres(monkeypatch, "pg", server)
    return server


def connect_postgres(monkeypatch: pytest.MonkeyPatch, conn_id: str, host: str, **extra: Any) -> None:
    database = extra.pop("schema", "postgres")
    connect(monkeypatch, conn_id, "postgres", host, login="postgres", schema=database, extra=extra)


def in_postgres(server: str, sql: str) -> Any:
    import psycopg

    with psycopg.connect(host=server, user="postgres", dbname="postgres", autocommit=True) as con:
        return con.execute(sql).fetchall()


def test_postgres_keeps_the_result_on_its_side(postgres: str) -> None:
    seen = list(
        open_source(SqlRequests("pg", "SELECT name, statement FROM pg_cursors", custom_id="name", prompt="statement"))
    )
    assert [item["custom_id"] for item in seen] == ["claude_batch_requests"]


@pytest.mark.parametrize("kind", ["json", "jsonb", "text"])
def test_one_value_of_postgres_that_is_nested_too_deeply_is_skipped(kind: str, postgres: str) -> None:
    params = json.dumps({"model": "m", "max_tokens": 1, **HI})
    bottomless = f"('{params[:-1]}, \"x\": ' || repeat('[', 2000) || repeat(']', 2000) || '}}')"
    sql = f"SELECT 'a' AS custom_id, '{params}'::{kind} AS params UNION ALL SELECT 'deep', {bottomless}::{kind}"
    reading = Reading(open_source(SqlRequests("pg", sql, params="params")), Defaults({}), on_invalid="skip")
    assert [one.custom_id for one in reading] == ["a"]
    assert reading.invalid == {"params are nested more than 200 levels deep": ["deep"]}


def test_postgres_types_become_ids_and_params(postgres: str) -> None:
    params = json.dumps({**HI, "system": None})
    for value, custom_id in {
        "12345678901234567890::numeric": "12345678901234567890",
        "7::bigint": "7",
        "'2026-11-21'::date": "2026-11-21",
        f"'{uuid.UUID(int=5)}'::uuid": str(uuid.UUID(int=5)),
        "'\\xc3bc'::bytea": "ü",
        "NULL::int": None,
    }.items():
        for kind in ("text", "json", "jsonb"):
            query = SqlRequests("pg", f"SELECT {value} AS custom_id, '{params}'::{kind} AS params", params="params")
            assert list(open_source(query)) == [{"custom_id": custom_id, "params": {**HI, "system": None}}]


def test_postgres_takes_parameters_and_a_percent_sign_without_any(postgres: str) -> None:
    rows = "SELECT i AS custom_id, 'x' AS prompt FROM generate_series(1, 9) AS i"
    query = SqlRequests("pg", f"{rows} WHERE i > %(least)s", prompt="prompt", parameters={"least": 7})
    assert [item["custom_id"] for item in open_source(query)] == ["8", "9"]
    query = SqlRequests("pg", f"{rows} WHERE i % 4 = 0; -- with a comment\n", prompt="prompt")
    assert [item["custom_id"] for item in open_source(query)] == ["4", "8"]
    assert list(open_source(SqlRequests("pg", f"{rows} WHERE false", prompt="prompt"))) == []


def test_a_connection_set_to_other_rows_is_read_all_the_same(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.postgres.hooks.postgres import USE_PSYCOPG3

    for kind in ("dictcursor", "namedtuplecursor", *(() if USE_PSYCOPG3 else ("realdictcursor",))):
        connect_postgres(monkeypatch, "pg", postgres, cursor=kind)
        query = SqlRequests("pg", "SELECT 1 AS custom_id, 'Hi' AS prompt", prompt="prompt")
        assert list(open_source(query)) == [request("1")]


def test_nothing_stays_open_when_the_reader_stops_early(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_postgres(monkeypatch, "pg", postgres, application_name="early")
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'early'"
    rows = open_source(SqlRequests("pg", "SELECT generate_series(1, 100000) AS custom_id, 'x' AS p", prompt="p"))
    assert next(rows)["custom_id"] == "1"
    assert in_postgres(postgres, sessions) == [(1,)]
    rows.close()
    assert ended(postgres, sessions)


def ended(server: str, sessions: str) -> bool:
    """Wait, for a backend goes a moment after its client."""
    return any(in_postgres(server, f"{sessions} AND pg_sleep(0.05) IS NOT NULL") == [(0,)] for _ in range(2_000))


def test_each_trouble_with_postgres_is_one_clear_sentence(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_postgres(monkeypatch, "down", f"{postgres}/nowhere")
    connect_postgres(monkeypatch, "other_db", postgres, schema="gone")
    connect_postgres(monkeypatch, "odd", postgres, no_such_option="1")
    connect_postgres(monkeypatch, "hurried", postgres, options="-c statement_timeout=50")
    slow = "SELECT 1 AS custom_id, pg_sleep(5)::text AS prompt"
    for conn_id, sql, expected, kind in [
        ("pg", "SELECT * FROM gone", '42P01): relation "gone" does not exist. Mend it', Misconfigured),
        ("pg", "SELEKT 1", "42601): syntax error", Misconfigured),
        ("pg", "DELETE FROM gone", "42601", Misconfigured),
        ("pg", f"SELECT '{SECRET}'::int AS custom_id", "22P02). Mend it", Misconfigured),
        (
            "pg",
            f"SELECT 1 AS custom_id, ('{SECRET}' || i)::int AS prompt FROM generate_series(1, 3) i",
            "22P02",
            Misconfigured,
        ),
        ("odd", "SELECT 1", "fails (ProgrammingError)", Misconfigured),
        ("hurried", slow, "busy (QueryCanceled 57014)", SourceUnavailable),
        ("down", "SELECT 1", "The database of connection 'down' cannot be reached", SourceUnavailable),
        ("other_db", "SELECT 1", "The database of connection 'other_db' cannot be reached", SourceUnavailable),
    ]:
        assert expected in sentence(SqlRequests(conn_id, sql, prompt="prompt"), kind)


def test_a_server_that_ends_the_session_may_be_back_on_another_try(postgres: str) -> None:
    rows = open_source(SqlRequests("pg", "SELECT generate_series(1, 100000) AS custom_id, 'x' AS p", prompt="p"))
    next(rows)
    in_postgres(
        postgres,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND datname = 'postgres'",
    )
    with pytest.raises(SourceUnavailable, match="cannot be reached, or is busy"):
        list(rows)


def test_300_000_rows_of_postgres_do_not_stay_in_memory(postgres: str, request: pytest.FixtureRequest) -> None:
    code = """
from airflow.providers.postgres.hooks import postgres
postgres.USE_PSYCOPG3 = sys.argv[1] == "psycopg"
sql = "SELECT i AS id, repeat(md5(i::text), 32) AS body FROM generate_series(1, 300000) AS i"
source = SqlRequests("pg", sql, custom_id="id", prompt="body")
"""
    count, megabytes = growth(code, request.node.callspec.params["postgres"])
    assert count == 300_000
    assert megabytes < 15


# In Airflow


class Read(BaseOperator):
    """Return what an operator of ours would read."""

    template_fields = ("requests",)

    def __init__(self, *, requests: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.requests = Unrendered.wrap(requests)

    def execute(self, context: Any) -> Any:
        items = open_source(open_argument(self.requests, context))
        return [json.loads(item) if isinstance(item, bytes) else item for item in items]


@task
def one() -> int:
    return 1


def read_dag(build: Any) -> Any:
    @dag(schedule=None)
    def reads() -> None:
        build()

    return reads()


SQL = "SELECT id AS custom_id, body\nFROM tickets\nWHERE id {{ '>' }} ? ORDER BY id"


def query(**parameters: Any) -> SqlRequests:
    return SqlRequests("{{ dag.dag_id[:0] }}sqlite", SQL, prompt="body", **parameters)


def test_a_query_is_rendered_and_shows_as_connection_and_sql(sqlite: Path, run_dag: Any) -> None:
    run = run_dag(read_dag(lambda: Read(task_id="read", requests=query(parameters=["{{ 7 - 6 }}"]))))
    assert run.state == "success"
    assert xcom(run, "read") == [request("2", "Ticket 2")]
    shown = "sqlite: SELECT id AS custom_id, body\nFROM tickets\nWHERE id > ? ORDER BY id"
    assert rendered(run, "read") == [{"requests": shown}]


def test_the_output_of_a_task_in_a_query_is_upstream_of_it(sqlite: Path, run_dag: Any) -> None:
    a_dag = read_dag(lambda: Read(task_id="read", requests=query(parameters=[one()])))
    assert a_dag.get_task("read").upstream_task_ids == {"one"}
    assert xcom(run_dag(a_dag), "read") == [request("2", "Ticket 2")]


def test_mapped_tasks_render_each_their_own_query(sqlite: Path, run_dag: Any) -> None:
    shared = SqlRequests(
        "sqlite", "SELECT id AS custom_id, body FROM tickets WHERE id = {{ ti.map_index }}", prompt="body"
    )
    run = run_dag(read_dag(lambda: Read.partial(task_id="read", requests=shared).expand(doc_md=["a", "b"])))
    assert [xcom(run, "read", map_index=n) for n in range(2)] == [[request(f"{n}", f"Ticket {n}")] for n in range(2)]


def test_a_path_is_a_template_whatever_its_type(tmp_path: Path, run_dag: Any) -> None:
    (tmp_path / "reads.jsonl").write_text('{"custom_id": "a"}\n')
    text = f"{tmp_path}/{{{{ dag.dag_id }}}}.jsonl"
    for value in (text, Path(text), ObjectStoragePath(f"file://{text}")):
        run = run_dag(read_dag(lambda value=value: Read(task_id="read", requests=value)))
        assert xcom(run, "read") == [{"custom_id": "a"}]
        assert f"{tmp_path}/reads.jsonl" in json.dumps(rendered(run, "read"))


def test_an_upstream_task_may_return_a_path(tmp_path: Path, run_dag: Any) -> None:
    (tmp_path / "x.jsonl").write_text('{"custom_id": "a"}\n')

    @task
    def write_file(kind: str) -> Any:
        return ObjectStoragePath(f"file://{tmp_path}/x.jsonl") if kind == "object" else f"{tmp_path}/x.jsonl"

    for kind in ("object", "text"):
        run = run_dag(read_dag(lambda kind=kind: Read(task_id="read", requests=write_file(kind))))
        assert xcom(run, "read") == [{"custom_id": "a"}]


def test_queries_and_paths_can_be_mapped_over(sqlite: Path, tmp_path: Path, run_dag: Any) -> None:
    (tmp_path / "x.jsonl").write_text('{"custom_id": "a"}\n')
    values = [query(parameters=[1]), f"{tmp_path}/x.jsonl"]
    run = run_dag(read_dag(lambda: Read.partial(task_id="read").expand(requests=values)))
    assert [xcom(run, "read", map_index=n) for n in range(2)] == [[request("2", "Ticket 2")], [{"custom_id": "a"}]]


def test_data_stays_wrapped() -> None:
    for value in ([{"custom_id": "a"}], ({},), {"custom_id": "a"}):
        assert isinstance(Unrendered.wrap(value), Unrendered)


def test_large_rows_are_fetched_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as con:
        con.execute("CREATE TABLE large (custom_id INTEGER PRIMARY KEY, body TEXT)")
        con.executemany("INSERT INTO large VALUES (?, ?)", ((n, "x" * 10_000_000) for n in range(80)))
        con.commit()
    connect(monkeypatch, "large", "sqlite", tmp_path / "x.sqlite")
    query = "SELECT * FROM large ORDER BY custom_id"
    sent, invalid, megabytes = peak(f"source = SqlRequests('large', {query!r}, prompt='body')")
    assert (len(sent), invalid) == (80, {})
    assert megabytes < 500


@pytest.mark.parametrize("column", ["prompt", "params"])
def test_a_value_that_no_batch_could_hold_is_skipped_by_its_name(
    column: str, sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "MAX_BYTES", 1_000)
    sql = "SELECT 'long' AS custom_id, hex(zeroblob(501)) AS content"
    reading = Reading(open_source(SqlRequests("sqlite", sql, **{column: "content"})), Defaults({}), on_invalid="skip")
    with pytest.raises(InvalidRequests):  # there is no other
        list(reading)
    assert reading.invalid == {"one request of 1,002 bytes is more than a batch holds": ["long"]}
