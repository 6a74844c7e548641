"""PostgreSQL: what only this warehouse has."""

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from threading import Event

import pytest
from airflow.providers.postgres.hooks import postgres as airflow_postgres
from hypothesis import given, settings
from hypothesis import strategies as st
from loads import LATER, ids, row
from loads import load_rows as load
from loads import rows as many_rows
from warehouse_postgres import PASSWORD, Postgres, Server, connect, connect_to

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers import postgres
from airflow_provider_claude_batch.writers.postgres import encode

NAMES = [column.name for column in COLUMNS]
SECRET = "what-the-model-answered"
PATIENCE = 120  # with what comes at once where nothing else is done


@pytest.fixture
def database(tmp_path, monkeypatch):
    return connect(tmp_path, monkeypatch)


def sentence(kind, *rows, **options):
    """Load, and return what the error says: one line, without a password or a value."""
    with pytest.raises(kind) as caught:
        load(*(rows or [row(text=SECRET)]), **options)
    assert type(caught.value) is kind
    said = str(caught.value)
    assert "\n" not in said
    assert PASSWORD not in said
    assert SECRET not in said
    return said


class Load:
    """A load that stops half way until it is told to go on."""

    def __init__(self, *batch_ids):
        self.is_half_way, self.goes_on = Event(), Event()
        self._batch_ids = batch_ids

    def __enter__(self):
        self._pool = ThreadPoolExecutor()
        self._future = self._pool.submit(open_warehouse("warehouse", "t").replace, self._batch_ids, self._rows())
        return self

    def __exit__(self, *_):
        self.goes_on.set()
        self._pool.shutdown()
        self._future.result()

    def _rows(self):
        yield from (row(self._batch_ids[0], f"{SECRET}-{n}", text="x" * 1_000) for n in range(2_000))
        self.is_half_way.set()
        assert self.goes_on.wait(PATIENCE)
        yield row(self._batch_ids[0], "last")


# Names


def test_names_without_quotes_fold_as_postgres_folds_them(database):
    for name in ("Marts.MyLabels", '"Marts"."MyLabels"', "Größe_Ä", "MARTS.mylabels"):
        load(row(text=name), table=name)
        assert database.query(f"SELECT text FROM {name}_Latest".replace('"_Latest', '_latest"')) == [(name,)]
    assert database.query("SELECT text FROM marts.mylabels") == [("MARTS.mylabels",)]


def test_a_table_may_be_named_with_its_database(database):
    load(row(), table=f"{database.database}.marts.t")
    load(row(text="again"), table=f"{database.database}.marts.t")
    assert database.query("SELECT text FROM marts.t_current") == [("again",)]
    assert "cross-database references are not implemented" in sentence(Misconfigured, table="other.marts.t")


def test_tables_of_one_name_in_two_schemas_have_their_own_views(database):
    load(row(text="one"), table="one.t")
    load(row(text="two"), table="two.t")
    load(row(text="neither"))
    assert [database.query(f"SELECT text FROM {name}.t_latest") for name in ("one", "two", "public")] == [
        [("one",)],
        [("two",)],
        [("neither",)],
    ]


def test_the_search_path_of_the_connection_is_followed(database, monkeypatch):
    database.execute("CREATE SCHEMA marts")
    connect_to(database, monkeypatch, options="-c search_path=marts")
    load(row())
    assert ids(database, "marts.t_latest") == [("msgbatch_1", "a")]


def test_views_stand_beside_the_table_that_the_search_path_finds_now(database, monkeypatch):
    database.execute("CREATE SCHEMA older", "CREATE SCHEMA newer")
    connect_to(database, monkeypatch, options="-c search_path=older,newer")
    load(row(text="old"))
    database.execute("CREATE TABLE newer.t (LIKE older.t)")
    connect_to(database, monkeypatch, options="-c search_path=newer,older")
    load(row("two", text="new"))
    assert database.query("SELECT text FROM newer.t_current") == [("new",)]
    assert database.query("SELECT text FROM older.t_current") == [("old",)]


def test_views_stand_beside_a_table_in_a_schema_that_is_not_the_first(database, monkeypatch):
    database.execute("CREATE SCHEMA mine", "CREATE SCHEMA shared")
    load(row(), table="shared.t")
    database.execute(*(f"DROP VIEW shared.t_{name}" for name in ("errors", "current", "latest")))
    connect_to(database, monkeypatch, options="-c search_path=mine,shared")
    load(row("two", "b"))
    assert ids(database, "shared.t_latest") == [("msgbatch_1", "a"), ("two", "b")]


