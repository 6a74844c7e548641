"""The emulator's time: it can be sped up, frozen, advanced and set, and it survives a restart."""

import time
from datetime import UTC, datetime

from msgspec import UNSET, Struct, UnsetType

from airflow_provider_claude_batch.emulator.database import Database

# The years 1970 and 9000: room on both sides for what is added to and taken from a moment.
EARLIEST, LATEST = 0.0, 221_845_392_000.0


class ClockChange(Struct, forbid_unknown_fields=True):
    """The body of `POST /emulator/clock`."""

    now: str | UnsetType = UNSET
    advance: float | UnsetType = UNSET
    speed: float | UnsetType = UNSET
    freeze: bool | UnsetType = UNSET


class Clock:
    """Emulated time as an anchor in real time and a speed."""

    def __init__(self, database: Database, start: float | None, speed: float | None) -> None:
        self._database = database
        self._start, self._start_speed = start, speed
        saved = database.recall("clock")
        if saved is None:
            self.reset()
        else:
            self._set(
                max(saved["now"], _last_call(database)),
                saved["speed"] if speed is None else speed,
                frozen=saved["frozen"],
            )

    def reset(self) -> None:
        self._set(
            time.time() if self._start is None else self._start,
            1.0 if self._start_speed is None else self._start_speed,
            frozen=False,
        )

    def now(self) -> float:
        now, anchor, speed, frozen = self._state
        return now if frozen else min(LATEST, round(now + (time.monotonic() - anchor) * speed, 6))

    def change(self, change: ClockChange) -> None:
        """Apply what the change names and leave the rest."""
        _, _, speed, frozen = self._state
        now = self.now() if change.now is UNSET else parse_moment(change.now)
        now += 0.0 if change.advance is UNSET else change.advance
        speed = speed if change.speed is UNSET else change.speed
        if speed < 0:
            raise ValueError("speed must not be negative")
        self._set(now, speed, frozen=frozen if change.freeze is UNSET else change.freeze)

    def as_json(self) -> dict[str, object]:
        _, _, speed, frozen = self._state
        return {"now": moment(self.now()), "speed": speed, "frozen": frozen}

    def save(self) -> None:
        """Remember the present moment, so that a restart goes on from it."""
        _, _, speed, frozen = self._state
        self._database.remember("clock", {"now": self.now(), "speed": speed, "frozen": frozen})

    def _set(self, now: float, speed: float, *, frozen: bool) -> None:
        if not EARLIEST <= now <= LATEST:
            raise ValueError("the clock goes from 1970 to 9000")
        # One tuple, so that a reader in another thread never sees half a change.
        self._state = (now, time.monotonic(), speed, frozen)
        self.save()


def moment(seconds: float) -> str:
    """Write a moment as the API does: microseconds and +00:00, always."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def parse_moment(text: str) -> float:
    """Read an ISO 8601 moment; without an offset it is UTC."""
    parsed = datetime.fromisoformat(text)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _last_call(database: Database) -> float:
    # A killed emulator saved no clock, but its journal knows how late it was.
    row = database.reader().execute("SELECT MAX(at) FROM journal").fetchone()
    return float(row[0] or 0.0)
