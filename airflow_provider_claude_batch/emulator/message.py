"""The message that answers a request, as it stands on the wire."""

from typing import Any

from airflow_provider_claude_batch.emulator.answer import generate
from airflow_provider_claude_batch.emulator.cache import CacheTokens
from airflow_provider_claude_batch.emulator.prompt import input_tokens

REFUSAL = {"type": "refusal", "category": "cyber", "explanation": "The request was declined by the emulator."}


def message(
    params: dict[str, Any], message_id: str, service_tier: str, cached: CacheTokens, outcome: str = "succeeded"
) -> dict[str, Any]:
    """Write the message in the key order of the wire."""
    refused = outcome == "refusal"
    answer = generate(params, outcome)
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
            **_input(params, cached),
            "output_tokens": 0 if refused else answer.output_tokens,
            "service_tier": service_tier,
            "inference_geo": params.get("inference_geo") or "global",
        },
    }


def _input(params: dict[str, Any], cached: CacheTokens) -> dict[str, Any]:
    """Share the whole prompt out: the API's `input_tokens` are those that were neither read nor written."""
    return {
        "input_tokens": input_tokens(params) - cached.read - cached.written,
        "cache_creation_input_tokens": cached.written,
        "cache_read_input_tokens": cached.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": cached.written_5m,
            "ephemeral_1h_input_tokens": cached.written_1h,
        },
    }
