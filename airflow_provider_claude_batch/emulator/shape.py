"""What fits a schema: one or more shapes, each with no more than one type."""

from collections.abc import Iterable
from itertools import product
from typing import Any, TypeAlias

from msgspec import Struct, structs

from airflow_provider_claude_batch.emulator.bounds import Bounds, count_items, read_bounds

USUAL_ITEMS = 3
# Bounds of one schema: levels of nesting through all references, values in a document, steps to find its shapes.
MAX_LEVELS = 64
MAX_SIZE = 5_000
MAX_STEPS = 50_000


class Shape(Struct, frozen=True):
    """One kind of value: a literal is one of its `values`, an object has `properties`, an array `items`."""

    kind: str
    size: int = 1
    levels: int = 1
    values: tuple[Any, ...] = ()
    format: str | None = None
    properties: dict[str, "Shapes"] = {}
    required: frozenset[str] = frozenset()
    items: "Shapes" = ()
    min_items: int = 0
    bounds: Bounds = {}

    def accepts(self, value: Any) -> bool:
        """Say whether a value fits, whatever its format."""
        if self.kind == "literal":
            return any(_same(value, one) for one in self.values)
        if self.kind == "object":
            return isinstance(value, dict) and self._holds(value)
        if self.kind == "array":
            fits = isinstance(value, list) and all(accept(self.items, item) for item in value)
            return fits and len(value) >= self.min_items
        if self.kind in {"string", "any"}:
            return self.kind == "any" or isinstance(value, str)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (self.kind == "number" or isinstance(value, int) or value.is_integer())

    def _holds(self, value: dict[str, Any]) -> bool:
        return self.required <= value.keys() and all(
            accept(self.properties.get(name, ()), one) for name, one in value.items()
        )


Shapes: TypeAlias = tuple[Shape, ...]
ANYTHING = Shape("any")
BY_TYPE = {
    "string": Shape("string"),
    "integer": Shape("integer"),
    "number": Shape("number"),
    "boolean": Shape("literal", values=(True, False)),
    "null": Shape("literal", values=(None,)),
}


class TooComplex(Exception):
    """The schema is beyond the bounds."""


class Shaper:
    """Finds the shapes of schemas that have been checked and refer to each other without a circle."""

    def __init__(self, definitions: dict[str, dict[str, Any]]) -> None:
        self._definitions = definitions
        self._known: dict[str, Shapes] = {}
        self._steps = 0

    def shapes(self, schema: dict[str, Any], level: int = 0) -> Shapes:
        """Find what fits; nothing at all does when the schema contradicts itself."""
        self._step(level)
        found = list(self._sides(schema, level + 1))
        fitting = found[0]
        for other in found[1:]:
            fitting = self._meet_all(fitting, other)
        return _bounded(fitting)

    def _sides(self, schema: dict[str, Any], level: int) -> Iterable[Shapes]:
        """Yield the shapes of each keyword that a value has to fit, each as if it were alone."""
        if "$ref" in schema:
            yield self._referred(schema["$ref"], level)
        if "anyOf" in schema:
            yield tuple(shape for one in schema["anyOf"] for shape in self.shapes(one, level))
        yield from (self.shapes(one, level) for one in schema.get("allOf", ()))
        if "type" in schema:
            yield tuple(self._typed(name, schema, level) for name in listed(schema["type"]))
        if "enum" in schema:
            yield (Shape("literal", values=tuple(schema["enum"])),)
        if "const" in schema:
            yield (Shape("literal", values=(schema["const"],)),)

    def _referred(self, name: str, level: int) -> Shapes:
        if name not in self._known:
            self._known[name] = self.shapes(self._definitions[name], level)
        return self._known[name]

    def _typed(self, name: str, schema: dict[str, Any], level: int) -> Shape:
        if name == "object":
            properties = {key: self.shapes(one, level) for key, one in schema.get("properties", {}).items()}
            return _object(properties, frozenset(schema.get("required", ())))
        if name == "array":
            items = self.shapes(schema["items"], level) if "items" in schema else (ANYTHING,)
            return _array(items, schema.get("minItems", 0), read_bounds(schema))
        if name == "string" and "format" in schema:
            return Shape("string", format=schema["format"])
        return structs.replace(BY_TYPE[name], bounds=read_bounds(schema))

    def _meet_all(self, some: Shapes, others: Shapes) -> Shapes:
        return tuple(
            met for one, other in product(some, others) if (met := self._meet(one, other)) and satisfiable(met)
        )

    def _meet(self, one: Shape, other: Shape) -> Shape | None:
        """Find what fits both."""
        self._step(cost=1 + len(one.values) * len(other.values))
        if other.kind in {"literal", "any"}:
            one, other = other, one
        if one.kind == "any":
            return other
        if one.kind == "literal":
            return Shape("literal", values=tuple(value for value in one.values if other.accepts(value)))
        if one.kind != other.kind:
            return BY_TYPE["integer"] if {one.kind, other.kind} == {"integer", "number"} else None
        return self._meet_alike(one, other)

    def _meet_alike(self, one: Shape, other: Shape) -> Shape | None:
        if one.kind == "object":
            both = {name: shapes for name, shapes in one.properties.items() if name in other.properties}
            met = {name: self._meet_all(shapes, other.properties[name]) for name, shapes in both.items()}
            return _object(met, one.required | other.required)
        if one.kind == "array":
            items, bounds = self._meet_all(one.items, other.items), one.bounds | other.bounds
            return _array(items, max(one.min_items, other.min_items), bounds)
        if one.format is not None and other.format is not None and one.format != other.format:
            return None
        return one if one.format is not None else other

    def _step(self, level: int = 0, cost: int = 1) -> None:
        self._steps += cost
        if self._steps > MAX_STEPS or level > MAX_LEVELS:
            raise TooComplex


def accept(shapes: Shapes, value: Any) -> bool:
    """Say whether a value fits one of the shapes."""
    return any(shape.accepts(value) for shape in shapes)


def satisfiable(shape: Shape) -> bool:
    """Say whether any value fits."""
    if shape.kind == "literal":
        return bool(shape.values)
    if shape.kind == "object":
        return all(shape.properties.get(name) for name in shape.required)
    return shape.kind != "array" or bool(shape.items) or not shape.min_items


def listed(types: Any) -> list[Any]:
    """Return the types that `type` names, which is one or a list."""
    return types if isinstance(types, list) else [types]


def _object(properties: dict[str, Shapes], required: frozenset[str]) -> Shape:
    inner = [shape for shapes in properties.values() for shape in shapes]
    size, levels = 1 + sum(shape.size for shape in inner), 1 + max((shape.levels for shape in inner), default=0)
    return Shape("object", size, levels, properties=properties, required=required)


def _array(items: Shapes, min_items: int, bounds: Bounds) -> Shape:
    _, most = count_items(min_items, USUAL_ITEMS, bounds)
    size, levels = 1 + most * sum(shape.size for shape in items), 1 + max((shape.levels for shape in items), default=0)
    return Shape("array", size, levels, items=items, min_items=min_items, bounds=bounds)


def _bounded(shapes: Shapes) -> Shapes:
    if sum(shape.size for shape in shapes) > MAX_SIZE or any(shape.levels > MAX_LEVELS for shape in shapes):
        raise TooComplex
    return tuple(filter(satisfiable, shapes))


def _same(one: Any, other: Any) -> bool:
    # To Python True is 1, to JSON it is not.
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
