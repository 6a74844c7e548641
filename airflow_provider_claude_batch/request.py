"""Requests: the envelope that we model, the message that we pass through, and what a batch would refuse."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.errors import InvalidRequests, Misconfigured

MAX_BYTES = 250_000_000
_NAMED_OFFENDERS = 10
_REFUSED_IN_BATCHES = (
    "stream",
    "speed",
    "fallbacks",
    "store",
    "previous_thread_event_id",
    "cache_hint",
    "context_hint",
)
_EXACT_FLOAT = 2**53


class Request(msgspec.Struct, frozen=True):
    """One request of a batch, after the defaults went under it."""

    custom_id: str
    params: dict[str, Any]

    @property
    def model(self) -> str:
        return str(self.params["model"])

    @property
    def max_tokens(self) -> int:
        return int(self.params["max_tokens"])

    def canonical(self, betas: Iterable[str] = ()) -> bytes:
        """Spell what decides the answer in one way only: keys sorted, numbers normal, caching left out."""
        return msgspec.json.encode([sorted(betas), _normal(self.params)], order="sorted")


class Defaults(msgspec.Struct, frozen=True):
    """What goes under every request of a submission; betas are a header of the whole batch."""

    params: dict[str, Any]
    betas: tuple[str, ...] = ()

    @classmethod
    def of(cls, defaults: Any) -> "Defaults":
        """Take a dict of params; anything else is a mistake."""
        if not isinstance(defaults, Mapping | None):
            raise Misconfigured(f"defaults= takes a dict of params, and was given a {type(defaults).__name__}.")
        params = dict(defaults or {})
        betas = params.pop("betas", None) or ()
        betas = (betas,) if isinstance(betas, str) else betas
        if not isinstance(betas, list | tuple) or not all(isinstance(beta, str) for beta in betas):
            raise Misconfigured("betas in defaults takes a name, or a list of names.")
        return cls(params, tuple(betas))


def read(raw: Iterable[Any], defaults: Defaults) -> Iterator[Request]:
    """Put the defaults under each request; at the end, refuse them all if a batch would refuse any."""
    seen: set[str] = set()
    offences: list[str] = []
    total = 0
    for index, item in enumerate(raw):
        offence = _envelope_offence(item, seen)
        if offence is None:
            seen.add(item["custom_id"])
            request = Request(item["custom_id"], {**defaults.params, **item["params"]})
            offence = _params_offence(request.params) or _json_offence(request)
        if offence is None:
            yield request
            continue
        total += 1
        if len(offences) < _NAMED_OFFENDERS:
            offences.append(f"{_name(item, index)}: {offence}")
    if total:
        raise InvalidRequests(offences, total)


def encode(params: Mapping[str, Any]) -> bytes:
    """Write params as the JSON that is sent."""
    return msgspec.json.encode(params)


def _name(item: Any, index: int) -> str:
    custom_id = item.get("custom_id") if isinstance(item, Mapping) else None
    return f"request {index}" + (f" ({custom_id[:64]!r})" if isinstance(custom_id, str) else "")


def _envelope_offence(item: Any, seen: set[str]) -> str | None:
    if not isinstance(item, Mapping):
        return f"a request is a dict with custom_id and params, not {type(item).__name__}"
    if extra := item.keys() - {"custom_id", "params"}:
        return f"nothing but custom_id and params belongs beside them, found {', '.join(sorted(map(str, extra)))}"
    custom_id = item.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return "custom_id must be a text that is not empty"
    if custom_id in seen:
        return "custom_id stands twice"
    if not isinstance(item.get("params"), Mapping):
        return "params must be a dict"
    return _wire_offence(custom_id)


def _wire_offence(custom_id: str) -> str | None:
    try:
        str(wire_id.WireId(custom_id, "", ""))
    except wire_id.Unfit as unfit:
        return str(unfit)
    return None


def _params_offence(params: Mapping[str, Any]) -> str | None:
    if "betas" in params:
        return "betas are a header of the whole batch: put them into defaults"
    if refused := [key for key in _REFUSED_IN_BATCHES if params.get(key)]:
        return f"batches do not take {', '.join(refused)}"
    if not isinstance(params.get("model"), str) or not params["model"]:
        return "model is missing"
    max_tokens = params.get("max_tokens")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        return "max_tokens must be a whole number of at least 1"
    if not isinstance(params.get("messages"), list) or not params["messages"]:
        return "messages must be a list that is not empty"
    return None


def _json_offence(request: Request) -> str | None:
    try:
        request.canonical()
        size = len(encode(request.params))
    except (TypeError, ValueError, RecursionError):
        return "params cannot be written as JSON: keys must be texts, numbers finite, and nesting moderate"
    return f"one request of {size:,} bytes is more than a batch holds" if size > MAX_BYTES - 1_000 else None


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items() if not _is_caching(key, item)}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    return _normal_number(value) if isinstance(value, float) else value


def _normal_number(value: float) -> float:
    """Write 1.0 as 1; what is not a number would be sent as null, and is refused."""
    if not math.isfinite(value):
        raise ValueError(value)
    return int(value) if value.is_integer() and abs(value) < _EXACT_FLOAT else value


def _is_caching(key: str, value: Any) -> bool:
    """Tell an instruction to cache from a tool's argument that happens to have its name."""
    return key == "cache_control" and (value is None or (isinstance(value, dict) and value.get("type") == "ephemeral"))
