"""One list of scenarios for every warehouse; what only one of them has stands in a file of its own."""

import signal
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from loads import LATER, MORNING, ids, row, start
from loads import load_rows as load

from airflow_provider_claude_batch.connection import open_warehouse
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers.sample import Sample

NAMES = [column.name for column in COLUMNS]
NOON = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)


# What every warehouse does


def test_the_table_and_its_views_are_created_with_our_columns_in_order(warehouse):
    load(row())
    for name in ("t", "t_latest", "t_current", "t_errors"):
        assert list(warehouse.types(name)) == NAMES
    assert ids(warehouse) == ids(warehouse, "t_latest") == ids(warehouse, "t_current") == [("msgbatch_1", "a")]
    assert ids(warehouse, "t_errors") == []


def test_loading_twice_leaves_the_same_rows(warehouse):
    for _ in range(2):
        load(row(custom_id="a", text="x"), row(custom_id="b"))
        assert ids(warehouse) == [("msgbatch_1", "a"), ("msgbatch_1", "b")]


def test_only_the_batches_named_are_replaced(warehouse):
    load(row("one"), row("two"), row("three"))
    load(row("one", "b"), row("two", "c"), batches=["one", "two"])
    assert ids(warehouse) == [("one", "b"), ("three", "a"), ("two", "c")]


def test_a_batch_without_rows_leaves_none_behind(warehouse):
    load(row("one"), row("two"))
    load(batches=["one", "unheard_of"])
    assert ids(warehouse) == [("two", "a")]


def test_a_batch_id_is_data_and_not_sql(warehouse):
    load(row("one"))
    load(row("' OR '1'='1"))
    assert len(ids(warehouse)) == 2


def test_a_table_of_an_older_version_gains_columns_and_keeps_what_is_not_ours(warehouse):
    text, number = warehouse.text, warehouse.number
    warehouse.execute(
        f"CREATE TABLE t (reviewed {text} DEFAULT 'no', batch_id {text}, \"Custom_ID\" {text}, attempt {number})",
        "INSERT INTO t VALUES ('yes', 'old', 'x', 1)",
    )
    load(row())
    load(row("msgbatch_2"))
    assert list(warehouse.types())[:4] == ["reviewed", "batch_id", "Custom_ID", "attempt"]
    assert {name.lower() for name in warehouse.types()} == {*NAMES, "reviewed"}
    assert sorted(warehouse.query("SELECT reviewed, batch_id FROM t")) == [
        ("no", "msgbatch_1"),
        ("no", "msgbatch_2"),
        ("yes", "old"),
    ]
    assert "reviewed" in warehouse.types("t_latest")


def test_views_of_an_older_version_are_brought_up_to_date(warehouse):
    load(row())
    warehouse.execute(*(f"DROP VIEW t_{name}" for name in ("errors", "current", "latest")))
    warehouse.execute("ALTER TABLE t DROP COLUMN loaded_at", "CREATE VIEW t_latest AS SELECT batch_id FROM t")
    load(row())
    assert list(warehouse.types("t_latest")) == list(warehouse.types("t_current")) == NAMES


def test_views_of_a_table_that_is_complete_are_put_back(warehouse):
    load(row())
    warehouse.execute("DROP VIEW t_current")
    load(row())
    assert ids(warehouse, "t_current") == [("msgbatch_1", "a")]


SCORED = [*COLUMNS, Column("score", "bigint")]
VIEWS = ("t_latest", "t_current", "t_errors")


@pytest.mark.parametrize("change", ["DROP COLUMN score", "RENAME COLUMN score TO former", "ADD COLUMN note TEXTS"])
def test_views_show_what_a_table_has_after_a_user_changed_its_columns(warehouse, change):
    cascade = getattr(warehouse, "cascade", "") if change.startswith("DROP") else ""
    load(row("one", typed=(5,)), columns=SCORED)
    warehouse.execute(f"ALTER TABLE t {change.replace('TEXTS', warehouse.text)}{cascade}")
    load(row("two", "b", status="expired"))
    for view in VIEWS:
        assert {*warehouse.types(view)} == {*warehouse.types()} != {*NAMES, "score"}
    assert ids(warehouse, "t_latest") == [("one", "a"), ("two", "b")]
    assert ids(warehouse, "t_errors") == [("two", "b")]
    load(row("three", "c", typed=(7,)), columns=SCORED)
    assert warehouse.query("SELECT score FROM t_current WHERE custom_id = 'c'") == [(7,)]


