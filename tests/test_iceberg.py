"""Iceberg: what only this warehouse has."""

import socket
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from loads import LATER, ids, row, rows
from loads import load_rows as load
from pyiceberg import types
from pyiceberg.catalog.sql import SqlCatalog, SqlCatalogBaseTable
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform, IdentityTransform
from warehouse import connect_warehouse, set_connection

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers import iceberg

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path, monkeypatch):
    return connect_warehouse("iceberg", tmp_path, monkeypatch)


@pytest.fixture
def before_commits(monkeypatch):
    """Do something each time that a writer is about to begin a commit, until there is nothing left to do."""
    todo, now = [], []
    begin = Table.transaction

    def meddle(table):
        if todo and not now:
            now.append(todo.pop(0))
            now[0]()
            now.clear()
        return begin(table)

    monkeypatch.setattr(Table, "transaction", meddle)
    return todo


def table_of(lake, name="t", namespace="default"):
    return lake.catalog.load_table((namespace, name))


def operations(lake):
    return [snapshot.summary.operation.value for snapshot in table_of(lake).snapshots()]


def test_a_name_without_a_namespace_is_in_the_default_one(lake):
    load(row(), table="Labels")
    load(row(), table='Marts."Labels"')
    assert lake.catalog.list_tables("default") == [("default", "labels")]
    assert lake.query('SELECT custom_id FROM "Labels_latest"', "marts") == [("a",)]


def test_the_types_are_those_of_the_contract(lake):
    typed = row()
    typed.typed = (NOON.date(), 0.5)
    load(typed, columns=[*COLUMNS, Column("day", "date"), Column("a.b", "double")])
    found = lake.types()
    assert {found[name] for name in found if name.endswith(("_at", "_date"))} == {"timestamptz"}
    assert (found["cost_usd"], found["content"], found["retryable"]) == ("decimal(18, 12)", "string", "boolean")
    assert (found["day"], found["a.b"]) == ("date", "double")
    load(typed, columns=[*COLUMNS, Column("day", "date"), Column("a.b", "double")])
    assert lake.query('SELECT day, "a.b" FROM t') == [(NOON.date(), 0.5)]


def test_a_table_of_an_older_version_gains_columns_and_its_rows_stay(lake):
    old = Schema(
        types.NestedField(1, "reviewed", types.StringType()),
        types.NestedField(2, "batch_id", types.StringType()),
        types.NestedField(3, "Custom_ID", types.StringType()),
    )
    lake.catalog.create_namespace("default")
    lake.catalog.create_table("default.t", old).append(
        pa.table({"reviewed": ["yes"], "batch_id": ["old"], "Custom_ID": ["x"]})
    )
    writer = load(row(request_hash="h", retryable=True))
    assert list(lake.types())[:3] == ["reviewed", "batch_id", "Custom_ID"]
    assert len(lake.types()) == len(COLUMNS) + 1
    assert sorted(ids(lake)) == [("msgbatch_1", "a"), ("old", "x")]
    assert list(writer.answered(LATER)) == [("a", "h")]
    assert list(writer.retryable(["msgbatch_1"])) == [("a", None, None, "succeeded")]


def test_answers_of_a_table_that_has_no_elements_yet_are_read_back(lake):
    writer = load(
        row("one", map_index=0, element="0", request_hash="h0"), row("two", map_index=1, element="1", request_hash="h1")
    )
    with table_of(lake).update_schema() as update:
        update.delete_column("element")
    assert sorted(writer.answered(LATER)) == [("a", "h0"), ("a", "h1")]


def test_a_commit_that_comes_in_between_is_seen(lake, before_commits):
    load(row("ours", "old"), row("other", "old"))
    before_commits += [lambda: load(row("ours", "theirs")), lambda: load(row("other", "new"))]
    load(row("ours", "new"), row("ours", "newer"))
    assert ids(lake) == [("other", "new"), ("ours", "new"), ("ours", "newer")]