def test_a_name_that_would_be_cut_off_is_refused(database):
    load(row(), table="t" * 55)
    assert "would cut" in sentence(Misconfigured, table="t" * 56)
    assert "would cut" in sentence(Misconfigured, columns=[*COLUMNS, Column("é" * 32, "text")])


def test_a_column_of_another_case_is_another_column(database):
    typed = row()
    typed.typed = (1.5,)
    columns = [*COLUMNS, Column("Score", "double")]
    database.execute('CREATE TABLE t (batch_id text, "Score" text)')
    for _ in range(2):
        load(typed, columns=columns)
    assert database.query('SELECT "Score", score FROM t_latest') == [(None, 1.5)]


# Types and values


def test_the_types_are_those_of_the_contract(database):
    load(row())
    found = database.types()
    assert {found[name] for name in NAMES if name.endswith(("_at", "_date"))} == {"timestamp with time zone"}
    assert (found["cost_usd"], found["content"], found["retryable"]) == ("numeric(18,12)", "json", "boolean")
    indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 't' AND indexdef LIKE '%(batch_id)'"
    assert database.query(indexes) == [(1,)]


@pytest.mark.parametrize("kind", ["jsonb", "character varying", "json[]"])
def test_a_type_that_changes_what_is_written_is_refused(database, kind):
    database.execute(f"CREATE TABLE t (content {kind})")
    assert f'Column content of "t" is {kind.replace("json[]", "json[]")}, and rows need json' in sentence(Misconfigured)


TYPED = {
    "text": ["", "\\N", "\\.", "a\\tb\tc\r\n", None],
    "bigint": [2**63 - 1, -(2**63), 0, None, 1],
    "double": [1e308, float("inf"), 5e-324, None, -0.1],
    "boolean": [True, False, None, True, True],
    "date": [date(1, 1, 1), date(9999, 12, 31), None, date(2026, 11, 21), date(999, 1, 2)],
    "timestamp": [datetime(1, 1, 1, tzinfo=UTC), None, *[datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)] * 3],
    "decimal": [Decimal("1E-9"), Decimal("9" * 29 + ".999999999"), Decimal("1E+5"), None, Decimal(-1)],
    "money": [Decimal("999999.999999999999"), None, Decimal(0), Decimal("-0.1"), Decimal("1E-12")],
    "json": ['{"a":  1}', '"\\ud800\\u0000"', None, '"\\\\n"', "[1e400]"],
}


def test_values_of_every_kind_come_back(database):
    columns = [*COLUMNS, *(Column(f"x_{kind}", kind) for kind in TYPED)]
    made = [row(custom_id=str(n)) for n in range(5)]
    for n, one in enumerate(made):
        one.typed = tuple(values[n] for values in TYPED.values())
    load(*made, columns=columns)
    found = database.query(f"SELECT {', '.join(f'x_{kind}' for kind in TYPED)} FROM t ORDER BY custom_id")
    naive = [value and value.replace(tzinfo=None) for value in TYPED["timestamp"]]
    assert list(zip(*found, strict=True)) == [tuple(values) for values in (TYPED | {"timestamp": naive}).values()]


def test_what_no_text_can_hold_is_replaced(database):
    load(row(custom_id="nul\0", text="a\ud800b \ud83c\udfab\udc00", error_message="\0", dag_id="\0dag"))
    assert database.query("SELECT custom_id, text, error_message, dag_id FROM t") == [
        ("nul\ufffd", "a\ufffdb 🎫\ufffd", "\ufffd", "\ufffddag")
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(), st.none() | st.text()), min_size=1))
def test_every_text_comes_back(shared, texts):
    load(*(row("b", str(n), text=text, problem=other) for n, (text, other) in enumerate(texts)))
    found = shared.query("SELECT text, problem FROM t ORDER BY custom_id::int")
    assert found == [tuple(one and one.replace("\0", "\ufffd") for one in pair) for pair in texts]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield connect(tmp_path_factory.mktemp("shared"), patch)


def test_long_rows_travel_in_small_pieces():
    pieces = list(encode(many_rows("b", 1_000, 1_000), COLUMNS))
    assert len(pieces) > 20
    assert max(map(len, pieces)) < 100_000


def test_another_encoding_of_the_connection_changes_nothing(database, monkeypatch):
    connect_to(database, monkeypatch, client_encoding="latin1")
    load(row(text="🎫 é"))
    assert database.query("SELECT text FROM t") == [("🎫 é",)]