def test_a_column_of_ours_that_a_user_dropped_is_added_again(warehouse):
    load(row("one"))
    warehouse.execute(f"ALTER TABLE t DROP COLUMN error_type{getattr(warehouse, 'cascade', '')}")
    load(row("two", "b", error_type="api_error"))
    assert {*warehouse.types("t_latest")} == {*warehouse.types()} == {*NAMES}
    found = warehouse.query("SELECT custom_id, error_type FROM t_latest")
    assert sorted(found) == [("a", None), ("b", "api_error")]


@pytest.mark.parametrize("view", ["t_latest", "t_errors"])
def test_a_table_of_the_users_that_has_the_name_of_a_view_is_refused_and_left_alone(warehouse, view):
    load(row("one"))
    warehouse.execute(*(f"DROP VIEW {name}" for name in reversed(VIEWS)))
    warehouse.execute(f"CREATE TABLE {view} AS SELECT * FROM t WHERE 1 = 0")
    with pytest.raises(Misconfigured, match=rf"(?i){view}\S* is a table, and a load keeps a view of .*: rename it, or"):
        load(row("two"))
    assert ids(warehouse) == [("one", "a")]
    assert ids(warehouse, view) == []


@pytest.mark.parametrize("by", ["the user", "the load"])
def test_views_are_of_the_new_table_after_the_old_one_was_renamed(warehouse, by):
    load(row("one", text="old", problem="refused"))
    like = ", ".join(f"{name} {kind}" for name, kind in warehouse.types().items())
    warehouse.execute("ALTER TABLE t RENAME TO t_2026")
    if by == "the user":
        warehouse.execute(f"CREATE TABLE t ({like})")
    load(row("two", text="new", problem="refused"))
    for table in ("t", *VIEWS):
        assert warehouse.query(f"SELECT text FROM {table}") == [("new",)]
    assert warehouse.query("SELECT text FROM t_2026") == [("old",)]


def test_a_column_of_another_type_is_refused_and_nothing_is_changed(warehouse):
    wrong = warehouse.wrong
    warehouse.execute(f"CREATE TABLE t (batch_id {wrong})")
    with pytest.raises(
        Misconfigured, match=rf"Column batch_id of .* is {wrong}, and rows need .* choose another table"
    ):
        load(row())
    assert warehouse.types() == {"batch_id": wrong}


@pytest.mark.parametrize(
    "name",
    [
        *("select", "con", "log", "nth", "表", "rows_to_load", "claude_batch_t"),
        *('"odd name"', '"say ""hi"""', '"a.b"', '"it\'s"', '"; DROP TABLE t"', '"%s?"', '"🎫"'),
    ],
)
def test_odd_names_name_a_table(warehouse, name):
    load(row(text="first"), table=name)
    writer = load(row(text="second", request_hash="h"), table=name)
    quoted = name if name.startswith('"') else f'"{name}"'
    assert warehouse.query(f"SELECT text FROM {quoted}") == [("second",)]
    assert warehouse.query(f'SELECT text FROM {quoted[:-1]}_latest"') == [("second",)]
    assert list(writer.answered(LATER)) == [("a", "h")]


def test_a_name_that_is_not_a_name_is_refused(warehouse):
    with pytest.raises(Misconfigured, match="is not a table name"):
        load(row(), table="t; DROP TABLE t")


TEXTS = ["", "a\x00b", "\x00", "\u2028\u2029\u0085", "🎫 é 表", "'\"\\;--", " \t\r\n ", "NULL", "x" * 10_000_000]


def test_awkward_texts_come_back_as_they_were(warehouse):
    load(*(row(custom_id=str(n), text=text) for n, text in enumerate(TEXTS)))
    found = dict(warehouse.query("SELECT custom_id, text FROM t"))
    nul = getattr(warehouse, "nul", "\x00")
    assert [found[str(n)] == text.replace("\x00", nul) for n, text in enumerate(TEXTS)] == [True] * len(TEXTS)


