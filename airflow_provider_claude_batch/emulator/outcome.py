"""What becomes of one request: drawn once, when it is submitted."""

from typing import Any

from msgspec import Struct

from airflow_provider_claude_batch.emulator.answer import STOPS
from airflow_provider_claude_batch.emulator.cache import CacheTokens
from airflow_provider_claude_batch.emulator.chance import derived_id, share
from airflow_provider_claude_batch.emulator.message import message

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


def result(fate: Fate, params: dict[str, Any], batch_id: str, custom_id: str, cached: CacheTokens) -> dict[str, Any]:
    """Write the `result` of one line."""
    if fate.status == "errored":
        return {"type": "errored", "error": _error(fate, batch_id, custom_id)}
    if fate.status != "succeeded":
        return {"type": fate.status}
    message_id = derived_id("msg_", batch_id, custom_id)
    return {"type": "succeeded", "message": message(params, message_id, "batch", cached, fate.outcome)}


def _error(fate: Fate, batch_id: str, custom_id: str) -> dict[str, Any]:
    if fate.message is None:
        error = {"type": fate.outcome, "message": ERRORS[fate.outcome]}
        return {"type": "error", "error": error, "request_id": derived_id("workerreq_", batch_id, custom_id)}
    refused = {"details": {"error_visibility": "user_facing"}, "type": fate.outcome, "message": fate.message}
    return {"type": "error", "error": refused, "request_id": None}
