"""Structured output: the emulator's answers fit their schema, unless they are asked not to."""

import json
import re
from collections import Counter
from datetime import date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Literal
from urllib.parse import urlsplit
from uuid import UUID

import anthropic
import pytest
from emulator import Emulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, HttpUrl, TypeAdapter
from structured import CLOSED, MODEL, closed, fits, formatted, params, rows, texts

FORMATS = {
    "date": date.fromisoformat,
    "date-time": TypeAdapter(datetime).validate_python,
    "time": re.compile(r"\d\d:\d\d:\d\dZ").fullmatch,
    "duration": TypeAdapter(timedelta).validate_python,
    "email": re.compile(r"[a-z0-9.]+@example\.com").fullmatch,
    "hostname": re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+").fullmatch,
    "uri": lambda text: urlsplit(text).hostname,
    "uuid": UUID,
    "ipv4": IPv4Address,
    "ipv6": IPv6Address,
}
pytestmark = pytest.mark.usefixtures("stopped_clock")


def documents(emulator, schema, count=60):
    return [json.loads(text) for text in texts(emulator, *(params(schema, f"Ticket {at}") for at in range(count)))]


scalar = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
names = st.sampled_from(["name", "email", "a b", "total", "createdAt", "tags", "größe", "", "$ref", "type"])
leaf = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "integer", "number", "boolean", "null"])},
        optional={"title": st.text(max_size=3), "default": scalar},
    ),
    st.fixed_dictionaries({"type": st.just("string"), "format": st.sampled_from(list(FORMATS))}),
    st.fixed_dictionaries({"type": st.lists(st.sampled_from(["string", "integer", "null"]), min_size=1, unique=True)}),
    st.fixed_dictionaries({"enum": st.lists(scalar, min_size=1, max_size=5)}),
    st.fixed_dictionaries({"const": scalar}),
    st.sampled_from([
        {"allOf": [{"type": "number"}, {"type": "integer"}]},
        {"allOf": [{"enum": [1, 2, "x"]}, {"enum": ["x", True, 2]}, {"type": ["string", "null"]}]},
        {"allOf": [closed([], a={"type": "string"}, b={"const": 1}), closed(["a"], a={"enum": ["x", 1]})]},
        {"allOf": [{"type": "array", "minItems": 1}, {"type": "array", "items": {"type": "string", "format": "date"}}]},
        {"anyOf": [closed(kind={"const": "cat"}), closed(kind={"const": "dog"}, age={"type": "integer"})]},
    ]),
)  # fmt: skip


@st.composite
def closed_objects(draw, inner):
    properties = draw(st.dictionaries(names, inner, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    return {**CLOSED, "properties": properties, "required": required}


def wider(inner):
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")}, optional={"items": inner, "minItems": st.sampled_from([0, 1])}
    )
    unions = st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
    return closed_objects(inner) | arrays | unions


schemas = st.recursive(leaf, wider, max_leaves=12)


@st.composite
def with_definitions(draw):
    properties = {**draw(closed_objects(schemas))["properties"], "referred": {"$ref": "#/$defs/One~1Two"}}
    other = closed([], deeper={"anyOf": [{"$ref": "#/definitions/Leaf"}, {"type": "null"}]})
    return {
        **closed(**properties),
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"One/Two": other},
        "definitions": {"Leaf": draw(schemas)},
    }


def within_limits(schema):
    everything = json.dumps(schema)
    return everything.count('"anyOf"') + everything.count('"type": [') <= 16


supported = st.one_of(schemas, with_definitions()).filter(within_limits)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(many=st.lists(supported, min_size=10, max_size=20))
def test_an_answer_fits_its_schema_whatever_that_is(process, many):
    process.reset()
    process.clock(freeze=True)
    for schema, text in zip(many, texts(process, *map(params, many)), strict=True):
        assert fits(schema, text), (schema, text)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(many=st.lists(supported, min_size=10, max_size=20))
def test_an_unfit_answer_never_fits_its_schema(process, many):
    process.reset()
    process.clock(freeze=True)
    process.fault("row", outcome="unfit", times=-1)
    for schema, text in zip(many, texts(process, *map(params, many)), strict=True):
        assert not fits(schema, text), (schema, text)


anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
keywords = ("type", "enum", "const", "anyOf", "allOf", "$ref", "properties", "required", "additionalProperties")
schema_like = st.recursive(
    leaf | anything,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(keywords, inner | anything),
            "type": st.sampled_from([["object", "null"], "object", "array", "string"]) | anything,
            "properties": st.dictionaries(names, inner, max_size=2) | anything,
            "anyOf": st.lists(inner, max_size=2) | anything,
            "$defs": st.dictionaries(names, inner, max_size=2) | anything,
            "items": inner,
            "minItems": anything,
            "format": anything,
        },
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(many=st.lists(st.dictionaries(st.just("schema"), schema_like) | anything, min_size=10, max_size=20))
def test_no_schema_whatsoever_breaks_the_emulator(process, many):
    process.reset()
    process.clock(freeze=True)
    formats = [{"type": "json_schema", **one} if isinstance(one, dict) else one for one in many]
    asked = [params(None, output_config={"format": one}) for one in formats]
    for one, result in zip(formats, rows(process, asked), strict=True):
        if result["type"] == "errored":
            assert result["error"]["error"]["type"] == "invalid_request_error"
            assert result["error"]["error"]["message"].startswith(("output_config.", "Circular", "Schema"))
        elif one is not None:
            assert fits(one["schema"], result["message"]["content"][0]["text"])


