"""Requests for structured output, sent to the emulator, and their answers."""

import json

import httpx2
from emulator import HEADERS
from jsonschema import Draft202012Validator

MODEL = "claude-haiku-4-5"
CLOSED = {"type": "object", "additionalProperties": False}


def closed(required=None, /, **properties):
    return {**CLOSED, "properties": properties, "required": list(properties) if required is None else required}


def formatted(schema):
    return {"format": {"type": "json_schema", "schema": schema}}


def params(schema, text="Read this ticket.", **more):
    asked = {"model": MODEL, "max_tokens": 20_000, "messages": [{"role": "user", "content": text}], **more}
    return asked if schema is None else {**asked, "output_config": formatted(schema)}


def rows(emulator, all_params):
    """Send these params as one batch and return the `result` of each."""
    requests = [{"custom_id": str(at), "params": one} for at, one in enumerate(all_params)]
    with httpx2.Client(base_url=f"{emulator.base_url}/v1/messages", headers=HEADERS, timeout=60) as http:
        batch_id = http.post("/batches", json={"requests": requests}).json()["id"]
        emulator.advance(10)
        lines = http.get(f"/batches/{batch_id}/results").content.split(b"\n")
    results = {row["custom_id"]: row["result"] for row in map(json.loads, filter(None, lines))}
    return [results[str(at)] for at in range(len(all_params))]


def texts(emulator, *all_params):
    """Send these params as one batch and return the text of each answer."""
    return [result["message"]["content"][0]["text"] for result in rows(emulator, all_params)]


def fits(schema, text):
    try:
        document = json.loads(text)
    except ValueError:
        return False
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid(document)
