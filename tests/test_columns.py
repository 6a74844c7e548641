import json
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel, field_validator

from airflow_provider_claude_batch.columns import Columns
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Unfit


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Item(BaseModel):
    sku: str
    pieces: int


class Ticket(BaseModel):
    label: Literal["billing", "technical"]
    score: float
    due: date
    seen: datetime | None = None
    price: Decimal
    items: list[Item] = []
    mood: Mood
    urgent: bool
    pieces: int = Field(ge=0)
    note: str | None = None


ANSWER: dict[str, Any] = {
    "label": "billing",
    "score": 1,
    "due": "2026-01-01",
    "seen": "2026-01-01T08:00:00",
    "price": "1.50",
    "items": [{"sku": "x", "pieces": 1}],
    "mood": "good",
    "urgent": True,
    "pieces": 3,
}
KINDS = ["text", "double", "date", "timestamp", "decimal", "json", "text", "boolean", "bigint", "text"]
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["billing", "technical"]},
        "score": {"type": "number"},
        "due": {"type": "string", "format": "date"},
        "seen": {"type": ["string", "null"], "format": "date-time"},
        "price": {"anyOf": [{"type": "string", "format": "decimal"}, {"type": "null"}]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
        "mood": {"$ref": "#/$defs/Mood"},
        "urgent": {"type": "boolean"},
        "pieces": {"type": "integer", "minimum": 0},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["label", "score", "due", "price", "mood", "urgent", "pieces"],
    "additionalProperties": False,
    "$defs": {
        "Mood": {"enum": ["good", "bad"], "type": "string"},
        "Item": {
            "type": "object",
            "properties": {"sku": {"type": "string"}, "pieces": {"type": "integer"}},
            "required": ["sku", "pieces"],
        },
    },
}
both = pytest.mark.parametrize("given_columns", [Ticket, SCHEMA], ids=["model", "schema"])


def columns_of(given_columns: Any) -> Columns:
    columns = Columns.of(given_columns)
    assert columns is not None
    return columns


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas}


@both
def test_each_field_is_a_column_of_its_kind(given_columns):
    columns = columns_of(given_columns).columns
    assert [column.name for column in columns] == list(SCHEMA["properties"])
    assert [column.kind for column in columns] == KINDS


@both
def test_an_answer_becomes_values(given_columns):
    values = columns_of(given_columns).read(json.dumps(ANSWER))
    assert json.loads(values[5]) == ANSWER["items"]
    assert values[:5] == ("billing", 1.0, date(2026, 1, 1), datetime(2026, 1, 1, 8, tzinfo=UTC), Decimal("1.50"))
    assert values[6:] == ("good", True, 3, None)


def test_a_nested_part_of_a_schema_is_kept_letter_by_letter():
    text = '{"part": {"b":  1.0, "a": "\\u00e9", "new": null}}'
    assert columns_of(properties(part={"type": "object"})).read(text) == ('{"b":  1.0, "a": "\\u00e9", "new": null}',)


@both
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"label": "a secret"}, "label"),
        ({"score": "high"}, "score"),
        ({"due": "tomorrow, says a secret"}, "due"),
        ({"pieces": -1}, "pieces"),
        ({"pieces": 2**63}, "pieces"),
        ({"pieces": 1.5}, "pieces"),
        ({"price": "1e40"}, "price"),
        ({"price": "0.0000000001"}, "price"),
        ({"items": [{"sku": 1, "pieces": 1}]}, "items"),
        ({"items": [{"sku": "a secret"}]}, "items"),
        ({"mood": None}, "mood"),
        ({"urgent": "a secret"}, "urgent"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place_and_never_quoted(given_columns, change, where):
    with pytest.raises(Unfit, match=where) as unfit:
        columns_of(given_columns).read(json.dumps({**ANSWER, **change}))
    assert "secret" not in str(unfit.value)


@both
@pytest.mark.parametrize(
    "text", ["", "a secret", "[1]", '"a secret"', "null", '{"label": "billing"', '{"score": NaN}', "{}"]
)
def test_what_is_no_such_object_does_not_fit(given_columns, text):
    with pytest.raises(Unfit) as unfit:
        columns_of(given_columns).read(text)
    assert "secret" not in str(unfit.value)


def test_a_validator_of_the_model_has_its_say_and_its_words_stay_out():
    class Even(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def is_even(cls, number: int) -> int:
            if number % 2:
                raise ValueError(f"{number} is odd")
            return number

    assert columns_of(Even).read('{"number": 2}') == (2,)
    with pytest.raises(Unfit, match=r"^number: value_error$"):
        columns_of(Even).read('{"number": 7}')


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"const": 7}, "bigint"),
        ({"enum": [1.5, 2.5]}, "double"),
        ({"enum": ["a", None]}, "text"),
        ({"enum": ["a", 1]}, "json"),
        ({"type": ["integer", "string"]}, "json"),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, "bigint"),
        ({"allOf": [{"$ref": "#/$defs/Name"}], "description": "its name"}, "text"),
        ({"anyOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]}, "json"),
        ({"type": "string", "format": "email"}, "text"),
        ({"type": "null"}, "json"),
        ({}, "json"),
        (True, "json"),
    ],
)
def test_kinds(schema, kind):
    columns = columns_of({**properties(x=schema), "$defs": {"Name": {"type": "string"}}})
    assert [column.kind for column in columns.columns] == [kind]


