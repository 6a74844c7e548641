"""JSON schemas, as far as structured output goes: without references, the kinds of columns, and what is asked for."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import Kind

_KINDS: dict[Any, Kind] = {"string": "text", "integer": "bigint", "number": "double", "boolean": "boolean"}
_FORMATS: dict[Any, Kind] = {"date": "date", "date-time": "timestamp"}
_LITERALS: dict[type, Kind] = {str: "text", int: "bigint", float: "double", bool: "boolean"}
_TYPES = (*_KINDS, "null", "object", "array")
_PRIMITIVES = (str, int, float, bool, type(None))
NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_DEFINITIONS = ("$defs", "definitions")
# Where the schemas are that a schema holds: by name, in lists, alone.
_BY_NAME = ("properties", "patternProperties", "dependentSchemas")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ALONE = (
    *("items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties"),
    *("propertyNames", "not", "if", "then", "else"),
)
_ASKED_REF = re.compile(r"#/\$defs/[^/]+")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


class Property(NamedTuple):
    """One property of the answers, and the kind of its column."""

    name: str
    kind: Kind


class Exact(NamedTuple):
    """Where a schema has decimals: here, below keys, or in the entries of a list (the first ones, and all others)."""

    here: bool
    keys: dict[str, "Exact"]
    first: tuple["Exact | None", ...]
    items: "Exact | None"


def properties(root: Mapping[str, Any]) -> list[Property]:
    """Return what the answers of a schema without references consist of."""
    if root.get("type") != "object" or not root.get("properties"):
        raise Misconfigured("columns= takes a schema of objects with properties: each of them is a column.")
    return [Property(name, kind_of(one)) for name, one in root["properties"].items()]


def resolved(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without references, and refuse what the API cannot answer."""
    root: dict[str, Any] = _without_references(schema, schema, ())
    for name, one in root.get("properties", {}).items():
        _refuse_unanswerable(one, name)
    return root


