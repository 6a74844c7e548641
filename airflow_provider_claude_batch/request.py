"""Requests: the envelope that we model, the message that we pass through, and what a batch would refuse."""

import hashlib
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import msgspec

from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.errors import InvalidRequests, Misconfigured
from airflow_provider_claude_batch.unreadable import TOO_DEEP, Unreadable, custom_id_of, is_too_deep, too_large

OnInvalid = Literal["fail", "skip"]

MAX_BYTES = 250_000_000
MAX_SKIPPED = 500
_ENVELOPE_BYTES = 1_000
_NAMED_OFFENDERS = 10
_NAME_CHARS = 64
_NAMED_KEYS = 5
_REFUSED_IN_BATCHES = (
    "stream",
    "speed",
    "fallbacks",
    "store",
    "previous_thread_event_id",
    "cache_hint",
    "context_hint",
)
_REMOVED = ("temperature", "top_p", "top_k")
_KNOWN = frozenset({
    *("model", "messages", "max_tokens", "system", "tools", "tool_choice", "thinking", "stop_sequences", "metadata"),
    *("service_tier", "inference_geo", "cache_control", "container", "output_config", "output_format", "mcp_servers"),
    *("context_management", *_REFUSED_IN_BATCHES, *_REMOVED),
})  # fmt: skip
_LIKENESS = 0.85
_SUSPECT = frozenset({"betas", *_REFUSED_IN_BATCHES, *_REMOVED})
_ENVELOPE = frozenset({"custom_id", "params"})
_EXACT_FLOAT = 2**53
_CACHED_FOR_AN_HOUR = {"type": "ephemeral", "ttl": "1h"}


class Request(msgspec.Struct, frozen=True):
    """One request of a batch, after the defaults went under it."""

    custom_id: str
    packed: str
    model: str
    max_tokens: int
    params: dict[str, Any]
    json: bytes
    digest: bytes
    request_hash: str


class Defaults(msgspec.Struct, frozen=True):
    """What goes under every request of a submission; betas are a header of the whole batch."""

    params: dict[str, Any]
    betas: tuple[str, ...] = ()
    format: dict[str, Any] | None = None

    @classmethod
    def of(cls, defaults: Any, format: dict[str, Any] | None = None) -> "Defaults":  # noqa: A002 - the API's word
        """Take a dict of params, and the format that every answer has to have; anything else is a mistake."""
        if not isinstance(defaults, Mapping | None):
            raise Misconfigured(f"defaults= takes a dict of params, and was given a {type(defaults).__name__}.")
        params = dict(defaults or {})
        betas = params.pop("betas", None) or ()
        betas = (betas,) if isinstance(betas, str) else betas
        if not isinstance(betas, list | tuple) or not all(_is_header(beta) for beta in betas):
            raise Misconfigured("betas in defaults takes a name, or a list of names.")
        if format is not None:
            params["output_config"] = _formatted(params.get("output_config") or {}, format)
        return cls(params, tuple(betas), format)

    def cached_system(self) -> list[Any]:
        """Ask for the shared system prompt to be cached for an hour, from its end back to the beginning."""
        system = self.params.get("system")
        blocks = [{"type": "text", "text": system}] if system and isinstance(system, str) else system
        if not isinstance(blocks, list) or not blocks or not isinstance(blocks[-1], dict):
            raise Misconfigured("prime_cache= needs a system prompt in defaults: that is what the requests share.")
        return [*blocks[:-1], {**blocks[-1], "cache_control": _CACHED_FOR_AN_HOUR}]


def _formatted(config: Any, format: dict[str, Any]) -> dict[str, Any]:  # noqa: A002 - the API's word
    """Ask for a format beside whatever else is asked of the output."""
    if not isinstance(config, Mapping):
        raise Misconfigured(f"output_config is a dict, and not a {type(config).__name__}.")
    if config.get("format") is not None:
        raise Misconfigured(
            "output_config asks for a format of its own: columns= is the one that answers have to have."
        )
    return {**config, "format": format}


def _is_header(text: Any) -> bool:
    return isinstance(text, str) and bool(text) and text.isascii() and text.isprintable()


