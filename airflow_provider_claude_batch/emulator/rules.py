"""What the API finds wrong with the params of one request, in its own words."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from airflow_provider_claude_batch.emulator.models import BY_ID
from airflow_provider_claude_batch.emulator.output_config import find_output_problem
from airflow_provider_claude_batch.emulator.prefix import Mark, find_marks
from airflow_provider_claude_batch.emulator.prompt import input_tokens

CLASSIC, REVISED = "2023-06-01", "2026-10-21"
REMOVED = ("temperature", "top_p", "top_k")
EXTRA = "Extra inputs are not permitted"
# The removed ones are known, so that they can be allowed, and so are those that batches refuse in other words.
KNOWN = frozenset({
    *("model", "messages", "max_tokens", "system", "tools", "tool_choice", "thinking", "stop_sequences", "stream"),
    *("metadata", "service_tier", "inference_geo", "cache_control", "container", "diagnostics", "output_config"),
    *("output_format", "context_management", "mcp_servers", "thread", "compaction", "billing_policy"),
    *("user_profile_id", "fallback_credit_token", *REMOVED),
    *("speed", "fallbacks", "store", "previous_thread_event_id", "cache_hint", "context_hint"),
})  # fmt: skip
NOT_IN_BATCHES = ("speed", "fallbacks", "store", "previous_thread_event_id", "cache_hint", "context_hint")
NOT_COUNTED = frozenset({"max_tokens", "stop_sequences", "metadata", "service_tier", "stream"})
ROLES = ("user", "assistant", "system")
THINKING = ("enabled", "disabled", "adaptive")
MAX_MARKS = 4
TTLS = ("5m", "1h")
TTL_ORDER = (
    "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. "
    "Note that blocks are processed in the following order: `tools`, `system`, `messages`."
)


class Asked(Struct, frozen=True):
    """One request's params and what else decides whether they are right."""

    params: dict[str, Any]
    version: str
    betas: frozenset[str] = frozenset()
    removed_params: str = "row"
    batched: bool = True
    marked: bool = True  # whether to look for a cache_control, which takes time where there are many requests


class Problem(Struct, frozen=True):
    """What is wrong, and the type of error that it is."""

    message: str
    kind: str = "invalid_request_error"


def find_problem(asked: Asked) -> Problem | None:
    """Report the first thing that is wrong, as the API does."""
    return next((problem for check in CHECKS if (problem := check(asked))), None)


def find_count_problem(params: dict[str, Any], version: str, removed_params: str) -> Problem | None:
    """Report what is wrong with a count_tokens body, which is a Messages body without its output."""
    if extra := next((name for name in params if name in NOT_COUNTED), None):
        return Problem(f"{extra}: {EXTRA}")
    return find_problem(Asked({**params, "max_tokens": 1}, version, removed_params=removed_params, batched=False))


def removed_param(asked: Asked) -> Problem | None:
    """Report what the revised API version no longer takes."""
    if asked.version != REVISED or asked.removed_params == "allow":
        return None
    if name := next((name for name in REMOVED if name in asked.params), None):
        return Problem(f"{name}: {EXTRA}")
    return _removed_block(asked.params.get("messages"))


def _removed_block(messages: Any) -> Problem | None:
    for at, role, block_at, block in _blocks(messages):
        where = f"messages.{at}.content.{block_at}"
        if role == "assistant" and block.get("type") == "document":
            return Problem(f"{where}: `document` blocks are not permitted in assistant turns")
        if role == "user" and block.get("type") == "text" and block.get("citations"):
            return Problem(f"{where}.text.citations: {EXTRA}")
    return None


def _missing(asked: Asked) -> Problem | None:
    name = next((name for name in ("model", "messages", "max_tokens") if name not in asked.params), None)
    return Problem(f"{name}: Field required") if name else None


def _unknown(asked: Asked) -> Problem | None:
    name = next((name for name in asked.params if name not in KNOWN), None)
    return Problem(f"{name}: {EXTRA}") if name else None


def _unsupported(asked: Asked) -> Problem | None:
    if asked.batched and asked.params.get("stream"):
        return Problem("`stream=True` is not supported in the Message Batches API")
    name = next((name for name in NOT_IN_BATCHES if asked.batched and asked.params.get(name)), None)
    return Problem(f"`{name}` is not supported in the Message Batches API") if name else None


def _model(asked: Asked) -> Problem | None:
    model = asked.params["model"]
    if not isinstance(model, str):
        return Problem("model: Input should be a valid string")
    return None if model in BY_ID else Problem(f"model: {model}", "not_found_error")


def _max_tokens(asked: Asked) -> Problem | None:
    asked_for = asked.params["max_tokens"]
    if not isinstance(asked_for, int) or isinstance(asked_for, bool):
        return Problem("max_tokens: Input should be a valid integer")
    if asked_for < 1:
        return Problem("max_tokens: must be greater than or equal to 1")
    model = BY_ID[asked.params["model"]]
    cap = model.cap(asked.betas) if asked.batched else model.max_tokens
    if asked_for > cap:
        rule = f"which is the maximum allowed number of output tokens for {model.id}"
        return Problem(f"max_tokens: {asked_for} > {cap}, {rule}")
    return None


