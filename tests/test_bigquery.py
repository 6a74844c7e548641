"""BigQuery: what only this warehouse has."""

import datetime as dt
import json
import socket
from decimal import Decimal

import pyarrow.parquet as pq
import pytest
import requests
from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError
from google.cloud import bigquery as google
from loads import LATER, ids, row
from loads import load_rows as load
from warehouse import connect_warehouse, set_connection
from warehouse_bigquery import PROJECT

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers import bigquery, parquet

NAMES = [column.name for column in COLUMNS]
EXTRA = {"is_anonymous": True, "project": PROJECT, "use_legacy_sql": False}
BUSY = "Transaction is aborted due to concurrent update against table a-project:dataset.t"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return connect_warehouse("bigquery", tmp_path, monkeypatch)


@pytest.fixture
def statements(monkeypatch):
    """Which statements are sent, and what happens instead of those that `on` names."""
    sent = Statements()
    query = google.Client.query

    def listen(self, sql, *arguments, **options):
        sent.append(sql.split()[0])
        if sent.on.get(sql.split()[0]):
            sent.on[sql.split()[0]].pop(0)()
        return query(self, sql, *arguments, **options)

    monkeypatch.setattr(google.Client, "query", listen)
    return sent


class Statements(list):
    def __init__(self):
        self.on = {}


def tables(dataset):
    return {table.table_id for table in dataset.client.list_tables(dataset.dataset)}


# Connections and names


@pytest.mark.parametrize("conn_type", ["gcpbigquery", "google_cloud_platform"])
@pytest.mark.parametrize("table", ["{dataset}.t", PROJECT + ".{dataset}.t", '"' + PROJECT + '"."{dataset}"."t"'])
def test_a_table_is_named_with_its_dataset(dataset, monkeypatch, conn_type, table):
    set_connection(monkeypatch, conn_type, extra=EXTRA)
    for text in ("first", "again"):
        load(row(text=text), table=table.format(dataset=dataset.dataset))
    assert dataset.query("SELECT text FROM t_current") == [("again",)]


def test_a_default_dataset_may_be_the_text_that_a_form_makes_of_it(dataset, monkeypatch):
    configs = json.dumps({"query": {"defaultDataset": {"datasetId": dataset.dataset}}})
    set_connection(monkeypatch, "gcpbigquery", extra={**EXTRA, "api_resource_configs": configs})
    load(row())
    assert ids(dataset) == [("msgbatch_1", "a")]


def test_a_table_without_a_dataset_is_refused(dataset, monkeypatch):
    set_connection(monkeypatch, "gcpbigquery", extra=EXTRA)
    with pytest.raises(Misconfigured, match=r"t names no dataset: write dataset\.t, or give .* a defaultDataset"):
        load(row())


def test_a_dataset_is_not_created(dataset):
    with pytest.raises(Misconfigured, match="There is no dataset nowhere in project a-project: create it first"):
        load(row(), table="nowhere.t")
    assert list(open_warehouse("warehouse", "nowhere.t").answered(LATER)) == []


@pytest.mark.parametrize(
    "name", ['say ""hi""', "a.b", "it's", "; DROP TABLE t", "%s?", "🎫", "a`b", "a\\b", "x" * 1025]
)
def test_what_bigquery_has_no_name_for_is_refused(dataset, name):
    with pytest.raises(Misconfigured, match="BigQuery takes no name like"):
        load(row(), table=f'"{name}"')


@pytest.mark.parametrize("name", ["a`b", "a\\b", "a.b", "a?"])
def test_a_column_that_bigquery_has_no_name_for_is_refused(dataset, name):
    with pytest.raises(Misconfigured, match="BigQuery takes no name like"):
        open_warehouse("warehouse", "t", (*COLUMNS, Column(name, "text")))


# Loads that meet, or end half way


def load_with(column):
    load(row(column, typed=(column,)), columns=(*COLUMNS, Column(column, "text")))