def asked(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema to ask for, given the one without references: in words that the API takes.

    It takes references to its `$defs` alone, and none within an `allOf`. Decimals are asked for as text, since the
    digits of a number may not survive; lists of types as the alternatives that they are.
    """
    is_plain = all(_ASKED_REF.fullmatch(str(one["$ref"])) for one in _everywhere(schema) if "$ref" in one) and not any(
        "$ref" in part for one in _everywhere(schema) for part in one.get("allOf", ()) if isinstance(part, Mapping)
    )
    wanted: dict[str, Any] = rewritten(schema if is_plain else root, _spelled_out)
    return wanted


def names(schema: Mapping[str, Any]) -> Iterator[str]:
    """Return the names of all properties of a schema, the nested ones too."""
    for one in _everywhere(schema):
        yield from one.get("properties", ())


def rewritten(schema: Any, rewrite: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Rewrite a schema and all that it holds, the innermost first."""
    if not isinstance(schema, Mapping):
        return schema
    return rewrite(_mapped(schema, lambda one: rewritten(one, rewrite)))


def kind_of(schema: Any) -> Kind:
    """Tell which column holds a value; what may be several things, or has parts, is kept as JSON."""
    kinds = {kind for one in alternatives(schema) for kind in _kinds_of_one(one)}
    return kinds.pop() if len(kinds) == 1 else "json"


def alternatives(schema: Any) -> list[dict[str, Any]]:
    """Return the schemas of which a value fits one, each with one type and what stands beside all of them."""
    if not isinstance(schema, Mapping):
        return [{}]
    for word in ("anyOf", "oneOf"):
        if word in schema:
            beside = {key: value for key, value in schema.items() if key != word and key not in NOTES}
            inner = (one if isinstance(one, Mapping) else {} for one in schema[word])
            return [nested for one in inner for nested in alternatives({**beside, **one})]
    if isinstance(types := schema.get("type"), list):
        return [{**schema, "type": one} for one in types]
    return [dict(schema)]


def is_decimal(schema: Mapping[str, Any]) -> bool:
    """Tell a schema of decimals, which may be written as text and as a number."""
    return schema.get("format") == "decimal" and schema.get("type") in {"string", "number"} and not literals(schema)


def literals(schema: Mapping[str, Any]) -> list[Any]:
    """Return the only values that a schema allows, where it names them."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def exact(schemas: list[Any]) -> Exact | None:
    """Find the decimals in what fits one of some schemas; what may be another text or number as well is none."""
    options = [option for one in schemas for option in alternatives(one) if option]
    kinds = [is_decimal(one) for one in options if one.get("type") in {"string", "number", "integer"} or literals(one)]
    named: dict[str, list[Any]] = {}
    for option in options:
        for name, one in option.get("properties", {}).items():
            named.setdefault(name, []).append(one)
    keys = {name: found for name, ones in named.items() if (found := exact(ones))}
    lists = [one["prefixItems"] for one in options if "prefixItems" in one]
    first = tuple(exact([one[n] for one in lists if n < len(one)]) for n in range(max(map(len, lists), default=0)))
    rest = [one["items"] for one in options if isinstance(one.get("items"), Mapping)]
    items = exact(rest) if rest else None
    found = Exact(bool(kinds) and all(kinds), keys, first, items)
    return found if found.here or keys or items or any(first) else None


def _kinds_of_one(schema: Mapping[str, Any]) -> set[Kind]:
    if values := literals(schema):
        kinds = {_LITERALS.get(type(value), "json") for value in values if value is not None}
        return {"double"} if kinds == {"bigint", "double"} else kinds
    if "type" not in schema and (parts := schema.get("allOf")):
        said = [kinds for one in parts if (kinds := {kind_of(one)}) != {"json"}]
        return said[0] if said and all(kinds == said[0] for kinds in said) else {"json"}
    if schema.get("type") == "null":
        return set()
    if is_decimal(schema):
        return {"decimal"}
    if schema.get("type") == "string" and schema.get("format") in _FORMATS:
        return {_FORMATS[schema["format"]]}
    return {_KINDS.get(schema.get("type"), "json")}


def _without_references(schema: Any, root: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    """Put what references point to in their place; what stands beside one holds as well."""
    if not isinstance(schema, Mapping):
        return schema
    if "$ref" in schema:
        pointer = str(schema["$ref"])
        if pointer in within:
            name = pointer.rpartition("/")[2]
            raise Misconfigured(f"columns= has a schema that holds itself ({name}): the API takes none that does.")
        target = _without_references(_pointed_to(pointer, root), root, (*within, pointer))
        beside = {key: value for key, value in schema.items() if key not in {"$ref", *_DEFINITIONS}}
        return _both(target, _without_references(beside, root, within))
    plain = {key: value for key, value in schema.items() if key not in _DEFINITIONS}
    plain = _mapped(plain, lambda one: _without_references(one, root, within))
    if len(parts := plain.get("allOf", ())) == 1:
        return _both(parts[0], {key: value for key, value in plain.items() if key != "allOf"})
    return plain


def _both(one: Any, beside: dict[str, Any]) -> Any:
    """Join two schemas of which both hold."""
    if not isinstance(one, Mapping) or any(key in one and key not in NOTES for key in beside):
        return {"allOf": [one, beside]} if set(beside) - NOTES else one
    return {**one, **beside}


def _pointed_to(pointer: str, root: Mapping[str, Any]) -> Any:
    """Follow a JSON pointer from the root."""
    found: Any = root
    start, *parts = _PERCENT.sub(lambda code: bytes([int(code[1], 16)]), pointer.encode()).decode().split("/")
    for part in parts:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            start = ""
    if start != "#":
        raise Misconfigured(f"columns= has a schema that points to {pointer!r}, and nothing is there.")
    return found


def _mapped(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Change the schemas that stand directly in one."""
    changed = dict(schema)
    for key, value in schema.items():
        if key in (*_BY_NAME, *_DEFINITIONS) and isinstance(value, Mapping):
            changed[key] = {name: change(one) for name, one in value.items()}
        elif key in _IN_LISTS and isinstance(value, list | tuple):
            changed[key] = [change(one) for one in value]
        elif key in _ALONE:
            changed[key] = change(value)
    return changed


def _everywhere(schema: Any) -> list[dict[str, Any]]:
    """Return a schema and all that it holds."""
    found: list[dict[str, Any]] = []

    def note(one: dict[str, Any]) -> dict[str, Any]:
        found.append(one)
        return one

    rewritten(schema, note)
    return found


def _spelled_out(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(types := schema.get("type"), list):
        about: dict[str, Any] = {key: schema[key] for key in ("title", "description") if key in schema}
        one_of = {key: value for key, value in schema.items() if key not in about}
        kinds = [{"type": "null"} if one == "null" else _spelled_out({**one_of, "type": one}) for one in types]
        return {**about, "anyOf": kinds}
    return {**schema, "type": "string"} if is_decimal(schema) else schema


def _refuse_unanswerable(schema: Any, where: str) -> None:
    """Refuse what has no type, and objects without named properties: the only one that the API writes is empty."""
    for one in alternatives(schema):
        if "type" not in one and "allOf" in one:
            for part in one["allOf"]:
                _refuse_unanswerable(part, where)
        elif not literals(one) or not all(isinstance(value, _PRIMITIVES) for value in literals(one)):
            _refuse_untyped(one, where)
            for name, part in one.get("properties", {}).items():
                _refuse_unanswerable(part, f"{where}.{name}")
            if "items" in one:
                _refuse_unanswerable(one["items"], where)


def _refuse_untyped(schema: Mapping[str, Any], where: str) -> None:
    if schema.get("type") not in _TYPES:
        raise Misconfigured(f"columns= leaves open of which type {where} is, and the API has to be told: name one.")
    if schema["type"] == "object" and not schema.get("properties"):
        raise Misconfigured(
            f"columns= leaves open which keys {where} has, and the API would answer {{}} each time: "
            "name its fields, or make it a list of models with a key and a value."
        )
