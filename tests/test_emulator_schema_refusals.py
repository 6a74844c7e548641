"""Which structured output the emulator refuses, and in whose words."""

import anthropic
import pytest
from structured import CLOSED, MODEL, closed, params, rows

WHERE = "output_config.format.schema"
EXTRA = "Extra inputs are not permitted"
TOO_COMPLEX = "Schema is too complex for compilation."
OPTIONAL = (
    "Schemas contains too many optional parameters ({}), which would make grammar compilation inefficient. "
    "Reduce the number of optional parameters in your tool schemas (limit: 24)."
)
UNIONS = (
    "Schemas contains too many parameters with union types ({} parameters with type arrays or anyOf). "
    "This causes exponential compilation cost. "
    "Reduce the number of nullable or union-typed parameters (limit: 16 parameters with unions)."
)
pytestmark = pytest.mark.usefixtures("stopped_clock")


def definitions(first, /, **named):
    return {**closed(first={"$ref": f"#/$defs/{first}"}), "$defs": named}


def only(schema):
    return closed(value=schema)


CHAIN = {f"D{at}": closed(a={"$ref": f"#/$defs/D{at + 1}"}) for at in range(200)}
DOUBLING = {f"D{at}": closed(**{key: {"$ref": f"#/$defs/D{at + 1}"} for key in "ab"}) for at in range(40)}
REFUSED = {
    "open": ({"type": "object"}, "For 'object' type, 'additionalProperties' must be explicitly set to false"),
    "open below": (
        only({"type": "array", "items": {"type": "object", "additionalProperties": True}}),
        "For 'object' type, 'additionalProperties' must be explicitly set to false",
    ),
    "map": (
        {"type": "object", "additionalProperties": {"type": "string"}},
        "For 'object' type, 'additionalProperties: object' is not supported",
    ),
    "minimum": (only({"type": "integer", "minimum": 1}), "For 'integer' type, property 'minimum' is not supported"),
    "range": (
        only({"type": ["null", "number"], "minimum": 0, "maximum": 1}),
        "For 'number' type, properties maximum, minimum are not supported",
    ),
    "multiple": (
        only({"type": "number", "multipleOf": 2}),
        "For 'number' type, property 'multipleOf' is not supported",
    ),
    "length": (
        only({"type": "string", "minLength": 1, "maxLength": 9}),
        "For 'string' type, properties maxLength, minLength are not supported",
    ),
    "format": (only({"type": "string", "format": "iban"}), "For 'string' type, format 'iban' is not supported"),
    "maxItems": (only({"type": "array", "maxItems": 2}), "For 'array' type, property 'maxItems' is not supported"),
    "minItems": (
        only({"type": "array", "minItems": 2}),
        "For 'array' type, 'minItems' values other than 0 or 1 are not supported",
    ),
    "union and definitions": (
        {"anyOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": {"type": "string"}}},
        "For 'anyOf', property '$defs' is not supported",
    ),
    "oneOf": (
        only({"oneOf": [{"type": "string"}]}),
        "a schema needs one of $ref, anyOf, allOf, type, enum, const",
    ),
    "type": (only({"type": "decimal"}), "type 'decimal' is not supported"),
    "enum of objects": (only({"enum": [{}]}), "'enum' and 'const' values should be strings, numbers, booleans or null"),
    "empty enum": (only({"enum": []}), "'enum' should be a list with at least one value"),
    "boolean schema": (only(True), "Input should be a valid dictionary"),
    "required": (
        {**CLOSED, "required": ["x"]},
        "For 'object' type, 'required' should be a list of names from 'properties'",
    ),
    "allOf and $ref": (
        {**only({"allOf": [{"$ref": "#/$defs/A"}]}), "$defs": {"A": {"type": "string"}}},
        "'allOf' with '$ref' is not supported",
    ),
    "far reference": (
        only({"$ref": "https://example.com/schema"}),
        "$ref 'https://example.com/schema' is not supported: it leads to none of the schema's own definitions",
    ),
    "contradiction": (only({"allOf": [{"type": "string"}, {"type": "null"}]}), "no value fits the schema"),
}
REFUSED_WHOLE = {
    "circle": (
        definitions("A", A=closed(b={"$ref": "#/$defs/B"}), B=closed([], a={"$ref": "#/$defs/A"})),
        "Circular reference detected in schema definitions: A -> B -> A",
    ),
    "self": (closed([], again={"$ref": "#"}), "Circular reference detected in schema definitions: # -> #"),
    "optional": (
        closed([], **{f"p{at}": {"type": "string"} for at in range(25)}),
        OPTIONAL.format(25),
    ),
    "unions": (
        closed(**{f"p{at}": {"type": ["string", "null"]} for at in range(17)}),
        UNIONS.format(17),
    ),
    "chain": (definitions("D0", **CHAIN, D200={"type": "null"}), TOO_COMPLEX),
    "doubling": (definitions("D0", **DOUBLING, D40={"type": "null"}), TOO_COMPLEX),
    "size": (only({"enum": [f"{at:0>99}" for at in range(1000)]}), TOO_COMPLEX),
    "meeting": (only({"allOf": [{"enum": list(range(at, at + 9000))} for at in (0, 9000)]}), TOO_COMPLEX),
}
ALL_REFUSED = {
    **{name: (schema, f"{WHERE}: {message}") for name, (schema, message) in REFUSED.items()},
    **{name: (schema, message) for name, (schema, message) in REFUSED_WHOLE.items()},
}


