"""One line of a results file, as the API wrote it."""

import json
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

# No message comes near it, and every count within it fits the columns of tokens and of money.
Tokens = Annotated[int, Meta(ge=0, le=50_000_000)]


class CacheCreation(msgspec.Struct, frozen=True, gc=False):
    """Cache writes by lifetime."""

    ephemeral_5m_input_tokens: Tokens = 0
    ephemeral_1h_input_tokens: Tokens = 0


class ServerToolUse(msgspec.Struct, frozen=True, gc=False):
    """Calls of server tools that are billed by the call."""

    web_search_requests: Tokens | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
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
    def cache_writes(self) -> tuple[int, int]:
        """Tokens written for five minutes and for an hour; those not broken down are for five minutes, the default."""
        if (created := self.cache_creation) is not None:
            return created.ephemeral_5m_input_tokens, created.ephemeral_1h_input_tokens
        return self.cache_creation_input_tokens or 0, 0

    @property
    def cache_write_5m_tokens(self) -> int:
        return self.cache_writes[0]

    @property
    def cache_write_1h_tokens(self) -> int:
        return self.cache_writes[1]

    @property
    def cache_read_tokens(self) -> int:
        return self.cache_read_input_tokens or 0

    @property
    def web_search_requests(self) -> int:
        return (self.server_tool_use and self.server_tool_use.web_search_requests) or 0

    @property
    def prompt_tokens(self) -> int:
        minutes_5, hour_1 = self.cache_writes
        return self.input_tokens + minutes_5 + hour_1 + self.cache_read_tokens


class Message(msgspec.Struct, frozen=True, gc=False):
    """The envelope of an answer; its content stays as the API wrote it."""

    id: str
    model: str
    content: Raw
    usage: Usage
    stop_reason: str | None = None
    stop_details: Raw = Raw(b"null")


class ApiError(msgspec.Struct, frozen=True, gc=False):
    """Why a request failed."""

    type: str = "unknown_error"
    message: str = ""


class ErrorEnvelope(msgspec.Struct, frozen=True, gc=False):
    """The API wraps a row's error in a whole error response."""

    error: ApiError


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one request: `type` is succeeded, errored, canceled or expired, or a word still to come."""

    type: str
    message: Message | None = None
    error: ErrorEnvelope | None = None


class Result(msgspec.Struct, frozen=True, gc=False):
    """One line of a results file."""

    custom_id: str
    result: Outcome


class TextBlock(msgspec.Struct, frozen=True, gc=False):
    """A block of an answer, as far as its text goes."""

    type: str
    text: Any = None


# Blocks that are the way to an answer; those of server tools end in `_tool_result`. Any other is one, known or not.
_ON_THE_WAY = {
    *("text", "thinking", "redacted_thinking", "server_tool_use", "mcp_tool_use", "mcp_tool_listing"),
    *("compaction", "fallback"),
}

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


def is_cut(line: bytes) -> bool:
    """Tell a line that ends before its JSON does; one that is only broken inside is whole."""
    text = line.decode("utf-8-sig", errors="replace").strip()
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        ends_within = error.pos >= len(text) or error.msg.startswith("Unterminated")
        return ends_within or (text.startswith("{") and not text.endswith("}"))
    except RecursionError:
        return False
    return False


def text_of(content: Raw) -> str:
    """Join the text blocks of an answer."""
    blocks = _blocks.decode(content)
    if len(blocks) == 1 and isinstance(blocks[0].text, str):
        return blocks[0].text if blocks[0].type == "text" else ""
    return "".join([block.text for block in blocks if block.type == "text" and isinstance(block.text, str)])


def has_answer(content: Raw) -> bool:
    """Tell whether an answer without text has a block that a reader can use, such as the call of a tool of theirs."""
    kinds = [block.type for block in _blocks.decode(content)]
    return any(kind not in _ON_THE_WAY and not kind.endswith("_tool_result") for kind in kinds)
