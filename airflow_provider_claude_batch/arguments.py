"""Arguments: what is wrong for sure is told when the Dag is parsed, before anything is paid."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from airflow_provider_claude_batch.errors import Misconfigured


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a word that none of the choices is."""
    if value not in choices:
        raise _refused(name, " or ".join(map(repr, choices)), value)


def check_share(name: str, value: Any) -> None:
    """Refuse what is no share of a whole: five of a hundred are 0.05, not 5."""
    if value is not None and not (_is_number(value) and 0 <= value <= 1):
        raise _refused(name, "a share from 0 to 1, such as 0.05 for five in a hundred", value)


def check_amount(name: str, value: Any) -> None:
    """Refuse what is no number, or less than nothing."""
    if value is not None and not (_is_number(value) and value >= 0):
        raise _refused(name, "a number that is not negative", value)


def check_count(name: str, value: Any, *, least: int = 0, optional: bool = False) -> None:
    """Refuse what is no whole number, or too small a one."""
    if not (optional and value is None) and not (_is_number(value) and isinstance(value, int) and value >= least):
        raise _refused(name, f"a whole number from {least} on", value)


def check_moment(name: str, value: Any) -> None:
    """Refuse a moment without its time zone, as Airflow's own triggers do."""
    try:
        is_moment = datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        is_moment = False
    if not is_moment:
        raise _refused(name, "a moment with its time zone, such as '2026-01-01T06:00:00+00:00'", value)


def check_source(name: str, value: Any) -> None:
    """Refuse requests that can be read once only, for a task may try again, and one that is given without a list."""
    if isinstance(value, Iterator | Mapping):
        raise _refused(name, "a list, the output of a task, a path, a query or the drain() of a queue", type(value))


def check_pair(name: str, value: Any) -> None:
    """Refuse what does not name two things, such as a connection and a table."""
    if value is None or hasattr(value, "resolve"):
        return
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2 or not all(value):  # noqa: PLR2004
        raise _refused(name, "a connection and a table, such as ('warehouse', 'answers')", value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _refused(name: str, wanted: str, value: Any) -> Misconfigured:
    return Misconfigured(f"{name} takes {wanted}, and was given {value!r}.")
