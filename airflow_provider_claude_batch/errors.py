"""Every exception that this package raises.

ClaudeBatchError
├── Misconfigured         a connection, a table or an argument cannot work as given
├── InvalidRequests       requests that the API would refuse, found before anything was sent
├── GuardExceeded         max_requests or max_cost_usd said stop
├── PreflightFailed       an answer to a request that was tried live is not usable
├── ApiRefused            the API said no, and would say no again
│   ├── NotPermitted      the key may not do this, whatever else it may
│   └── BatchGone         a batch, or its results, that the API says it does not have
├── ApiUnavailable        the API did not answer, or asked to come back later
│   ├── QueueFull         the API takes no more requests for now
│   └── FateUnknown       a create was sent and its answer never came
├── PollFailed            asking for batches failed before the API was asked, or without an answer of it
├── TakenOver             another try of the same task goes on
├── WaitTimeout           a batch did not end before the deadline
├── TooManyErrors         everything is written, and more failed than max_error_rate allows
├── IncompleteResults     everything is written, and requests are missing from the results
├── Unfinished            what was loaded is added up, and a task failed or paid batches are not loaded
├── SourceUnavailable     the database or the storage that holds the requests cannot be reached, or is busy
└── WarehouseUnavailable  the warehouse cannot be reached, or is busy

`retryable` says whether another try of the same task can go better.
"""

from collections.abc import Sequence

from airflow_provider_claude_batch.masking import mask

_NAMED = 5


class ClaudeBatchError(Exception):
    """The root of everything that this package raises on purpose; no secret of a connection is in its text."""

    retryable = False

    def __init__(self, *args: object) -> None:
        super().__init__(*(mask(arg) if isinstance(arg, str) else arg for arg in args))


class Misconfigured(ClaudeBatchError):
    """A connection, a table or an argument cannot work as given."""


class InvalidRequests(ClaudeBatchError):
    """Requests that the API would refuse, found before anything was sent."""

    def __init__(self, offences: Sequence[str], total: int) -> None:
        self.offences, self.total = tuple(offences), total
        more = f"; and {total - len(offences):,} more" if total > len(offences) else ""
        super().__init__(f"{total:,} of the requests cannot be sent, so none was: {'; '.join(offences)}{more}.")


class GuardExceeded(ClaudeBatchError):
    """A limit that the Dag's author set was exceeded before anything was sent."""

    def __init__(self, guard: str, limit: str, actual: str) -> None:
        super().__init__(f"Nothing was sent: {guard} allows {limit}, and this submission has {actual}.")


class PreflightFailed(ClaudeBatchError):
    """Requests that were tried live got no usable answer, so none was submitted."""

    def __init__(self, failures: Sequence[str]) -> None:
        super().__init__(
            f"Nothing was submitted: tried live, {len(failures)} of the first requests got no usable answer: "
            f"{'; '.join(failures)}."
        )


class ApiRefused(ClaudeBatchError):
    """The API said no, and would say no again."""


class NotPermitted(ApiRefused):
    """The key may not do this, whatever else it may."""


class BatchGone(ApiRefused):
    """A batch, or its results, that the API says it does not have: at times it says so of one that it has."""

    retryable = True


class ApiUnavailable(ClaudeBatchError):
    """The API did not answer, or asked to come back later."""

    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class QueueFull(ApiUnavailable):
    """The API takes no more requests for now: the queue of batches is full, or calls came too fast."""


class FateUnknown(ApiUnavailable):
    """A create was sent and its answer never came: a paid batch may be running."""

    retryable = False


class PollFailed(ClaudeBatchError):
    """Asking for batches failed before the API was asked, such as when Airflow may not read the connection."""


class TakenOver(ClaudeBatchError):
    """Another try of the same task goes on, and this one stops before it sends anything more."""

    def __init__(self) -> None:
        super().__init__("Another try of this task has taken over: this one sends nothing more.")


class WaitTimeout(ClaudeBatchError):
    """A batch did not end before the deadline."""

    retryable = True


class TooManyErrors(ClaudeBatchError):
    """Everything is written, and more requests failed than max_error_rate allows."""

    def __init__(self, failed: int, requests: int, allowed: float) -> None:
        super().__init__(
            f"{failed:,} of {requests:,} requests have no usable answer ({failed / requests:.1%}), and max_error_rate "
            f"allows {allowed:.1%}; all rows are written."
        )


class IncompleteResults(ClaudeBatchError):
    """Everything is written, and the results do not speak of every request."""


class Unfinished(ClaudeBatchError):
    """What was loaded is added up, and a task failed or paid batches are not loaded."""

    def __init__(self, tasks: Sequence[str], what: str, not_loaded: str) -> None:
        more = f" and {len(tasks) - _NAMED:,} more" if len(tasks) > _NAMED else ""
        named, left = ", ".join(tasks[:_NAMED]) + more, f" {not_loaded}" if not_loaded else ""
        super().__init__(f"{named} {what}.{left} Everything else is added up. Clear {named} to go on.")


class SourceUnavailable(ClaudeBatchError):
    """The database or the storage that holds the requests cannot be reached, or is busy."""

    retryable = True


class WarehouseUnavailable(ClaudeBatchError):
    """The warehouse cannot be reached, or is busy."""

    retryable = True
