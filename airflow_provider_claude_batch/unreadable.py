"""Unreadable requests: one that is too deep or too long is an offence, named by its id where the id can be read."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

_DEEPEST = 200  # a number of our own: what a decoder bears depends on the stack that is left
_CUSTOM_ID_FIRST = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.){0,300}")')


class Unreadable(msgspec.Struct, frozen=True):
    """What a source passes on instead of params that it cannot read: why the request cannot be sent."""

    why: str


TOO_DEEP = Unreadable(f"params are nested more than {_DEEPEST} levels deep")


def too_large(size: int) -> Unreadable:
    """Say that one request is more than a batch holds."""
    return Unreadable(f"one request of {size:,} bytes is more than a batch holds")


def custom_id_of(item: Any) -> str | None:
    """Return the id of a request as it was given, whether it can be sent or not."""
    if isinstance(item, bytes):
        try:
            item = msgspec.json.decode(item)
        except RecursionError:
            return custom_id_at_the_beginning(item)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
    custom_id = item.get("custom_id") if isinstance(item, Mapping) else None
    return custom_id if isinstance(custom_id, str) else None


def custom_id_at_the_beginning(line: bytes) -> str | None:
    """Return the id that a line begins with, as most do, where the line is too deep or too long to be read."""
    found = _CUSTOM_ID_FIRST.match(line)
    try:
        return msgspec.json.decode(found[1], type=str) if found else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_too_deep(params: Any, json: bytes) -> bool:
    """Go down level by level: recursion would end where the stack does. Few requests have as many brackets at all."""
    if json.count(b"[") + json.count(b"{") <= _DEEPEST:
        return False
    level = [params]
    for _ in range(_DEEPEST):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one) if _nests(inner)]
        if not level:
            return False
    return True


def _nests(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)
