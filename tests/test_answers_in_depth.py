"""Answers at any depth: a validator judges them, the table holds what they say, and model and schema agree."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loads import load_rows, row
from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    PastDate,
    SecretStr,
    ValidationError,
    create_model,
    field_serializer,
    field_validator,
)
from test_columns import columns_of, properties
from warehouse import connect_warehouse

from airflow_provider_claude_batch.client import output_format
from airflow_provider_claude_batch.columns import Columns
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Unfit

DIGITS = "12345678901234567.89"
MORE_DIGITS = "0.12345678901234567891"


def kinds(given_columns: Any) -> dict[str, str]:
    return {column.name: column.kind for column in columns_of(given_columns).columns}


def read(columns: Columns, text: str) -> dict[str, Any] | None:
    """Read an answer into its columns, or nothing where it does not fit."""
    try:
        return dict(zip((column.name for column in columns.columns), columns.read(text), strict=True))
    except Unfit:
        return None


# Numbers keep their digits at every depth


class Line(BaseModel):
    price: Decimal


class Invoice(BaseModel):
    total: Decimal
    lines: list[Line]
    amounts: list[Decimal]
    pair: tuple[Decimal, float]
    best: Line | None = None


INVOICE = (
    f'{{"total": {DIGITS}, "lines": [{{"price": {DIGITS}}}], "amounts": [{MORE_DIGITS}, "{DIGITS}"], '
    f'"pair": [{DIGITS}, {DIGITS}], "best": {{"price": {MORE_DIGITS}}}}}'
)


def test_decimals_within_lists_and_models_keep_every_digit():
    assert columns_of(Invoice).read(f"\n {INVOICE}") == (
        Decimal(DIGITS),
        f'[{{"price": {DIGITS}}}]',
        f'[{MORE_DIGITS}, "{DIGITS}"]',
        f"[{DIGITS}, {DIGITS}]",
        f'{{"price": {MORE_DIGITS}}}',
    )


def test_a_model_is_given_the_digits_of_a_decimal_at_any_depth():
    seen: list[Decimal] = []

    class Seeing(Line):
        @field_validator("price")
        @classmethod
        def see(cls, price: Decimal) -> Decimal:
            seen.append(price)
            return price

    class Order(BaseModel):
        lines: list[Seeing]
        best: Seeing | None
        parts: tuple[Seeing, Decimal]
        priced: Decimal = Field(validation_alias=AliasChoices("cost", "price"))

    line = f'{{"price": {MORE_DIGITS}}}'
    columns_of(Order).read(f'{{"lines": [{line}], "best": {line}, "parts": [{line}, 1], "price": {MORE_DIGITS[:11]}}}')
    assert seen == [Decimal(MORE_DIGITS)] * 3


@pytest.mark.parametrize(
    "given_columns", [Invoice, properties(a=properties(b={"type": ["number", "null"], "format": "decimal"}))]
)
def test_decimals_are_asked_for_as_text_at_any_depth(given_columns):
    asked = output_format(columns_of(given_columns).schema)["schema"]
    assert '"string"' in json.dumps(asked)
    assert '"number"' not in json.dumps(asked)


def test_decimals_of_a_schema_are_numbers_or_texts_within_their_limits():
    columns = columns_of(
        properties(prices={"type": "array", "items": {"type": "number", "format": "decimal", "minimum": 1}})
    )
    for text in (f'[{DIGITS}, "{DIGITS}"]', '["1", 1.0]'):
        assert columns.read(f'{{"prices": {text}}}') == (text,)
    for text in ('["0.5"]', "[0.5]", '["one"]', "[true]", '["NaN"]', "[null]"):
        with pytest.raises(Unfit, match=r"^prices\.0: "):
            columns.read(f'{{"prices": {text}}}')


class Scores(BaseModel):
    scores: list[float]


NUMBERS = properties(scores={"type": "array", "items": {"type": "number"}})


@pytest.mark.parametrize("given_columns", [Scores, NUMBERS], ids=["model", "schema"])
@pytest.mark.parametrize("written", ["[0.5, 1e999]", "[-1e999]", "[" + "9" * 400 + "]", '["NaN"]', '["inf"]'])
def test_a_number_that_is_not_finite_fits_nowhere(given_columns, written):
    with pytest.raises(Unfit):
        columns_of(given_columns).read(f'{{"scores": {written}}}')


@pytest.mark.parametrize("given_columns", [Scores, NUMBERS], ids=["model", "schema"])
def test_a_key_that_nobody_asked_for_holds_no_infinite_number_either(given_columns):
    with pytest.raises(Unfit, match=r"^a number that is not finite$"):
        columns_of(given_columns).read('{"scores": [], "other": 1e999}')
    assert columns_of(given_columns).read(f'{{"scores": [], "other": "{"9" * 400}"}}') == ("[]",)


def test_whole_numbers_keep_their_digits_however_they_are_written():
    class Number(BaseModel):
        n: int
        ns: list[int]

    text = '{"n": 9007199254740993.0, "ns": [9007199254740993.0, 99999999999999999999]}'
    for given_columns in (Number, Number.model_json_schema()):
        assert columns_of(given_columns).read(text) == (2**53 + 1, "[9007199254740993.0, 99999999999999999999]")


class Seen(BaseModel):
    at: datetime


@pytest.mark.parametrize("given_columns", [Seen, Seen.model_json_schema()], ids=["model", "schema"])
def test_a_moment_is_not_cut_to_microseconds(given_columns):
    (moment,) = columns_of(given_columns).read('{"at": "2026-01-01T00:00:00.123456000Z"}')
    assert moment == datetime(2026, 1, 1, microsecond=123456, tzinfo=UTC)
    with pytest.raises(Unfit, match=r"^at: finer than a microsecond$"):
        columns_of(given_columns).read('{"at": "2026-01-01T00:00:00.1234567Z"}')


# What a schema says, at every depth


@pytest.mark.parametrize(
    ("schema", "fit", "unfit"),
    [
        ({"allOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 5}]}, "5", ['"five"', "0", "6"]),
        ({"type": "string", "allOf": [{"minLength": 2}, {"pattern": "^a"}]}, '"ab"', ['"a"', '"bb"']),
        ({**properties(a={"type": "integer"}), "additionalProperties": False}, '{"a": 1}', ['{"a": 1, "b": 2}']),
        ({"type": "array", "items": {"type": "string", "format": "date"}}, '["2026-01-01"]', ['["soon"]']),
        ({"type": "string", "format": "uuid"}, '"12345678-1234-5678-1234-567812345678"', ['"1234"']),
        ({"type": "string", "format": "time"}, '"10:00:00"', ['"ten"']),
        ({"type": "array", "uniqueItems": True, "items": {"type": "integer"}}, "[1, 2]", ["[1, 1.0]"]),
        ({"type": "string", "not": {"const": "other"}}, '"x"', ['"other"']),
        ({"enum": [0.1, 0.2]}, "0.1", ["0.10000000000000001"]),
    ],
)
def test_everything_that_a_schema_says_is_checked(schema, fit, unfit):
    columns = columns_of(properties(x=schema))
    assert columns.read(f'{{"x": {fit}}}') != (None,)
    for one in unfit:
        with pytest.raises(Unfit, match=r"^x"):
            columns.read(f'{{"x": {one}}}')


def test_a_schema_without_other_keys_refuses_them_and_does_not_name_them():
    columns = columns_of({**properties(a={"type": "string"}), "additionalProperties": False, "required": ["a"]})
    with pytest.raises(Unfit, match=r"^…: additionalProperties$"):
        columns.read('{"a": "x", "a secret": 1}')
    with pytest.raises(Unfit, match=r"^a: required$"):
        columns.read("{}")


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("#/$defs/x~1y", "text"),
        ("#/$defs/a~0b", "bigint"),
        ("#/$defs/with%20space", "boolean"),
        ("#/$defs/B/properties/z", "bigint"),
        ("#/definitions/z", "text"),
        ("#/$defs/Chain", "bigint"),
        ("#/$defs/Options/anyOf/1", "boolean"),
    ],
)
def test_a_reference_is_followed_to_where_it_points(reference, kind):
    schema = {
        **properties(a={"$ref": reference}),
        "$defs": {
            "x/y": {"type": "string"},
            "a~b": {"type": "integer"},
            "with space": {"type": "boolean"},
            "B": properties(z={"type": "integer"}),
            "z": {"type": "number"},
            "Chain": {"$ref": "#/$defs/B/properties/z"},
            "Options": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        },
        "definitions": {"z": {"type": "string"}},
    }
    assert kinds(schema) == {"a": kind}
    asked = output_format(columns_of(schema).schema)["schema"]
    if kind != "text" or "definitions" in reference:
        assert reference not in json.dumps(asked) or reference.count("/") == 2
    fit, unfit = {"text": ('"x"', "1"), "bigint": ("1", '"x"'), "boolean": ("true", "1")}[kind]
    assert read(columns_of(schema), f'{{"a": {fit}}}') is not None
    assert read(columns_of(schema), f'{{"a": {unfit}}}') is None


def test_what_stands_beside_a_reference_holds_as_well():
    schema = {**properties(a={"$ref": "#/$defs/N", "maximum": 5, "description": "few"}), "$defs": {"N": {"minimum": 1}}}
    schema["$defs"]["N"]["type"] = "integer"
    assert kinds(schema) == {"a": "bigint"}
    assert [read(columns_of(schema), f'{{"a": {n}}}') is not None for n in (0, 1, 5, 6)] == [False, True, True, False]


@pytest.mark.parametrize("reference", ["#/$defs/Gone", "https://example.com/schema", "#anchor", "#/$defs/A/type/0"])
def test_a_reference_that_leads_nowhere_is_refused(reference):
    with pytest.raises(Misconfigured, match="and nothing is there"):
        Columns.of({**properties(a={"$ref": reference}), "$defs": {"A": {"type": "string"}}})


def test_a_schema_that_is_none_is_refused():
    with pytest.raises(Misconfigured, match=r"is none, at \$\.properties\.a\.items\.required"):
        Columns.of(properties(a={"type": "array", "items": {**properties(b={"type": "string"}), "required": "b"}}))


# A model and its own schema make the same of an answer


class Color(str, Enum):  # noqa: UP042 - the older way to write it
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Everything(BaseModel):
    when: AwareDatetime
    day: PastDate
    at: time
    lasted: timedelta
    id: UUID
    url: HttpUrl
    email: SecretStr
    color: Color
    level: Level
    red: Literal[Color.RED]
    low: Literal[Level.LOW]
    raw: bytes
    ids: list[UUID]
    secrets: list[SecretStr]
    urls: list[HttpUrl]
    scores: list[float]
    days: list[date]


EVERYTHING = {
    "when": "2026-01-01T00:00:00+02:00",
    "day": "2020-01-01",
    "at": "10:00:00",
    "lasted": "PT60M",
    "id": "12345678-1234-5678-1234-56781234567A",
    "url": "https://example.com",
    "email": "ada@example.com",
    "color": "red",
    "level": 2,
    "red": "red",
    "low": 1,
    "raw": "bytes",
    "ids": ["12345678-1234-5678-1234-56781234567A"],
    "secrets": ["ada@example.com"],
    "urls": ["https://example.com"],
    "scores": [1, 2.50],
    "days": ["2026-01-01"],
}


def test_a_model_and_its_own_schema_make_the_same_columns_and_the_same_values():
    text = json.dumps(EVERYTHING)
    one, other = columns_of(Everything), columns_of(Everything.model_json_schema())
    assert one.columns == other.columns
    assert one.read(text) == other.read(text)
    found = read(one, text)
    assert found is not None
    assert found["when"] == datetime(2025, 12, 31, 22, tzinfo=UTC)
    assert (found["day"], found["low"], found["level"]) == (date(2020, 1, 1), 1, 2)
    as_written = ("at", "lasted", "id", "url", "email", "color", "red", "raw")
    assert {name: found[name] for name in as_written} == {name: EVERYTHING[name] for name in as_written}
    for name in ("ids", "secrets", "urls", "scores", "days"):
        assert json.loads(found[name]) == EVERYTHING[name]


def test_what_a_model_changes_is_stored_as_it_changed_it():
    class Part(BaseModel):
        name: str
        secret: SecretStr = SecretStr("none")
        price: Decimal = Decimal("1.50")

        @field_validator("price")
        @classmethod
        def is_rounded(cls, price: Decimal) -> Decimal:
            return price.quantize(Decimal("0.1"))

    class Whole(BaseModel):
        label: str
        day: date
        part: Part
        tags: set[str]
        twice: list[int]
        id: UUID

        @field_validator("label")
        @classmethod
        def is_lower(cls, label: str) -> str:
            return label.lower()

        @field_validator("day")
        @classmethod
        def is_first(cls, day: date) -> date:
            return day.replace(day=1)

        @field_validator("twice")
        @classmethod
        def is_doubled(cls, twice: list[int]) -> list[int]:
            return [2 * n for n in twice]

        @field_validator("id")
        @classmethod
        def is_hidden(cls, given: UUID) -> UUID:
            return UUID(int=given.int % 1)

    answer = {"label": "A", "day": "2026-01-31", "part": {"name": "x"}, "tags": ["b", "a", "b"], "twice": [1, "2"]}
    found = read(columns_of(Whole), json.dumps({**answer, "id": "12345678-1234-5678-1234-567812345678"}))
    assert found is not None
    assert (found["label"], found["day"], found["id"]) == ("a", date(2026, 1, 1), str(UUID(int=0)))
    assert json.loads(found["part"]) == {"name": "x", "secret": "none", "price": "1.50"}
    assert sorted(json.loads(found["tags"])) == ["a", "b"]
    assert json.loads(found["twice"]) == [2, 4]
    changed = {**answer, "part": {"name": "x", "secret": "s", "price": "1.57"}}
    found = read(columns_of(Whole), json.dumps({**changed, "id": "12345678-1234-5678-1234-567812345678"}))
    assert found is not None
    assert json.loads(found["part"]) == {"name": "x", "secret": "s", "price": "1.6"}


def test_a_part_that_a_model_writes_in_its_own_way_is_written_so_each_time():
    class Part(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        name: str = Field(alias="theName")
        size: int

        @field_serializer("size")
        def in_words(self, size: int) -> str:
            return f"{size} cm"

    class Whole(BaseModel):
        part: Part

    for key in ("theName", "name"):
        (written,) = columns_of(Whole).read(json.dumps({"part": {key: "x", "size": 1}}))
        assert json.loads(written) == {"name": "x", "size": "1 cm"}


# Whatever a schema says, jsonschema is the judge

NAMES = ["a", "x/y", "a~b", "with space", "größe"]
words = st.sampled_from(["", "a", "ab", "billing", "é🎫", "2026-01-01", "12", "null"])
numbers = st.integers(-5, 40) | st.sampled_from([0.5, 5.0, -1.25, 2**53, 10**15, 1e3])
leaves = st.none() | st.booleans() | numbers | words
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
)


def limited(type_: str, **limits: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(type_)}, optional=limits)


small, keys = st.integers(0, 4), st.sampled_from(NAMES)
scalars = st.one_of(
    limited("string", minLength=small, maxLength=small, pattern=st.sampled_from(["^a", "b$", "^[0-9]+$"])),
    limited("integer", minimum=small, exclusiveMaximum=st.integers(3, 30), multipleOf=st.integers(1, 3)),
    limited("number", maximum=st.integers(0, 30), exclusiveMinimum=st.sampled_from([-1, 0.5])),
    limited("boolean"),
    st.builds(lambda values: {"enum": values}, st.lists(words | numbers | st.none(), min_size=1, max_size=3)),
    st.builds(lambda value: {"const": value}, words | numbers | st.booleans()),
    st.just({"type": ["string", "null"]}),
    st.just({"type": ["integer", "number", "null"]}),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "type": st.just("object"),
            "properties": st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=3),
        },
        optional={
            "required": st.lists(st.sampled_from(NAMES), unique=True, max_size=2),
            "additionalProperties": st.booleans(),
        },
    )


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        objects(inner),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={"minItems": small, "maxItems": small, "uniqueItems": st.booleans()},
        ),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
        st.builds(lambda one, other: {"oneOf": [one, other]}, inner, inner),
        st.builds(lambda one, other: {"allOf": [one, other]}, inner, inner),
        st.builds(lambda one: {"allOf": [one], "description": "one"}, inner),
    ),
    max_leaves=5,
)


@st.composite
def fitting(draw: st.DrawFn, schema: Any) -> Any:
    """Something that may well fit a schema."""
    if "const" in schema or "enum" in schema:
        return draw(st.sampled_from([schema["const"]] if "const" in schema else schema["enum"]))
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return draw(fitting(draw(st.sampled_from(schema[word]))))
    type_ = schema["type"] if isinstance(schema["type"], str) else draw(st.sampled_from(schema["type"]))
    match type_:
        case "object":
            left_out = draw(st.sampled_from([None, *NAMES]))
            answer = {name: draw(fitting(one)) for name, one in schema["properties"].items() if name != left_out}
            return answer | draw(st.sampled_from([{}, {}, {"other": 1}, {"a": 7}]))
        case "array":
            return draw(st.lists(fitting(schema["items"]), max_size=3))
    return draw({"string": words, "boolean": st.booleans(), "null": st.none()}.get(type_, numbers))


@st.composite
def judged(draw: st.DrawFn) -> tuple[dict[str, Any], Any]:
    """A schema, some of it behind references, and an answer."""
    root = draw(objects(schemas))
    answer = draw(fitting(root))
    if isinstance(answer, dict) and draw(st.integers(0, 3)) == 0:
        answer[draw(st.sampled_from(NAMES))] = draw(anything)
    defs = {}
    for name in draw(st.lists(st.sampled_from([*root["properties"]]), unique=True)):
        defs[name] = root["properties"][name]
        pointer = name.replace("~", "~0").replace("/", "~1").replace(" ", "%20")
        root["properties"][name] = {"$ref": f"#/$defs/{pointer}"}
    return ({**root, "$defs": defs} if defs else root), answer


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(judged())
def test_what_jsonschema_accepts_is_usable_and_what_it_refuses_is_not(case: tuple[dict[str, Any], Any]) -> None:
    schema, answer = case
    columns = columns_of(schema)
    fits = jsonschema.Draft202012Validator(schema).is_valid(answer)
    found = read(columns, json.dumps(answer))
    assert (found is not None) == fits
    for column in columns.columns if found is not None else ():
        value = found[column.name]
        wanted = answer.get(column.name)
        assert (json.loads(value) if column.kind == "json" and value is not None else value) == wanted


# Whatever a model says, Pydantic is the judge

TEXTS: dict[Any, list[Any]] = {
    str: ["a", "", "é🎫", "2026-01-01"],
    int: [0, -7, 2**40, 5.0, "7"],
    float: [0.5, 3, -1e10, 0.1, "2.5"],
    bool: [True, False, "yes"],
    date: ["2026-01-31", "2000-02-29"],
    datetime: ["2026-01-01T08:00:00", "2026-01-01T08:00:00.5+02:00", "2026-01-01T08:00:00Z"],
    time: ["10:00:00", "23:59:59.5"],
    timedelta: ["PT60M", "P1DT1S"],
    UUID: ["12345678-1234-5678-1234-56781234567A"],
    Decimal: ["1.50", 12345678901234567.0, "12345678901234567.89", 0.125, 3],
    Color: ["red", "blue"],
    Level: [1, 2],
    Literal["a", "b"]: ["a", "b"],
    Literal[1, 2]: [1, 2],
    SecretStr: ["hidden"],
    HttpUrl: ["https://example.com", "https://example.com/a?b=c"],
    Annotated[int, Field(gt=0, lt=100)]: [1, 99, 100],
    Annotated[str, Field(min_length=1, max_length=3)]: ["a", "abcd"],
    Annotated[Decimal, Field(max_digits=6, decimal_places=2)]: ["1234.56", 1234.56, "1.234", 1.234],
}


def model_of(annotations: dict[str, Any]) -> Any:
    return create_model("Part", **{name: (one, ...) for name, one in annotations.items()})


fields = st.sampled_from(list(TEXTS))
modeled: st.SearchStrategy[Any] = st.recursive(
    fields,
    lambda inner: st.one_of(
        inner.map(lambda one: list[one]),
        inner.map(lambda one: one | None),
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        st.dictionaries(st.sampled_from(["p", "q"]), inner, min_size=1).map(model_of),
    ),
    max_leaves=4,
)
oddities = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, "x", "", "5", [], [1], {}, {"p": 1}])


@st.composite
def said(draw: st.DrawFn, annotation: Any) -> Any:
    """Something that may well be a value of an annotation."""
    if draw(st.integers(0, 15)) == 0:
        return draw(oddities)
    if annotation in TEXTS:
        return draw(st.sampled_from(TEXTS[annotation]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: draw(said(draw_from(field.annotation, field))) for name, field in annotation.model_fields.items()}
    inner = annotation.__args__
    if getattr(annotation, "__origin__", None) is list:
        return draw(st.lists(said(inner[0]), max_size=3))
    if getattr(annotation, "__origin__", None) is tuple:
        return [draw(said(one)) for one in inner]
    chosen = draw(st.sampled_from(inner))
    return None if chosen is type(None) else draw(said(chosen))


def draw_from(annotation: Any, field: Any) -> Any:
    """Give a field its conditions back, which Pydantic keeps beside its type."""
    for known in TEXTS:
        if getattr(known, "__metadata__", None) and known.__origin__ is annotation and field.metadata:
            return known
    return annotation


@st.composite
def modeled_answers(draw: st.DrawFn) -> tuple[Any, list[str]]:
    annotations = draw(st.dictionaries(st.sampled_from("abcd"), modeled, min_size=1))
    model = model_of(annotations)
    answers = [{name: draw(said(one)) for name, one in annotations.items()} for _ in range(3)]
    return model, [json.dumps(answer) for answer in answers]


def has_decimals(model: Any) -> bool:
    return "decimal" in json.dumps(columns_of(model).schema)


def is_taken_as_it_is(model: Any, text: str) -> bool:
    """Tell an answer that the model converts nowhere, as it does with "yes" for a truth value."""
    try:
        return bool(model.model_validate_json(text, strict=True))
    except ValidationError:
        return False


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(modeled_answers())
def test_what_pydantic_accepts_is_usable_and_its_schema_makes_the_same_of_it(case: tuple[Any, list[str]]) -> None:
    model, answers = case
    one, other = columns_of(model), columns_of(model.model_json_schema())
    if not has_decimals(model):  # whose own schema says "a number or any text"
        assert one.columns == other.columns
    for text in answers:
        try:
            model.model_validate_json(text)
        except ValidationError:
            assert read(one, text) is None
            continue
        found, by_schema = read(one, text), read(other, text)
        assert found is not None
        if by_schema is None or one.columns != other.columns or not is_taken_as_it_is(model, text):
            continue
        for column in one.columns:
            value, wanted = found[column.name], by_schema[column.name]
            if column.kind == "json" and value is not None:
                value, wanted = (json.loads(part, parse_float=Decimal) for part in (value, wanted))
            assert value == wanted, (column, text)


# What is read comes back from a warehouse


READ_BACK: dict[str, Any] = {
    "json": lambda value: json.loads(value, parse_float=Decimal),
    "boolean": bool,
    "decimal": Decimal,
    "date": lambda value: date.fromisoformat(str(value)[:10]),
    "timestamp": lambda value: datetime.fromisoformat(str(value)).replace(tzinfo=UTC),
}


def back(value: Any, kind: str) -> Any:
    """A value as the warehouse gave it, in the type of the one that was written."""
    return None if value is None else READ_BACK.get(kind, lambda one: one)(value)


@pytest.fixture(params=["duckdb", "sqlite", "postgres"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return connect_warehouse(request.param, tmp_path, monkeypatch)


@pytest.fixture
def tables() -> Iterator[int]:
    return count()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=modeled_answers())
def test_what_a_model_makes_of_an_answer_comes_back_from_the_warehouse(
    case: tuple[Any, list[str]], stored: Any, tables: Iterator[int]
) -> None:
    model, answers = case
    columns = columns_of(model)
    usable = [values for text in answers if (values := read(columns, text)) is not None]
    if not usable:
        return
    table = f"t{next(tables)}"
    rows = [row(custom_id=str(n), typed=tuple(values.values())) for n, values in enumerate(usable)]
    load_rows(*rows, table=table, columns=(*COLUMNS, *columns.columns))
    names = ", ".join(f'"{column.name}"' for column in columns.columns)
    found = stored.query(f"SELECT {names} FROM {table} ORDER BY custom_id")
    for cells, values in zip(found, usable, strict=True):
        for cell, column in zip(cells, columns.columns, strict=True):
            wanted = values[column.name]
            assert back(cell, column.kind) == back(wanted, column.kind), column


@pytest.mark.parametrize("given_columns", [Invoice, Invoice.model_json_schema()], ids=["model", "schema"])
def test_digits_in_depth_come_back_from_the_warehouse(given_columns: Any, stored: Any) -> None:
    columns = columns_of(given_columns)
    load_rows(row(typed=columns.read(INVOICE)), columns=(*COLUMNS, *columns.columns))
    ((total, lines, amounts),) = stored.query("SELECT total, lines, amounts FROM t")
    assert Decimal(total) == Decimal(DIGITS)
    assert (lines, amounts) == (f'[{{"price": {DIGITS}}}]', f'[{MORE_DIGITS}, "{DIGITS}"]')
