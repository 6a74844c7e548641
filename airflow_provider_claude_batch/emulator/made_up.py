"""Made-up values that look like what the name of their property says."""

import re
from collections.abc import Callable, Container
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from uuid import UUID

from airflow_provider_claude_batch.emulator.bounds import Bounds, narrow
from airflow_provider_claude_batch.emulator.chance import Draws
from airflow_provider_claude_batch.emulator.prose import SENTENCES, choose_topic, write_prose

FIRST_NAMES = (
    *("Ada", "Bruno", "Chidi", "Dana", "Elif", "Farid", "Greta", "Hiro", "Inés", "Jonas", "Keiko", "Lena"),
    *("Mateo", "Noor", "Olga", "Priya", "Quentin", "Rosa", "Søren", "Tomás"),
)
LAST_NAMES = (
    *("Abe", "Berg", "Costa", "Diallo", "Evans", "Farkas", "Garcia", "Horvat", "Ito", "Jensen", "Kim", "López"),
    *("Meyer", "Novak", "O'Brien", "Patel", "Quispe", "Rossi", "Sato", "Tremblay"),
)
# ASCII, as not every reader of addresses takes other letters.
MAILBOXES = tuple(name.lower() for name in FIRST_NAMES if name.isascii())
COMPANIES = (
    "Bluebird Logistics",
    "Cedar & Sons",
    "Delta Fittings",
    "Fernhill Foods",
    "Harbour Optics",
    "Juniper Works",
)
CITIES = ("Accra", "Bilbao", "Chennai", "Dresden", "Gdańsk", "Lyon", "Osaka", "Porto", "Quito", "Tampere")
COUNTRIES = ("Brazil", "Canada", "Denmark", "France", "Ghana", "India", "Japan", "Kenya", "Poland", "Spain")
LANGUAGES = ("de", "en", "es", "fr", "ja", "pl", "pt")
CURRENCIES = ("CHF", "EUR", "GBP", "JPY", "USD")
STREETS = ("Canal Road", "Mill Lane", "Station Street", "Orchard Avenue", "Harbour Walk")
PRODUCTS = ("desk lamp", "travel mug", "office chair", "rain jacket", "water filter", "notebook", "bicycle light")
TERMS = (
    "general",
    "follow-up",
    "delivery",
    "invoice",
    "quality",
    "support",
    "account",
    "pricing",
    "feedback",
    "urgent",
)
PATHS = ("orders", "articles", "reports", "items", "pages")
FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 1_000
SECONDS = 86_400
INTEGERS = {
    **dict.fromkeys(("rating", "star", "priority", "severity", "level", "rank"), (1, 5)),
    **dict.fromkeys(("count", "quantity", "number", "total", "unit"), (0, 40)),
    **dict.fromkeys(("score", "percent", "percentage", "confidence"), (0, 100)),
    "age": (18, 90),
    "year": (1990, 2026),
    "month": (1, 12),
    "day": (1, 28),
    "hour": (0, 23),
    "minute": (0, 59),
    **dict.fromkeys(("id", "code", "zip"), (10_000, 99_999)),
}
# The lowest and the highest, in units of the last decimal, and how many decimals.
NUMBERS = {
    **dict.fromkeys(("confidence", "probability", "score", "ratio", "share", "relevance", "similarity"), (0, 100, 2)),
    **dict.fromkeys(("price", "amount", "total", "cost", "fee", "tax", "sum", "balance"), (100, 200_000, 2)),
    "rating": (10, 50, 1),
    "percent": (0, 1_000, 1),
    "percentage": (0, 1_000, 1),
    "temperature": (-100, 350, 1),
    "latitude": (-900_000, 900_000, 4),
    "longitude": (-1_800_000, 1_800_000, 4),
    "weight": (1, 2_500, 2),
}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def make_text(draws: Draws, name: str, style: str | None, user: str) -> str:
    """Make a text of this format, or else one that looks like the name."""
    if style is not None:
        return FORMATS[style](draws)
    word = _head(name, KNOWN)
    if word in TITLES:
        return f"{draws.one_of(TERMS).capitalize()}: {choose_topic(draws.below(256), user)}"
    if word in LONG:
        return write_prose(draws.below(1 << 128).to_bytes(16), user)
    return TEXTS[word](draws) if word else draws.one_of(SENTENCES)


def make_integer(draws: Draws, name: str, bounds: Bounds) -> int:
    """Make a whole number of the size that the name suggests."""
    low, high = narrow(INTEGERS.get(_head(name, INTEGERS), (0, 1_000)), bounds)
    drawn, step = low + draws.below(high - low + 1), max(1, int(bounds.get("multipleOf", 1)))
    return drawn - drawn % step + (step if drawn - drawn % step < low else 0)