def test_a_column_that_another_load_adds_meanwhile_is_in_the_views(dataset, statements):
    load(row())
    statements.on["CREATE"] = [lambda: load_with("theirs")]
    load_with("ours")
    for view in ("t_latest", "t_current", "t_errors"):
        assert list(dataset.types(view)) == list(dataset.types()) == [*NAMES, "ours", "theirs"]


def test_a_view_that_another_load_replaces_by_an_older_one_is_replaced_once_more(dataset, statements):
    older = f"CREATE OR REPLACE VIEW t_latest AS SELECT {', '.join(NAMES)} FROM t"
    load(row())
    statements.on["CREATE"] = [lambda: None, lambda: dataset.execute(older)]
    load_with("ours")
    assert statements.count("CREATE") == 7
    assert all(list(dataset.types(f"t_{view}")) == [*NAMES, "ours"] for view in ("latest", "current", "errors"))


def test_views_that_were_not_made_are_made_by_the_next_load(dataset, statements):
    def die():
        raise KeyboardInterrupt

    load(row())
    statements.on["CREATE"] = [die]
    with pytest.raises(KeyboardInterrupt):
        load_with("ours")
    load_with("ours")
    assert all(list(dataset.types(f"t_{view}")) == [*NAMES, "ours"] for view in ("latest", "current", "errors"))


# Types and values


def test_the_types_are_those_of_the_contract(dataset):
    load(row())
    found = dataset.types()
    assert {found[name] for name in NAMES if name.endswith(("_at", "_date"))} == {"TIMESTAMP"}
    assert (found["cost_usd"], found["content"], found["retryable"]) == ("BIGNUMERIC", "STRING", "BOOL")
    assert dataset.client.get_table(f"{PROJECT}.{dataset.dataset}.t").clustering_fields == ["batch_id"]


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (google.SchemaField("x", "INTEGER"), "INT64"),
        (google.SchemaField("x", "STRING", max_length=10), "STRING(10)"),
        (google.SchemaField("x", "NUMERIC", precision=10, scale=2), "NUMERIC(10, 2)"),
        (google.SchemaField("x", "STRING", "REPEATED"), "ARRAY<STRING>"),
    ],
)
def test_a_type_is_told_with_its_bounds(field, kind):
    assert bigquery._type_of(field) == kind


def test_typed_columns_come_back_exactly(dataset):
    columns = {
        "a_text": ("text", "\x00🎫"),
        "a number": ("bigint", 2**63 - 1),
        "a_double": ("double", 0.1),
        "a_boolean": ("boolean", False),
        "a_date": ("date", dt.date(2026, 11, 21)),
        "a_moment": ("timestamp", dt.datetime(1, 1, 1, tzinfo=dt.UTC)),
        "a_decimal": ("decimal", Decimal("12345678901234567890123456789.123456789")),
        "表": ("json", '{"n":1e400}'),
    }
    typed = tuple(value for _, value in columns.values())
    kinds = tuple(Column(name, kind) for name, (kind, _) in columns.items())
    load(row(typed=typed), row(custom_id="b", typed=(None,) * len(typed)), columns=(*COLUMNS, *kinds))
    names = ", ".join(f'"{name}"' for name in columns)
    moment = dt.datetime(1, 1, 1)  # noqa: DTZ001
    wanted = tuple(moment if isinstance(value, dt.datetime) else value for value in typed)
    assert dataset.query(f"SELECT {names} FROM t ORDER BY custom_id") == [wanted, (None,) * len(typed)]


def test_a_text_too_long_for_a_row_that_is_loaded_is_cut_and_says_so(dataset, caplog):
    load(row(text="é" * 10_000_000))
    assert dataset.query(
        "SELECT text LIKE '%[cut off: 20,000,000 bytes, and the warehouse holds 16,000,000]' FROM t"
    ) == [(True,)]
    assert "was cut off" in caplog.text