# Several at once


def test_a_sample_does_not_wait_long_for_a_table_that_is_locked(database, monkeypatch):
    writer = load(row(text="here"))
    monkeypatch.setattr(postgres, "_SHORT_PATIENCE", "100ms")
    with database.open(autocommit=False) as con:
        con.execute("LOCK TABLE t")
        with pytest.raises(WarehouseUnavailable, match="lock timeout"):
            writer.sample(["msgbatch_1"], failed=False, limit=9)
    assert [one.text for one in writer.sample(["msgbatch_1"], failed=False, limit=9)] == ["here"]


def test_a_reader_sees_the_old_rows_until_all_new_ones_are_there(database):
    load(row("one", "old"))
    with Load("one") as half:
        assert half.is_half_way.wait(PATIENCE)
        for name in ("t", "t_latest"):
            assert ids(database, name) == [("one", "old")]
    assert len(ids(database)) == 2_001


def test_loads_of_different_batches_do_not_wait_for_one_another(database):
    load(row("zero"))
    with Load("one", "two") as half:
        assert half.is_half_way.wait(PATIENCE)
        load(row("three"), row("four"))
        load(row("five"), row("zero", "new"))
    assert len(ids(database, "t WHERE batch_id != 'one'")) == 4


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("others", [0, 150])
def test_the_same_batch_loaded_twice_at_once_is_there_once(database, monkeypatch, level, others):
    connect_to(database, monkeypatch, options="-c default_transaction_isolation=" + level.replace(" ", "\\ "))
    load(row("zero"))
    batches = ["b", "one", *(f"other-{n}" for n in range(others))]
    with ThreadPoolExecutor() as pool:
        with Load("one", "a") as half:
            assert half.is_half_way.wait(PATIENCE)
            second = pool.submit(load, row("one", "second"), batches=batches)
            assert not wait([second], 0.2).done
        second.result(PATIENCE)
    assert ids(database) == [("one", "second"), ("zero", "a")]


def test_a_batch_that_someone_holds_is_not_waited_for_beyond_the_users_own_limit(database, monkeypatch):
    load(row("one"))
    with Load("one") as half:
        assert half.is_half_way.wait(PATIENCE)
        connect_to(database, monkeypatch, options="-c lock_timeout=50")
        assert "lock timeout" in sentence(WarehouseUnavailable, row("one"))


def test_thousands_of_batches_are_replaced_and_read_back(database):
    names = [f"batch-{n}" for n in range(5_000)]
    for text in ("old", "new"):
        writer = load(*(row(name, retryable=True, text=text) for name in names))
    assert database.query("SELECT count(*), min(text) FROM t") == [(5_000, "new")]
    assert sum(1 for _ in writer.retryable(names)) == 5_000


def test_columns_are_added_once_when_loads_race_for_them(database):
    load(row())
    columns = [*COLUMNS, *(Column(f"x{n}", "text") for n in range(30))]
    made = [row(f"b{n}") for n in range(4)]
    for one in made:
        one.typed = ("x",) * 30
    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(load, one, columns=columns) for one in made]:
            future.result(PATIENCE)
    assert list(database.types("t_latest")) == [*NAMES, *(f"x{n}" for n in range(30))]
    assert database.query("SELECT count(*), count(x29) FROM t") == [(5, 4)]


# What is in the way


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_of_that_name_is_no_table(database, kind):
    database.execute(f"CREATE {kind} t AS SELECT 1 AS batch_id")
    assert '"t" is a view: choose another name' in sentence(Misconfigured)


def test_a_table_in_the_place_of_a_view_is_left_alone(database):
    database.execute("CREATE TABLE t_latest (mine text)")
    assert '"t_latest" is a table, and a load keeps a view of that name' in sentence(Misconfigured)
    assert database.types("t_latest") == {"mine": "text"}
    assert database.types() == {}


def test_a_view_of_the_user_on_ours_stays(database):
    load(row())
    database.execute("CREATE VIEW mine AS SELECT custom_id FROM t_latest")
    typed = row("two", "b")
    typed.typed = ("x",)
    load(typed, columns=[*COLUMNS, Column("label", "text")])
    assert sorted(database.query("SELECT custom_id FROM mine")) == [("a",), ("b",)]
    assert database.query("SELECT label FROM t_latest WHERE custom_id = 'b'") == [("x",)]


