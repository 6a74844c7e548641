"""Typed columns: what a Pydantic model, or a JSON schema, says of the answers becomes columns of the table."""

import re
import types
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from airflow_provider_claude_batch import json_schema
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Column, Kind, Unfit

_OURS = frozenset(column.name for column in COLUMNS)
_INT_LIMIT, _WHOLE_DIGITS, _FRACTION_DIGITS = 2**63, 29, 9
_QUOTED = re.compile(r" '.*?'(?= - at |$)", re.DOTALL)
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
        values = self._read(text)
        return tuple(_fitted(value, column) for value, column in zip(values, self.columns, strict=True))


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
        return tuple(map(_plain, values))

    return Columns(json_schema.spelled_out(schema), tuple(Column(one.name, one.kind) for one in properties), read)


def _check_part(name: str, value: msgspec.Raw, part: "msgspec.json.Decoder[Any]") -> None:
    try:
        part.decode(value)
    except msgspec.DecodeError as error:
        raise Unfit(f"{name}: {_QUOTED.sub('', str(error))}") from None


def _of_model(model: Any) -> Columns:
    if getattr(model, "__pydantic_root_model__", False) or not model.model_fields:
        raise Misconfigured("columns= takes a model with fields: each of them is a column.")
    _refuse_names(list(model.model_fields))
    kinds = {name: _kind_of(field.annotation) for name, field in model.model_fields.items()}
    parts = {name for name, kind in kinds.items() if kind == "json"}
    check = msgspec.json.Decoder(msgspec.Raw).decode

    def read(text: str) -> Values:
        try:
            check(text)  # Pydantic takes more for JSON than warehouses do
            answer = model.model_validate_json(text)
        except msgspec.DecodeError as error:
            raise Unfit(str(error)) from None
        except ValueError as error:
            raise Unfit(_faults(error)) from None
        nested = answer.model_dump(mode="json", include=parts) if parts else {}
        return tuple(_json(nested[name]) if name in parts else _plain(getattr(answer, name)) for name in kinds)

    columns = tuple(Column(name, kind) for name, kind in kinds.items())
    return Columns(json_schema.spelled_out(model.model_json_schema()), columns, read)


def _kind_of(annotation: Any) -> Kind:
    """Tell which column holds values of a field; what may be several things, or has parts, is kept as JSON."""
    if get_origin(annotation) in {Union, types.UnionType}:
        kinds = {_kind_of(one) for one in get_args(annotation) if one is not types.NoneType}
        return kinds.pop() if len(kinds) == 1 else "json"
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
    if twice := [name for name in names if lowered.count(name.lower()) > 1]:
        raise Misconfigured(f"columns= names {', '.join(twice)}, which many warehouses take for one and the same.")
    if odd := [name for name in names if not name or not name.isprintable() or set(name) & {'"', "\\"}]:
        raise Misconfigured(f"columns= names {odd[0]!r}, which is no name of a column.")


def _faults(error: ValueError) -> str:
    """Say where an answer is at fault and how, without its words."""
    details: Any = getattr(error, "errors", None)
    if details is None:
        return type(error).__name__
    found = details(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['type']}" for one in found[:_NAMED_FAULTS])


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        text = bytes(value).decode()
        return None if text == "null" else text
    if value is msgspec.UNSET:
        return None
    return value.value if isinstance(value, Enum) else value


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _fitted(value: Any, column: Column) -> Any:
    """Take a value into its column, or refuse it: what is rounded or cut silently is wrong silently."""
    if value is None:
        return None
    match column.kind:
        case "bigint" if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise Unfit(f"{column.name}: larger than 64 bits")
        case "decimal" if not _is_in_range(value):
            raise Unfit(f"{column.name}: more than {_WHOLE_DIGITS} digits, or {_FRACTION_DIGITS} after the point")
        case "timestamp" if value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        case "text" if not isinstance(value, str):
            return str(value)
    return value


def _is_in_range(value: Decimal) -> bool:
    if not value.is_finite():
        return False
    exponent = value.normalize().as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -_FRACTION_DIGITS and value.adjusted() < _WHOLE_DIGITS
