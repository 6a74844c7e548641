"""The lines of a results file, in an order of their own, and what can be done to them."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from airflow_provider_claude_batch.emulator.batch import Batch
from airflow_provider_claude_batch.emulator.cache import NOT_CACHED, CacheTokens
from airflow_provider_claude_batch.emulator.faults import Fault
from airflow_provider_claude_batch.emulator.outcome import Fate, result
from airflow_provider_claude_batch.emulator.store import Store

GARBAGE = b"<html><body>upstream connect error or disconnect/reset before headers</body></html>\n"
TAMPERING = (
    "missing_lines",
    "duplicate_lines",
    "foreign_lines",
    "garbage_lines",
    "blank_lines",
    "crlf",
    "no_final_newline",
)


def result_lines(store: Store, batch: Batch) -> Iterator[bytes]:
    """Write one line for each request, by place: neither the order of submission nor a random one."""
    for row in store.rows_by_place(batch):
        fate = Fate(row["outcome"], row["message"]) if row["place"] <= batch.cutoff else Fate(batch.leftover)
        params = msgspec.json.decode(row["body"])["params"]
        told = result(fate, params, batch.id, row["custom_id"], _cached(row))
        line = {"custom_id": row["custom_id"], "result": told}
        yield msgspec.json.encode(line) + b"\n"


def tamper(lines: Iterator[bytes], fault: Fault) -> Iterator[bytes]:
    """Do to the first `count` lines, or to all line ends, what the fault says."""
    if extra := EXTRA_LINES.get(fault.fault):
        return _after_each_of_first(lines, fault.count, extra)
    if fault.fault == "missing_lines":
        return islice(lines, fault.count, None)
    if fault.fault == "crlf":
        return (line[:-1] + b"\r\n" for line in lines)
    return _without_final_newline(lines)


def _cached(row: sqlite3.Row) -> CacheTokens:
    if row["read"] is None:
        return NOT_CACHED
    return CacheTokens(row["read"], row["written_5m"], row["written_1h"])


def _foreign(line: bytes) -> bytes:
    row = msgspec.json.decode(line)
    return msgspec.json.encode({**row, "custom_id": f"foreign-{hashlib.sha256(line).hexdigest()[:16]}"}) + b"\n"


EXTRA_LINES: dict[str, Callable[[bytes], bytes]] = {
    "duplicate_lines": lambda line: line,
    "foreign_lines": _foreign,
    "garbage_lines": lambda _: GARBAGE,
    "blank_lines": lambda _: b"\n",
}


def _after_each_of_first(lines: Iterator[bytes], count: int, extra: Callable[[bytes], bytes]) -> Iterator[bytes]:
    for at, line in enumerate(lines):
        yield line
        if at < count:
            yield extra(line)


def _without_final_newline(lines: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for line in lines:
        yield held
        held = line
    yield held[:-1]
