"""The answer of the emulated model: always the same for the same prompt."""

from hashlib import blake2b
from typing import Any

from msgspec import Struct

from airflow_provider_claude_batch.emulator.chance import Draws
from airflow_provider_claude_batch.emulator.fitting import write_document
from airflow_provider_claude_batch.emulator.labels import choose_label
from airflow_provider_claude_batch.emulator.output_config import shapes_of
from airflow_provider_claude_batch.emulator.prompt import CHARACTERS_PER_TOKEN, content_of, text_of, tokens, user_text
from airflow_provider_claude_batch.emulator.prose import write_prose
from airflow_provider_claude_batch.emulator.unfit import write_unfit

# What may differ between two requests whose full answers are still the same.
NOT_CONTENT = frozenset({"max_tokens", "stop_sequences", "stream", "service_tier", "metadata", "inference_geo"})
# Why the model stops, for each way in which a row can succeed.
STOPS = {
    "succeeded": "end_turn",
    "unfit": "end_turn",
    "truncated": "max_tokens",
    "pause_turn": "pause_turn",
    "refusal": "refusal",
    "model_context_window_exceeded": "model_context_window_exceeded",
}


class Answer(Struct, frozen=True):
    """What was generated, why it stopped, and what it costs in tokens."""

    text: str
    stop_reason: str
    stop_sequence: str | None
    output_tokens: int


def generate(params: dict[str, Any], outcome: str = "succeeded") -> Answer:
    """Generate the answer; any other outcome than succeeded is made to happen."""
    text, stop_reason = full_text(params, fits=outcome != "unfit"), STOPS[outcome]
    limit = params["max_tokens"] * CHARACTERS_PER_TOKEN
    if stop_reason == "max_tokens":
        text = _endless(params, text) * (limit // len(text) + 1)
    elif stop_reason == "end_turn" and (found := _first_stop(text, params.get("stop_sequences") or [])):
        end, sequence = found
        if end <= limit:
            return Answer(text[:end], "stop_sequence", sequence, tokens(end))
    elif stop_reason != "end_turn":
        text = text[: len(text) // 2 + 1]
    if len(text) > limit or stop_reason == "max_tokens":
        return Answer(text[:limit], "max_tokens", None, params["max_tokens"])
    return Answer(text, stop_reason, None, tokens(len(text)))


def full_text(params: dict[str, Any], *, fits: bool = True) -> str:
    """Write the answer as it is before anything cuts it; unless it `fits`, it breaks its schema, if it has one."""
    system, user = text_of(params.get("system")), user_text(params)
    if shapes := shapes_of(params):
        write = write_document if fits else write_unfit
        return write(shapes, Draws(_digest(params)), user)
    return choose_label(system, user) or write_prose(_digest(params), user)


def _endless(params: dict[str, Any], text: str) -> str:
    # A document that never closes is cut in half wherever the limit is.
    return text[:-1] + " " if shapes_of(params) else text + " "


def _digest(params: dict[str, Any]) -> bytes:
    content = {name: value for name, value in params.items() if name not in NOT_CONTENT}
    return blake2b(content_of(content), digest_size=16).digest()


def _first_stop(text: str, sequences: list[str]) -> tuple[int, str] | None:
    found = [(at, sequence) for sequence in sequences if sequence and (at := text.find(sequence)) >= 0]
    return min(found, default=None)
