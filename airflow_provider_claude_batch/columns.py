"""Typed columns: what a Pydantic model, or a JSON schema, says of the answers becomes columns of the table."""

import math
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from airflow_provider_claude_batch import json_schema
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Column, Kind, Unfit

_OURS = frozenset(column.name for column in COLUMNS)
_TAKEN = frozenset({"xmin", "xmax", "cmin", "cmax", "ctid", "tableoid", "claude_batch_nth"})
_INT_LIMIT, _WHOLE_DIGITS, _FRACTION_DIGITS = 2**63, 29, 9
_FLOAT_LIMIT = 2**53  # beyond it, a float may be one of several integers
_QUOTED = re.compile(r""" (?:'.*'|".*"|(?<=value )-?\d+)(?= - at |$)""", re.DOTALL)
_NAMED_FAULTS = 3
_KINDS: dict[Any, Kind] = {
    str: "text",
    int: "bigint",
    float: "double",
    bool: "boolean",
    date: "date",
    datetime: "timestamp",
    Decimal: "decimal",
}
_VALUES: dict[Kind, type | tuple[type, ...]] = {
    "bigint": int,
    "double": (float, int),
    "boolean": bool,
    "date": date,
    "timestamp": datetime,
    "decimal": (Decimal, int),
}

Values = tuple[Any, ...]


class Columns:
    """The schema to ask for, the columns it makes, and how to read an answer into them."""

    def __init__(self, schema: dict[str, Any], columns: tuple[Column, ...], read: Callable[[str], Values]) -> None:
        self.schema = schema
        self.columns = columns
        self._read = read

    @classmethod
    def of(cls, given: Any) -> "Columns | None":
        """Take a Pydantic model or a JSON schema."""
        if given is None:
            return None
        if isinstance(given, type) and hasattr(given, "model_json_schema"):
            return _of_model(given)
        if isinstance(given, Mapping):
            return _of_schema(given)
        raise Misconfigured(
            f"columns= takes a Pydantic model or a JSON schema, and was given a {type(given).__name__}."
        )

    def read(self, text: str) -> Values:
        """Return the values of an answer, in the order of the columns."""
        try:
            values = self._read(text)
            return tuple(_fitted(value, column) for value, column in zip(values, self.columns, strict=True))
        except Unfit:
            raise
        except Exception as error:  # noqa: BLE001 - validators raise anything, and one answer must not fail the load
            raise Unfit(type(error).__name__) from None


def _of_schema(schema: Mapping[str, Any]) -> Columns:
    properties = json_schema.properties(schema)
    _refuse_names([one.name for one in properties])
    parts = {one.name: msgspec.json.Decoder(one.type) for one in properties if one.kind == "json"}
    fields = {one.name: (msgspec.Raw if one.name in parts else one.type, one.is_required) for one in properties}
    decode = msgspec.json.Decoder(json_schema.struct("Answer", fields)).decode

    def read(text: str) -> Values:
        try:
            values = msgspec.structs.astuple(decode(text))
        except msgspec.DecodeError as error:
            raise Unfit(_QUOTED.sub("", str(error))) from None
        for value, one in zip(values, properties, strict=True):
            if isinstance(value, msgspec.Raw):
                _check_part(one.name, value, parts[one.name])
            if one.allowed and value is not msgspec.UNSET:
                _check_allowed(one, value)
        return tuple(map(_plain, values))

    return Columns(json_schema.spelled_out(schema), tuple(Column(one.name, one.kind) for one in properties), read)


def _check_part(name: str, value: msgspec.Raw, part: "msgspec.json.Decoder[Any]") -> None:
    try:
        part.decode(value)
    except msgspec.DecodeError as error:
        raise Unfit(f"{name}: {_QUOTED.sub('', str(error))}") from None


def _check_allowed(one: json_schema.Property, value: Any) -> None:
    if (msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value) not in one.allowed:
        raise Unfit(f"{one.name}: not one of those allowed")


def _of_model(model: Any) -> Columns:
    if getattr(model, "__pydantic_root_model__", False) or not model.model_fields:
        raise Misconfigured("columns= takes a model with fields: each of them is a column.")
    _refuse_names(list(model.model_fields))
    kinds = {name: _kind_of(field.annotation) for name, field in model.model_fields.items()}
    exact = {key for name, field in model.model_fields.items() if _is_decimal(field) for key in _keys(name, field)}
    schema = model.model_json_schema()
    json_schema.resolved(schema)
    known = {*kinds, *json_schema.names(schema)}
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def read(text: str) -> Values:
        try:
            parts = decode(text)  # Pydantic takes more for JSON than warehouses do
            answer = model.model_validate_json(_with_exact(text, parts, exact))
        except msgspec.DecodeError as error:
            raise Unfit(_QUOTED.sub("", str(error))) from None
        except ValueError as error:
            raise Unfit(_faults(error, known)) from None
        values = {name: getattr(answer, name) for name in kinds}
        return tuple(_json(value) if kinds[name] == "json" else _plain(value) for name, value in values.items())

    for key in exact & set(schema["properties"]):
        schema["properties"][key] = json_schema.as_text(schema["properties"][key])
    columns = tuple(Column(name, kind) for name, kind in kinds.items())
    return Columns(json_schema.spelled_out(schema), columns, read)


