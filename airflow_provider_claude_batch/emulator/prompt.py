"""What can be read in a request's params: its text, and how many tokens it is."""

import re
from typing import Any

import msgspec

CHARACTERS_PER_TOKEN = 4
IMAGE_CHARACTERS = 1_600 * CHARACTERS_PER_TOKEN
PROMPT_FIELDS = ("system", "messages", "tools", "tool_choice", "output_config")
UNCOUNTED_FIELDS = frozenset({"cache_control", "type", "role"})
MARK = b'"cache_control"'
# Among sorted keys it is never the last one: a block has a type, or a name at least.
MARKS = re.compile(MARK + rb':(?:null|\{(?:"ttl":"\w+",)?"type":"ephemeral"\}),')


def input_tokens(params: dict[str, Any]) -> int:
    """Estimate the tokens of the whole prompt; count_tokens and usage both say this number."""
    return tokens(sum(characters(params[name]) for name in PROMPT_FIELDS if name in params))


def tokens(characters: int) -> int:
    """Estimate how many tokens so many characters are."""
    return max(1, -(-characters // CHARACTERS_PER_TOKEN))


def text_of(content: Any) -> str:
    """Join the text of a string or of a list of content blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (block.get("text") for block in content if isinstance(block, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def user_text(params: dict[str, Any]) -> str:
    """Join the text of all user turns."""
    turns = (turn for turn in params["messages"] if turn["role"] == "user")
    return "\n".join(text_of(turn["content"]) for turn in turns)


def characters(value: Any) -> int:
    """Count what is billed of a prompt or a part of one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(characters, value))
    if not isinstance(value, dict):
        return 0
    if value.get("type") == "base64":
        return IMAGE_CHARACTERS
    return sum(characters(item) for name, item in value.items() if name not in UNCOUNTED_FIELDS)


def content_of(value: Any) -> bytes:
    """Write a prompt or a part of one as the model sees it: neither the order of keys nor a cache_control matters."""
    written = msgspec.json.encode(value, order="sorted")
    return MARKS.sub(b"", written) if MARK in written else written
