"""Prose of one to ten sentences about a word of the prompt, some of it hard to handle."""

import re

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


def write_prose(digest: bytes, user: str) -> str:
    """Write what these 16 bytes always say to this text."""
    parts = [OPENINGS[digest[1] % len(OPENINGS)].format(topic=choose_topic(digest[0], user))]
    parts += dict.fromkeys(SENTENCES[byte % len(SENTENCES)] for byte in digest[4 : 4 + digest[2] % 9])
    if digest[3] % AWKWARD_SHARE == 0:
        parts.insert(1 + digest[14] % len(parts), AWKWARD[digest[15] % len(AWKWARD)])
    return " ".join(parts)


def choose_topic(at: int, user: str) -> str:
    """Choose a word of the text."""
    words = WORD.findall(user[:200])
    return words[at % len(words)].lower() if words else "the question"