@pytest.mark.parametrize(
    "content",
    ['[{"type":"text","text":"\\u0000\\u2028"}]', '{"a": 1e400}', "[]", "null", '[{"n":12345678901234567890}]'],
)
def test_json_comes_back_character_by_character(warehouse, content):
    load(row(content=content, output=content, stop_details=content))
    assert warehouse.query("SELECT content, output, stop_details FROM t") == [(content,) * 3]


def test_large_numbers_and_exact_money_come_back(warehouse):
    cent, most = Decimal("0.000000000001"), Decimal("999999.999999999999")
    load(row(output_tokens=2**63 - 1, map_index=-(2**63), cost_usd=cent, live_cost_usd=most, retryable=True))
    ((tokens, index, cost, live, retryable),) = warehouse.query(
        "SELECT output_tokens, map_index, cost_usd, live_cost_usd, retryable FROM t"
    )
    assert (tokens, index, bool(retryable)) == (2**63 - 1, -(2**63), True)
    assert (Decimal(cost), Decimal(live)) == (cent, most)


def test_moments_of_other_zones_land_as_utc(warehouse):
    there = NOON.astimezone(timezone(timedelta(hours=-9, minutes=-30)))
    load(row(logical_date=there, submitted_at=NOON, ended_at=None))
    ((logical, submitted, ended),) = warehouse.query("SELECT logical_date, submitted_at, ended_at FROM t")
    assert str(logical) == str(submitted) == "2026-11-21 12:00:00.123456"
    assert ended is None


def test_nothing_known_is_null(warehouse):
    nobody = dict.fromkeys(("custom_id", "dag_id", "run_id", "submit_task", "map_index", "element"))
    load(row(**nobody, status="unreadable"))
    (found,) = warehouse.query("SELECT * FROM t")
    known = {name for name, value in zip(NAMES, found, strict=True) if value is not None}
    assert known == {"submission", "attempt", "batch_id", "status", "retryable", "loaded_at"}


def test_what_may_be_tried_again_is_read_back(warehouse):
    writer = load(
        row("one", "b", status="expired", retryable=True),
        row("one", "a", problem="truncated", retryable=True, output_tokens=64),
        row("one", "c"),
        row("one", None, status="unreadable"),
        row("two", "d", status="canceled", retryable=True),
        row("three", "e", status="expired", retryable=True),
    )
    assert list(writer.retryable(["one", "two"])) == [
        ("a", "truncated", 64, "succeeded"),
        ("b", None, None, "expired"),
        ("d", None, None, "canceled"),
    ]
    assert list(writer.retryable(["unheard_of"])) == []


def test_what_has_a_usable_answer_is_read_back_once(warehouse):
    writer = load(
        row("one", "a", request_hash="h1"),
        row("two", "a", request_hash="h1"),
        row("two", "b", request_hash="h2", problem="truncated"),
        row("two", "c", request_hash="h3", status="errored"),
        row("two", "d", request_hash=None),
    )
    assert list(writer.answered(LATER)) == [("a", "h1")]


def test_an_answer_counts_once_it_is_loaded(warehouse):
    noon, night = MORNING + timedelta(hours=6), MORNING + timedelta(hours=18)
    writer = load(row("one", "a", request_hash="h", loaded_at=noon), row("two", "b", request_hash="h", loaded_at=night))
    assert list(writer.answered(noon)) == []
    assert list(writer.answered(noon + timedelta(microseconds=1))) == [("a", "h")]
    assert sorted(writer.answered(night + timedelta(hours=1))) == [("a", "h"), ("b", "h")]


def test_the_answer_is_the_one_that_the_current_view_shows(warehouse):
    noon = MORNING + timedelta(hours=6)
    writer = load(
        row("one", "a", submission="sub_1", request_hash="old question"),
        row("two", "a", submission="sub_2", request_hash="new question", loaded_at=noon),
        row("three", "a", submission="sub_3", request_hash="failed", status="errored", loaded_at=noon),
        row("four", "a", submission="sub_4", request_hash="of another task", submit_task="other"),
    )
    assert sorted(writer.answered(LATER)) == [("a", "new question"), ("a", "of another task")]
    assert sorted(writer.answered(noon)) == [("a", "of another task"), ("a", "old question")]


def test_a_table_that_is_not_there_yet_has_no_answers(warehouse):
    writer = open_warehouse("warehouse", "t")
    assert list(writer.answered(LATER)) == []
    assert not writer.exists()
    assert load(row()).exists()


