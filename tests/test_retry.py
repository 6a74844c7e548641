import json

import pytest

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt import Part, Receipt, replace
from airflow_provider_claude_batch.request import Defaults
from airflow_provider_claude_batch.retry import Retry

NO_DEFAULTS = Defaults({})


def loaded(*ids, truncated=None, retryable=None, submission="sub_1", **fields):
    truncated = truncated or {}
    return Receipt(
        submission=submission,
        retry_ids=ids,
        truncated_ids=truncated,
        retryable=len(ids) + len(truncated) if retryable is None else retryable,
        **fields,
    )


def never(receipt):
    raise AssertionError("the table was asked")


def raw(custom_id, **params):
    return {"custom_id": custom_id, "params": params}


def selected(retry, source, defaults=NO_DEFAULTS):
    return [item["custom_id"] for item in retry.select(source, defaults)]


def test_a_perfect_load_has_nothing_to_retry():
    assert Retry.of([loaded()], never) is None


def test_only_what_may_go_better_is_tried_again_in_the_order_of_the_source():
    retry = Retry.of([loaded("a", "c")], never)
    assert selected(retry, [raw("c"), raw("b"), raw("a"), "odd", {"custom_id": ["a"]}, None]) == ["c", "a"]


@pytest.mark.parametrize(
    ("own", "default", "again"),
    [(65, None, True), (64, None, False), (None, 128, True), (None, 64, False), (32, 128, False), (None, None, False)],
)
def test_a_truncated_answer_is_tried_again_only_with_more_tokens(own, default, again):
    retry = Retry.of([loaded(truncated={"a": 64})], never)
    params = {} if own is None else {"max_tokens": own}
    defaults = Defaults({} if default is None else {"max_tokens": default})
    assert selected(retry, [raw("a", **params)], defaults) == (["a"] if again else [])


READ_BACK = [("a", None, None, "expired"), ("b", "truncated", 9, "succeeded"), ("c", "paused", 7, "succeeded")]


def test_too_many_ids_for_a_receipt_are_read_back_from_the_table():
    receipt = loaded("a", retryable=3)
    retry = Retry.of([receipt], lambda _: iter(READ_BACK))
    assert retry.used_tokens == {"a": None, "b": 9, "c": None}


def test_what_was_canceled_at_a_deadline_is_left_out_where_that_is_asked_for():
    canceled = loaded("a", "b", "c", retryable_by={"canceled": 2, "expired": 1}, canceled_at_deadline=True)
    rows = [("a", None, None, "canceled"), ("b", None, None, "expired"), ("c", None, None, "canceled")]
    left = Retry.of([canceled], lambda _: iter(rows), retry_canceled=False)
    assert (left.used_tokens, left.lineage.left_out) == ({"b": None}, 2)
    every = Retry.of([canceled], never)
    assert (list(every.used_tokens), every.lineage.left_out) == (["a", "b", "c"], None)
    by_a_person = Retry.of([replace(canceled, canceled_at_deadline=None)], never, retry_canceled=False)
    assert (list(by_a_person.used_tokens), by_a_person.lineage.left_out) == (["a", "b", "c"], None)
    alone = loaded("a", retryable_by={"canceled": 1}, canceled_at_deadline=True)
    assert Retry.of([alone], never, retry_canceled=False) is None


def test_a_table_that_has_lost_rows_is_no_quiet_skip():
    receipt = loaded(retryable=1_003, batches=(Part("msgbatch_1"),), table="answers")
    for left, gone in (([], "1,003"), ([("a", None, None, "expired")], "1,002")):
        with pytest.raises(
            Misconfigured, match=rf"^{gone} of 1,003 .* of batch msgbatch_1 .* answers .*: clear the load"
        ):
            Retry.of([receipt], lambda _, left=left: iter(left))


def test_a_retry_carries_on_the_lineage_with_one_attempt_more():
    first = loaded("a", dag_id="d", run_id="r", submit_task="submit", map_index=4, attempt=1, table="t", conn_id="c")
    lineage = Retry.of([first, loaded("b", attempt=3)], never).lineage
    assert lineage == Receipt("sub_1", dag_id="d", run_id="r", submit_task="submit", map_index=4, attempt=4)


def test_receipts_of_several_submissions_are_refused():
    with pytest.raises(Misconfigured, match="one submission"):
        Retry.of([loaded("a", map_index=0), loaded("a", map_index=1, submission="sub_2")], never)


def test_a_receipt_that_was_never_loaded_is_refused():
    with pytest.raises(Misconfigured, match="the receipt of a load"):
        Retry.of([Receipt("sub_1")], never)


def test_an_id_that_the_source_lost_is_an_error_after_all_others_were_seen():
    retry = Retry.of([loaded(*(f"id-{n:02}" for n in range(12)), "here")], never)
    found = retry.select([raw("here")], NO_DEFAULTS)
    assert next(found)["custom_id"] == "here"
    with pytest.raises(Misconfigured, match=r"^12 requests .*: id-00, .*id-09\.$"):
        next(found)


def test_an_id_that_stands_twice_is_sent_once():
    assert selected(Retry.of([loaded("a")], never), [raw("a"), raw("a")]) == ["a"]


def test_of_two_that_share_an_id_the_one_is_tried_again_that_can_be_sent():
    unfit = {"custom_id": "a", "params": {"messages": []}}
    fit = raw("a", model="m", max_tokens=8, messages=[{"role": "user", "content": "x"}])
    for source in ([unfit, fit], [fit, unfit], [unfit, unfit, fit, fit]):
        assert list(Retry.of([loaded("a")], never).select(source, NO_DEFAULTS)) == [fit]
    line = json.dumps(fit).encode()
    assert list(Retry.of([loaded("a")], never).select([b"{", json.dumps(unfit).encode(), line], NO_DEFAULTS)) == [line]


def test_what_cannot_be_sent_any_more_is_not_lost_but_told_why():
    retry = Retry.of([loaded("a", "b")], never)
    fit = raw("b", model="m", max_tokens=8, messages=[{"role": "user", "content": "x"}])
    unfit = {"custom_id": "a", "params": {"messages": []}}
    assert list(retry.select([unfit, fit], NO_DEFAULTS)) == [fit, unfit]
    many = [{"custom_id": f"{n}", "params": {}} for n in range(1_000)]
    retry = Retry.of([loaded(*(one["custom_id"] for one in many))], never)
    assert sorted(selected(retry, many), key=int) == [one["custom_id"] for one in many]


def test_of_several_rounds_the_newest_decides():
    retry = Retry.of([loaded("a", "b", attempt=1), loaded("b", attempt=2)], never)
    assert retry.used_tokens == {"b": None}
