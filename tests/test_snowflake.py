"""Snowflake: what only this warehouse has."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from loads import ids, row, rows
from loads import load_rows as load
from snowflake.connector import errors
from snowflake.connector.cursor import SnowflakeCursor
from warehouse import connect_warehouse, set_connection
from warehouse_snowflake import NOT_PLAYED

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers import parquet
from airflow_provider_claude_batch.writers import snowflake as ours

NAMES = [column.name for column in COLUMNS]
SECRET = "my dog's name"


@pytest.fixture
def snowflake(tmp_path, monkeypatch):
    return connect_warehouse("snowflake", tmp_path, monkeypatch)


@pytest.fixture
def said(monkeypatch):
    """The statements that the driver was given, in order."""
    said = []
    execute = SnowflakeCursor.execute

    def record(cursor, command, *values, **options):
        said.append(command)
        return execute(cursor, command, *values, **options)

    monkeypatch.setattr(SnowflakeCursor, "execute", record)
    return said


@pytest.fixture
def before_views(monkeypatch):
    """Do something when a view is about to be created, until there is nothing left to do."""
    todo = []
    execute = SnowflakeCursor.execute

    def meddle(cursor, command, *values, **options):
        if todo and command.startswith("CREATE OR REPLACE VIEW"):
            todo.pop(0)(cursor)
        return execute(cursor, command, *values, **options)

    monkeypatch.setattr(SnowflakeCursor, "execute", meddle)
    return todo


def kinds(said):
    """Tell statements by their first words."""
    return [re.match(r"[A-Z]+( (TABLE|OR|TEMPORARY|SESSION|STAGE|TRANSACTION))?", one)[0] for one in said]


# Names


@pytest.mark.parametrize("table", ["marts.labels", "Marts.Labels", '"MARTS"."LABELS"'])
def test_names_without_quotes_are_in_upper_case_as_everywhere_in_snowflake(snowflake, table):
    load(row(text="x"), table=table)
    assert snowflake.query('SELECT "TEXT" FROM "MARTS"."LABELS_LATEST"') == [("x",)]
    where = "table_schema = 'MARTS'"
    assert snowflake.query(f"SELECT table_name FROM information_schema.tables WHERE {where}") == [("LABELS",)]


def test_a_schema_that_is_created_does_not_draw_other_tables_to_it(snowflake):
    load(row(text="there"), table="marts.t")
    load(row(text="here"))
    assert snowflake.query("SELECT text FROM marts.t_current") == [("there",)]
    assert snowflake.query("SELECT text FROM public.t_current") == [("here",)]


def test_a_table_may_be_named_with_its_database(snowflake):
    table = f"{snowflake.arguments['database']}.marts.t"
    load(row(), table=table)
    load(row(text="again"), table=table)
    assert snowflake.query("SELECT text FROM marts.t_latest") == [("again",)]


# Loads that meet, or end half way


def load_with(column):
    load(row(column, typed=(column,)), columns=(*COLUMNS, Column(column, "text")))


def test_a_column_that_another_load_adds_meanwhile_is_in_the_views(snowflake, before_views):
    load(row())
    before_views.append(lambda _: load_with("theirs"))
    load_with("ours")
    for view in ("t_latest", "t_current", "t_errors"):
        assert list(snowflake.types(view)) == list(snowflake.types()) == [*NAMES, "ours", "theirs"]


def test_a_view_that_another_load_replaces_by_an_older_one_is_replaced_once_more(snowflake, before_views):
    def replace(cursor):
        cursor.connection.cursor().execute(f"CREATE OR REPLACE VIEW t_latest AS SELECT {', '.join(NAMES)} FROM t")

    load(row())
    nothing = (lambda _: None,)
    before_views += [*nothing * 2, replace, nothing[0]]
    load_with("ours")
    assert before_views == []
    assert all(list(snowflake.types(f"t_{view}")) == [*NAMES, "ours"] for view in ("latest", "current", "errors"))


def test_views_that_were_not_made_are_made_by_the_next_load(snowflake, before_views):
    def die(_):
        raise KeyboardInterrupt

    load(row())
    before_views.append(die)
    with pytest.raises(KeyboardInterrupt):
        load_with("ours")
    load_with("ours")
    assert all(list(snowflake.types(f"t_{view}")) == [*NAMES, "ours"] for view in ("latest", "current", "errors"))


# Types and values


def test_the_types_are_those_of_the_contract(snowflake):
    load(row())
    found = snowflake.types()
    assert {found[name] for name in NAMES if name.endswith(("_at", "_date"))} == {"TIMESTAMP_NTZ(9)"}
    assert (found["cost_usd"], found["content"], found["retryable"]) == ("NUMBER(18,12)", "VARCHAR", "BOOLEAN")


def test_columns_of_every_kind_hold_what_they_are_given(snowflake):
    values = {
        "text": "\\N",
        "bigint": -(2**63),
        "double": 0.1,
        "boolean": False,
        "date": date(2026, 11, 21),
        "timestamp": datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        "decimal": Decimal("-12345678901234567890123456789.123456789"),
        "money": Decimal("999999.999999999999"),
        "json": '{"b": 1.10, "a": "\\ud800"}',
    }
    columns = (*COLUMNS, *(Column(f"a {kind}", kind) for kind in values))
    for _ in range(2):
        load(row(typed=tuple(values.values())), row(custom_id="b", typed=(None,) * len(values)), columns=columns)
    names = ", ".join(f'"A {kind.upper()}"' for kind in values)
    there = values | {"timestamp": values["timestamp"].replace(tzinfo=None)}
    found = snowflake.query(f"SELECT {names} FROM t ORDER BY custom_id")
    assert found == [tuple(there.values()), (None,) * len(values)]


@pytest.mark.parametrize("text", ["\\N", "NULL", "null", "", " x ", "'", "$1", "\ufeff"])
def test_no_text_is_taken_for_anything_else(snowflake, text):
    load(row(text=text, content=text))
    assert snowflake.query("SELECT text, content FROM t") == [(text, text)]


def test_a_text_too_long_for_a_column_is_cut_and_says_so(snowflake, monkeypatch, caplog):
    monkeypatch.setattr(ours, "_LONGEST_TEXT", 1_000)
    load(row(custom_id="a", text="é" * 600), row(custom_id="b", text="é" * 500), row(custom_id="c"))
    (long, fits, none) = (text for (text,) in snowflake.query("SELECT text FROM t ORDER BY custom_id"))
    assert long.startswith("é" * 400)
    assert long.endswith("é [cut off: 1,200 bytes, and the warehouse holds 1,000]")
    assert 998 <= len(long.encode()) <= 1_000
    assert (fits, none) == ("é" * 500, None)
    assert caplog.text.count("was cut off") == 1


@pytest.mark.parametrize(
    ("told", "means"),
    {
        "VARCHAR": "VARCHAR",
        "VARCHAR(16777216)": "VARCHAR",
        "VARCHAR(134217728)": "VARCHAR",
        "VARCHAR(16777216) COLLATE 'en-ci'": "VARCHAR",
        "VARCHAR(64)": "VARCHAR(64)",
        "TIMESTAMP_NTZ(9)": "TIMESTAMP_NTZ",
        "TIMESTAMP_NTZ(3)": "TIMESTAMP_NTZ(3)",
        "TIMESTAMP_TZ(9)": "TIMESTAMP_TZ(9)",
        "NUMBER(10,0)": "NUMBER(10,0)",
    }.items(),
)
def test_a_length_that_is_enough_is_no_other_type(told, means):
    assert ours._plain(told) == means


def test_a_column_too_short_for_an_answer_is_refused(snowflake):
    snowflake.execute("CREATE TABLE t (text VARCHAR(64))")
    with pytest.raises(Misconfigured, match=r"Column text of \"T\" is VARCHAR\(64\), and rows need VARCHAR"):
        load(row())


# The way of the rows


def test_nothing_between_begin_and_commit_would_commit(snowflake, said):
    load(row())
    said.clear()
    load(row())
    assert kinds(said) == [
        *("ALTER SESSION", "SELECT", *["DESCRIBE TABLE"] * 4, "CREATE TEMPORARY", "PUT"),
        *("BEGIN TRANSACTION", "DELETE", "COPY", "COMMIT", "DROP STAGE"),
    ]


def test_rows_go_through_files_of_a_bounded_size_that_do_not_stay(snowflake, said, monkeypatch, tmp_path):
    monkeypatch.setattr(parquet, "_CHUNK_ROWS", 100)
    monkeypatch.setattr(parquet, "_FILE_BYTES", 5_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = []

    def watched():
        for one in rows("b", 1_000, 64):
            left.append(len(list(tmp_path.rglob("*.parquet"))))
            yield one

    open_warehouse("warehouse", "t").replace(["b"], watched())
    assert kinds(said).count("PUT") > 3
    assert max(left) == 1
    assert list(tmp_path.iterdir()) == []
    assert snowflake.query("SELECT count(*), count(DISTINCT custom_id), sum(length(text)) FROM t") == [
        (1_000, 1_000, 64_000)
    ]


def test_a_file_that_did_not_arrive_is_noticed_and_nothing_is_changed(snowflake, said, monkeypatch):
    writer = load(row(custom_id="old"))
    execute = SnowflakeCursor.execute
    monkeypatch.setattr(
        SnowflakeCursor, "execute", lambda cursor, sql, *rest: sql.startswith("PUT") or execute(cursor, sql, *rest)
    )
    said.clear()
    with pytest.raises(WarehouseUnavailable, match="Snowflake took 0 of 1 rows from its stage"):
        writer.replace(["msgbatch_1"], iter([row(custom_id="new")]))
    assert kinds(said)[-4:] == ["DELETE", "COPY", "ROLLBACK", "DROP STAGE"]
    assert ids(snowflake) == [("msgbatch_1", "old")]


def test_a_swap_that_fails_leaves_the_old_rows_and_drops_its_stage(snowflake, said):
    def meanwhile():
        yield row(custom_id="new")
        snowflake.execute("ALTER TABLE t DROP COLUMN error_message")

    writer = load(row(custom_id="old"))
    with pytest.raises(Misconfigured, match=r"could not use connection 'warehouse': .*ERROR_MESSAGE.* 2043\)"):
        writer.replace(["msgbatch_1"], meanwhile())
    assert kinds(said)[-4:] == ["DELETE", "COPY", "ROLLBACK", "DROP STAGE"]
    assert ids(snowflake) == [("msgbatch_1", "old")]


def test_a_task_that_is_stopped_lets_go_of_its_locks(snowflake, said, monkeypatch):
    def stopped(cursor, sql, *values):
        if sql.startswith("COPY"):
            raise KeyboardInterrupt
        return execute(cursor, sql, *values)

    writer, execute = load(row(custom_id="old")), SnowflakeCursor.execute
    monkeypatch.setattr(SnowflakeCursor, "execute", stopped)
    with pytest.raises(KeyboardInterrupt):
        writer.replace(["msgbatch_1"], iter([row(custom_id="new")]))
    assert kinds(said)[-3:] == ["DELETE", "ROLLBACK", "DROP STAGE"]
    assert ids(snowflake) == [("msgbatch_1", "old")]


def test_thousands_of_batches_are_replaced_and_read_back(snowflake):
    batches = [f"msgbatch_{n:024}" for n in range(5_000)]
    writer = load(*(row(batch, "a", retryable=True) for batch in batches))
    writer.replace(batches, iter([row(batches[0], "b", retryable=True)]))
    assert list(writer.retryable(batches)) == [("b", None, None, "succeeded")]


def test_views_keep_their_grants(snowflake, said):
    load(row())
    assert sum("COPY GRANTS AS SELECT" in one for one in said) == 3


def test_a_session_of_the_users_own_making_serves_as_well(snowflake, said, monkeypatch):
    extra = dict(snowflake.arguments)
    fields = {"login": extra.pop("user"), "password": extra.pop("password"), "schema": extra.pop("schema")}
    extra["session_parameters"] = {"nop_regexes": NOT_PLAYED, "AUTOCOMMIT": False, "lock_timeout": 60}
    set_connection(monkeypatch, "snowflake", **fields, extra=extra)
    for _ in range(2):
        load(row(text="x"))
        assert snowflake.query("SELECT text FROM t_latest") == [("x",)]
    assert "ALTER SESSION" not in kinds(said)


# What goes wrong


@pytest.mark.parametrize("number", [2003, 1003, 3001, 606, 251005])
def test_what_would_come_again_is_final(number):
    error = ours._explained(errors.ProgrammingError("Object 'DB.S.T' does not exist.", errno=number), "c")
    assert isinstance(error, Misconfigured)
    assert str(error) == (
        f"Snowflake could not use connection 'c': Object 'DB.S.T' does not exist (ProgrammingError {number})."
    )


@pytest.mark.parametrize(
    "error",
    [
        errors.DatabaseError("Incorrect username or password was specified.", errno=390100, sqlstate="08001"),
        errors.DatabaseError("JWT token is invalid.", errno=390144, sqlstate="08001"),
        errors.ForbiddenError(errno=251011, sqlstate="08001"),
        errors.NotSupportedError("no"),
    ],
)
def test_a_login_that_is_refused_is_final(error):
    assert isinstance(ours._explained(error, "c"), Misconfigured)


@pytest.mark.parametrize(
    "error",
    [
        errors.ProgrammingError("Statement was aborted for a lock", errno=625, sqlstate="57014"),
        errors.ProgrammingError("Statement reached its timeout", errno=630, sqlstate="57014"),
        errors.DatabaseError("Session no longer exists.", errno=390111, sqlstate="08001"),
        errors.OperationalError("Failed to connect", errno=250001, sqlstate="08001"),
        errors.ServiceUnavailableError(errno=251008),
        errors.InternalServerError(errno=251009),
        errors.RequestTimeoutError(errno=251010),
    ],
)
def test_what_may_pass_is_not_final(error):
    assert isinstance(ours._explained(error, "c"), WarehouseUnavailable)


@pytest.mark.parametrize(
    "error",
    [
        errors.ProgrammingError(f"String '{SECRET}' is too long", errno=100078, sqlstate="22000"),
        errors.ProgrammingError(f"Numeric value '{SECRET}'\n is not recognized", errno=100038, sqlstate="22018"),
        errors.ProgrammingError(f"Failed to cast '{SECRET}\n{SECRET}'", errno=100071),
    ],
)
def test_an_error_never_quotes_an_answer(error):
    found = ours._explained(error, "c")
    assert isinstance(found, Misconfigured)
    assert not set(re.findall(r"\w+", SECRET)) & set(re.findall(r"\w+", str(found)))


def test_a_key_that_is_not_there_is_told(snowflake, monkeypatch, tmp_path):
    extra = snowflake.arguments | {"private_key_file": str(tmp_path / "none.p8")}
    set_connection(monkeypatch, "snowflake", login="user", extra=extra)
    with pytest.raises(Misconfigured, match=r"Connection 'warehouse' cannot work as it is: .*private_key_file"):
        load(row())
