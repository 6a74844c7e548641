"""Watch: the pure decision to keep waiting for batches, or to stop, and why."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec

from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.errors import ApiRefused, ClaudeBatchError

MIN_INTERVAL = 5.0
MAX_INTERVAL = 300.0
AFTER_ERROR_INTERVAL = 60.0
PATIENCE = timedelta(minutes=30)
GRACE = timedelta(hours=1)
_SLOWER_AFTER = timedelta(hours=1)
_LIFETIME = timedelta(hours=24)
_LONGEST_ASKED = 3600.0
_NAMED = 3

Look = Batch | ClaudeBatchError


class Why(StrEnum):
    """Why a wait is over."""

    ENDED = "ended"
    TIMEOUT = "timeout"
    REFUSED = "refused"


class Ending(msgspec.Struct, frozen=True):
    """The wait is over."""

    why: Why
    message: str = ""


class Wait(msgspec.Struct, frozen=True):
    """Look again after so many seconds; what is new, good or bad, is worth a line in the log."""

    seconds: float
    trouble: str | None = None
    news: str | None = None


def seconds_asked_for(looks: Mapping[str, Look]) -> float:
    """Say how long the API wants to be left alone; more than an hour is not believed."""
    asked = max([0.0, *(getattr(look, "retry_after", None) or 0.0 for look in looks.values())])
    return min(asked, _LONGEST_ASKED)


class FirstEnded:
    """Judge whether one of some batches has ended, or a moment has come: more often at first than later."""

    cancelling = False

    def __init__(self, batch_ids: tuple[str, ...], until: datetime) -> None:
        self.waiting = batch_ids
        self.interval = MIN_INTERVAL
        self.batches: dict[str, Batch] = {}
        self._until = until

    def judge(self, looks: Mapping[str, Look], now: datetime) -> Ending | Wait:
        """Take in what was seen; a look that failed is as good as none, but for when to look again."""
        self.batches.update((batch_id, look) for batch_id, look in looks.items() if isinstance(look, Batch))
        left = (self._until - now).total_seconds()
        if left <= 0 or any(batch.ended for batch in self.batches.values()):
            return Ending(Why.ENDED)
        self.interval = min(self.interval * 2, AFTER_ERROR_INTERVAL)
        return Wait(min(max(self.interval, seconds_asked_for(looks)), left))


class Watch:
    """Judge each look at a set of batches; knows no clock, and asks nobody."""

    def __init__(
        self,
        batch_ids: tuple[str, ...],
        *,
        interval: float = 60.0,
        deadline: datetime | None = None,
        cancel_at_deadline: bool = False,
    ) -> None:
        self.batch_ids = tuple(dict.fromkeys(batch_ids))
        self.interval = max(interval, MIN_INTERVAL)
        self.cancelling = False
        self._deadline = deadline
        self._gives_up_at: datetime | None = None
        self._cancel_at_deadline = cancel_at_deadline
        self.batches: dict[str, Batch] = {}
        self._waiting = dict.fromkeys(self.batch_ids)
        self._trouble_since: dict[str, datetime] = {}
        self._final_since: dict[str, datetime] = {}
        self._first_look: datetime | None = None
        self._told: dict[str, int] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Batches that have not ended yet, as far as was seen."""
        return tuple(self._waiting)

    def judge(self, looks: Mapping[str, Look], now: datetime) -> Ending | Wait:
        """Take in what was seen of the waiting batches, and decide."""
        self._first_look = self._first_look or now
        troubles = [trouble for batch_id, look in looks.items() if (trouble := self._take(batch_id, look, now))]
        if not self._waiting:
            return Ending(Why.ENDED)
        if not self.cancelling and (refusal := self._lasting_refusal(looks, now)):
            return Ending(Why.REFUSED, str(refusal))
        until, trouble = self._gives_up_at or self.due(now), " ".join(dict.fromkeys(troubles)) or None
        if now < until:
            return Wait(self._seconds(looks, now, until), trouble, self._news())
        if self.cancelling or not self._cancel_at_deadline:
            return Ending(Why.TIMEOUT, f"{self._late(now)} {self._outcome()}{_last_trouble(looks)}")
        # Who comes late has an hour, too; but a triggerer that restarts again and again does not wait for ever.
        self.cancelling, self._gives_up_at = True, min(now + GRACE, until + _LIFETIME)
        return Wait(
            0.0, trouble, f"{self._late(now)} What still runs is to be cancelled, to go on with what is finished."
        )

    def due(self, now: datetime) -> datetime:
        """Say until when to wait: unless told otherwise, until nothing can run any more."""
        if self._deadline:
            return self._deadline
        expiries = [batch.expires_at for batch in self.batches.values()]
        if len(expiries) < len(self.batch_ids):  # what was never seen was sent before the first look
            expiries.append((self._first_look or now) + _LIFETIME)
        return max(expiries) + GRACE

    def _news(self) -> str | None:
        total = len(self.batch_ids)
        counts = {"have ended": total - len(self._waiting), "are being cancelled": self._canceling}
        news = [f"{n:,} of {total:,} batches {state}." for state, n in counts.items() if n > self._told.get(state, 0)]
        self._told = counts
        return " ".join(news) or None

    @property
    def _canceling(self) -> int:
        known = (self.batches.get(batch_id) for batch_id in self._waiting)
        return sum(batch is not None and batch.processing_status == "canceling" for batch in known)

    def _late(self, now: datetime) -> str:
        by, more = f"{self.due(now).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", len(self._waiting) - _NAMED
        names = ", ".join(self.waiting[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        return f"{len(self._waiting):,} of the batches had not ended by {by}: {names}."

    def _outcome(self) -> str:
        if not self.cancelling:
            return "Nothing was cancelled: clear this task to go on waiting."
        if count := self._canceling:
            return f"{count:,} of these could be cancelled, and none has ended since: clear this task to go on waiting."
        return "None of these could be cancelled: clear this task to go on waiting."

    def _take(self, batch_id: str, look: Look, now: datetime) -> str | None:
        if isinstance(look, Batch):
            self.batches[batch_id] = look
            self._trouble_since.pop(batch_id, None)
            self._final_since.pop(batch_id, None)
            if look.ended:
                self._waiting.pop(batch_id, None)
            return None
        is_new = batch_id not in self._trouble_since
        self._trouble_since.setdefault(batch_id, now)
        if _is_final(look):
            self._final_since.setdefault(batch_id, now)
        else:
            self._final_since.pop(batch_id, None)
        return str(look) if is_new else None

    def _lasting_refusal(self, looks: Mapping[str, Look], now: datetime) -> Look | None:
        """A no may be a hiccup of the API: it is believed when it lasts."""
        lasting = (i for i in looks if i in self._final_since and now - self._final_since[i] >= PATIENCE)
        return next((looks[batch_id] for batch_id in lasting), None)

    def _seconds(self, looks: Mapping[str, Look], now: datetime, until: datetime) -> float:
        if any(not isinstance(look, Batch) for look in looks.values()):
            seconds = max(self.interval, AFTER_ERROR_INTERVAL) if self._trouble_lasts(now) else self.interval
        else:
            seconds = self._paced(now)
        return min(max(seconds, seconds_asked_for(looks)), (until - now).total_seconds())

    def _trouble_lasts(self, now: datetime) -> bool:
        return any(now - since >= timedelta(seconds=2 * self.interval) for since in self._trouble_since.values())

    def _paced(self, now: datetime) -> float:
        """Ask less often as the oldest batch ages: a batch of five hours is seldom over in the next minute."""
        created = [batch.created_at for batch_id, batch in self.batches.items() if batch_id in self._waiting]
        age = now - min(created) if created else timedelta()
        if age < _SLOWER_AFTER:
            return self.interval
        return max(self.interval, min(MAX_INTERVAL, self.interval * (age / _SLOWER_AFTER)))


def _is_final(trouble: ClaudeBatchError) -> bool:
    return isinstance(trouble, ApiRefused) or not trouble.retryable


def _last_trouble(looks: Mapping[str, Look]) -> str:
    trouble = next((look for look in looks.values() if not isinstance(look, Batch)), None)
    return f" The last trouble was: {trouble}" if trouble else ""
