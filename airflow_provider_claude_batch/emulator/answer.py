"""The text that the emulated model answers: always the same for the same prompt."""

import re
from hashlib import blake2b
from typing import Any

from msgspec import Struct

from airflow_provider_claude_batch.emulator.labels import choose_label
from airflow_provider_claude_batch.emulator.prompt import CHARACTERS_PER_TOKEN, content_of, text_of, tokens, user_text

# What may differ between two requests whose full answers are still the same.
NOT_CONTENT = frozenset({"max_tokens", "stop_sequences", "stream", "service_tier", "metadata", "inference_geo"})
AWKWARD_SHARE = 6
OPENINGS = (
    "Here is a short answer about {topic}.",
    "In brief: {topic} comes first.",
    "The text is mainly about {topic}.",
    "Three things matter here, and {topic} is the first of them.",
    "Yes.",
    "This concerns {topic}, and nothing urgent follows from it.",
)
SENTENCES = (
    "The main point is stated at the beginning, and the rest supports it.",
    "Two details are worth checking before anything else is decided.",
    "No further action seems necessary at this time.",
    "The tone is factual and polite throughout.",
    "A follow-up within a week would be reasonable.",
    "The numbers given add up, although their source is not named.",
    "It would help to know when this was first noticed.",
    "One sentence contradicts an earlier one, which may be a slip.",
    "The author asks for a reply, but names no date.",
    "Nothing here suggests that the earlier agreement has changed.",
)
AWKWARD = (
    "A line separator\u2028in the middle, and a paragraph separator\u2029too.",
    "A next-line\u0085control character.",
    "A NUL\x00 character, a tab\t and a bell\x07.",
    "Emoji: 🎉👩‍👩‍👧‍👦🇪🇺 and a combining e\u0301.",
    "Quotes: \"double\", 'single', `back`, and backslashes \\ \\n \\u0041 C:\\new\\table.",
    "First line\nsecond line\r\nthird line\n\n- a list item\n",
    "Right-to-left: שלום עולם, مرحبا بالعالم, \u202eoverridden\u202c.",
    '{"label": "billing", "score": 0.97, "nested": {"a": [1, 2, null]}}',
    '<script>alert("x")</script> <b>bold</b> &amp; <!-- comment -->',
    '=HYPERLINK("http://example.invalid";"x"), \'); DROP TABLE rows; --',
    "{{ var.value.secret }} ${HOME} %s {0}",
)
WORD = re.compile(r"[^\W\d_]{5,24}")


class Answer(Struct, frozen=True):
    """What was generated, why it stopped, and what it costs in tokens."""

    text: str
    stop_reason: str
    stop_sequence: str | None
    output_tokens: int


def generate(params: dict[str, Any], stop_reason: str = "end_turn") -> Answer:
    """Generate the answer; any other stop_reason than end_turn is made to happen."""
    text = full_text(params)
    limit = params["max_tokens"] * CHARACTERS_PER_TOKEN
    if stop_reason == "max_tokens":
        text = (text + " ") * (limit // (len(text) + 1) + 1)
    elif stop_reason == "end_turn" and (found := _first_stop(text, params.get("stop_sequences") or [])):
        end, sequence = found
        if end <= limit:
            return Answer(text[:end], "stop_sequence", sequence, tokens(end))
    elif stop_reason != "end_turn":
        text = text[: len(text) // 2 + 1]
    if len(text) > limit or stop_reason == "max_tokens":
        return Answer(text[:limit], "max_tokens", None, params["max_tokens"])
    return Answer(text, stop_reason, None, tokens(len(text)))


def full_text(params: dict[str, Any]) -> str:
    """Write the answer as it is before anything cuts it."""
    system, user = text_of(params.get("system")), user_text(params)
    return choose_label(system, user) or _prose(_digest(params), user)


def _digest(params: dict[str, Any]) -> bytes:
    content = {name: value for name, value in params.items() if name not in NOT_CONTENT}
    return blake2b(content_of(content), digest_size=16).digest()


def _prose(digest: bytes, user: str) -> str:
    words = WORD.findall(user[:200])
    topic = words[digest[0] % len(words)].lower() if words else "the question"
    parts = [OPENINGS[digest[1] % len(OPENINGS)].format(topic=topic)]
    parts += dict.fromkeys(SENTENCES[byte % len(SENTENCES)] for byte in digest[4 : 4 + digest[2] % 9])
    if digest[3] % AWKWARD_SHARE == 0:
        parts.insert(1 + digest[14] % len(parts), AWKWARD[digest[15] % len(AWKWARD)])
    return " ".join(parts)


def _first_stop(text: str, sequences: list[str]) -> tuple[int, str] | None:
    found = [(at, sequence) for sequence in sequences if sequence and (at := text.find(sequence)) >= 0]
    return min(found, default=None)