def _messages(asked: Asked) -> Problem | None:
    messages = asked.params["messages"]
    if not isinstance(messages, list):
        return Problem("messages: Input should be a valid list")
    if not messages:
        return Problem("messages: at least one message is required")
    return next((problem for at, turn in enumerate(messages) if (problem := _turn(at, turn))), None)


def _turn(at: int, turn: Any) -> Problem | None:
    if not isinstance(turn, dict):
        return Problem(f"messages.{at}: Input should be a valid dictionary")
    if missing := next((name for name in ("role", "content") if name not in turn), None):
        return Problem(f"messages.{at}.{missing}: Field required")
    if turn["role"] not in ROLES:
        return Problem(f"messages.{at}.role: Input should be 'user' or 'assistant'")
    if not isinstance(turn["content"], str | list):
        return Problem(f"messages.{at}.content: Input should be a valid list")
    return None


def _stop_sequences(asked: Asked) -> Problem | None:
    sequences = asked.params.get("stop_sequences", [])
    if not isinstance(sequences, list):
        return Problem("stop_sequences: Input should be a valid list")
    at = next((at for at, sequence in enumerate(sequences) if not isinstance(sequence, str)), None)
    return None if at is None else Problem(f"stop_sequences.{at}: Input should be a valid string")


def _thinking(asked: Asked) -> Problem | None:
    thinking = asked.params.get("thinking")
    if thinking is None or (isinstance(thinking, dict) and thinking.get("type") in THINKING):
        return None
    return Problem(f"thinking: Input should be one of {', '.join(THINKING)}")


def _output(asked: Asked) -> Problem | None:
    problem = find_output_problem(asked.params)
    return Problem(problem) if problem else None


def _sources(asked: Asked) -> Problem | None:
    for _, _, _, block in _blocks(asked.params["messages"]):
        source = block.get("source")
        # The reserved top-level domain never resolves: what a dead link looks like without a network.
        if isinstance(source, dict) and source.get("type") == "url" and _dead(source.get("url")):
            return Problem("Unable to download the file. Please verify the URL and try again.")
    return None


def _length(asked: Asked) -> Problem | None:
    model, length = BY_ID[asked.params["model"]], input_tokens(asked.params)
    if length <= model.max_input_tokens:
        return None
    return Problem(f"prompt is too long: {length} tokens > {model.max_input_tokens} maximum")


def _caching(asked: Asked) -> Problem | None:
    if not asked.marked:
        return None
    marks = find_marks(asked.params)
    if problem := next((problem for mark in marks if (problem := _control(mark))), None):
        return problem
    ttls = {mark.at: mark.ttl for mark in marks}
    if len(ttls) > MAX_MARKS:
        return Problem(f"A maximum of {MAX_MARKS} blocks with cache_control may be provided. Found {len(ttls)}.")
    if any(mark.ttl != ttls[mark.at] for mark in marks):
        return Problem("cache_control.ttl: the last block has a cache_control with another ttl")
    late = next((after for before, after in pairwise(marks) if (before.ttl, after.ttl) == TTLS), None)
    return Problem(f"{late.where}.ttl: {TTL_ORDER}") if late else None


def _control(mark: Mark) -> Problem | None:
    if not isinstance(mark.control, dict):
        return Problem(f"{mark.where}: Input should be a valid dictionary")
    if mark.control.get("type") != "ephemeral":
        return Problem(f"{mark.where}.type: Input should be 'ephemeral'")
    if mark.control.get("ttl", "5m") not in TTLS:
        return Problem(f"{mark.where}.ttl: Input should be '5m' or '1h'")
    extra = next((name for name in mark.control if name not in {"type", "ttl"}), None)
    return Problem(f"{mark.where}.{extra}: {EXTRA}") if extra else None


def _dead(url: Any) -> bool:
    if not isinstance(url, str):
        return False
    try:
        return (urlsplit(url).hostname or "").endswith(".invalid")
    except ValueError:
        return True


def _blocks(messages: Any) -> list[tuple[int, Any, int, dict[str, Any]]]:
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    return [
        (at, turn.get("role"), block_at, block)
        for at, turn in enumerate(turns)
        if isinstance(turn.get("content"), list)
        for block_at, block in enumerate(turn["content"])
        if isinstance(block, dict)
    ]


CHECKS: tuple[Callable[[Asked], Problem | None], ...] = (
    _missing,
    _unknown,
    removed_param,
    _unsupported,
    _model,
    _max_tokens,
    _messages,
    _stop_sequences,
    _thinking,
    _output,
    _caching,
    _sources,
    _length,
)
