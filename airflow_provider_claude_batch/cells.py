"""Cells: what a part of an answer becomes in its column, with every digit, or not at all."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from airflow_provider_claude_batch.row import Column, Unfit

_INT_LIMIT, _WHOLE_DIGITS, _FRACTION_DIGITS = 2**63, 29, 9
_TOO_FINE = re.compile(r"[.,]\d{6}\d*[1-9]")  # beyond the microseconds that a timestamp has
_LONGEST = 308  # digits of a whole number that a double holds
_LONG = re.compile(rf"\d{{{_LONGEST + 1}}}")
_OWN = (int, float, Sequence, set, frozenset, Mapping)  # which JSON has as well
_READ = (date, datetime, time, timedelta, Decimal, UUID)


def tree_of(text: str) -> Any:
    """Read an answer with every digit; JSON has no number that is not finite, and warehouses take none."""
    try:
        tree = _decoder.decode(text)
    except msgspec.DecodeError as error:
        raise Unfit(str(error).partition(" - at ")[0]) from None
    if _LONG.search(text):
        _refuse_long(tree)
    return tree


def cell(value: Any, column: Column) -> Any:
    """Take a part of an answer into its column, or refuse it: what is rounded or cut silently is wrong silently."""
    if value is None or column.kind == "json":
        return value
    taken = _taken(value, column)
    if taken is None:
        raise Unfit(f"{column.name}: no {column.kind}")
    return taken


def cell_of_model(value: Any, written: Any, column: Column) -> Any:
    """Take what a model made of a part of an answer; where that is of another type, as it is written.

    A secret, a UUID or a URL is stored as the answer has it; a text or a number that a validator changed, as changed.
    """
    value = value.value if isinstance(value, Enum) else value
    if value is None or (column.kind == "text" and type(value) is str):
        return value
    if column.kind == "text" and not isinstance(value, str):
        return written if isinstance(written, str) and _is_as_written(value, written) else plain(value, column)
    if isinstance(value, datetime) and isinstance(written, str):
        _refuse_fine(written, column)
    if _is_same_number(value, written):
        value = written  # with all digits
    taken = _taken(value, column)
    return cell(written, column) if taken is None else taken


def json_of_model(value: Any, written: Any, raw: bytes | None, column: Column) -> str | None:
    """Keep a part letter by letter where the model left it as it is, or else write what the model made of it."""
    if value is None:
        return None
    if raw is not None and _is_as_written(value, written):
        return raw.decode()
    return plain(value, column)


def plain(value: Any, column: Column) -> str:
    """Write whatever a model holds: a text as it is, anything else as JSON."""
    built = msgspec.to_builtins(value, enc_hook=_of_odd, str_keys=True)
    if isinstance(built, str) and column.kind == "text":
        return built
    try:
        return json.dumps(built, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError:
        raise Unfit(f"{column.name}: not a finite number") from None


def _finite(text: str) -> Decimal:
    if not math.isfinite(float(text)):
        raise ValueError("a number that is not finite")
    return Decimal(text)


_decoder = msgspec.json.Decoder(float_hook=_finite)


def _refuse_long(tree: Any) -> None:
    if isinstance(tree, int) and not isinstance(tree, bool) and len(str(abs(tree))) > _LONGEST:
        raise Unfit("a number that is not finite")
    for one in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ():
        _refuse_long(one)


def _taken(value: Any, column: Column) -> Any:
    """Return a value in the type of its column, or None where it is of another."""
    match column.kind:
        case "text" | "boolean":
            return value if isinstance(value, str if column.kind == "text" else bool) else None
        case "date" | "timestamp":
            return _moment(value, column)
        case "decimal" if isinstance(value, str):
            try:
                return _exact(Decimal(value), column)
            except InvalidOperation:
                return None
    return _number(value, column) if _is_number(value) else None


def _number(value: float | Decimal, column: Column) -> Any:
    if column.kind == "bigint" and isinstance(value, int) and -_INT_LIMIT <= value < _INT_LIMIT:
        return value
    if column.kind == "decimal":
        return _exact(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), column)
    if not math.isfinite(value):
        raise Unfit(f"{column.name}: not a finite number")
    if column.kind == "double":
        return float(value)
    exact = Decimal(value)
    if exact != exact.to_integral_value():
        return None
    if not -_INT_LIMIT <= exact < _INT_LIMIT:
        raise Unfit(f"{column.name}: larger than 64 bits")
    return int(exact)


def _moment(value: Any, column: Column) -> date | datetime | None:
    is_date = column.kind == "date"
    if isinstance(value, str):
        if not is_date:
            _refuse_fine(value, column)
        try:
            value = msgspec.convert(value, date if is_date else datetime)
        except msgspec.ValidationError:
            return None
    if is_date:
        return value if isinstance(value, date) and not isinstance(value, datetime) else None
    return _in_utc(value, column) if isinstance(value, datetime) else None


def _refuse_fine(text: str, column: Column) -> None:
    if _TOO_FINE.search(text):
        raise Unfit(f"{column.name}: finer than a microsecond")


def _exact(value: Decimal, column: Column) -> Decimal:
    """Drop the zeros that say nothing and keep every other digit, which decimal's own arithmetic would round."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise Unfit(f"{column.name}: not a finite number")
    if not any(digits):
        return Decimal(0)
    while exponent < -_FRACTION_DIGITS and not digits[-1]:
        digits, exponent = digits[:-1], exponent + 1
    if exponent < -_FRACTION_DIGITS or value.adjusted() >= _WHOLE_DIGITS:
        raise Unfit(f"{column.name}: more than {_WHOLE_DIGITS} digits, or {_FRACTION_DIGITS} after the point")
    return Decimal((sign, digits, exponent))


