import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.row import COLUMNS, Origin, Row, is_retryable, mark_of_lines, of_line
from airflow_provider_claude_batch.wire_id import WireId, parse

NOW = datetime(2026, 11, 21, 23, tzinfo=UTC)
MARK = "abcdefg"
BLANK = Row(
    dag_id="dag",
    run_id="run",
    submit_task="submit",
    map_index=3,
    element="emea",
    logical_date=NOW,
    submission="sub_1",
    attempt=2,
    batch_id="msgbatch_1",
    submitted_at=NOW,
    ended_at=NOW,
    loaded_at=NOW,
)
ORIGIN = Origin(BLANK, MARK, NOW)
USAGE = {"input_tokens": 1_000, "output_tokens": 100, "service_tier": "batch"}


def line_of(custom_id="a", kind="succeeded", **message):
    whole = {"id": "msg_1", "model": "claude-haiku-4-5", "content": [{"type": "text", "text": "hi"}], "usage": USAGE}
    result = {"type": kind} | ({"message": whole | message} if kind == "succeeded" else message)
    return json.dumps({"custom_id": custom_id, "result": result}).encode()


def row_of(line, origin=ORIGIN):
    return of_line(line, origin, PRICES)


def test_a_row_says_where_it_comes_from():
    row = row_of(line_of())
    assert (row.dag_id, row.run_id, row.submit_task, row.map_index, row.logical_date) == (
        "dag",
        "run",
        "submit",
        3,
        NOW,
    )
    assert (row.submission, row.attempt, row.batch_id) == ("sub_1", 2, "msgbatch_1")
    assert row.submitted_at == row.ended_at == row.loaded_at == NOW


def test_a_usable_answer_is_priced_and_complete():
    row = row_of(line_of(stop_reason="end_turn"))
    assert (row.status, row.problem, row.usable, row.retryable) == ("succeeded", None, True, False)
    assert (row.model, row.message_id, row.text, row.stop_reason) == ("claude-haiku-4-5", "msg_1", "hi", "end_turn")
    assert json.loads(row.content) == [{"type": "text", "text": "hi"}]
    assert (row.input_tokens, row.output_tokens, row.cache_read_tokens, row.service_tier) == (1_000, 100, 0, "batch")
    assert (row.cost_usd, row.live_cost_usd) == (Decimal("0.00075"), Decimal("0.0015"))


def test_an_unknown_model_has_tokens_and_no_price():
    row = row_of(line_of(model="claude-nope"))
    assert (row.status, row.input_tokens, row.cost_usd, row.live_cost_usd) == ("succeeded", 1_000, None, None)


def test_the_price_is_that_of_the_day_on_which_the_batch_was_created():
    from msgspec.structs import replace

    line = line_of(model="claude-sonnet-5-5", usage={"cache_read_input_tokens": 1_000_000})
    before = replace(ORIGIN, created_at=datetime(2026, 10, 6, 23, 59, tzinfo=UTC))
    after = replace(ORIGIN, created_at=datetime(2026, 10, 7, tzinfo=UTC))
    assert (row_of(line, before).cost_usd, row_of(line, after).cost_usd) == (Decimal("0.1"), Decimal("0.05"))


@pytest.mark.parametrize(
    ("stop_reason", "problem", "retryable"),
    [
        ("end_turn", None, False),
        ("stop_sequence", None, False),
        ("tool_use", None, False),
        (None, None, False),
        ("a_reason_still_to_come", "unknown_stop_reason", False),
        ("", "unknown_stop_reason", False),
        ("compaction", "compacted", False),
        ("max_tokens", "truncated", True),
        ("pause_turn", "paused", True),
        ("refusal", "refused", False),
        ("model_context_window_exceeded", "context_exceeded", False),
    ],
)
def test_succeeded_is_not_the_same_as_usable(stop_reason, problem, retryable):
    row = row_of(line_of(stop_reason=stop_reason))
    assert (row.status, row.problem, row.retryable, row.usable) == ("succeeded", problem, retryable, problem is None)


def test_a_stop_reason_that_is_not_known_is_named():
    row = row_of(line_of(stop_reason="budget_exhausted"))
    assert (row.text, row.error_message) == ("hi", "budget_exhausted")


