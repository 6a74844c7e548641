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


class FirstEnded:
    """Judge whether one of some batches has ended, or a moment has come: more often at first than later."""

    cancelling = False

    def __init__(self, batch_ids: tuple[str, ...], until: datetime) -> None:
        self.waiting = batch_ids
        self.interval = MIN_INTERVAL
        self.batches: dict[str, Batch] = {}
        self._until = until

    def judge(self, looks: Mapping[str, Look], now: datetime) -> Ending | Wait:
        """Take in what was seen; a look that failed is as good as none."""
        self.batches.update((batch_id, look) for batch_id, look in looks.items() if isinstance(look, Batch))
        left = (self._until - now).total_seconds()
        if left <= 0 or any(batch.ended for batch in self.batches.values()):
            return Ending(Why.ENDED)
        self.interval = min(self.interval * 2, AFTER_ERROR_INTERVAL)
        return Wait(min(self.interval, left))


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
        self.batch_ids = batch_ids
        self.interval = max(interval, MIN_INTERVAL)
        self.deadline = deadline
        self.cancelling = False
        self._cancel_at_deadline = cancel_at_deadline
        self.batches: dict[str, Batch] = {}
        self._waiting = dict.fromkeys(batch_ids)
        self._trouble_since: dict[str, datetime] = {}
        self._refused_since: dict[str, datetime] = {}
        self._first_look: datetime | None = None
        self._told_ended = 0

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
        if refusal := self._lasting_refusal(looks, now):
            return Ending(Why.REFUSED, str(refusal))
        deadline = self.deadline or self._default_deadline(self._first_look)
        if now >= deadline and not self.cancelling:
            return self._at_deadline(deadline)
        trouble = " ".join(dict.fromkeys(troubles)) or None
        return Wait(self._seconds(looks, now, deadline), trouble, self._news())

    def _news(self) -> str | None:
        ended = len(self.batch_ids) - len(self._waiting)
        if ended == self._told_ended:
            return None
        self._told_ended = ended
        return f"{ended:,} of {len(self.batch_ids):,} batches have ended."

    def _at_deadline(self, deadline: datetime) -> Ending | Wait:
        """Give up, or have what still runs cancelled: the next looks do, and what is finished by then is kept."""
        by = f"{deadline.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        said = f"{len(self._waiting)} of the batches had not ended by {by}"
        if not self._cancel_at_deadline:
            return Ending(Why.TIMEOUT, said)
        self.cancelling = True
        return Wait(0.0, f"{said}: cancelling, to go on with what is finished.")

    def _take(self, batch_id: str, look: Look, now: datetime) -> str | None:
        if isinstance(look, Batch):
            self.batches[batch_id] = look
            self._trouble_since.pop(batch_id, None)
            self._refused_since.pop(batch_id, None)
            if look.ended:
                self._waiting.pop(batch_id, None)
            return None
        is_new = batch_id not in self._trouble_since
        self._trouble_since.setdefault(batch_id, now)
        if isinstance(look, ApiRefused):
            self._refused_since.setdefault(batch_id, now)
        else:
            self._refused_since.pop(batch_id, None)
        return str(look) if is_new else None

    def _lasting_refusal(self, looks: Mapping[str, Look], now: datetime) -> ApiRefused | None:
        """A no may be a hiccup of the API: it is believed when it lasts."""
        for batch_id, look in looks.items():
            if isinstance(look, ApiRefused) and now - self._refused_since[batch_id] >= PATIENCE:
                return look
        return None

    def _default_deadline(self, first_look: datetime) -> datetime:
        """Wait until nothing can run any more; a batch that was never seen was sent before the first look."""
        expiries = [batch.expires_at for batch in self.batches.values()]
        return max(expiries, default=first_look + _LIFETIME) + GRACE

    def _seconds(self, looks: Mapping[str, Look], now: datetime, deadline: datetime) -> float:
        if any(not isinstance(look, Batch) for look in looks.values()):
            seconds = max(self.interval, AFTER_ERROR_INTERVAL) if self._trouble_lasts(now) else self.interval
        else:
            seconds = self._paced(now)
        asked = max((getattr(look, "retry_after", None) or 0.0 for look in looks.values()), default=0.0)
        seconds = max(seconds, asked)
        return seconds if self.cancelling else min(seconds, (deadline - now).total_seconds())

    def _trouble_lasts(self, now: datetime) -> bool:
        return any(now - since >= timedelta(seconds=2 * self.interval) for since in self._trouble_since.values())

    def _paced(self, now: datetime) -> float:
        """Ask less often as the oldest batch ages: a batch of five hours is seldom over in the next minute."""
        created = [batch.created_at for batch_id, batch in self.batches.items() if batch_id in self._waiting]
        age = now - min(created) if created else timedelta()
        if age < _SLOWER_AFTER:
            return self.interval
        return max(self.interval, min(MAX_INTERVAL, self.interval * (age / _SLOWER_AFTER)))
