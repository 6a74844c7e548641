"""Any other database: what its writer does beside the scenarios, on PostgreSQL and on SQLite."""

from decimal import Decimal

import pytest
import sqlalchemy
import warehouse_dbapi
import warehouse_sqlite
from loads import LATER, ids, row
from loads import load_rows as load
from sqlalchemy.dialects import mssql, mysql, oracle
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import NullType
from warehouse import set_connection

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers import dbapi
from airflow_provider_claude_batch.writers.portable import CreateView, Definition, reads_from
from airflow_provider_claude_batch.writers.table import Table


@pytest.fixture
def database(tmp_path, monkeypatch):
    return warehouse_dbapi.connect(tmp_path, monkeypatch)


@pytest.fixture
def file(tmp_path, monkeypatch):
    warehouse = warehouse_sqlite.connect(tmp_path, monkeypatch)
    warehouse_dbapi.hand_over("sqlite", monkeypatch)
    return warehouse


def test_a_connection_that_takes_no_sql_has_no_writer(monkeypatch):
    set_connection(monkeypatch, "fs")
    with pytest.raises(Misconfigured, match="There is no writer for connections of type 'fs': name one of a database"):
        load(row())


def test_the_log_says_that_there_is_no_bulk_path(database, caplog):
    load(row())
    assert caplog.text.count("no bulk path of its own here: rows are inserted by executemany") == 1


def test_a_file_of_sqlite_holds_what_a_server_holds(file):
    money = Decimal("999999.999999999999")
    load(row("one", text="a\x00b", cost_usd=money, retryable=True), row("two"))
    writer = load(row("one", "b", text="c\x00d", cost_usd=money, retryable=True, request_hash="h"))
    assert file.query("SELECT text, cost_usd FROM t_latest WHERE batch_id = 'one'") == [("c\x00d", str(money))]
    assert ids(file) == [("one", "b"), ("two", "a")]
    assert list(writer.retryable(["one"])) == [("b", None, None, "succeeded")]
    assert list(writer.answered(LATER)) == [("b", "h")]
    (sample,) = writer.sample(["one"], failed=False, limit=9)
    assert (sample.custom_id, sample.cost_usd) == ("b", float(money))
    assert (file.types()["cost_usd"], file.types()["loaded_at"]) == ("TEXT", "DATETIME")


def test_columns_of_a_schema_are_typed(database):
    columns = [*COLUMNS, Column("score", "decimal"), Column("Weiß %", "double"), Column("day", "date")]
    typed = row()
    typed.typed = (Decimal("1E-9"), 0.1, None)
    load(row())
    load(typed, columns=columns)
    assert database.query('SELECT score, "Weiß %", day FROM t_latest') == [(Decimal("1E-9"), 0.1, None)]
    assert database.types()["score"] == "NUMERIC(38,9)"


def test_thousands_of_batches_are_replaced_and_read_back(database):
    load(row("batch-4321"), row("other"))
    batches = [f"batch-{n}" for n in range(5_000)]
    writer = load(*(row(batch_id, batch_id, retryable=True) for batch_id in reversed(batches[:3])), batches=batches)
    assert ids(database) == [*((name, name) for name in batches[:3]), ("other", "a")]
    assert [name for name, *_ in writer.retryable(batches)] == batches[:3]


def test_a_lock_is_waited_for(database, monkeypatch):
    load(row(custom_id="old"))
    database.execute(f"ALTER DATABASE {database.database} SET lock_timeout = '100ms'")
    with database.open(autocommit=False) as other:
        other.execute("LOCK TABLE t")
        monkeypatch.setattr(dbapi.time, "sleep", lambda _: other.rollback())
        load(row(custom_id="new"))
    assert ids(database) == [("msgbatch_1", "new")]


def test_a_column_that_another_load_adds_meanwhile_is_in_the_views(database):
    others = [lambda: load(row("other", typed=(1,)), columns=[*COLUMNS, Column("other", "bigint")])]

    def meddle(_con, _cursor, statement, *_):
        if others and statement.startswith("DROP VIEW"):
            others.pop()()

    load(row())
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", meddle)
    try:
        load(row("new", typed=(2,)), columns=[*COLUMNS, Column("ours", "bigint")])
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", meddle)
    assert not others
    for view in ("t_latest", "t_current", "t_errors"):
        assert list(database.types(view)) == list(database.types())
    assert database.query("SELECT batch_id, ours, other FROM t ORDER BY batch_id") == [
        ("msgbatch_1", None, None),
        ("new", 2, None),
        ("other", None, 1),
    ]


def test_a_table_in_the_place_of_a_view_is_left_alone(database):
    database.execute("CREATE TABLE t_latest (mine text)")
    with pytest.raises(
        Misconfigured, match="t_latest is a table, and a load keeps a view of that name beside t: rename"
    ):
        load(row())
    assert database.types("t_latest") == {"mine": "TEXT"}


def test_rows_are_loaded_though_the_views_cannot_be_made(database, caplog):
    load(row())
    database.execute("CREATE VIEW mine AS SELECT text FROM t_latest", "ALTER TABLE t ADD COLUMN note text")
    load(row("two", "b"))
    assert "The views beside the table cannot be created: " in caplog.text
    assert ids(database) == ids(database, "t_latest") == [("msgbatch_1", "a"), ("two", "b")]