def make_number(draws: Draws, name: str, bounds: Bounds) -> float:
    """Make a number with the decimals that the name suggests."""
    low, high, decimals = NUMBERS.get(_head(name, NUMBERS), (0, 100_000, 2))
    low, high = narrow((low, high), bounds, 10**decimals)
    return float(round((low + draws.below(high - low + 1)) / 10**decimals, decimals))


def _head(name: str, known: Container[str]) -> str:
    """Find the word that tells what the property is, if one does."""
    return next((word for word in _words(name) if word in known), "")


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    # From the end, as an invoice_date is a date; but a product_name is a product.
    words = [word.lower() for word in reversed(WORD.findall(name[:100]))]
    words.sort(key=lambda word: word in {"name", "names"})
    return tuple(form for word in words for form in (word, word.removesuffix("s")))


def _person(draws: Draws) -> str:
    return f"{draws.one_of(FIRST_NAMES)} {draws.one_of(LAST_NAMES)}"


def _email(draws: Draws) -> str:
    return f"{draws.one_of(MAILBOXES)}{draws.below(100)}@example.com"


def _date(draws: Draws) -> str:
    return (FIRST_DAY + timedelta(days=draws.below(DAYS))).date().isoformat()


def _date_time(draws: Draws) -> str:
    return f"{_date(draws)}T{_time(draws)}"


def _time(draws: Draws) -> str:
    return f"{FIRST_DAY + timedelta(seconds=draws.below(SECONDS)):%H:%M:%S}Z"


def _duration(draws: Draws) -> str:
    return f"P{draws.below(30)}DT{draws.below(24)}H{draws.below(60)}M"


def _uri(draws: Draws) -> str:
    return f"https://www.example.com/{draws.one_of(PATHS)}/{draws.below(100_000)}"


def _ipv6(draws: Draws) -> str:
    return f"2001:db8::{draws.below(1 << 16):x}:{draws.below(1 << 16):x}"


def _address(draws: Draws) -> str:
    return f"{1 + draws.below(200)} {draws.one_of(STREETS)}, {draws.one_of(CITIES)}"


def _code(draws: Draws) -> str:
    return f"{draws.one_of('ABCDEFGHJK')}{draws.one_of('LMNPQRSTUV')}-{10_000 + draws.below(90_000)}"


def _one_of(*options: str) -> Callable[[Draws], str]:
    return lambda draws: draws.one_of(options)


FORMATS: dict[str, Callable[[Draws], str]] = {
    "date": _date,
    "date-time": _date_time,
    "time": _time,
    "duration": _duration,
    "email": _email,
    "hostname": lambda draws: f"{draws.one_of(PATHS)}-{draws.below(100)}.example.com",
    "uri": _uri,
    "uuid": lambda draws: str(UUID(int=draws.below(1 << 128), version=4)),
    "ipv4": lambda draws: f"192.0.2.{draws.below(256)}",
    "ipv6": _ipv6,
}
TEXTS: dict[str, Callable[[Draws], str]] = {
    **dict.fromkeys(("name", "author", "person", "customer", "contact", "sender", "recipient", "owner"), _person),
    **dict.fromkeys(("email", "mail"), _email),
    **dict.fromkeys(("company", "organisation", "organization", "employer", "vendor", "supplier"), _one_of(*COMPANIES)),
    **dict.fromkeys(("product", "item", "article"), _one_of(*PRODUCTS)),
    **dict.fromkeys(("url", "uri", "link", "website", "homepage"), _uri),
    **dict.fromkeys(("phone", "telephone", "mobile"), lambda draws: f"+1 202 555 01{draws.below(100):02}"),
    **dict.fromkeys(("date", "day", "due", "birthday", "deadline"), _date),
    **dict.fromkeys(("at", "timestamp", "datetime"), _date_time),
    **dict.fromkeys(("id", "code", "sku", "reference", "number", "key"), _code),
    **dict.fromkeys(("address", "street"), _address),
    "city": _one_of(*CITIES),
    "country": _one_of(*COUNTRIES),
    "currency": _one_of(*CURRENCIES),
    **dict.fromkeys(("language", "locale"), _one_of(*LANGUAGES)),
    **dict.fromkeys(("category", "tag", "label", "type", "kind", "status", "keyword", "sentiment"), _one_of(*TERMS)),
    "first": _one_of(*FIRST_NAMES),
    "last": _one_of(*LAST_NAMES),
    "price": lambda draws: f"{draws.below(99)}.95",
}
TITLES = frozenset({"title", "subject", "headline", "topic"})
LONG = frozenset({
    *("summary", "description", "text", "body", "comment", "note", "explanation", "reason", "reasoning", "rationale"),
    *("answer", "message", "content", "review", "detail", "analysis", "feedback", "reply"),
})  # fmt: skip
KNOWN = TEXTS.keys() | TITLES | LONG