def test_a_view_that_something_stands_on_is_not_dropped(database):
    database.execute("CREATE TABLE t (batch_id text)", "CREATE VIEW t_latest AS SELECT 1 AS odd")
    database.execute("CREATE VIEW mine AS SELECT odd FROM t_latest")
    assert "because other objects depend on it" in sentence(Misconfigured)
    assert database.types() == {"batch_id": "text"}


def test_rows_are_loaded_though_a_view_of_the_user_keeps_ours_as_it_was(database, caplog):
    typed = [*COLUMNS, Column("score", "bigint")]
    load(row("one", typed=(5,)), columns=typed)
    database.execute("CREATE VIEW mine AS SELECT score FROM t_latest", "ALTER TABLE t RENAME COLUMN score TO former")
    load(row("two", "b"))
    assert "cannot be made again: cannot drop view" in caplog.text
    assert ids(database) == ids(database, "t_latest") == [("one", "a"), ("two", "b")]
    database.execute("DROP VIEW mine")
    load(row("two", "b"))
    assert database.query("SELECT former FROM t_latest WHERE custom_id = 'a'") == [(5,)]


def test_a_materialized_view_in_the_place_of_a_view_stays(database):
    load(row())
    database.execute("DROP VIEW t_current", "CREATE MATERIALIZED VIEW t_current AS SELECT batch_id FROM t")
    load(row(typed=(5,)), columns=[*COLUMNS, Column("score", "bigint")])
    assert list(database.types("t_current")) == ["batch_id"]
    assert database.query("SELECT score FROM t_latest") == [(5,)]


@pytest.fixture
def guest(database):
    """A role that may do nothing yet."""
    database.execute("DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN")
    yield "guest"
    database.execute("DROP OWNED BY guest", "DROP ROLE guest")


def test_what_is_not_permitted_is_said(database, guest, monkeypatch):
    connect_to(database, monkeypatch, login=guest)
    assert "permission denied for schema public (InsufficientPrivilege 42501)" in sentence(Misconfigured)
    assert "permission denied for database" in sentence(Misconfigured, table="marts.t")
    connect_to(database, monkeypatch)
    load(row())
    connect_to(database, monkeypatch, login=guest)
    assert "permission denied for table t" in sentence(Misconfigured)


def test_a_table_that_is_complete_takes_no_more_than_its_own_rights(database, guest, monkeypatch):
    load(row(), table="marts.t")
    database.execute("GRANT USAGE ON SCHEMA marts TO guest", "GRANT SELECT, INSERT, DELETE ON marts.t TO guest")
    connect_to(database, monkeypatch, login=guest)
    load(row(custom_id="b"), table="marts.t")
    assert ids(database, "marts.t") == [("msgbatch_1", "b")]


def test_a_column_that_another_role_adds_takes_no_more_rights(database, guest, monkeypatch, caplog):
    load(row(), table="marts.t")
    database.execute("GRANT USAGE ON SCHEMA marts TO guest", "GRANT SELECT, INSERT, DELETE ON marts.t TO guest")
    database.execute("ALTER TABLE marts.t ADD COLUMN reviewed boolean")
    connect_to(database, monkeypatch, login=guest)
    load(row(custom_id="b"), table="marts.t")
    assert 'beside "marts"."t" do not show all that it has' in caplog.text
    assert ids(database, "marts.t") == [("msgbatch_1", "b")]


def guard(database, *policies):
    """Give a table policies that apply to the guest, which has all other rights."""
    database.execute("GRANT SELECT, INSERT, DELETE ON t TO guest", "ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    database.execute(*(f"CREATE POLICY may_{kind} ON t FOR {kind} TO guest {rule}" for kind, rule in policies))


def test_a_table_with_policies_takes_rows_that_they_allow(database, guest, monkeypatch):
    load(row(text="old"), row("two", "b"))
    guard(database, ("ALL", "USING (true)"))
    connect_to(database, monkeypatch, login=guest)
    rows = [row(custom_id=str(n), text="a\tb\\\n", content='[{"n": 1.50}]') for n in range(2_000)]
    load(*rows)
    assert database.query("SELECT count(*), count(DISTINCT custom_id) FROM t") == [(2_001, 2_001)]
    assert database.query("SELECT DISTINCT text, content::text FROM t WHERE batch_id = 'msgbatch_1'") == [
        ("a\tb\\\n", '[{"n": 1.50}]')
    ]


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ([("SELECT", "USING (true)"), ("INSERT", "WITH CHECK (true)")], "do not let this role delete the old rows"),
        ([("ALL", "USING (true) WITH CHECK (dag_id = 'other')")], "new row violates row-level security policy"),
    ],
)
def test_policies_that_do_not_allow_a_load_leave_the_old_rows(database, guest, monkeypatch, policies, said):
    load(row(custom_id="old"))
    guard(database, *policies)
    connect_to(database, monkeypatch, login=guest)
    assert said in sentence(Misconfigured)
    assert ids(database) == [("msgbatch_1", "old")]