def elements(warehouse, table="t_current"):
    return sorted(warehouse.query(f"SELECT map_index, element, text FROM {table}"))


def test_elements_of_a_mapped_task_that_share_ids_are_told_apart_by_their_names(warehouse):
    first, second = ({"submission": f"sub_{n}", "run_id": f"run {n}"} for n in (1, 2))
    writer = load(
        row("one", map_index=0, element="emea", text="emea 1", request_hash="e1", **first),
        row("two", map_index=1, element="apac", text="apac 1", request_hash="a1", **first),
        row("three", map_index=0, element="apac", text="apac 2", request_hash="a2", **second),
        row("four", map_index=1, element="emea", text="failed", status="errored", **second),
        row("five", map_index=-1, element="", text="not mapped", request_hash="n"),
    )
    current = [(-1, "", "not mapped"), (0, "apac", "apac 2"), (0, "emea", "emea 1")]
    assert elements(warehouse) == current
    assert sorted(writer.answered(LATER)) == [("a", "a2"), ("a", "e1"), ("a", "n")]
    assert len(elements(warehouse, "t_latest")) == 5


def test_rows_of_a_version_without_elements_count_by_their_map_index(warehouse):
    newer = {"submission": "sub_2", "run_id": "next run"}
    writer = load(
        row("one", map_index=0, element=None, text="old 0", request_hash="o0"),
        row("two", map_index=1, element=None, text="old 1", request_hash="o1"),
        row("three", map_index=-1, element=None, text="old", request_hash="o"),
        row("four", map_index=0, element="0", text="new 0", request_hash="n0", **newer),
        row("five", map_index=-1, element="", text="new", request_hash="n", **newer),
    )
    assert {text for *_, text in elements(warehouse)} == {"new", "new 0", "old 1"}
    assert sorted(writer.answered(LATER)) == [("a", "n"), ("a", "n0"), ("a", "o1")]


def test_answers_of_a_table_that_has_no_elements_yet_are_read_back(warehouse):
    writer = load(
        row("one", map_index=0, element="0", request_hash="h0"),
        row("two", map_index=1, element="1", request_hash="h1"),
        row("three", map_index=-1, element="", request_hash="h"),
    )
    warehouse.execute(f"ALTER TABLE t DROP COLUMN element{getattr(warehouse, 'cascade', '')}")
    assert sorted(writer.answered(LATER)) == [("a", "h"), ("a", "h0"), ("a", "h1")]


@pytest.mark.parametrize("order", [1, -1])
def test_of_batches_that_were_submitted_elsewhere_the_newest_counts(warehouse, order):
    def night(number, batch_id, **fields):
        moment = MORNING + timedelta(days=number)
        place = {"submission": batch_id, "submit_task": None, "submitted_at": moment, "text": f"night {number}"}
        return row(batch_id, request_hash=f"h{number}", **(place | fields))

    nights = [night(n, f"msgbatch_{name}") for n, name in enumerate("kzbxd")]
    failed = night(5, "msgbatch_c", status="expired", run_id="next run")
    writer = load(*[*nights, failed][::order])
    assert warehouse.query("SELECT text FROM t_current") == [("night 4",)]
    assert sorted(warehouse.query("SELECT text FROM t_latest")) == [("night 4",), ("night 5",)]
    assert list(writer.answered(LATER)) == [("a", "h4")]


def test_reading_back_holds_nothing_open(warehouse):
    writer = load(row(custom_id="a", retryable=True, request_hash="h"), row(custom_id="b", retryable=True))
    for found in (writer.retryable(["msgbatch_1"]), writer.answered(LATER)):
        assert next(found)[0] == "a"
        warehouse.execute("UPDATE t SET text = 'written meanwhile'")


def sampled(writer, *batches, failed=False, limit=10):
    return [one.custom_id for one in writer.sample(batches, failed=failed, limit=limit)]


