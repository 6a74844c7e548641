"""What can be read in a request's params: its text, and how many tokens it is."""

from typing import Any

CHARACTERS_PER_TOKEN = 4
IMAGE_CHARACTERS = 1_600 * CHARACTERS_PER_TOKEN
PROMPT_FIELDS = ("system", "messages", "tools", "tool_choice", "output_config")
UNCOUNTED_FIELDS = frozenset({"cache_control", "type", "role"})


def input_tokens(params: dict[str, Any]) -> int:
    """Estimate the tokens of the whole prompt; count_tokens and usage both say this number."""
    return tokens(sum(_characters(params[name]) for name in PROMPT_FIELDS if name in params))


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


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_characters, value))
    if not isinstance(value, dict):
        return 0
    if value.get("type") == "base64":
        return IMAGE_CHARACTERS
    return sum(_characters(item) for name, item in value.items() if name not in UNCOUNTED_FIELDS)
