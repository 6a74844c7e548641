"""Everything that looks random here, drawn from a hash so that it repeats."""

import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
MAX_PLACE = 2**62
T = TypeVar("T")


def number(*parts: str | bytes) -> int:
    """Draw a whole number below 2**64 for these parts."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8))
        hashed.update(data)
    return int.from_bytes(hashed.digest())


def share(*parts: str | bytes) -> float:
    """Draw a number from 0 to 1, without 1."""
    return (number(*parts) >> 11) / 2**53


def place(*parts: str | bytes) -> int:
    """Draw where a row stands in the order in which its batch is worked off."""
    return number(*parts) % MAX_PLACE


def new_id(prefix: str) -> str:
    """Make a fresh id in the API's style."""
    return f"{prefix}01{''.join(secrets.choice(ALPHABET) for _ in range(22))}"


def derived_id(prefix: str, *parts: str) -> str:
    """Make the id in the API's style that these parts always have."""
    rest, letters = number("first", *parts) << 64 | number("second", *parts), []
    for _ in range(22):
        rest, letter = divmod(rest, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return f"{prefix}01{''.join(letters)}"


class Draws:
    """A row of numbers without end, the same for the same seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._refills, self._pool = seed, 0, 0

    def below(self, limit: int) -> int:
        """Draw a whole number from 0 to below the limit."""
        while self._pool < limit << 32:
            hashed = blake2b(self._refills.to_bytes(8), digest_size=64, key=self._seed)
            self._pool, self._refills = self._pool << 512 | int.from_bytes(hashed.digest()), self._refills + 1
        self._pool, drawn = divmod(self._pool, limit)
        return drawn

    def one_of(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[self.below(len(options))]