THINKING = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
SEARCH = [
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
    {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
]
CALL = {"type": "tool_use", "id": "t", "name": "label", "input": {"label": "billing"}}


def text_block(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    "content",
    [
        [],
        [text_block("")],
        [text_block(" \n\t")],
        [text_block(""), text_block("\n")],
        [THINKING],
        [{"type": "redacted_thinking", "data": "x"}, text_block("\n\n")],
        SEARCH,
        [{"type": "bash_code_execution_tool_result", "tool_use_id": "s", "content": {}}],
        [{"type": "mcp_tool_use", "id": "s"}, {"type": "mcp_tool_result", "tool_use_id": "s"}],
    ],
)
@pytest.mark.parametrize("stop_reason", ["end_turn", "tool_use", None])
def test_an_answer_in_which_nothing_is_said_is_empty_and_tried_again(content, stop_reason):
    row = row_of(line_of(content=content, stop_reason=stop_reason))
    assert (row.status, row.problem, row.retryable, row.usable) == ("succeeded", "empty", True, False)
    assert row.cost_usd > 0


@pytest.mark.parametrize(
    "content",
    [
        [CALL],
        [THINKING, CALL],
        [text_block(""), CALL],
        [*SEARCH, text_block("found")],
        [{"type": "container_upload", "file_id": "file_1"}],
        [{"type": "a_block_still_to_come"}],
    ],
)
@pytest.mark.parametrize("stop_reason", ["end_turn", "tool_use"])
def test_an_answer_that_calls_a_tool_or_holds_anything_else_is_usable(content, stop_reason):
    row = row_of(line_of(content=content, stop_reason=stop_reason))
    assert (row.problem, row.usable, row.retryable) == (None, True, False)
    assert json.loads(row.content) == content


@pytest.mark.parametrize("content", [[], [text_block("")], [THINKING]])
@pytest.mark.parametrize(
    ("stop_reason", "problem"),
    [
        ("stop_sequence", None),
        ("refusal", "refused"),
        ("max_tokens", "truncated"),
        ("pause_turn", "paused"),
        ("model_context_window_exceeded", "context_exceeded"),
        ("a_reason_still_to_come", "unknown_stop_reason"),
    ],
)
def test_why_an_answer_stopped_goes_before_that_it_is_empty(content, stop_reason, problem):
    assert row_of(line_of(content=content, stop_reason=stop_reason)).problem == problem


@pytest.mark.parametrize("details", [{"type": "refusal", "category": "cyber", "explanation": "No."}, None])
def test_a_refusal_with_its_details_is_a_row_like_any_other(details):
    row = row_of(line_of(stop_reason="refusal", stop_details=details, content=[]))
    assert (row.status, row.problem, row.text) == ("succeeded", "refused", "")
    assert (json.loads(row.stop_details) if row.stop_details else None) == details


@pytest.mark.parametrize(
    "broken", [b"\xff", rb"\ud83d", b"\xed\xa0\x80"], ids=["byte", "half a pair", "half a pair in UTF-8"]
)
def test_what_is_broken_in_an_answer_is_replaced_and_the_row_is_whole(broken):
    row = row_of(
        line_of(str(WireId("a", MARK, "hashed")), content=[{"type": "text", "text": "fine @"}]).replace(b"@", broken)
    )
    assert (row.status, row.custom_id, row.model, row.input_tokens) == ("succeeded", "a", "claude-haiku-4-5", 1_000)
    assert row.text.startswith("fine ")
    assert json.loads(row.content) == [{"type": "text", "text": row.text}]


@pytest.mark.parametrize(
    ("error_type", "retryable"),
    [
        ("overloaded_error", True),
        ("api_error", True),
        ("timeout_error", True),
        ("rate_limit_error", True),
        ("billing_error", True),
        ("invalid_request_error", False),
        ("not_found_error", False),
        ("authentication_error", False),
        ("permission_error", False),
        ("request_too_large", False),
        ("an_error_still_to_come", False),
    ],
)
def test_an_error_that_another_try_cannot_better_is_not_retried(error_type, retryable):
    row = row_of(line_of(kind="errored", error={"type": "error", "error": {"type": error_type, "message": "why"}}))
    assert (row.status, row.error_type, row.error_message) == ("errored", error_type, "why")
    assert (row.retryable, row.usable, row.cost_usd, row.input_tokens) == (retryable, False, None, None)


@pytest.mark.parametrize(
    ("status", "problem", "retryable"),
    [
        ("expired", None, True),
        ("canceled", None, True),
        ("missing", None, True),
        ("unreadable", None, False),
        ("a_word_still_to_come", None, False),
        ("succeeded", "invalid_output", True),
        ("succeeded", "empty", True),
        ("errored", None, False),
    ],
)
def test_every_other_outcome_is_in_the_same_table(status, problem, retryable):
    row = ORIGIN.row("a", status)
    row.problem = problem
    assert is_retryable(row) is retryable


@pytest.mark.parametrize("kind", ["expired", "canceled"])
def test_what_never_ran_costs_nothing_and_may_be_retried(kind):
    row = row_of(line_of(kind=kind))
    assert (row.status, row.retryable, row.text, row.cost_usd) == (kind, True, None, None)


def test_the_wire_id_of_our_shard_is_taken_apart():
    row = row_of(line_of(str(WireId("ticket 7 🎫", MARK, "hashed"))))
    assert (row.custom_id, row.request_hash) == ("ticket 7 🎫", "hashed")


@pytest.mark.parametrize("origin_mark", [None, "gfedcba"])
def test_an_id_without_our_mark_stays_as_it_is(origin_mark):
    from msgspec.structs import replace

    wire = str(WireId("ticket-7", MARK, "hashed"))
    row = row_of(line_of(wire), replace(ORIGIN, mark=origin_mark))
    assert (row.custom_id, row.request_hash) == (wire, None)


def wire_line(n, mark=MARK):
    return line_of(str(WireId(f"r-{n}", mark, "hashed")))


def test_the_mark_of_a_batch_is_found_in_its_first_lines():
    assert mark_of_lines(wire_line(n) for n in range(3)) == MARK
    assert mark_of_lines([b"nope", *(wire_line(n) for n in range(16))]) == MARK


def passing(count):
    """Ids of another program that pass for ours, each with its check character."""
    ids = [f"doc-p20260101{n:06d}" for n in range(10_000)]
    return [one for one in ids if parse(one)][:count]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"nope", b"nope", b"nope"],
        [line_of("a"), line_of("b"), line_of("c")],
        [wire_line(1)],
        [wire_line(1), wire_line(2)],
        [wire_line(1), wire_line(1), wire_line(1)],
        [wire_line(1), b"nope", wire_line(2)],
        [wire_line(1), wire_line(2), wire_line(3), line_of("a")],
        [wire_line(1), wire_line(2), wire_line(3), wire_line(4, "gfedcba")],
        [*map(line_of, passing(15)), line_of("doc-p20260101000000")],
    ],
)
def test_a_few_ids_that_look_like_ours_prove_nothing(lines):
    assert mark_of_lines(lines) is None


