import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch import receipt as receipts
from airflow_provider_claude_batch.batch import Batch, Counts
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt import ModelTotal, Part, Receipt, UsageTotal, read

NOW = datetime(2026, 11, 21, 23, tzinfo=UTC)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
count = st.integers(0, 2**40)
few = st.integers(0, 10**9)
money = st.floats(0, 1e6)
moment = st.integers(946_684_800, 2**31).map(lambda seconds: datetime.fromtimestamp(seconds + 0.25, UTC))
tally = st.dictionaries(text, count, max_size=3)
maybe = st.none().__or__
models = st.builds(ModelTotal, count, count, count, count, count, rows=count, cost_usd=maybe(money))
parts = st.builds(
    Part,
    id=text,
    requests=maybe(few),
    bytes=maybe(few),
    mark=maybe(text),
    counts=maybe(st.builds(Counts, few, few, few, few, few)),
    created_at=maybe(moment),
    ended_at=maybe(moment),
    expires_at=maybe(moment),
    first=maybe(few),
    ids_hash=maybe(text),
)
whole = st.builds(
    Receipt,
    submission=text,
    batches=st.lists(parts, max_size=3).map(tuple),
    dag_id=maybe(text),
    map_index=st.integers(-1, 9),
    logical_date=maybe(moment),
    attempt=st.integers(1, 9),
    models=st.lists(text, max_size=2).map(tuple),
    estimate_usd=maybe(money),
    submitted_at=maybe(moment),
    rows=maybe(count),
    counts=maybe(tally),
    problems=maybe(tally),
    retry_ids=maybe(st.lists(text, max_size=3).map(tuple)),
    truncated_ids=maybe(tally),
    usage=maybe(st.builds(UsageTotal, count, count, count, count, count)),
    cost_usd=maybe(money),
    cache_hit_rate=maybe(st.floats(0, 1)),
    by_model=maybe(st.dictionaries(text, models, max_size=2)),
    errors=maybe(st.lists(st.tuples(text, count), max_size=3).map(tuple)),
    error_examples=maybe(st.dictionaries(text, st.lists(text, max_size=3).map(tuple), max_size=2)),
)


@settings(max_examples=75, deadline=None)
@given(whole)
def test_a_receipt_survives_json_even_where_the_order_of_keys_is_lost(receipt):
    value = receipt.to_dict()
    assert next(iter(value)) == "v"
    assert read(json.loads(json.dumps(value))) == [receipt]
    assert read(json.loads(json.dumps(value, sort_keys=True))) == [receipt]


def test_a_receipt_of_a_later_version_of_this_package_may_say_more():
    assert read({**Receipt("sub_1").to_dict(), "from_the_future": {"x": 1}}) == [Receipt("sub_1")]


def test_whatever_stands_for_batches_is_read():
    one, other = Receipt("sub_1", (Part("msgbatch_1", 7),)), Receipt("sub_2")
    bare = Receipt("msgbatch_9", (Part("msgbatch_9"),))
    assert read(None) == read([]) == []
    assert read("msgbatch_9") == [bare]
    assert read(["msgbatch_9", [one.to_dict()], None, other.to_dict()]) == [bare, one, other]
    assert read((one.to_dict(),)) == [one]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "of type int"),
        ([7], "of type int"),
        ("batch_1", "start with 'msgbatch_'"),
        ("", "start with 'msgbatch_'"),
        ({"submission": "sub_1"}, "not a receipt of version 1"),
        ({"v": 2, "submission": "sub_1"}, "not a receipt of version 1"),
        ({1: "a", "b": 2}, "the keys ['1', 'b']"),
        ({"v": 1}, "missing required field `submission`"),
        ({"v": 1, "submission": "s", "batches": [{"id": 7}]}, "Expected `str`, got `int`"),
        ({"v": 1, "submission": "s", "usage": {"input_tokens": 10**400}}, "usage.input_tokens is not between 0 and"),
        ({"v": 1, "submission": "s", "cost_usd": 10**400}, "out of range"),
        ({"v": 1, "submission": "s", "cost_usd": float("nan")}, "cost_usd is not between 0 and"),
        ({"v": 1, "submission": "s", "counts": {"succeeded": -1}}, "counts is not between 0 and"),
        ({"v": 1, "submission": "s", "submitted_at": "9999-12-31T23:59:59Z"}, "between the years 2000 and 2999"),
        ({"v": 1, "submission": "s", "submitted_at": "2026-12-01T00:00:00"}, "submitted_at has no time zone"),
        ({"v": 1, "submission": "s", "conn_id": "\ud800"}, "holds halves of characters"),
        ({"v": 1, "submission": "s", "retry_ids": ["x"] * 10_001}, "retry_ids has more than 10,000 entries"),
    ],
)
def test_what_is_not_a_receipt_is_refused_in_one_sentence(value, said):
    with pytest.raises(Misconfigured) as caught:
        read(value)
    assert said in str(caught.value)
    assert str(caught.value).endswith((".", "'msgbatch_'."))


def test_what_our_own_steps_write_is_within_the_bounds_whatever_it_quotes():
    long = "x" * 1_000_000
    sql = receipts.Source(conn_id="app_db", sql=long, custom_id="id")
    receipt = Receipt("s", source=sql, invalid={f"custom_id {long}": (long,) * 3}, errors=(("x" * 200, 1),))
    receipt = receipts.replace(receipt, batches=(Part("b"),) * 20_000, retry_ids=("a\0b",))
    saved_nothing = receipts.replace(receipt, cost_usd=2.0, live_cost_usd=1.0, saved_usd=-1.0)
    assert read(saved_nothing.to_dict()) == [saved_nothing]


def test_a_sequence_that_makes_each_item_when_it_is_read_is_never_sliced():
    class MadeByMap(Sequence):
        def __getitem__(self, index):
            assert isinstance(index, int)
            return ("msgbatch_1", "msgbatch_2")[index]

        def __len__(self):
            return 2

    assert [receipt.submission for receipt in read(MadeByMap())] == ["msgbatch_1", "msgbatch_2"]


def test_what_the_wait_saw_goes_to_its_batch_and_leaves_the_others():
    receipt = Receipt("sub_1", (Part("msgbatch_1", 7, 99, "mark"), Part("msgbatch_2", 3)))
    batch = Batch("msgbatch_1", "ended", Counts(succeeded=7), NOW, NOW + timedelta(hours=24), ended_at=NOW)
    seen = receipt.seen({"msgbatch_1": batch})
    assert seen.batches[0] == Part(
        "msgbatch_1", 7, 99, "mark", Counts(succeeded=7), NOW, NOW, NOW + timedelta(hours=24)
    )
    assert seen.batches[1] == receipt.batches[1]
    assert seen.batch_ids == ("msgbatch_1", "msgbatch_2")


def test_a_moment_of_another_zone_is_the_same_moment():
    there = Receipt("s", submitted_at=NOW.astimezone(timezone(timedelta(hours=9))))
    (back,) = read(json.loads(json.dumps(there.to_dict())))
    assert back.submitted_at == NOW


def test_a_receipt_stays_small_whatever_the_batch():
    receipt = Receipt("s", (Part("msgbatch_1", 100_000, 250_000_000, "mark"),), requests=100_000, rows=100_000)
    assert len(json.dumps(receipt.to_dict())) < 1_000


def test_json_of_a_record_holds_no_tuples_and_no_moments():
    value = receipts.as_json(Receipt("s", submitted_at=NOW, errors=(("why", 1),)))
    assert value["submitted_at"] == "2026-11-21T23:00:00Z"
    assert value["errors"] == [["why", 1]]
