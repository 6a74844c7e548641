"""Reads the requests out of a create body of any size, piece by piece."""

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import msgspec

from airflow_provider_claude_batch.emulator.errors import ApiError, invalid

WINDOW = 1 << 18
# How far before the end of the window a cut token may make the decoder stumble.
CUT = 16


class JsonWindow:
    """A window of text that slides over a JSON file and decodes one value at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder(parse_constant=self._refuse_constant)
        self._text, self._at, self._passed, self._complete = "", 0, 0, False

    def peek(self) -> str:
        """Skip white space and show the next character, or nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._complete:
                return ""
            self._slide()

    def take(self, expected: str) -> str:
        """Take the next character, which must be one of the expected."""
        found = self.peek()
        if not found or found not in expected:
            self._refuse(f"Expecting {' or '.join(map(repr, expected))}")
        self._at += 1
        return found

    def value(self) -> tuple[Any, str]:
        """Take the next value, decoded and as it stands in the file."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._complete or not self._may_be_cut(error):
                    self._refuse(error.msg, error.pos)
            except (RecursionError, ValueError) as error:
                self._refuse(str(error))
            else:
                if self._complete or end < len(self._text):
                    raw, self._at = self._text[self._at : end], end
                    return value, raw
            self._slide()

    def refuse_rest(self) -> None:
        if self.peek():
            self._refuse("Extra data")

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - CUT

    def _slide(self) -> None:
        rest = self._text[self._at :]
        data = self._file.read(max(WINDOW, len(rest)))
        self._complete = not data
        try:
            self._text = rest + self._utf8.decode(data, final=self._complete)
        except UnicodeDecodeError:
            self._refuse("the text is not UTF-8", len(self._text))
        self._passed, self._at = self._passed + self._at, 0

    def _refuse_constant(self, name: str) -> NoReturn:
        raise json.JSONDecodeError(f"{name} is no number", self._text, self._at)

    def _refuse(self, reason: str, at: int | None = None) -> NoReturn:
        raise not_json(reason, self._passed + (self._at if at is None else at))


def read_requests(file: IO[bytes]) -> Iterator[tuple[Any, str]]:
    """Yield each element of `requests`; refuse what is not JSON, whatever else is wrong, as the API does."""
    window = JsonWindow(file)
    if window.peek() != "{":
        window.value()
        window.refuse_rest()
        raise invalid("Input should be a valid dictionary")
    problem, seen = None, False
    for name in _names(window):
        if name == "requests" and window.peek() == "[":
            yield from _elements(window)
        else:
            window.value()
            problem = problem or (_not_a_list() if name == "requests" else extra_input(name))
        seen = seen or name == "requests"
    window.refuse_rest()
    if problem or not seen:
        raise problem or invalid("requests: Field required")


def read_object(file: IO[bytes]) -> dict[str, Any]:
    """Read a whole small body, such as that of the Messages endpoint."""
    try:
        body = msgspec.json.decode(file.read())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(str(error), 0) from None
    if not isinstance(body, dict):
        raise invalid("Input should be a valid dictionary")
    return body


def extra_input(where: str) -> ApiError:
    """Refuse a key that nobody asked for."""
    return invalid(f"{where}: Extra inputs are not permitted")


def not_json(reason: str, at: int) -> ApiError:
    """Refuse a body that is no JSON, with the character where it stops being it."""
    return invalid(f"The request body is not valid JSON: {reason}: line 1 column {at + 1} (char {at})")


def _names(window: JsonWindow) -> Iterator[str]:
    window.take("{")
    if window.peek() == "}":
        window.take("}")
        return
    while True:
        if window.peek() != '"':
            window.take('"')
        name, _ = window.value()
        window.take(":")
        yield name
        if window.take(",}") == "}":
            return


def _elements(window: JsonWindow) -> Iterator[tuple[Any, str]]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        value, raw = window.value()
        _refuse_unreadable(raw)
        yield value, raw
        if window.take(",]") == "]":
            return


def _refuse_unreadable(raw: str) -> None:
    # Lone surrogates and numbers out of range, which Python's own decoder lets through.
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise not_json(str(error), 0) from None


def _not_a_list() -> ApiError:
    return invalid("requests: Input should be a valid list")
