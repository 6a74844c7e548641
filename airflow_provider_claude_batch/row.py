"""Rows: one result as the table's columns, priced, and whether another try can succeed."""

from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec.structs import astuple

from airflow_provider_claude_batch import result, wire_id
from airflow_provider_claude_batch.price import PriceList
from airflow_provider_claude_batch.result import Message, Outcome, Result, Usage

Kind = Literal["text", "bigint", "double", "boolean", "date", "timestamp", "decimal", "money", "json"]

PROBLEMS = {
    "max_tokens": "truncated",
    "refusal": "refused",
    "pause_turn": "paused",
    "compaction": "compacted",
    "model_context_window_exceeded": "context_exceeded",
}
# null is no reason at all: nothing is said against the answer.
_INTENDED_STOPS = {"end_turn", "stop_sequence", "tool_use", None}
_RETRYABLE_PROBLEMS = {"truncated", "paused", "empty", "invalid_output"}
_RETRYABLE_STATUSES = {"expired", "canceled", "missing"}
_RETRYABLE_ERRORS = {"overloaded_error", "api_error", "timeout_error", "rate_limit_error", "billing_error"}
_PROVING_IDS = 3  # a foreign batch of three passes in 1 of 64 ** 3 cases, and a larger one in none


class Column(NamedTuple):
    """A column of the table, in words that every warehouse can translate."""

    name: str
    kind: Kind


class Row(msgspec.Struct, gc=False):
    """One request of one batch and what became of it; the fields are the columns, in order, then those of a schema."""

    dag_id: str | None
    run_id: str | None
    submit_task: str | None
    map_index: int | None
    logical_date: datetime | None
    submission: str
    attempt: int
    batch_id: str
    custom_id: str | None = None
    status: str = ""
    problem: str | None = None
    retryable: bool = False
    model: str | None = None
    message_id: str | None = None
    text: str | None = None
    output: str | None = None
    content: str | None = None
    stop_reason: str | None = None
    stop_details: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    cache_read_tokens: int | None = None
    service_tier: str | None = None
    cost_usd: Decimal | None = None
    live_cost_usd: Decimal | None = None
    error_type: str | None = None
    error_message: str | None = None
    request_hash: str | None = None
    submitted_at: datetime | None = None
    ended_at: datetime | None = None
    loaded_at: datetime | None = None
    typed: tuple[Any, ...] = ()

    @property
    def usable(self) -> bool:
        return self.status == "succeeded" and self.problem is None

    def cells(self) -> tuple[Any, ...]:
        """Return the values of all columns, in order."""
        return (*astuple(self)[:-1], *self.typed)


_KINDS: dict[str, Kind] = {
    "map_index": "bigint",
    "attempt": "bigint",
    "retryable": "boolean",
    "logical_date": "timestamp",
    "submitted_at": "timestamp",
    "ended_at": "timestamp",
    "loaded_at": "timestamp",
    "output": "json",
    "content": "json",
    "stop_details": "json",
    "cost_usd": "money",
    "live_cost_usd": "money",
}
_FIELDS = Row.__struct_fields__[:-1]
for _name in _FIELDS:
    if _name.endswith("_tokens"):
        _KINDS[_name] = "bigint"

COLUMNS = tuple(Column(name, _KINDS.get(name, "text")) for name in _FIELDS)


class Unfit(ValueError):
    """Why an answer does not fit the schema that was asked for; never a part of it."""


class Reader(Protocol):
    """Reads an answer into the columns of a schema."""

    def read(self, text: str) -> tuple[Any, ...]: ...


class Origin(msgspec.Struct, frozen=True):
    """Where the rows of one batch come from: what they all have in common, and how to tell that they are its own."""

    blank: Row
    mark: str | None
    created_at: datetime
    reader: Reader | None = None

    def row(self, custom_id: str | None, status: str, request_hash: str | None = None) -> Row:
        """Begin a row of this batch."""
        row = copy(self.blank)
        row.custom_id, row.status, row.request_hash = custom_id, status, request_hash
        return row


def of_line(line: bytes, origin: Origin, prices: PriceList) -> Row:
    """Turn a line of results into a row; what is not a result keeps its text, and nothing else."""
    try:
        return _of_result(result.read(line), origin, prices)
    except result.UNREADABLE:
        return _of_damaged(line, origin, prices)