def test_a_column_that_comes_in_between_changes_nothing(lake, before_commits):
    load(row(custom_id="old"))

    def add() -> None:
        with table_of(lake).update_schema() as update:
            update.add_column("reviewed", types.StringType())

    before_commits.append(add)
    load(row(custom_id="new"))
    assert lake.query("SELECT custom_id, reviewed FROM t") == [("new", None)]


def test_a_namespace_that_comes_in_between_is_used(lake, monkeypatch):
    looked = []

    def look(catalog, namespace):
        looked.append(namespace)
        return len(looked) > 1 and exists(catalog, namespace)

    exists = SqlCatalog.namespace_exists
    lake.catalog.create_namespace("default")
    monkeypatch.setattr(SqlCatalog, "namespace_exists", look)
    load(row())
    assert len(looked) > 1
    assert ids(lake) == [("msgbatch_1", "a")]


def test_a_catalog_that_another_load_sets_up_is_used(tmp_path, lake, monkeypatch):
    set_up = []

    def create(catalog):
        set_up.append(catalog)
        SqlCatalogBaseTable.metadata.create_all(catalog.engine)
        SqlCatalogBaseTable.metadata.create_all(catalog.engine, checkfirst=False)

    (tmp_path / "catalog.db").unlink()
    monkeypatch.setattr(SqlCatalog, "create_tables", create)
    load(row())
    assert len(set_up) == 1
    assert ids(lake) == [("msgbatch_1", "a")]


def test_a_catalog_that_another_load_has_locked_is_tried_again(tmp_path, lake, monkeypatch):
    load(row(custom_id="old"))
    set_connection(monkeypatch, "iceberg", host=lake.properties["uri"] + "?timeout=0.1", extra=lake.properties)
    with closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(iceberg.time, "sleep", lambda _: other.in_transaction and other.execute("ROLLBACK"))
        load(row(custom_id="new"))
        assert not other.in_transaction
    assert ids(lake) == [("msgbatch_1", "new")]


def test_conflicts_without_end_are_for_another_try(lake, before_commits, monkeypatch):
    monkeypatch.setattr(iceberg.time, "sleep", lambda _: None)
    load(row(custom_id="old"))
    before_commits += [lambda n=n: load(row("other", str(n))) for n in range(10)]
    with pytest.raises(WarehouseUnavailable, match="Iceberg could not use connection 'warehouse': "):
        load(row(custom_id="new"))
    assert ids(lake) == [("msgbatch_1", "old"), ("other", "9")]


def test_data_files_without_a_commit_are_seen_by_nobody(lake, before_commits, tmp_path):
    load(row(custom_id="old"))

    def die() -> None:
        raise KeyboardInterrupt

    before_commits.append(die)
    before = len(list(tmp_path.rglob("*.parquet")))
    with pytest.raises(KeyboardInterrupt):
        load(row(custom_id="new"))
    assert len(list(tmp_path.rglob("*.parquet"))) == before + 1
    assert ids(lake) == [("msgbatch_1", "old")]


def test_older_snapshots_keep_what_was_replaced(lake):
    load(row(text="first"))
    first = table_of(lake).current_snapshot()
    load(row(text="second"))
    scan = table_of(lake).scan(snapshot_id=first.snapshot_id, selected_fields=("text",))
    assert scan.to_arrow().to_pylist() == [{"text": "first"}]
    assert lake.query("SELECT text FROM t") == [("second",)]


def test_a_batch_is_replaced_without_reading_its_files(lake):
    long_id = "msgbatch_01HkcTjaV5uDC8jWR4ZsDV8"
    for _ in range(2):
        load(*(row(f"{long_id}{n}", text="x" * 5_000_000) for n in range(3)), row(f"{long_id}9"))
        load(row(f"{long_id}1", text="y" * 5_000_000))
    assert set(operations(lake)) == {"append", "delete"}
    assert lake.query("SELECT batch_id[-1], text[1] FROM t ORDER BY 1") == [
        *(("0", "x"), ("1", "y"), ("2", "x"), ("9", None))
    ]


