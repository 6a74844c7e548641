"""Failures that are asked for: each strikes the calls that it names, as often as it says."""

import re
import threading
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct, structs

from airflow_provider_claude_batch.emulator.database import Database
from airflow_provider_claude_batch.emulator.errors import ApiError
from airflow_provider_claude_batch.emulator.outcome import OUTCOMES

Kind = Literal[
    "status", "status_after_accept", "drop_before", "drop_after_accept", "hang", "hang_after_accept", "not_found",
    "queue_full", "slow", "slow_batch", "late_cancel", "row", "cut_results", "stall_results", "duplicate_lines",
    "missing_lines", "foreign_lines", "garbage_lines", "blank_lines", "no_final_newline", "crlf",
]  # fmt: skip
Operation = Literal["create", "list", "retrieve", "cancel", "delete", "results", "messages", "count_tokens", "models"]
ANYWHERE = frozenset(get_args(Operation))
ON_CREATE = frozenset({"create"})
ON_RESULTS = frozenset({"results"})
Number = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
QUEUE_FULL = "The number of enqueued batch requests would exceed your organization's limit. Please try again later."
# Where a fault strikes that does not name its operation.
USUAL = {
    "status_after_accept": ON_CREATE,
    "drop_after_accept": ON_CREATE,
    "hang_after_accept": ON_CREATE,
    "queue_full": ON_CREATE,
    "slow_batch": ON_CREATE,
    "row": ON_CREATE,
    "late_cancel": frozenset({"cancel"}),
    "not_found": frozenset({"retrieve", "results", "cancel"}),
    "status": ANYWHERE,
    "drop_before": ANYWHERE,
    "hang": ANYWHERE,
    "slow": ANYWHERE,
}


class Fault(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One failure to come; `times` and `after` count down as it is met."""

    fault: Kind
    id: int = 0
    operation: Operation | list[Operation] | None = None
    batch: str | None = None
    times: int = 1
    after: Number = 0
    status: Annotated[int, Meta(ge=400, le=599)] = 500
    type: str | None = None
    message: str | None = None
    details: dict[str, Any] | None = None
    retry_after: Seconds | None = None
    should_retry: bool | None = None
    seconds: Seconds | None = None
    bytes: Number | None = None
    rows: Number | None = None
    count: Number = 1
    outcome: str | None = None
    match: str = ""

    def __post_init__(self) -> None:
        if self.fault == "row" and self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(sorted(OUTCOMES))}")
        if self.fault == "slow_batch" and self.seconds is None:
            raise ValueError("slow_batch needs seconds")
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match is no regular expression: {error}") from None

    def meets(self, operation: str, batch_id: str | None) -> bool:
        named = [self.operation] if isinstance(self.operation, str) else self.operation
        where = named or USUAL.get(self.fault, ON_RESULTS)
        return operation in where and self.batch in {None, batch_id}

    def strikes(self) -> bool:
        """Count one meeting and say whether it is a strike."""
        if not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= self.times > 0
        return True

    def error(self) -> ApiError:
        """Make the answer that a fault with a status gives."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = f"{self.retry_after:g}"
        if self.should_retry is not None:
            headers["x-should-retry"] = str(self.should_retry).lower()
        full = self.fault == "queue_full"
        status, usual = (429, QUEUE_FULL) if full else (self.status, None)
        return ApiError(status, self.message or usual, self.type, self.details, headers)


class Faults:
    """The faults in force, kept through restarts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        rows = database.reader().execute("SELECT fault FROM faults ORDER BY id").fetchall()
        self._faults = [msgspec.json.decode(row["fault"], type=Fault) for row in rows]

    def add(self, faults: list[Fault]) -> None:
        with self._lock:
            highest = max((fault.id for fault in self._faults), default=0)
            self._faults += [structs.replace(fault, id=highest + at) for at, fault in enumerate(faults, 1)]
            self._save()

    def clear(self) -> None:
        with self._lock:
            self._faults = []
            self._save()

    @property
    def armed(self) -> bool:
        return any(fault.times for fault in self._faults)

    def as_json(self) -> list[dict[str, Any]]:
        return [{**msgspec.to_builtins(fault), "remaining": fault.times} for fault in self._faults]

    def take(self, kinds: frozenset[str], operation: str, batch_id: str | None) -> Fault | None:
        """Take the first fault of these kinds that strikes this call."""
        if not any(fault.times and fault.fault in kinds and fault.meets(operation, batch_id) for fault in self._faults):
            return None
        with self._lock:
            candidates = (fault for fault in self._faults if fault.fault in kinds and fault.meets(operation, batch_id))
            struck = next((fault for fault in candidates if fault.strikes()), None)
            self._save()
        return struck

    def strike_rows(self) -> bool:
        """Say whether there is any fault for rows."""
        return any(fault.fault == "row" and fault.times for fault in self._faults)

    def strike_row(self, custom_id: str, prompt: str) -> str | None:
        """Take the outcome of the first fault whose pattern is in this row; `save_rows` keeps the count."""
        with self._lock:
            for fault in self._faults:
                if fault.fault == "row" and _matches(fault.match, custom_id, prompt) and fault.strikes():
                    return fault.outcome
        return None

    def save_rows(self) -> None:
        with self._lock:
            self._save()

    def _save(self) -> None:
        rows = [(fault.id, msgspec.json.encode(fault)) for fault in self._faults]
        with self._database.writing() as connection:
            connection.execute("DELETE FROM faults")
            connection.executemany("INSERT INTO faults VALUES (?, ?)", rows)


def parse_faults(body: bytes) -> list[Fault]:
    """Read one fault or a list of them; raise ValueError with the reason when it is none."""
    decoded = msgspec.json.decode(body)
    return msgspec.convert(decoded if isinstance(decoded, list) else [decoded], list[Fault])


def parse_fault_option(text: str) -> list[Fault]:
    """Read `--fault`: JSON, or the shorthand `kind:key=value,key=value`."""
    if text.lstrip().startswith(("{", "[")):
        return parse_faults(text.encode())
    kind, _, settings = text.partition(":")
    pairs = (pair.partition("=") for pair in settings.split(",") if pair)
    return [msgspec.convert({"fault": kind, **{name: _value(value) for name, _, value in pairs}}, Fault)]


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _matches(pattern: str, custom_id: str, prompt: str) -> bool:
    return bool(re.search(pattern, custom_id) or re.search(pattern, prompt))
