"""Warehouses that are a file: who holds it, where it lies, and what it is called."""

import subprocess
import sys
from threading import Event, Timer

import pytest
from loads import ids, row
from loads import load_rows as load
from warehouse import connect_warehouse, set_connection

from airflow_provider_claude_batch.errors import Misconfigured


@pytest.fixture(params=["duckdb", "sqlite"])
def warehouse(request, tmp_path, monkeypatch):
    return connect_warehouse(request.param, tmp_path, monkeypatch)


def test_a_name_that_is_not_a_name_is_refused_before_anything_is_opened(warehouse):
    with pytest.raises(Misconfigured, match="is not a table name"):
        load(row(), table="t; DROP TABLE t")
    assert not warehouse.path.exists()


HOLD = {
    "duckdb": "import duckdb; con = duckdb.connect(path)",
    "sqlite": "import sqlite3; con = sqlite3.connect(path); con.execute('BEGIN IMMEDIATE'); "
    "con.execute('CREATE TABLE theirs (x)')",
}


@pytest.mark.parametrize("is_new", [True, False])
def test_a_warehouse_that_another_process_holds_is_waited_for(warehouse, is_new):
    if not is_new:
        load(row(custom_id="old"))
    code = f"path = {str(warehouse.path)!r}; {HOLD[warehouse.kind]}; print('held', flush=True); input(); "
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code + "con.commit(); con.close()"], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        is_let_go = Event()

        def let_go():
            is_let_go.set()
            print(file=holder.stdin, flush=True)

        Timer(1.5, let_go).start()
        load(row(custom_id="new"))
        assert is_let_go.is_set()
    assert holder.returncode == 0
    assert ids(warehouse) == [("msgbatch_1", "new")]


@pytest.mark.parametrize("host", [":memory:", ""])
def test_a_database_in_memory_is_refused(warehouse, monkeypatch, host):
    set_connection(monkeypatch, warehouse.kind, host=host)
    with pytest.raises(Misconfigured, match="in memory is gone with the task: put the path of a file"):
        load(row())


def test_a_folder_that_is_not_there_is_one_clear_sentence(warehouse, monkeypatch, tmp_path):
    set_connection(monkeypatch, warehouse.kind, host=tmp_path / "locked away" / f"w.{warehouse.kind}")
    with pytest.raises(Misconfigured, match="locked away of connection 'warehouse' does not exist here: create it"):
        load(row())


@pytest.mark.parametrize("name", ["with space", "it's", "Größe 表", "a:b@c", "MiXed", "lock"])
def test_an_odd_path_is_the_file_of_that_name(warehouse, monkeypatch, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    warehouse.path = folder / f"{name}.{warehouse.kind}"
    set_connection(monkeypatch, warehouse.kind, host=warehouse.path)
    load(row())
    assert ids(warehouse) == [("msgbatch_1", "a")]
    assert [path.name for path in folder.iterdir()] == [warehouse.path.name]