def test_small_batches_share_a_file_and_are_replaced_one_by_one(lake):
    load(row("one"), row("two"), row("three"))
    assert table_of(lake).inspect.files().num_rows == 1
    load(row("two", "b"))
    load(batches=["three"])
    assert ids(lake) == [("one", "a"), ("two", "b")]


def test_a_load_is_one_step_for_readers(lake):
    load(row("one"), row("two"))
    log = len(table_of(lake).metadata.metadata_log)
    load(row("one", "b"), row("one", "c"))
    assert len(table_of(lake).metadata.metadata_log) == log + 1


def test_nothing_to_replace_and_nothing_to_add_is_no_commit(lake):
    load(row())
    load(batches=["unheard_of"])
    assert operations(lake) == ["append"]


def test_thousands_of_batches_are_replaced_and_read_back(lake):
    load(row("batch-4321"), row("other"))
    batches = [f"batch-{n}" for n in range(5_000)]
    writer = load(*(row(batch_id, batch_id, retryable=True) for batch_id in reversed(batches[:3])), batches=batches)
    assert ids(lake) == [*((name, name) for name in batches[:3]), ("other", "a")]
    assert [name for name, *_ in writer.retryable(batches)] == batches[:3]


def test_hundreds_of_old_batches_are_dropped(lake):
    batches = [f"batch-{n}" for n in range(450)]
    for custom_id in ("a", "b"):
        load(*(row(batch_id, custom_id) for batch_id in batches), row("other"))
    load(*(row(batch_id, "c") for batch_id in batches))
    assert set(ids(lake)) == {("other", "a"), *((batch_id, "c") for batch_id in batches)}
    assert "commit.retry.num-retries" not in table_of(lake).properties


def test_the_partitions_of_a_table_of_the_user_are_kept(lake):
    load(row(), table="model")
    schema = table_of(lake, "model").schema()
    spec = PartitionSpec(
        PartitionField(schema.find_field("status").field_id, 1000, IdentityTransform(), "status"),
        PartitionField(schema.find_field("loaded_at").field_id, 1001, DayTransform(), "day"),
    )
    lake.catalog.create_table("default.t", schema, partition_spec=spec)
    for custom_id in ("a", "b"):
        load(
            row("one", custom_id, loaded_at=NOON),
            row("one", "c", status="expired", loaded_at=NOON),
            row("two", "d", loaded_at=None),
            *rows("three", 3, 8),
        )
    found = table_of(lake).inspect.partitions().to_pylist()
    assert sorted((part["partition"]["status"], str(part["partition"]["day"])) for part in found) == [
        ("expired", "2026-11-21"),
        ("succeeded", "2026-11-21"),
        ("succeeded", "None"),
    ]
    assert ids(lake)[:3] == [("one", "b"), ("one", "c"), ("three", "id-0")]
    assert len(ids(lake)) == 6


def test_a_catalog_that_does_not_answer_may_answer_later(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{unused.getsockname()[1]}"
    set_connection(monkeypatch, "iceberg", host=host, login="me", password="the-password")
    with pytest.raises(WarehouseUnavailable, match="Iceberg could not use connection 'warehouse': ") as caught:
        list(open_warehouse("warehouse", "t").answered(LATER))
    assert "the-password" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "said"),
    [({"type": "glue"}, "glue"), ({"type": "sheet"}, "sheet"), ({"type": "sql", "uri": "sqlite://"}, "location")],
)
def test_a_catalog_that_cannot_be_is_one_sentence(monkeypatch, extra, said):
    set_connection(monkeypatch, "iceberg", extra=extra)
    with pytest.raises(Misconfigured, match=rf"Iceberg could not use connection 'warehouse': .*(?i:{said})"):
        load(row())
