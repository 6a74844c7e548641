"""JSON schemas, as far as structured output goes: types to check answers against, and the kinds of columns."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import Kind

_BIGINT = Meta(ge=-(2**63), le=2**63 - 1)
_SCALARS: dict[Any, tuple[Kind, Any]] = {
    "string": ("text", str),
    "integer": ("bigint", int),
    "number": ("double", float),
    "boolean": ("boolean", bool),
}
_FORMATS: dict[Any, tuple[Kind, Any]] = {
    "date": ("date", date),
    "date-time": ("timestamp", datetime),
    "decimal": ("decimal", Decimal),
    "time": ("text", time),
    "uuid": ("text", UUID),
}
_KINDS: dict[type, Kind] = {type_: kind for kind, type_ in _SCALARS.values()}
_LIMITS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "pattern": "pattern",
    "minItems": "min_length",
    "maxItems": "max_length",
}
_TYPES = (*_SCALARS, "null", "object", "array")
_PRIMITIVES = (str, int, float, bool, type(None))


class Property(NamedTuple):
    """One property of the answers: the kind of its column, the type of its values, and those allowed, if only some."""

    name: str
    kind: Kind
    type: Any
    is_required: bool
    allowed: tuple[Any, ...] = ()


def properties(schema: Mapping[str, Any]) -> list[Property]:
    """Return what the answers of a schema consist of."""
    root = resolved(schema)
    if root.get("type") != "object" or not root.get("properties"):
        raise Misconfigured("columns= takes a schema of objects with properties: each of them is a column.")
    required = root.get("required", ())
    return [
        Property(name, _kind(one), _type(one, name), name in required, _allowed(one))
        for name, one in root["properties"].items()
    ]


def resolved(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without references, and refuse what the API cannot answer."""
    root = _plain(schema, {**schema.get("definitions", {}), **schema.get("$defs", {})}, ())
    for name, one in root.get("properties", {}).items():
        _refuse_unanswerable(one, name)
    return root


def names(schema: Any) -> Iterator[str]:
    """Return the names of all properties of a schema, the nested ones too."""
    if isinstance(schema, Mapping):
        if isinstance(parts := schema.get("properties"), Mapping):
            yield from parts
        schema = list(schema.values())
    if isinstance(schema, list):
        for one in schema:
            yield from names(one)