def test_a_sample_of_rows_is_read_back_for_people_to_look_at(warehouse):
    writer = load(
        row("one", "c", model="claude", text="fine", input_tokens=3, output_tokens=4, cost_usd=Decimal("0.0000125")),
        row("two", "a", status="errored", error_type="api_error", error_message="It broke."),
        row("two", "b", problem="truncated", text="", input_tokens=2**40),
        row("two", None, status="unreadable", text="a line"),
        row("three", "d"),
    )
    assert writer.sample(["one", "two"], failed=False, limit=10) == [
        Sample("a", "errored", None, None, None, "api_error", "It broke.", None, None, None),
        Sample("b", "succeeded", "truncated", None, "", None, None, 2**40, None, None),
        Sample("c", "succeeded", None, "claude", "fine", None, None, 3, 4, 0.0000125),
        Sample(None, "unreadable", None, None, "a line", None, None, None, None, None),
    ]


def test_a_sample_of_what_failed_is_of_rows_that_are_not_usable(warehouse):
    rows = [row("one", "d", problem="refused"), row("one", "c", status="expired"), row("one", "b")]
    writer = load(*rows, row("one", None, status="unreadable"), row("two", "a", status="errored"))
    assert sampled(writer, "one", failed=True) == ["c", "d", None]
    assert sampled(writer, "two", "one", failed=True) == ["a", "c", "d", None]


def test_a_sample_is_the_first_rows_by_id_and_no_more_than_are_asked_for(warehouse):
    writer = load(*(row(f"batch-{n % 2}", f"id-{n:03}") for n in reversed(range(100))), row("batch-0", None))
    assert sampled(writer, "batch-0", "batch-1", limit=3) == ["id-000", "id-001", "id-002"]
    assert sampled(writer, "batch-1", limit=2) == ["id-001", "id-003"]
    assert sampled(writer, "batch-0", limit=99)[-2:] == ["id-098", None]


def test_a_request_of_two_batches_is_sampled_from_both(warehouse):
    writer = load(row("two", "a", text="of two"), row("one", "a", text="of one"), row("one", "b"))
    assert [one.text for one in writer.sample(["two", "one"], failed=False, limit=2)] == ["of one", "of two"]


def test_a_long_answer_is_sampled_by_how_it_begins(warehouse):
    writer = load(row(text="é表🎫" * 3_000_000), row(custom_id="b", text="x" * 2_000))
    assert [one.text for one in writer.sample(["msgbatch_1"], failed=False, limit=2)] == [
        ("é表🎫" * 667)[:2_000],
        "x" * 2_000,
    ]


def test_a_sample_of_a_thousand_batches_is_one_of_all(warehouse):
    writer = load(*(row(f"batch-{n:04}", f"id-{n:04}") for n in range(1_000)))
    batches = [f"batch-{n:04}" for n in reversed(range(1_000))]
    assert sampled(writer, *batches, limit=3) == ["id-0000", "id-0001", "id-0002"]
    assert sampled(writer, *batches, failed=True) == sampled(writer) == sampled(writer, "unheard of") == []


def test_a_sample_of_a_table_that_is_not_there_is_empty_and_creates_none(warehouse):
    load(row(), table="other")
    assert sampled(open_warehouse("warehouse", "t"), "msgbatch_1") == []
    load(row())
    assert ids(warehouse) == [("msgbatch_1", "a")]


def test_a_sample_of_a_table_that_is_none_of_ours_is_refused(warehouse):
    text = warehouse.text
    warehouse.execute(f"CREATE TABLE t (batch_id {text}, status {text}, text {text})")
    with pytest.raises(Misconfigured, match=r"(?i)t.? lacks custom_id, problem, model, .*: .* another table"):
        sampled(open_warehouse("warehouse", "t"), "msgbatch_1")
    assert list(warehouse.types()) == ["batch_id", "status", "text"]


# What the views show

STORY = [
    # one request, several submissions, attempts and runs; the text tells which one it is
    row("b1", "a", submission="sub_1", attempt=1, status="errored", text="first try"),
    row("b2", "a", submission="sub_1", attempt=2, text="second try, usable"),
    row("b3", "a", submission="sub_1", attempt=3, problem="truncated", text="third try, unusable"),
    row("b1", "b", submission="sub_1", attempt=1, text="usable, then"),
    row("b4", "b", submission="sub_2", attempt=1, status="errored", text="newer submission, unusable"),
    row("b1", "c", submission="sub_1", attempt=1, text="older"),
    row("b4", "c", submission="sub_2", attempt=1, text="newer"),
    row("b5", "c", submission="sub_3", attempt=1, run_id="next run", text="newest, of the next run"),
    row("b5", "b", submission="sub_3", attempt=1, run_id="next run", status="expired", text="next run, unusable"),
    row("b6", "a", submission="sub_4", submit_task="other", text="of another task"),
    row("b6", "a", submission="sub_4", map_index=1, status="expired", text="of another mapped task"),
    row("b6", "d", submission="sub_4", attempt=1, status="errored", text="failed, then"),
    row("b7", "d", submission="sub_4", attempt=2, status="errored", text="failed again"),
    row("b6", None, status="unreadable", text="unreadable"),
]