def _in_utc(value: datetime, column: Column) -> datetime:
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise Unfit(f"{column.name}: outside the years 1 to 9999") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _is_same_number(value: Any, written: Any) -> bool:
    """Tell whether a model kept a number, up to the digits that its type cannot hold."""
    if not (_is_number(value) and _is_number(written)):
        return False
    return bool(value == written) or (not isinstance(value, Decimal) and float(value) == float(written))


def _is_as_written(value: Any, written: Any) -> bool:
    """Tell whether a model left a part of an answer as it is."""
    if isinstance(value, Enum):
        value = value.value
    elif hasattr(value, "model_dump"):
        value = value.model_dump(warnings=False)
    if value is None or isinstance(value, str | bool):
        return bool(value == written) and isinstance(written, str if isinstance(value, str) else type(value))
    match value, written:
        case Mapping(), dict():
            return written.keys() == value.keys() and all(_is_as_written(value[key], written[key]) for key in value)
        case (Sequence() | set() | frozenset(), list()) if len(value) == len(written):
            return _are_as_written(value, written)
        case _, str():
            return _says(written, value)
    return _is_same_number(value, written)


def _are_as_written(values: Collection[Any], written: list[Any]) -> bool:
    if isinstance(values, set | frozenset):
        return all(any(_is_as_written(one, part) for one in values) for part in written)
    return all(map(_is_as_written, values, written))


def _says(text: str, value: Any) -> bool:
    """Tell whether a text is one of a value; of types that only Pydantic can read, it is."""
    if isinstance(value, bytes):
        return text.encode() == value
    if not isinstance(value, _READ):
        return not isinstance(value, _OWN)
    with suppress(msgspec.ValidationError):
        return bool(msgspec.convert(text, type(value)) == value)
    return True


def _of_odd(value: Any) -> Any:
    """Write what msgspec does not know: a model as it writes itself, a secret in clear, anything else as its text."""
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if isinstance(value, Sequence):
        return list(value)
    return value.model_dump(warnings=False) if hasattr(value, "model_dump") else str(value)
