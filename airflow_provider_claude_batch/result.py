"""One line of a results file, as the API wrote it."""

import json
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

# No message comes near it, and every count within it fits the columns of tokens and of money.
Tokens = Annotated[int, Meta(ge=0, le=50_000_000)]


class CacheCreation(msgspec.Struct, frozen=True):
    """Cache writes by lifetime."""

    ephemeral_5m_input_tokens: Tokens = 0
    ephemeral_1h_input_tokens: Tokens = 0


class ServerToolUse(msgspec.Struct, frozen=True):
    """Calls of server tools that are billed by the call."""

    web_search_requests: Tokens | None = None


class Usage(msgspec.Struct, frozen=True):
    """What a message used; input_tokens counts neither cache writes nor cache reads."""

    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation: CacheCreation | None = None
    server_tool_use: ServerToolUse | None = None
    service_tier: str | None = None
    inference_geo: str | None = None

    @property
    def cache_write_1h_tokens(self) -> int:
        return self.cache_creation.ephemeral_1h_input_tokens if self.cache_creation else 0

    @property
    def cache_write_5m_tokens(self) -> int:
        """Writes whose lifetime is not broken down are the default ones, of five minutes."""
        if self.cache_creation:
            return self.cache_creation.ephemeral_5m_input_tokens
        return self.cache_creation_input_tokens or 0

    @property
    def cache_read_tokens(self) -> int:
        return self.cache_read_input_tokens or 0

    @property
    def web_search_requests(self) -> int:
        return (self.server_tool_use and self.server_tool_use.web_search_requests) or 0

    @property
    def prompt_tokens(self) -> int:
        return self.input_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens + self.cache_read_tokens


class Message(msgspec.Struct, frozen=True):
    """The envelope of an answer; its content stays as the API wrote it."""

    id: str
    model: str
    content: Raw
    usage: Usage
    stop_reason: str | None = None
    stop_details: Raw = Raw(b"null")


class ApiError(msgspec.Struct, frozen=True):
    """Why a request failed."""

    type: str = "unknown_error"
    message: str = ""


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The API wraps a row's error in a whole error response."""

    error: ApiError


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request: `type` is succeeded, errored, canceled or expired, or a word still to come."""

    type: str
    message: Message | None = None
    error: ErrorEnvelope | None = None


class Result(msgspec.Struct, frozen=True):
    """One line of a results file."""

    custom_id: str
    result: Outcome


class TextBlock(msgspec.Struct, frozen=True):
    """A block of an answer, as far as its text goes."""

    type: str
    text: Any = None


_results = msgspec.json.Decoder(Result)
_blocks = msgspec.json.Decoder(list[TextBlock])

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read(line: bytes | str) -> Result:
    """Read one line as it is, or raise one of UNREADABLE; what stays raw in it may still be broken UTF-8."""
    found = _results.decode(line)
    if found.result.message is None and found.result.type == "succeeded":
        raise msgspec.ValidationError("A success without a message.")
    return found


def decode(line: bytes) -> Result | None:
    """Read one line, mended where it has to be, or return None where it is not a result."""
    for spell in (bytes.decode, _mended):
        with suppress(*UNREADABLE):
            return read(spell(line))
    return None


def _mended(line: bytes) -> bytes:
    """Replace broken UTF-8, and half of a surrogate pair, which JSON allows and UTF-8 does not."""
    try:
        whole = json.loads(line.decode("utf-8-sig", errors="replace"))
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from None
    return json.dumps(whole, ensure_ascii=False).encode(errors="replace")


def text_of(content: Raw) -> str:
    """Join the text blocks of an answer."""
    return "".join([b.text for b in _blocks.decode(content) if b.type == "text" and isinstance(b.text, str)])
