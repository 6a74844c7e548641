"""Everything that looks random here, drawn from a hash so that it repeats."""

import secrets
from hashlib import blake2b

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
MAX_PLACE = 2**62


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
