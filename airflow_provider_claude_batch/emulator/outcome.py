"""What becomes of one request: drawn once, when it is submitted."""

from typing import Any

from msgspec import Struct

from airflow_provider_claude_batch.emulator.answer import generate
from airflow_provider_claude_batch.emulator.chance import derived_id, share
from airflow_provider_claude_batch.emulator.prompt import input_tokens

STOPS = {
    "succeeded": "end_turn",
    "truncated": "max_tokens",
    "pause_turn": "pause_turn",
    "refusal": "refusal",
    "model_context_window_exceeded": "model_context_window_exceeded",
}
ERRORS = {
    "overloaded_error": "Overloaded",
    "api_error": "Internal server error",
    "timeout_error": "Request timed out",
    "rate_limit_error": "This request would exceed your organization's rate limit. Please try again later.",
    "billing_error": "There is a problem with your billing or payment information.",
    "invalid_request_error": "Output blocked by content filtering policy",
    "permission_error": "Your API key does not have permission to use the specified resource.",
    "not_found_error": "Not found",
}
UNRUN = frozenset({"expired", "canceled"})
OUTCOMES = frozenset({*STOPS, *ERRORS, *UNRUN})
REFUSAL = {"type": "refusal", "category": "cyber", "explanation": "The request was declined by the emulator."}


class Fate(Struct, frozen=True):
    """A row's outcome; `message` is set where its params were refused before anything ran."""

    outcome: str
    message: str | None = None

    @property
    def status(self) -> str:
        """Name the count that the row falls under."""
        if self.outcome in STOPS:
            return "succeeded"
        return self.outcome if self.outcome in UNRUN else "errored"

    def told(self) -> tuple[str, str, str | None]:
        """Give what the table of requests keeps of it."""
        return self.status, self.outcome, self.message


def draw(rates: dict[str, float], *parts: str | bytes) -> Fate:
    """Draw an outcome by its share; what is left over succeeds."""
    point = share(*parts)
    for outcome, rate in rates.items():
        point -= rate
        if point < 0:
            return Fate(outcome)
    return Fate("succeeded")


def result(fate: Fate, params: dict[str, Any], batch_id: str, custom_id: str) -> dict[str, Any]:
    """Write the `result` of one line."""
    if fate.status == "errored":
        return {"type": "errored", "error": _error(fate, batch_id, custom_id)}
    if fate.status != "succeeded":
        return {"type": fate.status}
    message_id = derived_id("msg_", batch_id, custom_id)
    return {"type": "succeeded", "message": message(params, message_id, "batch", STOPS[fate.outcome])}


def message(
    params: dict[str, Any], message_id: str, service_tier: str, stop_reason: str = "end_turn"
) -> dict[str, Any]:
    """Write the message that answers these params, in the key order of the wire."""
    refused = stop_reason == "refusal"
    answer = generate(params, stop_reason)
    return {
        "model": params["model"],
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "content": [] if refused else [{"type": "text", "text": answer.text}],
        "stop_reason": "refusal" if refused else answer.stop_reason,
        "stop_sequence": answer.stop_sequence,
        "stop_details": REFUSAL if refused else None,
        "usage": {
            "input_tokens": input_tokens(params),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 0 if refused else answer.output_tokens,
            "service_tier": service_tier,
            "inference_geo": params.get("inference_geo") or "global",
        },
    }


def _error(fate: Fate, batch_id: str, custom_id: str) -> dict[str, Any]:
    if fate.message is None:
        error = {"type": fate.outcome, "message": ERRORS[fate.outcome]}
        return {"type": "error", "error": error, "request_id": derived_id("workerreq_", batch_id, custom_id)}
    refused = {"details": {"error_visibility": "user_facing"}, "type": fate.outcome, "message": fate.message}
    return {"type": "error", "error": refused, "request_id": None}
