"""Stored receipts: the JSON of an XCom that any task may have pushed, taken only where nothing about it can do harm."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from airflow_provider_claude_batch.receipt import Receipt

_MOST_BATCHES = 10_000
LONGEST = 500 * _MOST_BATCHES
_YEARS = range(2000, 3000)
_SKEW = timedelta(days=1)
_ID = re.compile(r"[\w-]{1,200}", re.ASCII)


class _Stored(Receipt, frozen=True, kw_only=True):
    """A receipt as it lies in an XCom."""

    v: Literal[1]


_decoder = msgspec.json.Decoder(_Stored | list[_Stored] | str)


def decode(value: str | None) -> tuple[Receipt, ...] | str:
    """Read receipts, or the name of where they lie; what is neither was pushed by somebody else."""
    if value is None or len(value) > LONGEST:
        return ()
    try:
        found = _decoder.decode(value)
        if isinstance(found, str) and found[:1] in {"{", "["}:
            found = _decoder.decode(found)
    except (msgspec.DecodeError, RecursionError):
        return ()
    if isinstance(found, str):
        return found
    return tuple(receipt for receipt in (found if isinstance(found, list) else [found]) if _is_harmless(receipt))


def is_of_its_time(receipt: Receipt, pushed_at: datetime) -> bool:
    """Say whether it speaks of the past: nothing is submitted long after its receipt was pushed."""
    return receipt.submitted_at is None or receipt.submitted_at <= pushed_at + _SKEW


def _is_harmless(receipt: Receipt) -> bool:
    """Refuse what would stop the page for everybody, or mislead the API: odd ids, moments and numbers."""
    names = (receipt.submission, *receipt.batch_ids)
    return (
        len(receipt.batches) <= _MOST_BATCHES
        and all(_ID.fullmatch(name) for name in names)
        and all(moment.tzinfo and moment.year in _YEARS for moment in _moments(receipt))
        and all(number >= 0 for number in _numbers(receipt))
        and receipt.attempt >= 1
    )


def _moments(receipt: Receipt) -> Iterator[datetime]:
    of_parts = (moment for part in receipt.batches for moment in (part.created_at, part.ended_at, part.expires_at))
    for moment in (receipt.submitted_at, receipt.logical_date, *of_parts):
        if moment is not None:
            yield moment


def _numbers(receipt: Receipt) -> Iterator[float]:
    yield receipt.requests
    yield from (receipt.cost_usd or 0.0, receipt.live_cost_usd or 0.0, receipt.unpriced or 0)
    yield from (part.requests or 0 for part in receipt.batches)
    yield from (receipt.counts or {}).values()
    yield from (receipt.problems or {}).values()