@pytest.mark.parametrize(
    "line",
    [b"nope", b"", b"\xff\xfe", b"{}", line_of(content="a text"), line_of(content=[{"type": 7}]), line_of(usage=None)],
    ids=range(7),
)
def test_a_line_that_is_not_a_result_keeps_its_text_and_nothing_else(line):
    row = row_of(line)
    assert (row.status, row.custom_id, row.text) == ("unreadable", None, line.decode(errors="replace"))
    assert (row.retryable, row.usable, row.model, row.cost_usd) == (False, False, None, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["content", "usage", "id", "model", "stop_reason", "stop_details"]


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=100)
    | st.tuples(st.sampled_from(FIELDS), json_values).map(lambda pair: line_of(**{pair[0]: pair[1]}))
    | st.tuples(st.integers(0, 200), st.binary(max_size=4)).map(lambda p: line_of()[: p[0]] + p[1] + line_of()[p[0] :])
)
def test_any_line_of_bytes_gives_a_row_that_a_warehouse_can_hold(line):
    row = row_of(line)
    assert row.status in {"succeeded", "errored", "canceled", "expired", "unreadable"} or row.custom_id == "a"
    for column in COLUMNS:
        value = getattr(row, column.name)
        if isinstance(value, str):
            value.encode()
        if column.kind == "json" and value is not None:
            json.loads(value)
        if column.kind == "bigint" and value is not None:
            assert -(2**63) <= value < 2**63
        if column.kind == "money" and value is not None:
            assert 0 <= value < 1_000_000


def test_the_most_expensive_line_that_is_a_result_fits_the_columns_of_money():
    tokens = 50_000_000
    usage = {"input_tokens": tokens, "output_tokens": tokens, "cache_read_input_tokens": tokens, "inference_geo": "us"}
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": tokens, "ephemeral_1h_input_tokens": tokens}
    usage["server_tool_use"] = {"web_search_requests": tokens}
    row = row_of(line_of(model="claude-fable-5", usage=usage))
    assert Decimal(500_000) < row.live_cost_usd < 1_000_000


def test_the_columns_are_the_fields_of_a_row_in_the_order_of_the_contract():
    expected = (
        "dag_id run_id submit_task map_index element logical_date submission attempt batch_id custom_id status problem "
        "retryable model message_id text output content stop_reason stop_details input_tokens output_tokens "
        "cache_write_5m_tokens cache_write_1h_tokens cache_read_tokens service_tier cost_usd live_cost_usd error_type "
        "error_message request_hash submitted_at ended_at loaded_at"
    )
    names = [column.name for column in COLUMNS]
    assert " ".join(names) == " ".join(Row.__struct_fields__[:-1]) == expected
    kinds = {column.name: column.kind for column in COLUMNS}
    assert {name for name in names if kinds[name] == "money"} == {"cost_usd", "live_cost_usd"}
    assert {name for name in names if kinds[name] == "json"} == {"output", "content", "stop_details"}
    assert {name for name in names if kinds[name] == "timestamp"} == {n for n in names if n.endswith(("_at", "_date"))}
