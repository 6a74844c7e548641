"""The `output_config` of a request: what is wrong with it, and the shapes of the output that it asks for."""

from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from airflow_provider_claude_batch.emulator.schema import (
    MAX_BYTES,
    TOO_COMPLEX,
    WHERE,
    definitions_of,
    find_schema_problem,
)
from airflow_provider_claude_batch.emulator.shape import Shaper, Shapes, TooComplex

EFFORTS = ("low", "medium", "high", "xhigh", "max")
EXTRA = "Extra inputs are not permitted"


class Output(Struct, frozen=True):
    """A schema once read: what is wrong with it, or else what fits it."""

    problem: str | None = None
    shapes: Shapes = ()


def find_output_problem(params: dict[str, Any]) -> str | None:
    """Report what is wrong with the output_config, which may be missing."""
    config = params.get("output_config")
    if config is None:
        return None
    if not isinstance(config, dict):
        return "output_config: Input should be a valid dictionary"
    if extra := next((name for name in config if name not in {"effort", "format", "task_budget"}), None):
        return f"output_config.{extra}: {EXTRA}"
    if config.get("effort") not in (None, *EFFORTS):
        return f"output_config.effort: Input should be one of {', '.join(EFFORTS)}"
    return _format_problem(config.get("format"))


def shapes_of(params: dict[str, Any]) -> Shapes:
    """Return the shapes that the answer may have; none where its text is free."""
    schema = ((params.get("output_config") or {}).get("format") or {}).get("schema")
    return () if schema is None else _read(msgspec.json.encode(schema)).shapes


def _format_problem(asked: Any) -> str | None:
    where = "output_config.format"
    if asked is None:
        return None
    if not isinstance(asked, dict):
        return f"{where}: Input should be a valid dictionary"
    if missing := next((name for name in ("type", "schema") if name not in asked), None):
        return f"{where}.{missing}: Field required"
    if asked["type"] != "json_schema":
        return f"{where}.type: Input should be 'json_schema'"
    if extra := next((name for name in asked if name not in {"type", "schema"}), None):
        return f"{where}.{extra}: {EXTRA}"
    return _schema_problem(asked["schema"])


def _schema_problem(schema: Any) -> str | None:
    if not isinstance(schema, dict):
        return f"{WHERE}: Input should be a valid dictionary"
    try:
        raw = msgspec.json.encode(schema)
    except RecursionError:
        return TOO_COMPLEX
    return TOO_COMPLEX if len(raw) > MAX_BYTES else _read(raw).problem


@lru_cache(maxsize=64)
def _read(raw: bytes) -> Output:
    # By its JSON, since the requests of a batch mostly share one schema and each brings a copy of it.
    schema = msgspec.json.decode(raw)
    if problem := find_schema_problem(schema):
        return Output(problem)
    try:
        shapes = Shaper(definitions_of(schema)).shapes(schema)
    except TooComplex:
        return Output(TOO_COMPLEX)
    return Output(shapes=shapes) if shapes else Output(f"{WHERE}: no value fits the schema")