@pytest.mark.parametrize("name", ALL_REFUSED)
def test_a_schema_that_is_not_supported_is_refused_live_and_errors_its_row(sdk, emulator, name):
    schema, message = ALL_REFUSED[name]
    with pytest.raises(anthropic.BadRequestError) as raised:
        sdk.messages.create(**params(schema))
    assert raised.value.body["error"] == {"type": "invalid_request_error", "message": message}
    refused, fine = rows(emulator, [params(schema), params(only({"type": "string"}))])
    assert refused["error"]["error"]["message"] == message
    assert refused["error"]["error"]["type"] == "invalid_request_error"
    assert fine["type"] == "succeeded"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("json", "output_config: Input should be a valid dictionary"),
        ({"style": 1}, f"output_config.style: {EXTRA}"),
        ({"effort": "huge"}, "output_config.effort: Input should be one of low, medium, high, xhigh, max"),
        ({"format": []}, "output_config.format: Input should be a valid dictionary"),
        ({"format": {"schema": {}}}, "output_config.format.type: Field required"),
        ({"format": {"type": "json_schema"}}, f"{WHERE}: Field required"),
        ({"format": {"type": "json", "schema": {}}}, "output_config.format.type: Input should be 'json_schema'"),
        ({"format": {"type": "json_schema", "schema": []}}, f"{WHERE}: Input should be a valid dictionary"),
        ({"format": {"type": "json_schema", "schema": {}, "name": "n"}}, f"output_config.format.name: {EXTRA}"),
    ],
)
def test_an_output_config_of_another_shape_is_refused(http, config, message):
    for path, body in (
        ("/v1/messages", params(None, output_config=config)),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": [], "output_config": config}),
    ):
        answer = http.post(path, json=body)
        expected = "messages: at least one message is required" if path.endswith("count_tokens") else message
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, expected)


@pytest.mark.parametrize("config", [None, {}, {"effort": "low"}, {"format": None, "effort": None}])
def test_an_output_config_without_a_format_leaves_the_text_free(http, config):
    answer = http.post("/v1/messages", json=params(None, output_config=config))
    assert answer.status_code == 200
    assert not answer.json()["content"][0]["text"].startswith("{")


def test_a_schema_nested_beyond_all_measure_is_refused_and_not_followed(http):
    for levels in (100, 400):
        schema = {"type": "string"}
        for _ in range(levels):
            schema = {"type": "array", "items": schema}
        answer = http.post("/v1/messages", json=params(schema))
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, TOO_COMPLEX)