@pytest.mark.parametrize(
    ("definition", "reads"),
    [
        (None, True),
        ("select `x`.`id` from (select `db`.`t`.`id` from `db`.`t` where 1) `x`", True),
        ("select id from (`db`.`t`)", True),
        ('CREATE VIEW "t_latest" AS SELECT id\nFROM\n  "t"', True),
        ("SELECT id FROM marts.T", True),
        ("SELECT id FROM [dbo].[t] AS t", True),
        (" SELECT t.id FROM ( SELECT t_1.id FROM t_2026 t_1) t", False),
        ('SELECT "t".id FROM "t_2026" AS "t"', False),
    ],
)
def test_a_view_tells_what_it_reads_from(definition, reads):
    assert reads_from(definition, "t") is reads


def test_what_a_database_says_of_a_value_is_not_told(database):
    load(row())
    database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION USING MESSAGE = 'Value '''|| NEW.text || ''' is refused', ERRCODE = '22000'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    with pytest.raises(Misconfigured) as caught:
        load(row(text="it's a secret\nand more of 'it'"))
    assert "could not use connection 'warehouse': Value …" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "and more" not in str(caught.value)
    assert ids(database) == [("msgbatch_1", "a")]


def test_a_database_that_does_not_answer_may_answer_later(monkeypatch, tmp_path):
    warehouse_dbapi.hand_over("postgres", monkeypatch)
    set_connection(monkeypatch, "postgres", host=tmp_path, login="me", password="the-password", schema="db")
    with pytest.raises(WarehouseUnavailable, match="The database could not use connection 'warehouse': ") as caught:
        list(open_warehouse("warehouse", "t").answered(LATER))
    assert "the-password" not in str(caught.value)


def test_a_right_that_is_missing_is_final(database):
    database.execute(
        "CREATE ROLE reader LOGIN", f"ALTER DATABASE {database.database} SET default_transaction_read_only = on"
    )
    with pytest.raises(Misconfigured, match="read-only transaction"):
        load(row())


def test_a_database_is_named_by_its_connection(database):
    with pytest.raises(Misconfigured, match=r"Name the table schema\.table, not db\.public\.t"):
        load(row(), table="db.public.t")
    database.execute("CREATE SCHEMA marts")
    load(row(), table="Marts.T")
    assert ids(database, "marts.t_errors") == []


# What was compiled only: there is no server of these here


FOUND = {column.name: {"name": column.name, "type": NullType()} for column in COLUMNS}


def compiled(dialect, table="t", columns=COLUMNS):
    definition = Definition(Table.parse(table), columns, dialect)
    described = definition.table({})
    views = [CreateView(view, select) for view, select in definition.views(described).items()]
    return [" ".join(str(one.compile(dialect=dialect)).split()) for one in (CreateTable(described), *views)]


MYSQL = ["batch_id VARCHAR(400) COLLATE utf8mb4_bin", "text LONGTEXT", "content LONGTEXT", "loaded_at DATETIME(6)"]
TYPES = {
    "mysql": (mysql.dialect(), [*MYSQL, "cost_usd NUMERIC(18, 12)", "retryable BOOL", ")CHARSET=utf8mb4"]),
    "mssql": (
        mssql.dialect(),
        [
            *("batch_id NVARCHAR(400) COLLATE Latin1_General_BIN2", "text NVARCHAR(max)", "content NVARCHAR(max)"),
            *("loaded_at DATETIME2(6)", "cost_usd NUMERIC(18, 12)", "retryable BIT"),
        ],
    ),
    "oracle": (
        oracle.dialect(),
        ["batch_id VARCHAR2(400 CHAR)", "text CLOB", "content CLOB", "loaded_at TIMESTAMP", "attempt NUMBER(19)"],
    ),
}


@pytest.mark.parametrize("name", TYPES)
def test_types_hold_what_we_write(name):
    dialect, expected = TYPES[name]
    create, latest, _, errors = compiled(dialect)
    assert [part for part in expected if part not in create] == []
    assert "CASE WHEN (" in latest
    assert "WHERE NOT (" in errors


def test_a_sample_is_chosen_before_texts_are_cut_in_each_database():
    sampled = {}
    for dialect in (mysql.dialect(), mssql.dialect(), oracle.dialect()):
        select = Definition(Table.parse("t"), COLUMNS, dialect).select_sample(FOUND, ["b"], failed=True, limit=50)
        sampled[dialect.name] = " ".join(str(select.compile(dialect=dialect)).split())
    assert "substr(chosen.text, " in sampled["mysql"]
    assert "substring(chosen.text, " in sampled["mssql"]
    assert "substr(chosen.text, " in sampled["oracle"]
    assert "FROM (SELECT TOP " in sampled["mssql"]
    assert "FETCH FIRST " in sampled["oracle"]
    assert all("WHEN (t.custom_id IS NULL)" in sql and "NOT (t.status = " in sql for sql in sampled.values())


def test_names_are_quoted_as_each_database_quotes_them():
    assert compiled(mysql.dialect(), 'Marts."a`b"')[0].startswith("CREATE TABLE `Marts`.`a``b` (")
    assert compiled(mssql.dialect(), 'db.dbo."a]b"')[0].startswith("CREATE TABLE db.dbo.[a]]b] (")
    assert compiled(oracle.dialect(), 'Marts."a b"')[1].startswith('CREATE VIEW marts."a b_latest" AS ')


def test_a_name_too_long_is_cut_where_names_have_a_length():
    cells = row(custom_id="x" * 500, text="y" * 500).cells()
    values = {
        dialect.name: Definition(Table.parse("t"), COLUMNS, dialect).values(cells)
        for dialect in (mysql.dialect(), mssql.dialect(), oracle.dialect())
    }
    assert {len(found["custom_id"]) for found in values.values()} == {400}
    assert {len(found["text"]) for found in values.values()} == {500}
