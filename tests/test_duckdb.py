"""DuckDB: what only this warehouse has."""

import pytest
from loads import ids, row
from loads import load_rows as load
from warehouse import connect_warehouse, set_connection

from airflow_provider_claude_batch.errors import Misconfigured
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


def test_a_file_may_be_renamed(duckdb_file):
    load(row())
    duckdb_file.path = duckdb_file.path.rename(duckdb_file.path.with_name("other.duckdb"))
    assert [*ids(duckdb_file, "t_errors"), ("msgbatch_1", "a")] == ids(duckdb_file, "t_latest")


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

    monkeypatch.setattr(duckdb, "_MEMORY", "24MB")
    load(*(row(custom_id=str(n), text=f"{n:08}" * 250_000) for n in range(20)))
    assert "too long for 24MB" in caplog.text
    assert duckdb_file.query("SELECT count(*), sum(length(text)) FROM t") == [(20, 40_000_000)]


def test_the_users_own_memory_limit_is_left_alone(duckdb_file, monkeypatch):
    from airflow_provider_claude_batch.writers import duckdb

    monkeypatch.setattr(duckdb, "_MEMORY", "not a size")
    set_connection(monkeypatch, "duckdb", host=duckdb_file.path, extra={"memory_limit": "1GB"})
    load(row())
    assert ids(duckdb_file) == [("msgbatch_1", "a")]
