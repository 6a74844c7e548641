"""Finds the labels that a prompt offers to choose from, and chooses one."""

import re
from functools import lru_cache

from airflow_provider_claude_batch.emulator.chance import number

# Nothing here gives back what it took, or one long list would take for ever.
ITEM = r"[\"'`*\[]*+[^\W_][\w'/&-]{0,39}+(?: (?!(?:or|and)\b)[\w'/&-]{1,40}+){0,5}+[\"'`*\]]*+"
INTRODUCTION = (
    r"(?:\b(?:one of(?: the following)?|as|labels?|categories|options|(?:answer|reply|respond)(?: with)?)\b\s*+:?|:)"
)
BETWEEN = r"(?:\s*+,\s*+(?:(?:or|and)\s++)?|\s++(?:or|and)\s++)"
OFFERED = re.compile(
    rf"{INTRODUCTION}\s*+(?P<items>{ITEM}(?:{BETWEEN}{ITEM}){{0,99}}+)[^\S\n]*+(?:[.;!?\n]|$)", re.IGNORECASE
)
# A mere "and" joins; it does not offer.
OFFERING = re.compile(r",|\bor\b", re.IGNORECASE)
# Without one of these words a list after a colon is just a list.
INSTRUCTED = re.compile(r"\b(?:label|classif|categor|choose|pick|decide|one of|answer|reply|respond)", re.IGNORECASE)
SEPARATOR = re.compile(r"\s*,\s*(?:(?:or|and)\s+)?|\s+(?:or|and)\s+", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]{3,}")
MAX_WORDS = 3
EDGE = 400
STEM = 4
SIGNS = {
    "billing": "invoice charge refund payment paid price card subscription money receipt",
    "technical": "error crash bug login password broken slow install fail timeout reset server",
    "shipping": "delivery parcel package courier arrive tracking address",
    "account": "login password profile email username delete",
    "positive": "great love thank excellent happy perfect wonderful good",
    "negative": "bad terrible angry awful hate worst disappointed refund broken",
    "urgent": "immediately asap outage down emergency now critical",
    "spam": "winner prize free click lottery offer",
}


def choose_label(system: str, user: str) -> str | None:
    """Choose one of the labels offered by the system prompt, else by the user's, that fits the user's text."""
    # An offer stands at the beginning or the end of a prompt, if anywhere.
    edges = user if len(user) <= 2 * EDGE else f"{user[:EDGE]}\n{user[-EDGE:]}"
    for offer in (system, edges):
        labels, offered = offered_labels(offer)
        if labels:
            return _best(labels, edges.replace(offered, ""))  # the offer itself must not vote
    return None


@lru_cache(maxsize=16)
def offered_labels(text: str) -> tuple[tuple[str, ...], str]:
    """Find the words after a colon (or `one of`, `as`) that are separated by commas or by `or`, and how they stand."""
    for found in OFFERED.finditer(text) if INSTRUCTED.search(text) else ():
        items = tuple(item.strip(" \"'`*[]") for item in SEPARATOR.split(found["items"]))
        if (
            len(set(items)) > 1
            and OFFERING.search(found["items"])
            and all(item and len(item.split()) <= MAX_WORDS for item in items)
        ):
            return items, found["items"]
    return (), ""


def _best(labels: tuple[str, ...], text: str) -> str:
    stems = [word[:STEM].lower() for word in WORD.findall(text)]
    scores = {label: sum(stem in _signs(label) for stem in stems) for label in labels}
    best = max(scores.values())
    return labels[number(text, *labels) % len(labels)] if best == 0 else max(scores, key=lambda label: scores[label])


@lru_cache(maxsize=1024)
def _signs(label: str) -> frozenset[str]:
    words = f"{label} {SIGNS.get(label.lower(), '')}"
    return frozenset(word[:STEM].lower() for word in WORD.findall(words))
