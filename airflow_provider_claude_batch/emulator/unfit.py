"""Answers that break their schema, in the ways in which models do it without structured outputs."""

from typing import Any

import msgspec

from airflow_provider_claude_batch.emulator.chance import Draws
from airflow_provider_claude_batch.emulator.fitting import Fitter
from airflow_provider_claude_batch.emulator.prose import write_prose
from airflow_provider_claude_batch.emulator.shape import Shapes, accept

WAYS = ("prose", "fenced", "incomplete", "mistyped")
WRONG_VALUES: tuple[Any, ...] = ("n/a", 0, None, [], {})


def write_unfit(shapes: Shapes, draws: Draws, user: str) -> str:
    """Write prose, a document in a fence, or one without a required property or with a value of a wrong type."""
    way, prose = draws.one_of(WAYS), write_prose(draws.below(1 << 128).to_bytes(16), user)
    document = Fitter(draws, user).fit(shapes)
    if way == "fenced":
        return f"Here is the JSON:\n\n```json\n{_json(document, indent=2)}\n```"
    broken = _incomplete(document) if way == "incomplete" else _mistyped(document, shapes, draws)
    # What happens to fit all the same is no answer here.
    return prose if way == "prose" or accept(shapes, broken) else _json(broken, indent=0)


def _incomplete(document: Any) -> Any:
    """Leave out the first property, which is a required one if any is."""
    return dict(list(document.items())[1:]) if isinstance(document, dict) else document


def _mistyped(document: Any, shapes: Shapes, draws: Draws) -> Any:
    if not isinstance(document, dict) or not document:
        return [document]
    first = draws.below(len(document))
    names = [*list(document)[first:], *list(document)[:first]]
    tries = ({**document, name: wrong} for name in names for wrong in WRONG_VALUES)
    return next((one for one in tries if not accept(shapes, one)), document)


def _json(document: Any, *, indent: int) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=indent or -1).decode()