class _Offence(ValueError):
    """Why one request would be refused."""


class Reading:
    """Put the defaults under each request while they are read, and refuse, or skip, what a batch would refuse.

    What has an answer already, by id and hash, is counted and passed over.
    """

    def __init__(
        self,
        raw: Iterable[Any],
        defaults: Defaults,
        *,
        on_invalid: OnInvalid = "fail",
        prime: bool = False,
        answered: Container[tuple[str, str]] = (),
    ) -> None:
        self.reused = 0
        self.invalid: dict[str, list[str]] = {}
        self.total_invalid = 0
        self._raw = raw
        self._defaults = defaults.params
        self._format = defaults.format
        self._cached_system = defaults.cached_system() if prime else None
        self._answered = answered
        self._salt = msgspec.json.encode(sorted(defaults.betas))
        self._defaults_are_exact = not _holds_float(defaults.params)
        self._limit = MAX_SKIPPED if on_invalid == "skip" else 0
        self._named: list[str] = []
        self._seen: set[str] = set()
        self._saw_float = False
        self._decode = msgspec.json.Decoder(float_hook=self._read_float).decode

    def __iter__(self) -> Iterator[Request]:
        count = 0
        for index, item in enumerate(self._raw):
            try:
                request = self._read(item)
            except _Offence as offence:
                self._note(index, item, str(offence))
                continue
            count += 1
            if (request.custom_id, request.request_hash) in self._answered:
                self.reused += 1
            else:
                yield request
        if self.total_invalid > self._limit or (self.total_invalid and not count):
            raise InvalidRequests(self._named, self.total_invalid)

    def _read(self, item: Any) -> Request:
        exact = False
        if isinstance(item, bytes):
            item = self._of_line(item)
            exact = self._defaults_are_exact and not self._saw_float
        custom_id, own = _open(item)
        if custom_id in self._seen:
            raise _Offence("custom_id stands twice")
        try:
            packed = wire_id.pack(custom_id)
        except wire_id.Unfit as unfit:
            raise _Offence(str(unfit)) from None
        params = {**self._defaults, **own}
        if self._format is not None and "output_config" in own:
            params["output_config"] = self._formatted(own["output_config"])
        if not _SUSPECT.isdisjoint(params):
            _refuse_suspects(params)
        _refuse_shapes(params)
        for key in params.keys() - _KNOWN:
            _refuse_slip(key)
        json, content = self._write(params, exact=exact)
        if self._cached_system and "system" not in own:
            params["system"] = self._cached_system
            json = encode(params)
        if len(json) > MAX_BYTES - _ENVELOPE_BYTES:
            raise _Offence(too_large(len(json)).why)
        self._seen.add(custom_id)
        max_tokens = params["max_tokens"]
        digest = hashlib.sha256(b"%d\n%b" % (max_tokens, content)).digest()
        request_hash = wire_id.request_hash_of(content)
        return Request(custom_id, packed, params["model"], max_tokens, params, json, digest, request_hash)

    def _formatted(self, config: Any) -> dict[str, Any]:
        try:
            return _formatted(config or {}, self._format or {})
        except Misconfigured as mistake:
            raise _Offence(str(mistake).rstrip(".")) from None

    def _of_line(self, line: bytes) -> Any:
        self._saw_float = False
        try:
            return self._decode(line)
        except RecursionError:
            raise _Offence(TOO_DEEP.why) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _Offence("the line is not JSON that can be read") from None

    def _read_float(self, text: str) -> float:
        self._saw_float = True
        return float(text)

    def _write(self, params: dict[str, Any], *, exact: bool) -> tuple[bytes, bytes]:
        """Write params as they are sent, and hash what decides a whole answer: how long it may be does not."""
        try:
            json = encode(params)
            content = {key: value for key, value in params.items() if key != "max_tokens"}
            canonical = _canonical(content, exact=exact and b'"cache_control"' not in json)
        except RecursionError:
            raise _Offence(TOO_DEEP.why) from None
        except (TypeError, ValueError):
            raise _Offence("params cannot be written as JSON: keys must be texts, and numbers finite") from None
        if is_too_deep(params, json):
            raise _Offence(TOO_DEEP.why)
        return json, hashlib.sha256(self._salt + canonical).digest()

    def _note(self, index: int, item: Any, offence: str) -> None:
        name = _shown(custom_id_of(item))
        self.total_invalid += 1
        if self.total_invalid <= self._limit:
            self.invalid.setdefault(offence, []).append(name or f"request {index}")
        if len(self._named) < _NAMED_OFFENDERS:
            self._named.append(f"request {index}" + (f" ({name!r})" if name else "") + f": {offence}")


encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def _open(item: Any) -> tuple[str, Mapping[str, Any]]:
    """Take an envelope apart."""
    if type(item) is not dict and not isinstance(item, Mapping):
        raise _Offence(f"a request is a dict with custom_id and params, not {type(item).__name__}")
    custom_id, params = item.get("custom_id"), item.get("params")
    if isinstance(params, Unreadable):
        raise _Offence(params.why)
    if extra := item.keys() - _ENVELOPE:
        named = ", ".join(sorted(str(key)[:_NAME_CHARS] for key in extra)[:_NAMED_KEYS])
        raise _Offence(f"nothing but custom_id and params belongs beside them, found {named}")
    if not isinstance(custom_id, str) or not custom_id:
        raise _Offence("custom_id is missing" if custom_id is None else "custom_id must be a text that is not empty")
    if type(params) is not dict and not isinstance(params, Mapping):
        raise _Offence("params must be a dict")
    return custom_id, params


def _refuse_suspects(params: Mapping[str, Any]) -> None:
    if "betas" in params:
        raise _Offence("betas are a header of the whole batch: put them into defaults")
    if refused := [key for key in _REFUSED_IN_BATCHES if params.get(key)]:
        raise _Offence(f"batches do not take {', '.join(refused)}")
    if removed := [key for key in _REMOVED if key in params]:
        raise _Offence(f"the API does not take {', '.join(removed)} any more, not even at the default")


def _refuse_slip(key: Any) -> None:
    """Refuse a slip of the pen, which would fail every request; other unknown words are for the API to judge."""
    if isinstance(key, str) and (meant := _meant(key)):
        raise _Offence(f"{key} is no parameter of the API: {meant[0]} is")


@lru_cache(maxsize=256)
def _meant(key: str) -> list[str]:
    from difflib import get_close_matches  # which few tasks need

    return get_close_matches(key, _KNOWN, n=1, cutoff=_LIKENESS)


def _refuse_shapes(params: Mapping[str, Any]) -> None:
    model, max_tokens, messages = params.get("model"), params.get("max_tokens"), params.get("messages")
    if not isinstance(model, str) or not model:
        raise _Offence("model is missing")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        is_missing = max_tokens is None
        raise _Offence("max_tokens is missing" if is_missing else "max_tokens must be a whole number of at least 1")
    if not isinstance(messages, list) or not messages:
        raise _Offence("messages must be a list that is not empty")


def _shown(custom_id: str | None) -> str | None:
    return None if custom_id is None else custom_id[:_NAME_CHARS].encode(errors="replace").decode()


def _canonical(params: dict[str, Any], *, exact: bool) -> bytes:
    """Spell what decides the answer in one way only: keys sorted, numbers normal, caching left out."""
    return _encode_sorted(params if exact else _normal(params))


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items() if not _is_caching(key, item)}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    if isinstance(value, float):
        return _normal_number(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(value)


def _holds_float(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_float, value.values()))
    return any(map(_holds_float, value)) if isinstance(value, list | tuple) else isinstance(value, float)


def _normal_number(value: float) -> float:
    """Write 1.0 as 1; what is not a number would be sent as null, and is refused."""
    if not math.isfinite(value):
        raise ValueError(value)
    return int(value) if value.is_integer() and abs(value) < _EXACT_FLOAT else value


def _is_caching(key: str, value: Any) -> bool:
    """Tell an instruction to cache from a tool's argument that happens to have its name."""
    return key == "cache_control" and (value is None or (isinstance(value, dict) and value.get("type") == "ephemeral"))