def as_text(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for a decimal as text alone: the digits of a number may not survive."""
    alternatives = schema.get("anyOf", ())
    if not any(one.get("type") == "string" for one in alternatives):
        return dict(schema)
    kept = [
        {"format": "decimal", **one} if one.get("type") == "string" else one
        for one in alternatives
        if one.get("type") != "number"
    ]
    return {**schema, "anyOf": kept}


def struct(name: str, fields: Mapping[str, tuple[Any, bool]]) -> Any:
    """Make a record of fields with whatever names, each with its type and whether it has to be there."""
    names = {f"f{number}": key for number, key in enumerate(fields)}
    definition = [
        (field, fields[key][0]) if fields[key][1] else (field, fields[key][0] | UnsetType, UNSET)
        for field, key in names.items()
    ]
    return msgspec.defstruct(name if name.isidentifier() else "Object", definition, kw_only=True, rename=names)


def spelled_out(schema: Any) -> Any:
    """Write lists of types as the alternatives that they are, which is how the API takes them."""
    if isinstance(schema, list):
        return [spelled_out(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    schema = {key: spelled_out(value) for key, value in schema.items()}
    if not isinstance(types := schema.get("type"), list):
        return schema
    about = {key: schema.pop(key) for key in ("title", "description") if key in schema}
    return {**about, "anyOf": [{"type": "null"} if one == "null" else {**schema, "type": one} for one in types]}


def _plain(schema: Any, defs: Mapping[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
    """Put what references point to in their place, and leave one way to spell alternatives."""
    if not isinstance(schema, Mapping):
        return {}
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        if name in seen:
            raise Misconfigured(f"columns= has a schema that holds itself ({name}): the API takes none that does.")
        if name not in defs:
            raise Misconfigured(f"columns= has a schema that points to {schema['$ref']!r}, and nothing is there.")
        return _plain(defs[name], defs, (*seen, name))
    if len(all_of := schema.get("allOf", ())) == 1:
        return _plain({**{key: schema[key] for key in schema if key != "allOf"}, **all_of[0]}, defs, seen)
    plain = spelled_out({key: value for key, value in schema.items() if key not in {"$defs", "definitions"}})
    if alternatives := plain.get("anyOf") or plain.get("oneOf"):
        return {"anyOf": [_plain(one, defs, seen) for one in alternatives]}
    if "properties" in plain:
        plain["properties"] = {key: _plain(value, defs, seen) for key, value in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = _plain(plain["items"], defs, seen)
    if "allOf" in plain:
        plain["allOf"] = [_plain(one, defs, seen) for one in plain["allOf"]]
    return dict(plain)


def _refuse_unanswerable(schema: Mapping[str, Any], where: str) -> None:
    """Refuse what has no type, and objects without named properties: the only one that the API writes is empty."""
    if "anyOf" in schema or "allOf" in schema:
        for one in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
            _refuse_unanswerable(one, where)
    elif not (_literals(schema) and all(isinstance(one, _PRIMITIVES) for one in _literals(schema))):
        _refuse_untyped(schema, where)
        for name, one in schema.get("properties", {}).items():
            _refuse_unanswerable(one, f"{where}.{name}")
        if "items" in schema:
            _refuse_unanswerable(schema["items"], where)


def _refuse_untyped(schema: Mapping[str, Any], where: str) -> None:
    if schema.get("type") not in _TYPES:
        raise Misconfigured(f"columns= leaves open of which type {where} is, and the API has to be told: name one.")
    if schema["type"] == "object" and not schema.get("properties"):
        raise Misconfigured(
            f"columns= leaves open which keys {where} has, and the API would answer {{}} each time: "
            "name its fields, or make it a list of models with a key and a value."
        )


def _kind(schema: Mapping[str, Any]) -> Kind:
    """Tell which column holds a value; what may be several things, or has parts, is kept as JSON."""
    kinds: set[Kind] = {kind for one in _alternatives(schema) for kind in _kinds_of_one(one)}
    return kinds.pop() if len(kinds) == 1 else "json"


def _kinds_of_one(schema: Mapping[str, Any]) -> set[Kind]:
    if values := _literals(schema):
        kinds = {_KINDS.get(type(value), "json") for value in values if value is not None}
        return {"double"} if kinds == {"bigint", "double"} else kinds
    if schema.get("type") == "null":
        return set()
    scalar = _scalar(schema)
    return {scalar[0] if scalar else "json"}


def _allowed(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the only values that are allowed, where each alternative names its own."""
    named = [_literals(one) or ([None] if one.get("type") == "null" else []) for one in _alternatives(schema)]
    return tuple(value for values in named for value in values) if all(named) else ()


def _type(schema: Mapping[str, Any], name: str) -> Any:
    """Build the type that checks a value; where alternatives cannot be told apart, anything goes."""
    alternatives = _alternatives(schema)
    type_ = reduce(or_, [*(_type_of_one(one, name) for one in alternatives), *_whole_floats(alternatives)])
    try:
        msgspec.json.Decoder(type_)
    except TypeError:
        return Any
    return type_


def _whole_floats(alternatives: list[Mapping[str, Any]]) -> list[Any]:
    """To JSON Schema 5.0 and 1e3 are integers; where any other number fits too, its type takes them in."""
    if {"double", "decimal"} & {kind for one in alternatives for kind in _kinds_of_one(one)}:
        return []
    whole = [one for one in alternatives if one.get("type") == "integer" and not _literals(one)]
    return [_limited(float, {"multipleOf": 1, **one}) for one in whole]


def _type_of_one(schema: Mapping[str, Any], name: str) -> Any:
    if values := _literals(schema):
        return _type_of_literals(values)
    if scalar := _scalar(schema):
        return scalar[1]
    if schema.get("type") == "null":
        return type(None)
    return _type_of_parts(schema, name)


def _type_of_literals(values: list[Any]) -> Any:
    if all(value is None or type(value) is str or _is_small(value) for value in values):
        return Literal[tuple(values)]
    types = {type(value) for value in values}
    if not types <= {int, float, type(None)} and not types <= {bool, type(None)}:
        return Any
    return reduce(or_, types - {int} if float in types else types)


def _is_small(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _type_of_parts(schema: Mapping[str, Any], name: str) -> Any:
    if schema.get("type") == "array":
        return _limited(list[_type(schema.get("items", {}), name)], schema)  # type: ignore[misc]
    if schema.get("type") != "object":
        return Any
    parts = schema["properties"]
    required = schema.get("required", ())
    with suppress(ValueError):  # which a name with a quote or a control character in it makes
        return struct(name, {key: (_type(one, key), key in required) for key, one in parts.items()})
    return dict[str, Any]


def _scalar(schema: Mapping[str, Any]) -> tuple[Kind, Any] | None:
    kind_of, format_ = schema.get("type"), schema.get("format")
    if (kind_of == "string" and format_ in _FORMATS) or (kind_of == "number" and format_ == "decimal"):
        return _FORMATS[format_]
    if kind_of not in _SCALARS:
        return None
    kind, type_ = _SCALARS[kind_of]
    limited = _limited(type_, schema)
    return kind, Annotated[limited, _BIGINT] if kind == "bigint" and limited is int else limited


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "anyOf" not in schema:
        return [schema]
    return [nested for one in schema["anyOf"] for nested in _alternatives(one)]


def _literals(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _limited(type_: Any, schema: Mapping[str, Any]) -> Any:
    """Check the limits that can be checked; the API keeps to none of them."""
    limits: dict[str, Any] = {}
    for key, name in _LIMITS.items():
        if key in schema and not (key == "multipleOf" and schema.get("type") == "number"):  # 0.3 is no multiple of 0.1
            with suppress(TypeError, ValueError, OverflowError, RecursionError, re.error):
                msgspec.json.Decoder(Annotated[type_, Meta(**limits, **{name: schema[key]})])
                limits[name] = schema[key]
    return Annotated[type_, Meta(**limits)] if limits else type_
