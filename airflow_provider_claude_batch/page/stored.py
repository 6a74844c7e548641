"""Stored receipts: the JSON of an XCom that any task may have pushed, taken only where nothing about it can do harm."""

import re
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.receipt_bounds import oddity

LONGEST, _MOST_BATCHES = 5_000_000, 10_000
_SKEW = timedelta(days=1)
_ID = re.compile(r"[\w-]{1,200}", re.ASCII)
_NO_RECEIPT = "it is not a receipt of version 1"


class _Stored(Receipt, frozen=True, kw_only=True):
    """A receipt as it lies in an XCom."""

    v: Literal[1]


class Found(msgspec.Struct, frozen=True):
    """What lies in one XCom: the receipts that can be used, and why others cannot."""

    receipts: tuple[Receipt, ...] = ()
    oddities: tuple[str, ...] = ()


TOO_LONG = Found(oddities=(f"it is longer than {LONGEST:,} characters",))

_any_decoder = msgspec.json.Decoder(list[msgspec.Raw] | dict[str, msgspec.Raw] | str | None)
_decoder = msgspec.json.Decoder(_Stored)


def decode(value: str | None) -> Found | str:
    """Read receipts, or the name of where they lie."""
    if value is None:
        return Found()
    if len(value) > LONGEST:
        return TOO_LONG
    try:
        found = _any_decoder.decode(value)
        if isinstance(found, str) and found[:1] in {"{", "["}:
            value = found
            found = _any_decoder.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return Found(oddities=(_NO_RECEIPT,))
    if isinstance(found, str):
        return found
    one_by_one: list[Any] = found if isinstance(found, list) else [] if found is None else [value]
    read = [_decode_one(one) for one in one_by_one]
    receipts = tuple(one for one in read if isinstance(one, Receipt))
    return Found(receipts, tuple(one for one in read if isinstance(one, str)))


def is_of_its_time(receipt: Receipt, pushed_at: datetime) -> bool:
    """Say whether it speaks of the past: nothing is submitted long after its receipt was pushed."""
    return receipt.submitted_at is None or receipt.submitted_at <= pushed_at + _SKEW


def _decode_one(value: Any) -> Receipt | str:
    """Refuse what would stop the page for everybody, or mislead the API; say why, without what stands in it."""
    try:
        receipt = _decoder.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        said = str(error)
        return _NO_RECEIPT if said.endswith("`$.v`") or "`v`" in said else f"it cannot be read: {said}"
    if len(receipt.batches) > _MOST_BATCHES:
        return f"batches has more than {_MOST_BATCHES:,} entries"
    if not all(_ID.fullmatch(name) for name in (receipt.submission, *receipt.batch_ids)):
        return "submission, or the id of a batch, holds more than letters, digits, _ and -"
    return oddity(receipt) or receipt