def test_thousands_of_batches_are_replaced_at_once(dataset):
    names = [f"batch-{number}" for number in range(5_000)]
    for text in ("first", "again"):
        writer = load(*(row(name, text=text, retryable=True) for name in names), batches=names)
    assert dataset.query("SELECT text, count(*) FROM t GROUP BY text") == [("again", 5_000)]
    assert sum(1 for _ in writer.retryable(names)) == 5_000


# How rows go in


def test_many_rows_are_loaded_as_several_files(dataset, monkeypatch):
    monkeypatch.setattr(parquet, "_FILE_BYTES", 1)
    monkeypatch.setattr(parquet, "_CHUNK_ROWS", 10)
    load(*(row(custom_id=str(number)) for number in range(35)))
    assert dataset.query("SELECT count(*), count(DISTINCT custom_id) FROM t") == [(35, 35)]


def test_a_file_says_what_bigquery_is_to_make_of_it(dataset, monkeypatch):
    uploads = []
    upload = google.Client.load_table_from_file

    def look(self, file, *arguments, job_config, **options):
        types = {str(kind) for kind in pq.read_schema(file).types}
        file.seek(0)
        uploads.append((types, job_config.decimal_target_types))
        return upload(self, file, *arguments, job_config=job_config, **options)

    monkeypatch.setattr(google.Client, "load_table_from_file", look)
    load(row())
    ((types, decimals),) = uploads
    assert types == {"large_string", "int64", "bool", "timestamp[us, tz=UTC]", "decimal128(18, 12)"}
    assert set(decimals) == {"NUMERIC", "BIGNUMERIC"}


def test_a_staging_table_is_dropped_and_would_go_by_itself(dataset, monkeypatch):
    made = []
    create = google.Client.create_table
    monkeypatch.setattr(google.Client, "create_table", lambda *a, **k: made.append(a[1]) or create(*a, **k))
    load(row())
    staging = made[-1]
    assert staging.table_id.startswith("claude_batch_staging_")
    assert dt.timedelta(hours=23) < staging.expires - dt.datetime.now(dt.UTC) <= dt.timedelta(days=1)
    assert tables(dataset) == {"t", "t_latest", "t_current", "t_errors"}


def test_a_staging_table_is_dropped_when_rows_break_off(dataset):
    def broken():
        yield row()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        open_warehouse("warehouse", "t").replace(["msgbatch_1"], broken())
    assert tables(dataset) == {"t", "t_latest", "t_current", "t_errors"}


def test_one_statement_replaces_and_nothing_is_defined_twice(dataset, statements):
    load(row())
    statements.clear()
    load(row(text="again"))
    assert statements == ["MERGE", "SELECT"]


def test_two_first_loads_of_a_batch_at_one_moment_leave_its_rows_once(dataset, statements):
    load(row("other"))
    copy = "INSERT INTO t SELECT * FROM t"
    statements.on["SELECT"] = [lambda: dataset.client.query(copy).result()]  # what another load inserted meanwhile
    load(row("msgbatch_1"))
    assert ids(dataset).count(("msgbatch_1", "a")) == 1


def test_loads_that_never_find_peace_say_so(dataset, statements):
    load(row())
    copy = "INSERT INTO t SELECT * FROM t"
    statements.on["SELECT"] = [lambda: dataset.client.query(copy).result()] * 3
    with pytest.raises(WarehouseUnavailable, match="Other loads replace the same batches"):
        load(row())


def test_a_table_that_others_change_is_waited_for(dataset, statements):
    def conflict():
        raise exceptions.BadRequest(BUSY)

    load(row())
    statements.on["MERGE"] = [conflict]
    load(row(text="again"))
    assert dataset.query("SELECT text FROM t") == [("again",)]