def mark_of_lines(lines: Iterable[bytes]) -> str | None:
    """Find the mark in a batch's first lines, where nothing else tells whose batch it is.

    One foreign id in 64 of a certain shape passes for ours: only lines that all bear one mark, and several, prove it.
    """
    found = {wire_id.parse(one.custom_id) for line in lines if (one := result.decode(line))}
    marks = {wire.mark if wire else None for wire in found}
    return marks.pop() if len(marks) == 1 and len(found) >= _PROVING_IDS else None


def problem_of(message: Message, text: str) -> str | None:
    """Tell why an answer is not usable, whatever schema it was asked for; `text` is what it says."""
    if problem := PROBLEMS.get(message.stop_reason or ""):
        return problem
    if message.stop_reason not in _INTENDED_STOPS:
        return "unknown_stop_reason"
    # A stop sequence may be the whole answer: whoever asked for it reads the empty text.
    is_blank = (not text or text.isspace()) and message.stop_reason != "stop_sequence"
    return "empty" if is_blank and not result.has_answer(message.content) else None


def is_retryable(row: Row) -> bool:
    """Tell whether another try of the same request can succeed: the one table of it."""
    if row.status == "succeeded":
        return row.problem in _RETRYABLE_PROBLEMS
    if row.status == "errored":
        return is_retryable_error(row.error_type)
    return row.status in _RETRYABLE_STATUSES


def is_retryable_error(error_type: str | None) -> bool:
    """Tell an error that passes by from one that would come again."""
    return error_type in _RETRYABLE_ERRORS


def _of_damaged(line: bytes, origin: Origin, prices: PriceList) -> Row:
    found = result.decode(line)
    if found is not None:
        with suppress(*result.UNREADABLE):
            return _of_result(found, origin, prices)
    row = origin.row(None, "unreadable")
    row.text = line.decode(errors="replace")
    return row


def _of_result(found: Result, origin: Origin, prices: PriceList) -> Row:
    custom_id, request_hash = _identify(found.custom_id, origin.mark)
    row = origin.row(custom_id, found.result.type, request_hash)
    if found.result.message is not None:
        _add_message(row, found.result.message, origin, prices)
    _add_error(row, found.result)
    row.retryable = is_retryable(row)
    return row


def _identify(custom_id: str, mark: str | None) -> tuple[str, str | None]:
    """Take an id apart where it carries this batch's mark; any other stays as it is."""
    wire = wire_id.parse(custom_id)
    if wire is None or wire.mark != mark:
        return custom_id, None
    return wire.custom_id, wire.request_hash


def _add_message(row: Row, message: Message, origin: Origin, prices: PriceList) -> None:
    row.model, row.message_id, row.stop_reason = message.model, message.id, message.stop_reason
    row.content = str(message.content, "utf-8")
    row.text = result.text_of(message.content)
    row.stop_details = _json(message.stop_details)
    row.problem = problem_of(message, row.text)
    if row.problem == "unknown_stop_reason":
        row.error_message = message.stop_reason
    if origin.reader is not None and row.problem is None:
        _add_output(row, row.text, origin.reader)
    _add_usage(row, message.usage)
    cost = prices.cost(message.model, message.usage, origin.created_at.date())
    if cost is not None:
        row.cost_usd, row.live_cost_usd = cost.cost_usd, cost.live_cost_usd


def _add_output(row: Row, text: str, reader: Reader) -> None:
    try:
        row.typed = reader.read(text)
    except Unfit as unfit:
        row.problem, row.error_message = "invalid_output", str(unfit)
    else:
        row.output = text


def _add_usage(row: Row, usage: Usage) -> None:
    row.input_tokens, row.output_tokens = usage.input_tokens, usage.output_tokens
    row.cache_write_5m_tokens, row.cache_write_1h_tokens = usage.cache_writes
    row.cache_read_tokens, row.service_tier = usage.cache_read_tokens, usage.service_tier


def _add_error(row: Row, outcome: Outcome) -> None:
    if outcome.error is not None:
        row.error_type, row.error_message = outcome.error.error.type, outcome.error.error.message


def _json(raw: msgspec.Raw) -> str | None:
    text = str(raw, "utf-8")
    return None if text == "null" else text
