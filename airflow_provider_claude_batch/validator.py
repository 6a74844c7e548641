"""Validators: whether an answer fits a JSON schema, as `jsonschema` judges it."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from typing import Any
from uuid import UUID

import msgspec

from airflow_provider_claude_batch import json_schema
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import Unfit

_DECIMAL = "decimal of ours"  # the word for it in a schema that only we read
_FORMATS: dict[str, type] = {"date": date, "date-time": datetime, "time": time, "uuid": UUID}
_LIMITS = {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"),
    *("minItems", "maxItems"),
}
_NAMED_FAULTS = 3

Judge = Callable[[Any], None]


def judge_of(root: Mapping[str, Any]) -> Judge:
    """Make the judge of answers to a schema without references; numbers with a point come to it as decimals."""
    from jsonschema import FormatChecker, SchemaError, validators

    kind: Any = validators.validator_for(root, default=validators.Draft202012Validator)
    usable = json_schema.rewritten(root, lambda one: _without_odd_limits(one, kind))
    try:
        kind.check_schema(usable)
    except SchemaError as error:
        raise Misconfigured(f"columns= has a schema that is none, at {error.json_path}.") from None
    checker = FormatChecker(formats=())
    for name, type_ in _FORMATS.items():
        checker.checks(name, raises=msgspec.ValidationError)(lambda value, type_=type_: _is_written_as(value, type_))
    types = kind.TYPE_CHECKER.redefine("integer", _is_integer)
    words: dict[str, Any] = {"multipleOf": _multiple_of, _DECIMAL: _decimal}
    if kind is validators.Draft202012Validator:
        words |= _Kept().words()
    exact_schema = _with_exact_numbers(json_schema.rewritten(usable, _with_decimals))
    validator = validators.extend(kind, words, type_checker=types)(exact_schema, format_checker=checker)
    known = set(json_schema.names(root))

    def judge(answer: Any) -> None:
        if faults := [_told(fault, known) for fault in islice(validator.iter_errors(answer), _NAMED_FAULTS)]:
            raise Unfit("; ".join(dict.fromkeys(faults)))

    return judge


def place(path: Iterator[int | str] | tuple[int | str, ...], known: set[str]) -> str:
    """Say where in an answer something is, without the keys that the answer made up."""
    return ".".join(str(part) if isinstance(part, int) or part in known else "…" for part in path)


def _told(fault: Any, known: set[str]) -> str:
    """Say where an answer is at fault and how, without its words."""
    from jsonschema.exceptions import best_match

    fault = best_match(iter([fault]))
    where = list(fault.absolute_path)
    if fault.validator == "required":
        where += [name for name in fault.validator_value if fault.message.startswith(f"{name!r} is ")][:1]
    if fault.validator == "additionalProperties":
        where.append("")
    return f"{place(tuple(where), known) or 'the answer'}: {fault.validator or 'false'}".replace(_DECIMAL, "decimal")


def _without_odd_limits(schema: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Leave out limits that cannot be checked; the API keeps to none of them."""
    return {key: value for key, value in schema.items() if key not in _LIMITS or _can_be_checked(key, value, kind)}


def _can_be_checked(key: str, value: Any, kind: Any) -> bool:
    from jsonschema import SchemaError

    with suppress(SchemaError, re.error, RecursionError, OverflowError):
        kind.check_schema({key: value})
        return key != "pattern" or bool(re.compile(value))
    return False


def _with_decimals(schema: dict[str, Any]) -> dict[str, Any]:
    """Say in our word what may be a decimal: a number, or text that is one."""
    if schema.get("format") != "decimal" or "type" not in schema or json_schema.literals(schema):
        return schema
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not {"string", "number"} & set(types):
        return schema
    limits = {key: value for key, value in schema.items() if key not in {"type", "format", *json_schema.NOTES}}
    others = [one for one in types if one not in {"string", "number", "integer"}]
    return {"anyOf": [{_DECIMAL: limits}, {**limits, "type": others}]} if others else {_DECIMAL: limits}


def _with_exact_numbers(schema: Any) -> Any:
    """Read the numbers of a schema as they are written: 0.1 is a tenth."""
    if isinstance(schema, Mapping):
        return {key: _with_exact_numbers(value) for key, value in schema.items()}
    if isinstance(schema, list | tuple):
        return [_with_exact_numbers(one) for one in schema]
    return Decimal(repr(schema)) if isinstance(schema, float) else schema


def _is_integer(_: Any, value: Any) -> bool:
    """To JSON Schema 5.0 and 1e3 are integers."""
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _is_written_as(value: Any, type_: type) -> bool:
    return not isinstance(value, str) or msgspec.convert(value, type_) is not None


def _multiple_of(validator: Any, unit: Any, value: Any, _: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if validator.is_type(value, "number") and (Fraction(value) / Fraction(unit)).denominator != 1:
        yield ValidationError("multipleOf")


class _Kept:
    """The words that lead into a schema, with one validator for each: `jsonschema` itself makes one for each value."""

    def __init__(self) -> None:
        self._validators: dict[int, tuple[Any, Any]] = {}  # with their schemas, whose ids are then no other's

    def words(self) -> dict[str, Any]:
        return {"properties": self._properties, "items": self._items, "anyOf": self._any_of}

    def _errors(self, validator: Any, schema: Any, value: Any, *at: int | str) -> Iterator[Any]:
        if id(schema) not in self._validators:
            self._validators[id(schema)] = validator.evolve(schema=schema), schema
        for error in self._validators[id(schema)][0].iter_errors(value):
            error.path.extendleft(at)
            yield error

    def _properties(self, validator: Any, schemas: Mapping[str, Any], value: Any, _: Any) -> Iterator[Any]:
        for name, schema in schemas.items() if isinstance(value, dict) else ():
            if name in value:
                yield from self._errors(validator, schema, value[name], name)

    def _items(self, validator: Any, schema: Any, value: Any, whole: Mapping[str, Any]) -> Iterator[Any]:
        for n in range(len(whole.get("prefixItems", ())), len(value)) if isinstance(value, list) else ():
            yield from self._errors(validator, schema, value[n], n)

    def _any_of(self, validator: Any, schemas: list[Any], value: Any, _: Any) -> Iterator[Any]:
        from jsonschema import ValidationError

        found: list[Any] = []
        for schema in schemas:
            errors = list(self._errors(validator, schema, value))
            if not errors:
                return
            found += errors
        yield ValidationError("anyOf", context=found)


def _decimal(validator: Any, limits: Any, value: Any, _: Any) -> Iterator[Any]:
    """Check a decimal: its limits hold for the number that it is, and those of texts for how it is written."""
    from jsonschema import ValidationError

    number: Any = None
    with suppress(InvalidOperation):
        number = Decimal(value) if isinstance(value, str) else value
    if not validator.is_type(number, "number") or not Decimal(number).is_finite():
        yield ValidationError(_DECIMAL)
    elif limits:
        yield from validator.descend(number, limits)
        if isinstance(value, str):
            yield from validator.descend(value, limits)
