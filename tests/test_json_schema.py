"""Checking answers against a JSON schema: integers, which JSON writes in more than one way."""

from typing import Any

import pytest
from test_columns import columns_of, properties

from airflow_provider_claude_batch.row import Unfit

WHOLE = [("5.0", 5), ("1e3", 1000), ("-0.0", 0), ("1.5e1", 15), ("9007199254740993.0", 2**53 + 1), ("7", 7)]
NOT_WHOLE = ["5.5", "1e400", "1e-3", "9007199254740993.5", "1e19", "true", '"5"', "NaN"]


@pytest.mark.parametrize(("written", "value"), WHOLE)
@pytest.mark.parametrize("type_", ["integer", ["integer", "null"]])
def test_an_integer_may_be_written_as_a_float(written: str, value: int, type_: Any) -> None:
    (read,) = columns_of(properties(n={"type": type_})).read(f'{{"n": {written}}}')
    assert (read, type(read)) == (value, int)


@pytest.mark.parametrize("written", NOT_WHOLE)
def test_a_float_that_is_no_integer_is_none(written: str) -> None:
    with pytest.raises(Unfit):
        columns_of(properties(n={"type": "integer"})).read(f'{{"n": {written}}}')


def test_an_integer_within_a_part_may_be_written_as_a_float_and_stays_as_it_was() -> None:
    part = {"type": "array", "items": properties(n={"type": "integer", "minimum": 1})}
    columns = columns_of(properties(parts=part))
    assert columns.read('{"parts": [{"n": 5.0}, {"n": 6}]}') == ('[{"n": 5.0}, {"n": 6}]',)
    for written in ("5.5", "0.0", "0", "true"):
        with pytest.raises(Unfit):
            columns.read(f'{{"parts": [{{"n": {written}}}]}}')


@pytest.mark.parametrize(
    ("limit", "fits", "unfit"),
    [
        ({"minimum": 2, "exclusiveMaximum": 10}, "9.0", "10.0"),
        ({"minimum": 2}, "2.0", "1.0"),
        ({"multipleOf": 5}, "1e1", "11.0"),
    ],
)
def test_an_integer_that_is_written_as_a_float_keeps_to_its_limits(limit: Any, fits: str, unfit: str) -> None:
    columns = columns_of(properties(n={"type": "integer", **limit}))
    assert columns.read(f'{{"n": {fits}}}') == (float(fits),)
    with pytest.raises(Unfit):
        columns.read(f'{{"n": {unfit}}}')


@pytest.mark.parametrize("other", [{"type": "number"}, {"enum": [5.5]}, {"type": "number", "minimum": 2}])
def test_an_integer_or_any_number_may_be_a_fraction(other: Any) -> None:
    columns = columns_of(properties(n={"anyOf": [{"type": "integer"}, other]}))
    assert columns.read('{"n": 5.5}') == ("5.5",)
    assert columns.read('{"n": 5}') == ("5",)
