"""What one emulator was told at its start."""

from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from airflow_provider_claude_batch.emulator.outcome import OUTCOMES

DAY = 86_400.0
ARCHIVED_AFTER = 29 * DAY
MAX_REQUESTS = 100_000


class Settings(Struct, frozen=True):
    """Every option of `claude-batch emulate` that shapes answers."""

    state: Path
    seed: str = "0"
    batch_seconds: tuple[float, float] = (3.0, 3.0)
    cancel_seconds: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)
    removed_params: Literal["row", "create", "allow"] = "row"
    keys: dict[str, str] = field(default_factory=dict)
    max_body: int = 256_000_000
    live_counts: bool = False
    cancel_ended: Literal["unchanged", "error"] = "unchanged"
    now: float | None = None
    speed: float | None = None
    faults: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()


def parse_span(text: str) -> tuple[float, float]:
    """Read `3` or `2-10` as the shortest and the longest duration in seconds."""
    low, _, high = text.partition("-")
    span = float(low), float(high or low)
    if not 0 <= span[0] <= span[1]:
        raise ValueError(f"{text!r} is not a number of seconds or a range such as 2-10")
    return span


def parse_keys(keys: list[str]) -> dict[str, str]:
    """Read `KEY` or `KEY=workspace`; a key without a workspace has one of its own."""
    pairs = [key.partition("=") for key in keys]
    if not all(key for key, _, _ in pairs):
        raise ValueError("a key must not be empty")
    return {key: workspace or f"key:{key}" for key, _, workspace in pairs}


def parse_rates(rates: list[str]) -> dict[str, float]:
    """Read `outcome=share`, each outcome one that a row can have."""
    shares = {name: float(share) for name, _, share in (rate.partition("=") for rate in rates)}
    if unknown := sorted(set(shares) - OUTCOMES):
        raise ValueError(f"{', '.join(unknown)}: no such outcome; there are {', '.join(sorted(OUTCOMES))}")
    if not all(share >= 0 for share in shares.values()) or sum(shares.values()) > 1:
        raise ValueError("the rates must be shares that add up to 1 at most")
    return shares