def test_alternatives_that_cannot_be_told_apart_are_kept_as_they_are():
    one, other = properties(a={"type": "string"}), properties(b={"type": "string"})
    assert columns_of(properties(x={"anyOf": [one, other]})).read('{"x": {"b": 1}}') == ('{"b": 1}',)


def test_an_odd_name_inside_a_part_does_no_harm():
    odd = properties(part=properties(**{'"': {"type": "string"}}))
    assert columns_of(odd).read('{"part": {"\\"": 1}}') == ('{"\\"": 1}',)


def test_names_that_are_no_identifiers_are_columns_too():
    schema = properties(**{"first name": {"type": "string"}, "class": {"type": "integer"}, "größe": {"type": "number"}})
    columns = columns_of(schema)
    assert [column.name for column in columns.columns] == ["first name", "class", "größe"]
    assert columns.read('{"class": 3, "first name": "Ada"}') == ("Ada", 3, None)


@pytest.mark.parametrize("name", [column.name for column in COLUMNS] + ["Status", "TEXT"])
def test_a_name_that_every_table_has_is_refused(name):
    with pytest.raises(Misconfigured, match=f"names {name}, which every table has already"):
        Columns.of(properties(**{name: {"type": "string"}}))


class Recursive(BaseModel):
    children: "list[Recursive]"


@pytest.mark.parametrize(
    ("given_columns", "said"),
    [
        (7, "takes a Pydantic model or a JSON schema, and was given a int"),
        ({"type": "string"}, "takes a schema of objects with properties"),
        ({"type": "object"}, "takes a schema of objects with properties"),
        (RootModel[list[str]], "takes a model with fields"),
        (type("Empty", (BaseModel,), {}), "takes a model with fields"),
        (Recursive.model_json_schema(), r"holds itself \(Recursive\)"),
        (properties(a={"$ref": "#/$defs/Gone"}), "points to '#/\\$defs/Gone'"),
        (properties(a={"type": "string"}, A={"type": "string"}), "take for one and the same"),
        (properties(**{"a\x00b": {"type": "string"}}), "is no name of a column"),
        (properties(**{'say "hi"': {"type": "string"}}), "is no name of a column"),
    ],
)
def test_what_cannot_be_columns_is_refused(given_columns, said):
    with pytest.raises(Misconfigured, match=said):
        Columns.of(given_columns)


def test_no_columns_are_none():
    assert Columns.of(None) is None


@both
def test_the_schema_is_one_that_the_sdk_can_ask_for(given_columns):
    from airflow_provider_claude_batch.client import output_format

    asked = output_format(columns_of(given_columns).schema)["schema"]
    assert asked["additionalProperties"] is False
    assert list(asked["properties"]) == list(SCHEMA["properties"])


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
documents = st.dictionaries(st.sampled_from(list(SCHEMA["properties"])), scalars | st.lists(scalars, max_size=2))


@both
@settings(max_examples=150, deadline=None)
@given(document=documents)
def test_whatever_comes_is_read_or_unfit(given_columns, document):
    columns = columns_of(given_columns)
    try:
        values = columns.read(json.dumps({**ANSWER, **document}))
    except Unfit:
        return
    types = {"text": str, "double": float, "boolean": bool, "bigint": int, "date": date, "timestamp": datetime}
    for value, column in zip(values, columns.columns, strict=True):
        wanted = {**types, "decimal": Decimal, "json": str}[column.kind]
        assert value is None or isinstance(value, wanted)