def test_the_same_request_has_the_same_document_in_any_batch_and_live(sdk, emulator):
    asked = params(closed(summary={"type": "string"}, score={"type": "number"}))
    first, again = texts(emulator, asked), texts(emulator, asked)
    live = sdk.messages.create(**asked)
    assert [live.content[0].text] == first == again
    assert (live.stop_reason, live.usage.output_tokens) == ("end_turn", -(-len(first[0]) // 4))


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_has_its_format(emulator, name):
    values = documents(emulator, {"type": "string", "format": name})
    assert len(set(values)) > 20
    for value in values:
        assert FORMATS[name](value)


def test_every_value_of_an_enum_comes_up_and_so_do_null_and_what_is_optional(emulator):
    colours = ["red", "green", "blue"]
    schema = closed(
        ["colour", "size", "level"],
        note={"type": "string"},
        colour={"enum": colours},
        size={"type": ["integer", "null"]},
        level={"anyOf": [{"type": "string"}, {"type": "null"}]},
    )
    made = documents(emulator, schema)
    assert {one["colour"] for one in made} == set(colours)
    assert 0 < sum(one["size"] is None for one in made) < 30
    assert 0 < sum(one["level"] is None for one in made) < 30
    assert 0 < sum("note" not in one for one in made) < 30


def test_required_properties_come_first(emulator):
    schema = closed(["z"], a={"type": "string"}, z={"type": "string"})
    assert {next(iter(document)) for document in documents(emulator, schema)} == {"z"}


def test_arrays_differ_in_length_and_keep_their_minimum(emulator):
    schema = closed(any={"type": "array"}, some={"type": "array", "items": {"type": "integer"}, "minItems": 1})
    made = documents(emulator, schema)
    assert {len(one["any"]) for one in made} == {0, 1, 2, 3}
    assert {len(one["some"]) for one in made} == {1, 2, 3}


LOOKS = {
    "customer_name": r"\w+ [\w']+",
    "email": r"\w+@example\.com",
    "homepageUrl": r"https://www\.example\.com/\S+",
    "created_at": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "invoice_date": r"\d{4}-\d\d-\d\d",
    "email_subject": r"[\w-]+: [\w ]+",
    "phones": r"\+1 202 555 01\d\d",
    "anything_else": r"[A-Z].+\.",
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_text_looks_like_its_name(emulator, name):
    for document in documents(emulator, closed(**{name: {"type": "string"}}), 20):
        assert re.fullmatch(LOOKS[name], document[name])


def test_numbers_have_the_size_of_their_name(emulator):
    number, integer = {"type": "number"}, {"type": "integer"}
    for document in documents(emulator, closed(confidence=number, unit_price=number, age=integer, rating=integer)):
        assert 0 <= document["confidence"] <= 1
        assert 1 <= document["unit_price"] <= 2000
        assert -Decimal(str(document["unit_price"])).as_tuple().exponent <= 2
        assert 18 <= document["age"] <= 90
        assert document["rating"] in range(1, 6)


def test_a_summary_may_hold_awkward_characters(emulator):
    written = "".join(document["summary"] for document in documents(emulator, closed(summary={"type": "string"}), 600))
    for awkward in ("\u2028", "\x00", "🎉", '"double"', "שלום"):
        assert awkward in written


class Customer(BaseModel):
    name: str = Field(min_length=1, max_length=200)
    email: str | None = None
    since: date
    id: UUID


class Ticket(BaseModel):
    """A ticket with everything that a model of a table tends to have."""

    category: Literal["billing", "technical", "other"]
    confidence: float = Field(ge=0, le=1)
    total: Decimal
    urgent: bool
    customer: Customer
    others: list[Customer] = Field(max_length=9)
    received: datetime
    link: HttpUrl
    owner: Customer | None = None


def test_a_pydantic_model_gets_its_answers_parsed(sdk, emulator):
    parsed = sdk.messages.parse(model=MODEL, max_tokens=9000, messages=params(None)["messages"], output_format=Ticket)
    assert isinstance(parsed.parsed_output, Ticket)
    schema = anthropic.transform_schema(Ticket)
    for text in texts(emulator, *(params(schema, f"Ticket {at}") for at in range(50))):
        assert Ticket.model_validate_json(text)


class Bounded(BaseModel):
    stars: int = Field(ge=6, le=7)
    rank: int = Field(gt=100, description="Its place among all.")
    share: float = Field(gt=0, lt=0.1)
    debt: float = Field(le=-5_000)
    dozens: int = Field(ge=24, le=96, multiple_of=12)
    sku: str = Field(max_length=4)
    motto: str = Field(min_length=150, max_length=160)
    parts: list[int] = Field(min_length=5, max_length=6)
    pair: list[str] = Field(max_length=1)


def test_an_answer_keeps_the_bounds_that_the_sdk_moves_into_descriptions(emulator):
    schema = anthropic.transform_schema(Bounded)
    for text in texts(emulator, *(params(schema, f"Ticket {at}") for at in range(50))):
        assert Bounded.model_validate_json(text)


def test_an_answer_over_max_tokens_is_cut_within_its_document(emulator):
    schema = closed(summary={"type": "string"}, others={"type": "array", "items": {"type": "string"}, "minItems": 1})
    (whole,) = texts(emulator, params(schema))
    (result,) = rows(emulator, [params(schema, max_tokens=5)])
    assert (result["message"]["content"][0]["text"], result["message"]["stop_reason"]) == (whole[:20], "max_tokens")
    assert result["message"]["usage"]["output_tokens"] == 5
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(whole[:20])


@pytest.mark.parametrize(
    ("outcome", "stop_reason"), [("truncated", "max_tokens"), ("model_context_window_exceeded", None)]
)
def test_a_document_that_was_not_finished_is_no_json(emulator, outcome, stop_reason):
    emulator.fault("row", outcome=outcome, times=-1)
    asked = [params(closed(number={"type": "integer"}), f"{at}", max_tokens=20 + at) for at in range(40)]
    for result in rows(emulator, asked):
        assert result["message"]["stop_reason"] == (stop_reason or outcome)
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(result["message"]["content"][0]["text"])


def test_unfit_answers_are_unfit_in_several_ways_and_only_where_there_is_a_schema():
    schema = closed(["id", "score"], id={"type": "string"}, score={"type": "number"}, note={"type": "string"})
    asked = [params(schema, f"Ticket {at}") for at in range(200)]
    free = [params(None, f"Ticket {at}") for at in range(50)]
    with Emulator() as plain, Emulator("--rate", "unfit=0.5") as emulator:
        answered = texts(emulator, *asked, *free)
        assert answered[200:] == texts(plain, *free)
        assert all(result["message"]["stop_reason"] == "end_turn" for result in rows(emulator, asked))
    unfit = [text for text in answered[:200] if not fits(schema, text)]
    assert 60 < len(unfit) < 140
    ways = Counter("fenced" if "```" in text else "json" if text.startswith("{") else "prose" for text in unfit)
    assert set(ways) == {"fenced", "json", "prose"}
    broken = [json.loads(text) for text in unfit if text.startswith("{")]
    assert any("id" not in document for document in broken)
    assert any(document.keys() >= {"id", "score"} for document in broken)


def test_a_row_fault_can_ask_for_an_unfit_answer(emulator):
    emulator.fault("row", outcome="unfit", match="^1$")
    schema = closed(id={"type": "string"})
    assert [fits(schema, text) for text in texts(emulator, *[params(schema)] * 3)] == [True, False, True]


def test_the_tokens_of_a_schema_are_counted_as_input(sdk):
    schema = closed(summary={"type": "string", "description": "In one sentence, for the agent who takes over."})
    messages = params(None)["messages"]
    bare = sdk.messages.count_tokens(model=MODEL, messages=messages)
    counted = sdk.messages.count_tokens(model=MODEL, messages=messages, output_config=formatted(schema))
    assert counted.input_tokens > bare.input_tokens + 10
    assert sdk.messages.create(**params(schema)).usage.input_tokens == counted.input_tokens
