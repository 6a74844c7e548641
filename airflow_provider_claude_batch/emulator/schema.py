"""What the API finds wrong with the JSON schema of a structured output, in its own words."""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from airflow_provider_claude_batch.emulator.shape import listed

WHERE = "output_config.format.schema"
TOO_COMPLEX = "Schema is too complex for compilation."
MAX_BYTES = 100_000
MAX_NESTING = 128
MAX_OPTIONAL = 24
MAX_UNIONS = 16
OPTIONAL_ADVICE = (
    "which would make grammar compilation inefficient. "
    f"Reduce the number of optional parameters in your tool schemas (limit: {MAX_OPTIONAL})."
)
UNION_ADVICE = (
    "This causes exponential compilation cost. "
    f"Reduce the number of nullable or union-typed parameters (limit: {MAX_UNIONS} parameters with unions)."
)
LITERALS = frozenset({"enum", "const"})
# What says nothing about the value; the API's documentation names the first three only.
NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"})
IDENTITY = frozenset({"$schema", "$id"})
DEFINITIONS = frozenset({"$defs", "definitions"})
TYPES: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems"}),
    "string": frozenset({"format"}),
    **dict.fromkeys(("integer", "number", "boolean", "null"), frozenset()),
}
# The first of these that is in a schema says what else may be.
KINDS = ("$ref", "anyOf", "allOf", "type", "enum", "const")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")


def find_schema_problem(root: dict[str, Any]) -> str | None:
    """Report the first thing that is wrong with a schema."""
    if nested_deeper(root, MAX_NESTING):
        return TOO_COMPLEX
    definitions = definitions_of(root)
    if problem := next(_problems(root, {*definitions, "#"}, root=True), None):
        return f"{WHERE}: {problem}"
    return _circle(root, definitions) or _excess(root)


def definitions_of(root: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions of a schema by the reference that leads to each."""
    found = {}
    for keyword in sorted(DEFINITIONS):
        named = root.get(keyword)
        for name, schema in named.items() if isinstance(named, dict) else ():
            found[f"#/{keyword}/{name.replace('~', '~0').replace('/', '~1')}"] = schema
    return found


def nested_deeper(value: Any, levels: int) -> bool:
    """Say whether there is anything below so many levels of objects and lists, without recursion."""
    level = [value]
    for _ in range(levels):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _problems(schema: Any, references: set[str], *, root: bool = False) -> Iterator[str]:
    if not isinstance(schema, dict):
        yield "Input should be a valid dictionary"
        return
    yield from _keyword_problems(schema, root=root)
    yield from _literal_problems(schema)
    yield from _combiner_problems(schema, references)
    if "object" in listed(schema.get("type")):
        yield from _object_problems(schema)
    if "array" in listed(schema.get("type")) and not _is_small_count(schema.get("minItems", 0)):
        yield "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if "format" in schema and schema["format"] not in FORMATS:
        yield f"For 'string' type, format {schema['format']!r} is not supported"
    for inner in _inner(schema, root=root):
        yield from _problems(inner, references)


def _keyword_problems(schema: dict[str, Any], *, root: bool) -> Iterator[str]:
    kind = next((name for name in KINDS if name in schema), None)
    types = listed(schema["type"]) if kind == "type" else []
    if kind is None or types == [] == listed(schema.get("type")):
        yield f"a schema needs one of {', '.join(KINDS)}"
        return
    if unknown := [one for one in types if not isinstance(one, str) or one not in TYPES]:
        yield f"type {unknown[0]!r} is not supported"
        return
    known = NOTES | {kind} | (LITERALS if kind != "$ref" else frozenset()) | (_root_keywords(kind) if root else set())
    extra = sorted(schema.keys() - known.union(*(TYPES[one] for one in types)))
    named = f"'{next((one for one in types if one != 'null'), 'null')}' type" if types else f"'{kind}'"
    if len(extra) == 1:
        yield f"For {named}, property '{extra[0]}' is not supported"
    elif extra:
        yield f"For {named}, properties {', '.join(extra)} are not supported"


def _root_keywords(kind: str) -> frozenset[str]:
    # A union with definitions beside it is refused, as was seen on the wire.
    return IDENTITY if kind == "anyOf" else IDENTITY | DEFINITIONS


def _literal_problems(schema: dict[str, Any]) -> Iterator[str]:
    enum = schema.get("enum", [None])
    if not isinstance(enum, list) or not enum:
        yield "'enum' should be a list with at least one value"
    elif not all(isinstance(one, str | int | float | None) for one in [*enum, schema.get("const")]):
        yield "'enum' and 'const' values should be strings, numbers, booleans or null"


def _combiner_problems(schema: dict[str, Any], references: set[str]) -> Iterator[str]:
    for name in ("anyOf", "allOf"):
        if name in schema and (not isinstance(schema[name], list) or not schema[name]):
            yield f"'{name}' should be a list with at least one schema"
            return
    if any(isinstance(one, dict) and "$ref" in one for one in schema.get("allOf", ())):
        yield "'allOf' with '$ref' is not supported"
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or reference not in references:
        yield f"$ref {reference!r} is not supported: it leads to none of the schema's own definitions"


def _object_problems(schema: dict[str, Any]) -> Iterator[str]:
    additional, properties = schema.get("additionalProperties", True), schema.get("properties", {})
    required = schema.get("required", [])
    if isinstance(additional, dict):
        yield "For 'object' type, 'additionalProperties: object' is not supported"
    elif additional is not False:
        yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if not isinstance(properties, dict):
        yield "For 'object' type, 'properties' should be a valid dictionary"
    elif not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        yield "For 'object' type, 'required' should be a list of names from 'properties'"


def _is_small_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in {0, 1}


def _inner(schema: dict[str, Any], *, root: bool = False) -> Iterator[Any]:
    """Yield the schemas that stand directly in this one."""
    for name in ("properties", *(DEFINITIONS if root else ())):
        inner = schema.get(name, {})
        yield from inner.values() if isinstance(inner, dict) else [inner]
    for name in ("anyOf", "allOf"):
        yield from schema.get(name, ())
    if "items" in schema:
        yield schema["items"]


def _everywhere(schema: dict[str, Any], *, root: bool = False) -> Iterator[dict[str, Any]]:
    yield schema
    for inner in _inner(schema, root=root):
        yield from _everywhere(inner)


def _circle(root: dict[str, Any], definitions: dict[str, Any]) -> str | None:
    graph = {
        name: {one["$ref"] for one in _everywhere(schema) if "$ref" in one}
        for name, schema in {**definitions, "#": root}.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names = [name.rpartition("/")[2] for name in reversed(error.args[1])]
        return f"Circular reference detected in schema definitions: {' -> '.join(names)}"
    return None


def _excess(root: dict[str, Any]) -> str | None:
    everywhere = list(_everywhere(root, root=True))
    optional = sum(len(one.get("properties", {}).keys() - set(one.get("required", ()))) for one in everywhere)
    if optional > MAX_OPTIONAL:
        return f"Schemas contains too many optional parameters ({optional}), {OPTIONAL_ADVICE}"
    unions = sum("anyOf" in one or len(listed(one.get("type"))) > 1 for one in everywhere)
    if unions > MAX_UNIONS:
        counted = f"({unions} parameters with type arrays or anyOf)"
        return f"Schemas contains too many parameters with union types {counted}. {UNION_ADVICE}"
    return None
