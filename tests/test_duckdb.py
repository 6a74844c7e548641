"""DuckDB: what only this warehouse has."""

import os
import subprocess
import sys

import pytest
from airflow.providers.duckdb.hooks.duckdb import DuckDBHook
from loads import LATER, ids, row
from loads import load_rows as load
from warehouse import connect_warehouse, set_connection

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import COLUMNS

NAMES = [column.name for column in COLUMNS]


@pytest.fixture
def duckdb_file(tmp_path, monkeypatch):
    return connect_warehouse("duckdb", tmp_path, monkeypatch)


def test_a_schema_is_created_for_its_table(duckdb_file):
    load(row(), table='marts."my labels"')
    load(row(text="again"), table='marts."my labels"')
    assert duckdb_file.query('SELECT text FROM marts."my labels_current"') == [("again",)]


@pytest.mark.parametrize("table", ["warehouse.t", "warehouse.main.t", "main.t", "Warehouse.marts.t"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_table_may_be_named_with_its_catalog(duckdb_file, table, is_new):
    if not is_new:
        load(row())
    load(row(text="again"), table=table)
    assert duckdb_file.query(f"SELECT text FROM {table}_latest") == [("again",)]


def test_tables_of_one_name_in_two_schemas_have_their_own_views(duckdb_file):
    load(row(text="one"), table="one.t")
    columns = ", ".join(f'"{name}" {kind}' for name, kind in duckdb_file.types("one.t").items())
    duckdb_file.execute("CREATE SCHEMA two", f"CREATE TABLE two.t ({columns})")
    load(row(text="two"), table="two.t")
    assert duckdb_file.query("SELECT text FROM two.t_latest") == [("two",)]


def test_a_column_of_the_users_may_change_its_type(duckdb_file):
    load(row())
    duckdb_file.execute("ALTER TABLE t ADD COLUMN note INTEGER")
    load(row())
    duckdb_file.execute("ALTER TABLE t ALTER COLUMN note TYPE VARCHAR", "UPDATE t SET note = 'a note'")
    load(row("two", "b"))
    assert duckdb_file.query("SELECT note FROM t_current ORDER BY custom_id") == [("a note",), (None,)]


def test_a_column_of_the_users_may_have_any_capitals(duckdb_file):
    load(row())
    duckdb_file.execute('ALTER TABLE t ADD COLUMN "ÄRGER" INTEGER')
    load(row("two", "b"))
    assert duckdb_file.query('SELECT count(*), count("ÄRGER") FROM t_current') == [(2, 0)]


@pytest.mark.parametrize("extra", [{"read_only": True}, {"settings": {"access_mode": "READ_ONLY"}}])
def test_a_connection_that_only_reads_is_refused_before_a_row_is_read(duckdb_file, monkeypatch, extra):
    def rows():
        raise AssertionError("a row was read")
        yield

    load(row(request_hash="h"))
    set_connection(monkeypatch, "duckdb", host=duckdb_file.path, extra=extra)
    writer = open_warehouse("warehouse", "t")
    with pytest.raises(Misconfigured, match="'warehouse' is read_only, so nothing can be loaded through it: name a"):
        writer.replace(["msgbatch_1"], rows())
    assert list(writer.answered(LATER)) == [("a", "h")]


def test_a_file_may_be_renamed(duckdb_file):
    load(row())
    duckdb_file.path = duckdb_file.path.rename(duckdb_file.path.with_name("other.duckdb"))
    assert [*ids(duckdb_file, "t_errors"), ("msgbatch_1", "a")] == ids(duckdb_file, "t_latest")


def test_a_file_that_another_load_creates_meanwhile_is_not_overwritten(duckdb_file, monkeypatch):
    link = os.link

    def link_late(*paths):
        monkeypatch.setattr(os, "link", link)
        load(row("other"))
        link(*paths)

    monkeypatch.setattr(os, "link", link_late)
    load(row())
    assert ids(duckdb_file) == [("msgbatch_1", "a"), ("other", "a")]
    assert list(duckdb_file.path.parent.iterdir()) == [duckdb_file.path]


def test_a_file_that_another_load_changes_while_it_is_opened_is_opened_again(duckdb_file, monkeypatch):
    opened = []
    get_conn = DuckDBHook.get_conn

    def get_conn_late(hook):
        opened.append(hook)
        if len(opened) == 1:
            load(row("other"))
        return get_conn(hook)

    load(row("old"))
    monkeypatch.setattr(DuckDBHook, "get_conn", get_conn_late)
    load(row())
    assert len(opened) == 3
    assert ids(duckdb_file) == [("msgbatch_1", "a"), ("old", "a"), ("other", "a")]


def test_a_file_is_created_where_a_folder_takes_no_links(duckdb_file, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    load(row())
    assert ids(duckdb_file) == [("msgbatch_1", "a")]


def test_the_types_are_those_of_the_contract(duckdb_file):
    load(row())
    found = duckdb_file.types()
    assert {found[name] for name in NAMES if name.endswith(("_at", "_date"))} == {"TIMESTAMP"}
    assert (found["cost_usd"], found["content"], found["retryable"]) == ("DECIMAL(18,12)", "JSON", "BOOLEAN")


def test_a_memory_database_with_a_name_is_refused_too(monkeypatch):
    set_connection(monkeypatch, "duckdb", host=":memory:shared")
    with pytest.raises(Misconfigured, match="in memory is gone"):
        load(row())


def test_rows_too_long_for_the_bounded_memory_are_loaded_all_the_same(duckdb_file, monkeypatch, caplog):
    from airflow_provider_claude_batch.writers import duckdb

    monkeypatch.setattr(duckdb, "_MEMORY_MB", 24)
    load(*(row(custom_id=str(n), text=f"{n:08}" * 250_000) for n in range(20)))
    assert "too long for 24 MB" in caplog.text
    assert "too long for 192 MB" not in caplog.text
    assert duckdb_file.query("SELECT count(*), sum(length(text)) FROM t") == [(20, 40_000_000)]


def test_long_rows_are_written_in_small_groups(duckdb_file, monkeypatch):
    from airflow_provider_claude_batch.writers import duckdb

    monkeypatch.setattr(duckdb, "_GROUP_BYTES", 1)
    for text in ("old", "new"):
        load(*(row(custom_id=str(n), text=text) for n in range(5_000)), table="marts.t")
    groups = duckdb_file.query("SELECT max(count) FROM pragma_storage_info('marts.t')")
    assert groups == [(2_048,)]
    assert duckdb_file.query("SELECT text, count(*) FROM marts.t_latest GROUP BY text") == [("new", 5_000)]
    assert [path.name for path in duckdb_file.path.parent.iterdir()] == [duckdb_file.path.name]


@pytest.mark.parametrize("name", ["memory.duckdb", "system.db", "it's odd.duckdb", 'say "hi"'])
@pytest.mark.parametrize("group_bytes", [1, 32_000_000])
def test_a_file_may_have_any_name(duckdb_file, monkeypatch, name, group_bytes):
    from airflow_provider_claude_batch.writers import duckdb

    monkeypatch.setattr(duckdb, "_GROUP_BYTES", group_bytes)
    duckdb_file.path = duckdb_file.path.with_name(name)
    set_connection(monkeypatch, "duckdb", host=duckdb_file.path)
    load(row(text="arrived"))
    assert duckdb_file.query("SELECT text FROM t_latest") == [("arrived",)]


def test_a_token_of_motherduck_stays_out_of_errors():
    from airflow_provider_claude_batch.writers import duckdb

    said = duckdb._first_line(RuntimeError("Cannot open 'md:mart?motherduck_token=secret&x=1'\nmore"))
    assert said == "Cannot open 'md:mart?motherduck_token=***&x=1'"


def newer(data, *, is_whole):
    """Say that a later DuckDB wrote a file, and mend its checksum or not."""
    word = data[8:12] + bytes([200]) + data[13:16]
    factor = 0xBF58476D1CE4E5B9 if is_whole else 0
    change = [int.from_bytes(one, "little") * factor % 2**64 for one in (data[8:16], word)]
    checksum = int.from_bytes(data[:8], "little") ^ change[0] ^ change[1]
    return checksum.to_bytes(8, "little") + word + data[16:]


@pytest.mark.parametrize("kind", ["folder", "text", "broken", "newer"])
def test_a_host_that_cannot_be_a_database_is_a_mistake(duckdb_file, monkeypatch, kind):
    said = {
        "folder": "is a folder: name a file in it.",
        "text": "it is not a valid DuckDB database file.",
        "broken": "Corrupt database file",
        "newer": "version number 968",
    }
    path = duckdb_file.path.parent if kind == "folder" else duckdb_file.path
    if kind == "text":
        path.write_text("hello " * 1_000)
    if kind in {"broken", "newer"}:
        load(row())
        path.write_bytes(newer(path.read_bytes(), is_whole=kind == "newer"))
    set_connection(monkeypatch, "duckdb", host=path)
    with pytest.raises(Misconfigured) as caught:
        load(row())
    assert said[kind] in str(caught.value)


def test_the_users_own_memory_limit_is_left_alone(duckdb_file, monkeypatch):
    from airflow_provider_claude_batch.writers import duckdb

    monkeypatch.setattr(duckdb, "_MEMORY_MB", -1)
    set_connection(monkeypatch, "duckdb", host=duckdb_file.path, extra={"memory_limit": "1GB"})
    load(row())
    assert ids(duckdb_file) == [("msgbatch_1", "a")]


def sampled(table="t"):
    return [one.text for one in open_warehouse("warehouse", table).sample(["msgbatch_1"], failed=False, limit=9)]


def test_a_sample_does_not_wait_long_for_a_file_that_another_process_holds(duckdb_file, monkeypatch):
    from airflow_provider_claude_batch.writers import duckdb

    load(row(text="here"))
    monkeypatch.setattr(duckdb, "_SHORT_PATIENCE", 0.2)
    code = f"import duckdb; con = duckdb.connect({str(duckdb_file.path)!r}); print('open', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(WarehouseUnavailable, match="Could not set lock"):
            sampled()
        holder.communicate("\n")
    assert sampled() == ["here"]


def test_a_sample_reads_what_a_load_that_died_had_committed_and_leaves_the_file_as_it_is(duckdb_file):
    load(row(text="here"))
    code = (
        f"import duckdb, os; con = duckdb.connect({str(duckdb_file.path)!r}); "
        "con.execute(\"UPDATE t SET text = 'later'\"); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    before = {path: path.read_bytes() for path in duckdb_file.path.parent.iterdir()}
    assert len(before) == 2
    assert sampled() == ["later"]
    assert {path: path.read_bytes() for path in duckdb_file.path.parent.iterdir()} == before


def test_a_sample_does_not_create_the_file(duckdb_file):
    with pytest.raises(WarehouseUnavailable, match="does not exist"):
        sampled()
    assert not duckdb_file.path.exists()
