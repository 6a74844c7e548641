"""Typed columns: what a Pydantic model, or a JSON schema, says of the answers becomes columns of the table."""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import msgspec

from airflow_provider_claude_batch import json_schema, validator
from airflow_provider_claude_batch.cells import cell, cell_of_model, json_of_model, tree_of
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.json_schema import Exact
from airflow_provider_claude_batch.row import COLUMNS, Column, Unfit

_OURS = frozenset(column.name for column in COLUMNS)
_TAKEN = frozenset({"xmin", "xmax", "cmin", "cmax", "ctid", "tableoid", "claude_batch_nth"})
_NAMED_FAULTS = 3
_parts_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

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
            return self._read(text)
        except Unfit:
            raise
        except Exception as error:  # noqa: BLE001 - validators raise anything, and one answer must not fail the load
            raise Unfit(type(error).__name__) from None


def _of_schema(schema: Mapping[str, Any]) -> Columns:
    root = json_schema.resolved(schema)
    columns = tuple(Column(one.name, one.kind) for one in json_schema.properties(root))
    _refuse_names([column.name for column in columns])
    judge = validator.judge_of(root)
    has_json = any(column.kind == "json" for column in columns)

    def read(text: str) -> Values:
        tree = tree_of(text)
        judge(tree)
        parts = _parts_of(text) if has_json else {}
        return tuple(
            _raw(parts, column.name) if column.kind == "json" else cell(tree.get(column.name), column)
            for column in columns
        )

    return Columns(json_schema.asked(schema, root), columns, read)


def _raw(parts: Mapping[str, msgspec.Raw], name: str) -> str | None:
    text = bytes(parts.get(name, b"null")).decode()
    return None if text == "null" else text


def _of_model(model: Any) -> Columns:
    if getattr(model, "__pydantic_root_model__", False) or not model.model_fields:
        raise Misconfigured("columns= takes a model with fields: each of them is a column.")
    _refuse_names(list(model.model_fields))
    schema, root, named = _schemas(model)
    keys = {name: _keys(name, field) for name, field in model.model_fields.items()}
    columns = tuple(Column(name, json_schema.kind_of(named.get(name, {}))) for name in keys)
    decimals = {
        key: found
        for name in keys
        for key in keys[name]
        if (found := json_schema.exact([one for one in (named.get(name), root.get("properties", {}).get(key)) if one]))
    }
    places = Exact(here=False, keys=decimals, first=(), items=None)
    known = {*keys, *json_schema.names(root)}

    def read(text: str) -> Values:
        tree = tree_of(text)  # Pydantic takes more for JSON than warehouses do
        parts = _parts_of(text) if isinstance(tree, dict) else {}
        try:
            answer = model.model_validate_json(_with_exact(text.strip().encode(), places) if decimals else text)
        except ValueError as error:
            raise Unfit(_faults(error, known)) from None
        return tuple(_value(getattr(answer, column.name), keys[column.name], tree, parts, column) for column in columns)

    return Columns(json_schema.asked(schema, root), columns, read)


def _schemas(model: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return a model's schema, the same without references, and what it says of each field by the field's own name."""
    from pydantic.json_schema import GenerateJsonSchema

    class WithDecimals(GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> dict[str, Any]:
            """Ask for text alone: the digits of a number may not survive."""
            texts = [one for one in super().decimal_schema(schema).get("anyOf", ()) if one.get("type") == "string"]
            return {"anyOf": [{"format": "decimal", **(texts[0] if texts else {"type": "string"})}]}

    schema = model.model_json_schema(schema_generator=WithDecimals)
    by_name = model.model_json_schema(schema_generator=WithDecimals, by_alias=False)
    return schema, json_schema.resolved(schema), json_schema.resolved(by_name).get("properties", {})


def _value(
    made: Any, keys: tuple[str, ...], tree: Mapping[str, Any], parts: Mapping[str, msgspec.Raw], column: Column
) -> Any:
    key = next((one for one in keys if one in parts), None)
    written = None if key is None else tree[key]
    if column.kind == "json":
        return json_of_model(made, written, None if key is None else bytes(parts[key]), column)
    return cell_of_model(made, written, column)


def _with_exact(text: bytes, places: Exact | None) -> bytes:
    """Quote the numbers that are decimals: Pydantic would read them as floats, which changes digits."""
    if places is None or text[:1] not in b"{[-0123456789":
        return text
    if places.here and text[:1] in b"-0123456789":
        return b'"%b"' % text
    if text[:1] == b"{" and places.keys:
        parts = _parts_of(text)
        quoted = {key: _with_exact(bytes(part), places.keys.get(key)) for key, part in parts.items()}
        return msgspec.json.encode({key: msgspec.Raw(part) for key, part in quoted.items()})
    if text[:1] == b"[" and (places.items or places.first):
        entries = map(bytes, msgspec.json.decode(text, type=list[msgspec.Raw]))
        each = (places.first[n] if n < len(places.first) else places.items for n in count())
        return msgspec.json.encode([msgspec.Raw(_with_exact(*pair)) for pair in zip(entries, each, strict=False)])
    return text


def _keys(name: str, field: Any) -> tuple[str, ...]:
    """Return the keys under which an answer may hold a field."""
    given = (field.alias, field.validation_alias, *getattr(field.validation_alias, "choices", ()), name)
    return tuple(dict.fromkeys(key for key in given if isinstance(key, str)))


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


def _faults(error: ValueError, known: set[str]) -> str:
    """Say where an answer is at fault and how, without its words: a key that it made up is one of them."""
    details: Any = getattr(error, "errors", None)
    if details is None:
        return type(error).__name__
    found = details(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{validator.place(one['loc'], known)}: {one['type']}" for one in found[:_NAMED_FAULTS])
