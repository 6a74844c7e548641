"""Takes a batch in: reads its requests, checks the envelope of each, draws its fate, stores it."""

import re
from collections.abc import Iterator
from typing import IO, Any

from msgspec import Struct

from airflow_provider_claude_batch.emulator import chance
from airflow_provider_claude_batch.emulator.batch import Batch
from airflow_provider_claude_batch.emulator.body import extra_input, read_requests
from airflow_provider_claude_batch.emulator.errors import ApiError, Stopping, invalid
from airflow_provider_claude_batch.emulator.outcome import Fate, draw
from airflow_provider_claude_batch.emulator.prefix import find_prefixes
from airflow_provider_claude_batch.emulator.prompt import MARK, text_of
from airflow_provider_claude_batch.emulator.rules import Asked, find_problem, removed_param
from airflow_provider_claude_batch.emulator.settings import MAX_REQUESTS
from airflow_provider_claude_batch.emulator.store import Row
from airflow_provider_claude_batch.emulator.world import World

CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_CUSTOM_ID = 64
CHUNK, CHUNK_BYTES = 500, 1 << 22


class Submission(Struct, frozen=True):
    """Whose batch it is and what its headers said."""

    workspace: str
    version: str
    betas: frozenset[str]
    slow: float | None = None


class Intake:
    """One create call at work."""

    def __init__(self, world: World, submission: Submission) -> None:
        self.world, self._submission = world, submission
        self._settings, self._faults = world.settings, world.faults
        self.draft = world.store.open(submission.workspace)
        self._seen: set[str] = set()
        self._offence: ApiError | None = None
        self._duplicate: str | None = None
        self.striking = world.faults.strike_rows()
        self.count = 0

    def rows(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the rows to store; after the first offence go on only to see whether the rest is JSON."""
        for element, raw in read_requests(file):
            at, self.count = self.count, self.count + 1
            self._offence = self._offence or self._find_offence(element, at)
            if self._offence is None and self._duplicate is None and self.count <= MAX_REQUESTS:
                yield self._row(element, raw)

    def verdict(self) -> ApiError | None:
        """Say why the whole batch is refused, if it is."""
        if not self.count:
            return invalid("requests: List should have at least 1 item after validation, not 0")
        if self.count > MAX_REQUESTS:
            rule = f"List should have at most {MAX_REQUESTS} items after validation, not {self.count}"
            return invalid(f"requests: {rule}")
        if self._offence is None and self._duplicate is not None:
            rule = "custom_id's must be unique within a batch. Duplicate custom_id found:"
            return invalid(f"requests: {rule} {self._duplicate}")
        return self._offence

    def duration(self) -> float:
        """Draw how long the batch takes."""
        if self._submission.slow is not None:
            return self._submission.slow
        low, high = self._settings.batch_seconds
        return low + (high - low) * chance.share("duration", *self._names())

    def _find_offence(self, element: Any, at: int) -> ApiError | None:
        if problem := _envelope_problem(element, at):
            return problem
        if element["custom_id"] in self._seen:
            self._duplicate = self._duplicate or element["custom_id"]
        self._seen.add(element["custom_id"])
        if self._settings.removed_params != "create":
            return None
        removed = removed_param(self._asked(element["params"]))
        return invalid(f"requests.{at}.params.{removed.message}") if removed else None

    def _row(self, element: dict[str, Any], raw: str) -> Row:
        custom_id, body = element["custom_id"], raw.encode()
        asked = self._asked(element["params"], marked=MARK in body)
        place = chance.place("place", *self._names(), custom_id)
        fate = self._fate(custom_id, asked, body)
        runs = asked.marked and fate.status == "succeeded"
        prefixes = find_prefixes(asked.params, self.draft.workspace) if runs else []
        return Row(custom_id, place, fate, body, prefixes)

    def _fate(self, custom_id: str, asked: Asked, body: bytes) -> Fate:
        if problem := find_problem(asked):
            return Fate(problem.kind, problem.message)
        if self.striking and (outcome := self._faults.strike_row(custom_id, _prompt(asked.params))):
            return Fate(outcome)
        return draw(self._settings.rates, "fate", *self._names(), custom_id, body)

    def _names(self) -> tuple[str, str, str]:
        return self._settings.seed, self.draft.workspace, str(self.draft.ordinal)

    def _asked(self, params: dict[str, Any], *, marked: bool = True) -> Asked:
        headers = self._submission
        return Asked(params, headers.version, headers.betas, self._settings.removed_params, marked=marked)


def take_in(intake: Intake, file: IO[bytes]) -> Batch:
    """Store the batch whole, or refuse it and leave nothing."""
    store, faults = intake.world.store, intake.world.faults
    try:
        _add(intake, file)
        return store.accept(intake.draft, intake.count, intake.duration())
    except BaseException:
        store.discard(intake.draft)
        raise
    finally:
        if intake.striking:
            faults.save_rows()


def _add(intake: Intake, file: IO[bytes]) -> None:
    first = 0
    for chunk in _chunks(intake.rows(file)):
        if intake.world.stopping.is_set():
            raise Stopping
        intake.world.store.add(intake.draft, chunk, first)
        first += len(chunk)
    if refusal := intake.verdict():
        raise refusal


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk, size = [], 0
    for row in rows:
        chunk.append(row)
        size += len(row.body)
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _envelope_problem(element: Any, at: int) -> ApiError | None:
    where = f"requests.{at}"
    if not isinstance(element, dict):
        return invalid(f"{where}: Input should be a valid dictionary")
    for name in ("custom_id", "params"):
        if name not in element:
            return invalid(f"{where}.{name}: Field required")
    if problem := _custom_id_problem(element["custom_id"]):
        return invalid(f"{where}.custom_id: {problem}")
    if not isinstance(element["params"], dict):
        return invalid(f"{where}.params: Input should be a valid dictionary")
    extra = next((name for name in element if name not in {"custom_id", "params"}), None)
    return extra_input(f"{where}.{extra}") if extra else None


def _custom_id_problem(custom_id: Any) -> str | None:
    if not isinstance(custom_id, str):
        return "Input should be a valid string"
    if not custom_id:
        return "String should have at least 1 character"
    if len(custom_id) > MAX_CUSTOM_ID:
        return f"String should have at most {MAX_CUSTOM_ID} characters"
    return None if CUSTOM_ID.fullmatch(custom_id) else "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"


def _prompt(params: dict[str, Any]) -> str:
    return "\n".join([text_of(params.get("system")), *(text_of(turn["content"]) for turn in params["messages"])])
