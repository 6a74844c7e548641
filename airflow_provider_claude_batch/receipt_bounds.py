"""Bounds of a receipt: any task may have written it, so each of its figures, texts, moments and lists has a limit."""

import re
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from math import isfinite
from typing import Any

import msgspec

# Wide enough for all that our own steps write; sums over all receipts that a page remembers still fit into 64 bits.
_MOST, _MOST_USD, _LONGEST, _MOST_ENTRIES = 10**13, 10**12, 10_000, 10_000
_MOST_WITHIN = {"batches": 10**9}
_LONGEST_WITHIN = {"source": 5_000_000, "invalid": 5_000_000}
_ENTRIES_WITHIN = {"batches": 1_000_000}
_RANGES: dict[str, tuple[float, float]] = {
    "map_index": (-1, _MOST),
    "attempt": (1, _MOST),
    "cache_hit_rate": (0, 1),
    "saved_usd": (-_MOST_USD, _MOST_USD),
}
_NUMBERS = frozenset({int, float, Decimal})
_YEARS = range(2000, 3000)
_HALVES = re.compile("[\ud800-\udfff]")


def oddity(record: msgspec.Struct, most: int = _MOST, longest: int = _LONGEST) -> str | None:
    """Say which field of a receipt cannot be as it is; None of a sound one. It never repeats what stands in a field."""
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if value is not None and (
            found := _odd(value, name, _MOST_WITHIN.get(name, most), _LONGEST_WITHIN.get(name, longest))
        ):
            return found
    return None


def _odd(value: Any, name: str, most: int, longest: int) -> str | None:
    kind = type(value)
    if kind is str:
        is_fit = len(value) <= longest and (value.isprintable() or not _HALVES.search(value))
        return None if is_fit else f"{name} is longer than {longest:,} characters, or holds halves of characters"
    if kind in _NUMBERS:
        least, largest = _RANGES.get(name) or (0, most if kind is int else _MOST_USD)
        is_fit = (kind is int or isfinite(value)) and least <= value <= largest
        return None if is_fit else f"{name} is not between {least:,} and {largest:,}"
    if kind is datetime:
        is_fit = value.tzinfo is not None and value.year in _YEARS
        return None if is_fit else f"{name} has no time zone, or is not between the years 2000 and 2999"
    if isinstance(value, msgspec.Struct):
        found = oddity(value, most, longest)
        return found and f"{name}.{found}"
    return _odd_among(value, name, most, longest) if isinstance(value, Collection) else None


def _odd_among(values: Collection[Any], name: str, most: int, longest: int) -> str | None:
    entries = _ENTRIES_WITHIN.get(name, _MOST_ENTRIES)
    if len(values) > entries:
        return f"{name} has more than {entries:,} entries"
    for value in (*values, *values.values()) if isinstance(values, dict) else values:
        if value is not None and (found := _odd(value, name, most, longest)):
            return found
    return None
