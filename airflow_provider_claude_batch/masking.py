"""Masking: the one place that keeps the secrets of connections out of errors, logs, the page and receipts."""

import json
import re
import traceback
from base64 import b64encode
from collections.abc import Iterable, Iterator
from threading import Lock
from urllib.parse import quote, quote_plus

MASK = "***"
_SHORTEST, _SHORTEST_PIECE = 5, 8  # Airflow masks nothing shorter than five characters either
_NO_SECRETS = {"airflow"}  # Airflow's own exception: the default password of many a demo, and a part of our sentences
_MOST = 1_000
# A key of Anthropic, a JSON Web Token, and a password in a URL are secrets, whatever connection they are of.
_SHAPES = re.compile(r"sk-ant-[\w-]+|\beyJ[\w-]+\.[\w-]+\.[\w-]+|(?<=://)[^/\s@:]*:[^/\s@]+(?=@)")

_lock = Lock()
_known: dict[str, frozenset[str]] = {}
_longest_first: tuple[str, ...] = ()


def remember(secrets: Iterable[str]) -> list[str]:
    """Mask these secrets in every text from now on; return the forms of those that were not known yet."""
    global _longest_first  # noqa: PLW0603 - like Airflow's own masker, ours is of the process
    with _lock:
        new = {}
        for secret in secrets:
            forms = _known.pop(secret, None)
            if forms is None:
                forms = new[secret] = _forms(secret)
            _known[secret] = forms  # last, so that the oldest is forgotten first
        while len(_known) > _MOST:
            del _known[next(iter(_known))]
        if new:
            _longest_first = tuple(sorted(frozenset().union(*_known.values()), key=len, reverse=True))
    return sorted(frozenset().union(*new.values()))


def mask(text: str) -> str:
    """Return a text without any known secret, however a library may have written it."""
    for form in _longest_first:
        if form in text:
            text = text.replace(form, MASK)
    return _SHAPES.sub(MASK, text)


def masked_trace(error: BaseException) -> str:
    """Return the stack trace of an error that somebody else's code has raised."""
    return mask("".join(traceback.format_exception(error)).rstrip())


def _forms(secret: str) -> frozenset[str]:
    """Write a secret in all the ways in which a library could have written it."""
    pieces = (piece for piece in re.split(r"[:\s]+", secret) if len(piece) >= _SHORTEST_PIECE)
    plain = {text for text in (secret, secret.strip(), *pieces) if text.lower() not in _NO_SECRETS}
    plain = {text for text in plain if len(text.strip()) >= _SHORTEST}
    once = {form for text in plain for form in _written(text)}
    twice = {form for text in once for form in _escaped(text)}
    encoded = {form for text in plain for form in _in_base64(text.encode("utf-8", "replace"))}
    return frozenset(form for form in plain | once | twice | encoded if len(form) >= _SHORTEST)


def _written(text: str) -> Iterator[str]:
    yield from _escaped(text)
    for safe in ("/", ""):
        quoted = quote(text, safe, errors="replace")
        yield from (quoted, re.sub("%..", lambda found: found[0].lower(), quoted))
    yield quote_plus(text, errors="replace")


def _escaped(text: str) -> Iterator[str]:
    in_utf8 = text.encode("utf-8", "replace")
    yield from (repr(text)[1:-1], ascii(text)[1:-1], repr(in_utf8)[2:-1], in_utf8.decode("latin-1"))
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    yield repr(f"{text}\"'")[1:-4]  # in a repr that holds both quotes


def _in_base64(secret: bytes) -> Iterator[str]:
    """Return the characters that depend on the secret alone, wherever it begins in what was encoded."""
    for before in range(3):
        first, end = -(-before * 8 // 6), (before + len(secret)) * 8 // 6
        coded = b64encode(bytes(before) + secret).decode()[first:end]
        yield from (coded, coded.translate({ord("+"): "-", ord("/"): "_"}))