def test_patience_with_others_ends(dataset, statements, monkeypatch):
    def conflict():
        raise exceptions.BadRequest(BUSY)

    load(row(text="old"))
    monkeypatch.setattr(bigquery, "_PATIENCE", 0.1)
    statements.on["MERGE"] = [conflict] * 9
    with pytest.raises(WarehouseUnavailable, match=r"concurrent update.*\(RetryError"):
        load(row())
    assert dataset.query("SELECT text FROM t") == [("old",)]


# What goes wrong


def test_a_value_that_a_column_refuses_leaves_the_old_rows(dataset):
    dataset.execute("CREATE TABLE t (custom_id STRING NOT NULL)")
    load(row(custom_id="old"))
    with pytest.raises(Misconfigured, match="BigQuery could not use connection 'warehouse'"):
        load(row(custom_id=None, text="the answer"))
    assert ids(dataset) == [("msgbatch_1", "old")]
    assert tables(dataset) == {"t", "t_latest", "t_current", "t_errors"}


def test_what_bigquery_says_of_a_file_is_not_repeated(dataset, monkeypatch):
    def refuse(*_, **__):
        raise exceptions.BadRequest("Could not parse 'the answer'", errors=[{"reason": "invalid"}])

    monkeypatch.setattr(google.LoadJob, "result", refuse)
    with pytest.raises(Misconfigured, match=r"'warehouse' \(BadRequest invalid\)\.$"):
        load(row(text="the answer"))


def test_a_file_that_is_not_loaded_in_time_may_be_later(dataset, monkeypatch):
    def wait(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(google.LoadJob, "result", wait)
    with pytest.raises(WarehouseUnavailable, match="has not loaded a file in 60 minutes"):
        load(row())


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"key_path": "/nowhere/key.json"}, "/nowhere/key.json"),
        ({"keyfile_dict": "{the-secret-key"}, "Invalid key JSON"),
        (
            {"keyfile_dict": {"type": "service_account", "private_key": "the-secret-key"}},
            "cannot work as it is|could not use",
        ),
        ({"is_anonymous": True}, "cannot work as it is|could not use"),
    ],
)
def test_credentials_that_cannot_work_are_told_without_them(dataset, monkeypatch, extra, said):
    for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    set_connection(monkeypatch, "gcpbigquery", extra={**extra, "use_legacy_sql": False})
    with pytest.raises(Misconfigured, match=said) as refused:
        open_warehouse("warehouse", "d.t")
    assert "the-secret-key" not in str(refused.value)


def test_bigquery_out_of_reach_may_come_back(dataset, monkeypatch):
    monkeypatch.setattr(google.DEFAULT_RETRY, "_timeout", 0.1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # nobody else gets this port, and nobody listens to it
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(WarehouseUnavailable, match=r"\(RetryError\)"):
            load(row())


def _refused(cls, reason="", message="no"):
    return cls(message, errors=[{"reason": reason}])


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (_refused(exceptions.BadRequest, "invalidQuery"), False),
        (_refused(exceptions.BadRequest, "invalidQuery", BUSY), True),
        (_refused(exceptions.BadRequest, "resourcesExceeded"), True),
        (_refused(exceptions.Forbidden, "accessDenied"), False),
        (_refused(exceptions.Forbidden, "billingNotEnabled"), False),
        (_refused(exceptions.Forbidden, "quotaExceeded"), True),
        (_refused(exceptions.NotFound, "notFound"), False),
        (_refused(exceptions.Unauthorized), False),
        (_refused(exceptions.TooManyRequests), True),
        (_refused(exceptions.ServiceUnavailable), True),
        (exceptions.RetryError("Timeout of 600.0s exceeded", None), True),
        (RefreshError("invalid_grant: Invalid JWT Signature."), False),
        (RefreshError("try later", retryable=True), True),
        (DefaultCredentialsError("not found"), False),
        (TransportError("no answer"), True),
        (requests.ConnectionError("no answer"), True),
    ],
)
def test_what_may_pass_is_told_from_what_would_come_again(error, may_pass):
    assert bigquery._may_pass(error) is may_pass
