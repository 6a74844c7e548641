import json
from datetime import UTC, date, datetime
from decimal import Decimal
from decimal import Overflow as DecimalOverflow
from enum import Enum
from typing import Annotated, Any, Literal, NewType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, RootModel, field_validator, model_serializer
from typing_extensions import TypeAliasType

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
    part = properties(a={"type": "string"}, b={"type": "number"})
    assert columns_of(properties(part=part)).read(text) == ('{"b":  1.0, "a": "\\u00e9", "new": null}',)


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
        ({"anyOf": [{"type": "object", "properties": {key: {"type": "null"}}} for key in "ab"]}, "json"),
        ({"type": "string", "format": "email"}, "text"),
        ({"type": "null"}, "json"),
        ({"enum": [1, 2.5]}, "double"),
        ({"enum": [2**63, 1]}, "bigint"),
        ({"type": "array"}, "json"),
    ],
)
def test_kinds(schema, kind):
    columns = columns_of({**properties(x=schema), "$defs": {"Name": {"type": "string"}}})
    assert [column.kind for column in columns.columns] == [kind]


def test_alternatives_that_cannot_be_told_apart_are_kept_as_they_are():
    one, other = properties(a={"type": "string"}), properties(b={"type": "string"})
    assert columns_of(properties(x={"anyOf": [one, other]})).read('{"x": {"b": 1}}') == ('{"b": 1}',)


def test_an_odd_name_inside_a_part_does_no_harm():
    odd = columns_of(properties(part=properties(**{'"': {"type": "string"}})))
    assert odd.read('{"part": {"\\"": "x"}}') == ('{"\\"": "x"}',)
    with pytest.raises(Unfit, match=r'^part\.": type$'):
        odd.read('{"part": {"\\"": 1}}')


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


class Counts(BaseModel):
    counts: dict[str, int]


class NestedCounts(BaseModel):
    lists: list[Counts]


class Anything(BaseModel):
    whatever: Any


