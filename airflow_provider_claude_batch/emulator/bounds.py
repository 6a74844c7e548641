"""Bounds that the API takes no keyword for: the SDK writes them into the description, and a model mostly keeps them."""

import math
import re
from typing import Any, TypeAlias

NAMES = "(?:min|max)(?:imum|Length|Items)|exclusiveM(?:in|ax)imum|multipleOf"
BOUND = re.compile(rf"(?:^\{{|, )({NAMES}): (-?\d{{1,15}}(?:\.\d{{1,15}})?)(?=,|\}}$)")
DECIMAL = re.compile(r"(?:^\{|, )format: decimal(?=,|\}$)")
MAX_ITEMS = 20
MAX_LENGTH = 4_000

Bounds: TypeAlias = dict[str, float]


def read_bounds(schema: dict[str, Any]) -> Bounds:
    """Read what the last paragraph of a description says, such as `{minimum: 1, maximum: 5}`."""
    description = schema.get("description")
    paragraph = description.rpartition("\n\n")[2] if isinstance(description, str) else ""
    bounds = {name: float(number) for name, number in BOUND.findall(paragraph)}
    return bounds | {"isDecimal": 1.0} if DECIMAL.search(paragraph) else bounds


def narrow(usual: tuple[int, int], bounds: Bounds, scale: int = 1) -> tuple[int, int]:
    """Narrow the usual range, which is in units of 1/scale, down to the bounds, or move it there."""
    lows, highs = _limits(bounds, scale)
    low, high = max([usual[0], *lows]), min([usual[1], *highs])
    if low > usual[1]:
        high = min([low + usual[1] - usual[0], *highs])
    elif high < usual[0]:
        low = max([high - usual[1] + usual[0], *lows])
    return low, max(low, high)


def _limits(bounds: Bounds, scale: int) -> tuple[list[int], list[int]]:
    scaled = [(name, bound * scale) for name, bound in bounds.items()]
    lows = [math.ceil(bound) for name, bound in scaled if name == "minimum"]
    lows += [math.floor(bound) + 1 for name, bound in scaled if name == "exclusiveMinimum"]
    highs = [math.floor(bound) for name, bound in scaled if name == "maximum"]
    highs += [math.ceil(bound) - 1 for name, bound in scaled if name == "exclusiveMaximum"]
    return lows, highs


def count_items(min_items: int, usual: int, bounds: Bounds) -> tuple[int, int]:
    """Return the least and the most items of an array."""
    least = max(min_items, min(int(bounds.get("minItems", 0)), MAX_ITEMS))
    return least, max(least, min(usual, int(bounds.get("maxItems", usual))))


def fit_length(text: str, filler: str, bounds: Bounds) -> str:
    """Lengthen or cut a text to its bounds."""
    missing = min(int(bounds.get("minLength", 0)), MAX_LENGTH) - len(text)
    if missing > 0:
        text += f" {filler}" * (missing // len(filler) + 1)
    return text[: max(0, int(bounds["maxLength"]))] if "maxLength" in bounds else text