def test_no_error_quotes_what_the_server_says_of_a_value(database, caplog):
    load(row())
    assert "(NumericValueOutOfRange 22003)" in sentence(Misconfigured, row(cost_usd=Decimal("1E+9"), text=SECRET))
    database.execute(
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'I saw %', NEW.text; END $$",
        "CREATE TRIGGER shout BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION shout()",
    )
    assert "the server refused what it was given (RaiseException P0001)" in sentence(Misconfigured)
    assert SECRET not in caplog.text


# What is out of reach


@pytest.mark.parametrize("is_3", [True, False])
def test_any_hook_of_airflow_will_do(database, monkeypatch, is_3):
    monkeypatch.setattr(airflow_postgres, "USE_PSYCOPG3", is_3)
    for extra in ({}, {"cursor": "dictcursor", "sslmode": "prefer", "sqlalchemy_query": {"x": "y"}}):
        connect_to(database, monkeypatch, **extra)
        writer = load(row(retryable=True, request_hash="h"))
        assert list(writer.retryable(["msgbatch_1"])) == [("a", None, None, "succeeded")]
        assert list(writer.answered(LATER)) == [("a", "h")]


def test_the_token_of_iam_takes_the_place_of_a_password(database, guest, monkeypatch):
    connect_to(database, monkeypatch, iam=True, login="nobody")
    monkeypatch.setattr(airflow_postgres.PostgresHook, "get_iam_token", lambda *_: (guest, "token", 5432))
    assert "permission denied for schema" in sentence(Misconfigured)


def test_each_trouble_with_a_connection_is_one_clear_sentence(database, monkeypatch):
    for fields, said, kind in [
        ({"login": "nobody"}, 'role "nobody" does not exist', Misconfigured),
        ({"no_such_option": "1"}, 'invalid connection option "no_such_option"', Misconfigured),
        ({"sslmode": "bogus"}, 'invalid sslmode value: "bogus"', Misconfigured),
        ({"options": "-c no_such_setting=1"}, 'unrecognized configuration parameter "no_such_setting"', Misconfigured),
        ({"options": "-c statement_timeout=1"}, "statement timeout (QueryCanceled 57014)", WarehouseUnavailable),
        ({"options": "-c default_transaction_read_only=on"}, "read-only transaction", WarehouseUnavailable),
    ]:
        connect_to(database, monkeypatch, **fields)
        rows = many_rows("b", 20_000, 64) if "statement" in said else [row(text=SECRET)]
        assert said in sentence(kind, *rows)
    connect_to(Postgres(database.host, "gone"), monkeypatch)
    assert 'database "gone" does not exist' in sentence(Misconfigured)
    connect_to(Postgres(f"{database.host}/nowhere", "gone"), monkeypatch)
    assert "PostgreSQL could not use connection 'warehouse'" in sentence(WarehouseUnavailable)


def endless(server_goes, after=20_000):
    for n in count():
        if n == after:
            server_goes()
        yield row("one", f"{SECRET}-{n}", text=SECRET * 10)


def test_a_session_that_is_ended_may_come_back(database):
    writer = load(row("one", "old"))
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid != "
    with pytest.raises(WarehouseUnavailable, match="could not use connection"):
        writer.replace(["one"], endless(lambda: database.execute(f"{others} pg_backend_pid()")))
    assert ids(database) == [("one", "old")]


def test_a_server_that_stops_half_way_may_come_back(monkeypatch):
    server = Server()
    connect_to(Postgres(server.host, "postgres"), monkeypatch)
    writer = load(row("one", "old"))
    with pytest.raises(WarehouseUnavailable) as caught:
        writer.replace(["one"], endless(server.stop))
    assert SECRET not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_what_breaks_off_is_not_told_to_the_server(monkeypatch):
    server = Server(log_statement="all")
    connect_to(Postgres(server.host, "postgres"), monkeypatch)
    writer = load(row("one", "old"))

    def broken():
        yield row("one", "new")
        raise RuntimeError(SECRET)

    with pytest.raises(RuntimeError, match=SECRET):
        writer.replace(["one"], broken())
    load(row("one", "newer"))
    server.stop()
    assert "COPY" in server.log
    assert SECRET not in server.log