@pytest.mark.parametrize(
    ("given_columns", "said"),
    [
        (7, "takes a Pydantic model or a JSON schema, and was given a int"),
        ({"type": "string"}, "takes a schema of objects with properties"),
        ({"type": "object"}, "takes a schema of objects with properties"),
        (RootModel[list[str]], "takes a model with fields"),
        (type("Empty", (BaseModel,), {}), "takes a model with fields"),
        (Recursive, r"holds itself \(Recursive\)"),
        (Counts, "leaves open which keys counts has, .* a list of models with a key and a value"),
        (NestedCounts, "leaves open which keys lists.counts has"),
        (Anything, "leaves open of which type whatever is"),
        (properties(a={"type": "object"}), "leaves open which keys a has"),
        (properties(a={"type": "array", "items": {"type": "object"}}), "leaves open which keys a has"),
        (properties(a={"anyOf": [{"type": "null"}, {"type": "object"}]}), "leaves open which keys a has"),
        (properties(a={}), "leaves open of which type a is"),
        (properties(a=True), "leaves open of which type a is"),
        (properties(a={"type": "array", "items": {}}), "leaves open of which type a is"),
        (properties(a={"type": "text"}), "leaves open of which type a is"),
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


@pytest.mark.parametrize("name", ["xmin", "xmax", "cmin", "cmax", "CTID", "tableoid"])
def test_a_name_that_a_database_keeps_for_itself_is_refused(name):
    with pytest.raises(Misconfigured, match=f"names {name}, which PostgreSQL or the views"):
        Columns.of(properties(**{name: {"type": "string"}}))


@pytest.mark.parametrize(
    "error", [OverflowError, RecursionError, KeyError, TypeError, LookupError, DecimalOverflow, StopIteration]
)
def test_whatever_a_validator_raises_the_answer_does_not_fit(error):
    class Fragile(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def breaks(cls, number: int) -> int:
            raise error(f"{number} is a secret")

    with pytest.raises(Unfit, match=f"^{error.__name__}$"):
        columns_of(Fragile).read('{"number": 2}')


def test_an_answer_nested_too_deeply_does_not_fit():
    with pytest.raises(Unfit, match=r"^RecursionError$"):
        columns_of(properties(a={"type": "string"})).read('{"b": ' + "[" * 100_000)


class Price(BaseModel):
    price: Decimal | None = Field(alias="thePrice", description="in euros")


PRICE = properties(thePrice={"type": ["number", "null"], "format": "decimal"})
prices = pytest.mark.parametrize("given_columns", [Price, PRICE], ids=["model", "schema"])


@prices
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize(
    "literal",
    ["1234567890123.123456", "9" * 29 + "." + "9" * 9, "0E-50", "1.50000000000000000000", "-0.000000001", "1e28", "7"],
)
def test_a_decimal_keeps_every_digit(given_columns, quote, literal):
    (value,) = columns_of(given_columns).read(f'{{"thePrice": {quote}{literal}{quote}}}')
    assert value == Decimal(literal)
    assert value.as_tuple().exponent >= -9


@prices
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("literal", ["12345678901234567890.1234567891", "1e1000000", "1e29", "1" * 30, "1e-10"])
def test_a_decimal_that_would_lose_digits_does_not_fit(given_columns, quote, literal):
    with pytest.raises(Unfit, match=r"rice: more than 29 digits, or 9 after the point|a number that is not finite"):
        columns_of(given_columns).read(f'{{"thePrice": {quote}{literal}{quote}}}')


def test_a_decimal_of_a_model_is_asked_for_as_text_alone():
    asked = columns_of(Price).schema["properties"]["thePrice"]
    assert [one["type"] for one in asked["anyOf"]] == ["string", "null"]
    assert asked["description"] == "in euros"


class Reticent(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    items: list[Item] = Field(alias="theItems")
    hidden: list[int] = Field(exclude=True)
    days: list[date]

    @model_serializer
    def to_nothing(self) -> dict[str, Any]:
        return {}


def test_nested_parts_do_not_depend_on_how_the_model_writes_itself():
    answer = {"theItems": [{"sku": "x", "pieces": 1}], "hidden": [1], "days": ["2026-01-01"]}
    values = columns_of(Reticent).read(json.dumps(answer))
    assert list(map(json.loads, values)) == list(answer.values())


@pytest.mark.parametrize("kind", ["model", "schema"])
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-01T08:00:00+02:00", datetime(2026, 1, 1, 6, tzinfo=UTC)),
        ("2026-01-01T08:00:00", datetime(2026, 1, 1, 8, tzinfo=UTC)),
        ("0001-01-01T00:00:00+01:00", None),
        ("9999-12-31T23:59:59-01:00", None),
    ],
)
def test_timestamps_are_in_utc(kind, text, moment):
    class At(BaseModel):
        at: datetime

    columns = columns_of(At if kind == "model" else properties(at={"type": "string", "format": "date-time"}))
    if moment is None:
        with pytest.raises(Unfit, match=r"^at: outside the years 1 to 9999$"):
            columns.read(json.dumps({"at": text}))
    else:
        (value,) = columns.read(json.dumps({"at": text}))
        assert (value, value.tzinfo) == (moment, UTC)


@pytest.mark.parametrize(
    ("schema", "fit", "unfit"),
    [
        ({"enum": [0.5, 1.5]}, "1.5", ['"foo"', "2.5", "true", "null"]),
        ({"enum": [0.5, 1, None]}, "null", ['"foo"', "2.5"]),
        ({"enum": [0.5, 1]}, "1", ['"foo"', "2"]),
        ({"const": True}, "true", ['"foo"', "false", "1"]),
        ({"anyOf": [{"const": 0.5}, {"type": "null"}]}, "null", ["1.5"]),
        ({"enum": [2**63, 7]}, "7", ["8", str(2**63), '"foo"']),
        ({"enum": ["a", 0.5]}, '"a"', ['"b"', "0.25"]),
    ],
)
def test_only_what_a_schema_names_fits(schema, fit, unfit):
    columns = columns_of(properties(x=schema))
    columns.read(f'{{"x": {fit}}}')
    for one in unfit:
        with pytest.raises(Unfit) as error:
            columns.read(f'{{"x": {one}}}')
        assert "foo" not in str(error.value)


UserId = NewType("UserId", int)
Label = TypeAliasType("Label", Literal["a", "b"])


class Wrapped(BaseModel):
    positive: PositiveInt | None
    limited: Annotated[int, Field(ge=0)] | None
    user: UserId | None
    label: Label
    maybe: Label | None
    money: Annotated[Decimal, Field(ge=0)] | None


def test_names_and_conditions_around_a_type_do_not_hide_it():
    assert [column.kind for column in columns_of(Wrapped).columns] == [
        *("bigint", "bigint", "bigint", "text", "text", "decimal")
    ]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    item: Item | None = None
    number: Literal[1, 2] = 1


def test_the_keys_of_an_answer_are_not_quoted():
    with pytest.raises(Unfit, match=r"^…: extra_forbidden$"):
        columns_of(Strict).read('{"a secret": 1}')
    with pytest.raises(Unfit, match=r"^item\.sku: string_type; item\.pieces: missing$"):
        columns_of(Strict).read('{"item": {"sku": 1}}')


@pytest.mark.parametrize("said", ["x' - at secret", 'x" - at secret', "it's a secret", "'", "a\nsecret' - at `$.x`"])
def test_a_message_quotes_no_answer_however_it_is_written(said):
    with pytest.raises(Unfit, match=r"^x: enum$"):
        columns_of(properties(x={"enum": ["a"]})).read(json.dumps({"x": said}))
    with pytest.raises(Unfit, match=r"^x: enum$"):
        columns_of(properties(x={"enum": [1, 2]})).read('{"x": -77}')


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": 0}, 1),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, 1),
        ({"type": "integer", "minimum": 0.5}, 1),
        ({"type": "integer", "maximum": 2**70}, 1),
        ({"type": "integer", "multipleOf": 0}, 1),
        ({"type": "string", "pattern": "("}, "a"),
        ({"type": "string", "minLength": "three"}, "a"),
        ({"type": "string", "minimum": 3}, "a"),
    ],
)
def test_a_limit_that_cannot_be_checked_is_left_out(schema, answer):
    assert columns_of(properties(x=schema)).read(json.dumps({"x": answer})) == (answer,)


def test_a_multiple_is_reckoned_with_the_digits_that_are_written():
    columns = columns_of(properties(x={"type": "number", "multipleOf": 0.1}))
    assert columns.read('{"x": 0.3}') == (0.3,)
    with pytest.raises(Unfit, match=r"^x: multipleOf$"):
        columns.read('{"x": 0.35}')


def test_a_limit_beside_one_that_cannot_be_checked_still_holds():
    with pytest.raises(Unfit):
        columns_of(properties(x={"type": "integer", "minimum": 1, "exclusiveMinimum": True})).read('{"x": 0}')


@both
@pytest.mark.parametrize("literal", ["1e400", "-1e400"])
def test_a_double_is_finite(given_columns, literal):
    with pytest.raises(Unfit):
        columns_of(given_columns).read(json.dumps(ANSWER).replace('"score": 1', f'"score": {literal}'))


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
