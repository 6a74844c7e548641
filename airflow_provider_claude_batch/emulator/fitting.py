"""Makes a JSON document that fits a schema, out of made-up values."""

from typing import Any

import msgspec
from msgspec import Struct

from airflow_provider_claude_batch.emulator.bounds import count_items, fit_length
from airflow_provider_claude_batch.emulator.chance import Draws
from airflow_provider_claude_batch.emulator.made_up import make_integer, make_number, make_text
from airflow_provider_claude_batch.emulator.prose import SENTENCES
from airflow_provider_claude_batch.emulator.shape import USUAL_ITEMS, Shape, Shapes

NULL = (None,)
NUMBERS = frozenset({"integer", "number"})
# One in so many optional properties is left out, and one in so many values that may be null is null.
LEFT_OUT = 4
NULLED = 6


class Fitter(Struct, frozen=True):
    """Draws values for one answer to one text."""

    draws: Draws
    user: str

    def fit(self, shapes: Shapes, name: str = "") -> Any:
        """Make a value for the property of this name."""
        shape = self._choose(shapes)
        if shape.kind == "literal":
            return self.draws.one_of(shape.values)
        if shape.kind == "object":
            return {key: self.fit(shape.properties[key], key) for key in self._named(shape)}
        if shape.kind == "array":
            least, most = count_items(shape.min_items, USUAL_ITEMS, shape.bounds) if shape.items else (0, 0)
            return [self.fit(shape.items, name) for _ in range(least + self.draws.below(most - least + 1))]
        if shape.kind in NUMBERS:
            return (make_integer if shape.kind == "integer" else make_number)(self.draws, name, shape.bounds)
        if "isDecimal" in shape.bounds:
            return str(make_number(self.draws, name, shape.bounds))
        text = make_text(self.draws, name, shape.format, self.user)
        return fit_length(text, SENTENCES[0], shape.bounds) if shape.bounds else text

    def _choose(self, shapes: Shapes) -> Shape:
        if len(shapes) == 1:
            return shapes[0]
        others = _without_text(tuple(shape for shape in shapes if shape.values != NULL))
        nulls = [shape for shape in shapes if shape.values == NULL]
        return nulls[0] if nulls and not (others and self.draws.below(NULLED)) else self.draws.one_of(others)

    def _named(self, shape: Shape) -> list[str]:
        """Name the properties to write: those required, and then, as the API has it, the optional ones."""
        possible = [name for name, shapes in shape.properties.items() if shapes]
        optional = [name for name in possible if name not in shape.required and self.draws.below(LEFT_OUT)]
        return [name for name in possible if name in shape.required] + optional


def _without_text(shapes: Shapes) -> Shapes:
    # A number or else a text is how Pydantic writes a Decimal, and not every text is one.
    numeric = any(shape.kind in NUMBERS for shape in shapes)
    return tuple(shape for shape in shapes if shape.kind != "string" or shape.format) if numeric else shapes


def write_document(shapes: Shapes, draws: Draws, user: str) -> str:
    """Write the document that these draws make of the shapes, as compact as the model does."""
    return msgspec.json.encode(Fitter(draws, user).fit(shapes)).decode()