@pytest.mark.parametrize("order", [1, -1])
def test_the_latest_of_each_run_is_the_newest_submission_then_the_usable_then_the_last_attempt(warehouse, order):
    load(*STORY[::order])
    assert {text for (text,) in warehouse.query("SELECT text FROM t_latest")} == {
        "second try, usable",
        "newer submission, unusable",
        "newer",
        "newest, of the next run",
        "next run, unusable",
        "of another task",
        "of another mapped task",
        "failed again",
    }


@pytest.mark.parametrize("order", [1, -1])
def test_the_current_over_all_runs_is_the_newest_that_is_usable(warehouse, order):
    load(*STORY[::order])
    assert {text for (text,) in warehouse.query("SELECT text FROM t_current")} == {
        "second try, usable",
        "usable, then",
        "newest, of the next run",
        "of another task",
        "failed again",
    }


def test_the_errors_are_what_is_latest_and_not_usable(warehouse):
    load(*STORY)
    assert {text for (text,) in warehouse.query("SELECT text FROM t_errors")} == {
        "newer submission, unusable",
        "next run, unusable",
        "of another mapped task",
        "failed again",
    }


def test_views_show_one_row_for_each_request_whatever_was_loaded(warehouse):
    load(*STORY)
    total = warehouse.query(
        "SELECT count(*), count(DISTINCT run_id || submit_task || map_index || custom_id) FROM t_latest"
    )
    assert total == [(8, 8)]


# What goes wrong


def test_rows_that_break_off_leave_the_old_ones(warehouse):
    def broken():
        yield from (row(custom_id=f"new-{n}") for n in range(20_000))
        raise RuntimeError("the stream broke off")

    writer = load(row(custom_id="old"))
    with pytest.raises(RuntimeError, match="broke off"):
        writer.replace(["msgbatch_1"], broken())
    assert ids(warehouse) == [("msgbatch_1", "old")]
    load(row(custom_id="new"))
    assert ids(warehouse) == [("msgbatch_1", "new")]


def test_a_swap_that_fails_leaves_the_old_rows(warehouse):
    writer = load(row(custom_id="old"))
    warehouse.execute("CREATE UNIQUE INDEX once ON t (custom_id)")
    with pytest.raises(Misconfigured, match=r"(?i)could not use connection 'warehouse': .*(unique|duplicate)"):
        writer.replace(["msgbatch_1"], iter([row(custom_id="same"), row(custom_id="same")]))
    assert ids(warehouse) == [("msgbatch_1", "old")]


def test_a_load_that_is_killed_leaves_the_old_rows(warehouse, tmp_path):
    load(row("killed", "old"))
    process, told = start("stuck", "killed", TMPDIR=str(tmp_path))
    assert told.recv() == "half way"
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ids(warehouse) == [("killed", "old")]
    load(row("killed", "new"))
    assert ids(warehouse) == [("killed", "new")]


def test_loads_that_race_for_a_new_table_all_arrive(warehouse):
    processes = [start("race", f"batch-{n}")[0] for n in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = warehouse.query("SELECT batch_id, count(*) FROM t GROUP BY batch_id ORDER BY batch_id")
    assert found == [("batch-0", 500), ("batch-1", 500), ("batch-2", 500)]
    assert warehouse.query("SELECT count(*) FROM t_latest") == [(500,)]


def test_a_hundred_thousand_rows_do_not_take_the_memory_of_a_hundred_thousand_rows(warehouse):
    process, told = start("measure", "big")
    grown = told.recv()
    process.join()
    assert grown < warehouse.grows
    assert warehouse.query("SELECT count(*), sum(length(text)) FROM t WHERE batch_id = 'big'") == [(100_000, 10**8)]
