"""SQLite: what only this warehouse has."""

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from loads import ids, row
from loads import load_rows as load
from warehouse import connect_warehouse, set_connection

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import COLUMNS, Column

NAMES = [column.name for column in COLUMNS]


@pytest.fixture
def sqlite_file(tmp_path, monkeypatch):
    return connect_warehouse("sqlite", tmp_path, monkeypatch)


@pytest.mark.parametrize("table", ["main.t", "a.b.c"])
def test_sqlite_has_no_schemas(sqlite_file, table):
    with pytest.raises(Misconfigured, match="SQLite has no schemas: name the table"):
        load(row(), table=table)


def test_money_is_text_that_adds_up(sqlite_file):
    load(row(cost_usd=Decimal("1E-12")), row("two", cost_usd=Decimal("0.3")))
    assert sqlite_file.query("SELECT cost_usd FROM t ORDER BY batch_id") == [("0.000000000001",), ("0.3",)]
    assert sqlite_file.query("SELECT sum(cost_usd) > 0.3 FROM t") == [(1,)]


def test_moments_of_all_years_are_text_that_sorts(sqlite_file):
    columns = [*COLUMNS, Column("due", "timestamp")]
    dues = [datetime(year, 1, 2, 3, 4, 5, tzinfo=UTC) for year in (1, 999, 1000, 2026)]
    load(*(row(custom_id=str(n), typed=(due,)) for n, due in enumerate(dues)), columns=columns)
    assert sqlite_file.query("SELECT due, date(due) FROM t ORDER BY due") == [
        (f"{year}-01-02 03:04:05.000000", f"{year}-01-02") for year in ("0001", "0999", "1000", "2026")
    ]


@pytest.mark.parametrize(("kind", "said"), [("folder", "is a folder: name a file"), ("text", "is not a database")])
def test_a_host_that_cannot_be_a_database_is_a_mistake(sqlite_file, monkeypatch, kind, said):
    sqlite_file.path.write_text("hello " * 1_000)
    path = sqlite_file.path.parent if kind == "folder" else sqlite_file.path
    set_connection(monkeypatch, "sqlite", host=path)
    with pytest.raises(Misconfigured, match=said):
        load(row())


def test_a_type_in_small_letters_is_the_same_type(sqlite_file):
    sqlite_file.execute("CREATE TABLE t (batch_id text, attempt integer)")
    load(row())
    assert ids(sqlite_file) == [("msgbatch_1", "a")]


def test_a_column_of_the_users_may_have_any_capitals(sqlite_file):
    load(row())
    sqlite_file.execute('ALTER TABLE t ADD COLUMN "ÄRGER" TEXT')
    load(row("two", "b"))
    assert sqlite_file.query('SELECT "ÄRGER" FROM t_current') == [(None,), (None,)]


def test_a_reader_does_not_see_half_of_a_load(sqlite_file):
    sqlite_file.execute("PRAGMA journal_mode = WAL")
    load(row(custom_id="old"))
    code = textwrap.dedent(f"""
        import sqlite3
        con = sqlite3.connect({str(sqlite_file.path)!r}, isolation_level=None)
        con.execute("BEGIN"); print(con.execute("SELECT custom_id FROM t").fetchall(), flush=True)
        input(); print(con.execute("SELECT custom_id FROM t").fetchall(), flush=True)
    """)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as reader:
        assert reader.stdout.readline() == "[('old',)]\n"
        load(row(custom_id="new"))
        assert reader.communicate("\n")[0] == "[('old',)]\n"
    assert ids(sqlite_file) == [("msgbatch_1", "new")]


def sampled():
    return [one.text for one in open_warehouse("warehouse", "t").sample(["msgbatch_1"], failed=False, limit=9)]


def test_a_sample_does_not_wait_long_for_a_file_that_is_locked(sqlite_file, monkeypatch):
    from airflow_provider_claude_batch.writers import sqlite

    load(row(text="here"))
    monkeypatch.setattr(sqlite, "_SHORT_PATIENCE", 0.2)
    with closing(sqlite3.connect(sqlite_file.path, isolation_level=None)) as con:
        con.execute("BEGIN EXCLUSIVE")
        with pytest.raises(WarehouseUnavailable, match="database is locked"):
            sampled()
    assert sampled() == ["here"]


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_sample_leaves_no_file_behind(sqlite_file, mode):
    with pytest.raises(WarehouseUnavailable, match="unable to open"):
        sampled()
    assert not sqlite_file.path.exists()
    sqlite_file.execute(f"PRAGMA journal_mode = {mode}")
    load(row(text="here"))
    assert sampled() == ["here"]
    assert list(sqlite_file.path.parent.iterdir()) == [sqlite_file.path]