def _with_exact(text: str, parts: dict[str, msgspec.Raw], exact: Collection[str]) -> str | bytes:
    """Quote the numbers of decimal fields: Pydantic would read them as floats, which changes digits."""
    found = {key: bytes(parts[key]) for key in exact if key in parts}
    numbers = {key: one for key, one in found.items() if one[:1] in b"-0123456789"}
    if not numbers:
        return text
    return msgspec.json.encode({**parts, **{key: msgspec.Raw(b'"%b"' % one) for key, one in numbers.items()}})


def _keys(name: str, field: Any) -> set[str]:
    """Return the keys under which an answer may hold a field."""
    given = (name, field.alias, field.validation_alias, *getattr(field.validation_alias, "choices", ()))
    return {key for key in given if isinstance(key, str)}


def _is_decimal(field: Any) -> bool:
    return {one for one in _members(field.annotation) if one is not types.NoneType} == {Decimal}


def _members(annotation: Any) -> Iterator[Any]:
    """Return what a field may be, without the names and the conditions around it."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in {Union, types.UnionType}:
        for one in get_args(annotation):
            yield from _members(one)
    elif inner := getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None):
        yield from _members(inner)
    else:
        yield annotation


def _kind_of(annotation: Any) -> Kind:
    """Tell which column holds values of a field; what may be several things, or has parts, is kept as JSON."""
    kinds = {_kind_of_one(one) for one in _members(annotation) if one is not types.NoneType}
    return kinds.pop() if len(kinds) == 1 else "json"


def _kind_of_one(annotation: Any) -> Kind:
    if get_origin(annotation) is Literal:
        values = get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        values = tuple(one.value for one in annotation)
    else:
        return _KINDS.get(annotation, "json")
    kinds = {_KINDS.get(type(value), "json") for value in values if value is not None}
    return kinds.pop() if len(kinds) == 1 else "json"


def _refuse_names(names: list[str]) -> None:
    lowered = [name.lower() for name in names]
    if ours := [name for name in names if name.lower() in _OURS]:
        raise Misconfigured(f"columns= names {', '.join(ours)}, which every table has already: rename in the model.")
    if taken := [name for name in names if name.lower() in _TAKEN]:
        raise Misconfigured(
            f"columns= names {', '.join(taken)}, which PostgreSQL or the views beside the table keep for themselves: "
            "rename in the model."
        )
    if twice := [name for name in names if lowered.count(name.lower()) > 1]:
        raise Misconfigured(f"columns= names {', '.join(twice)}, which many warehouses take for one and the same.")
    if odd := [name for name in names if not name or not name.isprintable() or set(name) & {'"', "\\"}]:
        raise Misconfigured(f"columns= names {odd[0]!r}, which is no name of a column.")


def _faults(error: ValueError, known: Collection[str]) -> str:
    """Say where an answer is at fault and how, without its words: a key that it made up is one of them."""
    details: Any = getattr(error, "errors", None)
    if details is None:
        return type(error).__name__
    found = details(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{_place(one['loc'], known)}: {one['type']}" for one in found[:_NAMED_FAULTS])


def _place(loc: tuple[int | str, ...], known: Collection[str]) -> str:
    return ".".join(str(part) if isinstance(part, int) or part in known else "…" for part in loc)


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        text = bytes(value).decode()
        return None if text == "null" else text
    if value is msgspec.UNSET:
        return None
    return value.value if isinstance(value, Enum) else value


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value, enc_hook=_of_odd).decode()


def _of_odd(value: Any) -> Any:
    """Write what msgspec does not know: a model as it writes itself, anything else as its text."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def _fitted(value: Any, column: Column) -> Any:
    """Take a value into its column, or refuse it: what is rounded or cut silently is wrong silently."""
    if value is None:
        return None
    if column.kind == "bigint" and isinstance(value, float) and value.is_integer() and abs(value) < _FLOAT_LIMIT:
        value = int(value)
    if not _is_of(column.kind, value):
        raise Unfit(f"{column.name}: no {column.kind}")
    match column.kind:
        case "bigint" if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise Unfit(f"{column.name}: larger than 64 bits")
        case "double":
            return _finite(value, column)
        case "decimal":
            return _exact(Decimal(value), column)
        case "timestamp":
            return _in_utc(value, column)
        case "text" if not isinstance(value, str):
            return str(value)
    return value


def _is_of(kind: Kind, value: Any) -> bool:
    if isinstance(value, bool | datetime):  # which are an int and a date as well
        return kind == ("boolean" if isinstance(value, bool) else "timestamp")
    return isinstance(value, _VALUES.get(kind, object))


def _finite(value: float, column: Column) -> float:
    if not math.isfinite(value):
        raise Unfit(f"{column.name}: not a finite number")
    return float(value)


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
