"""A worker's clock jumps while it submits: each shard is paid once all the same, for only the API's clock counts."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anthropic import Anthropic
from emulator import CONNECTION, Emulator
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from tries import Task, cancelled, paid, some_requests

from airflow_provider_claude_batch import client as client_module
from airflow_provider_claude_batch import submit
from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.errors import ApiUnavailable
from airflow_provider_claude_batch.fate import Pause
from airflow_provider_claude_batch.receipt import Receipt

EMULATOR = ("--batch-seconds", "60")
SIZES = [1.5, 90, 13 * 60, 20 * 60, 5 * 3600, 3 * 86_400, 40 * 86_400]
STEPS = [sign * size for size in SIZES for sign in (1, -1)]


class Machine:
    """A worker whose clock can be set while it works."""

    def __init__(self) -> None:
        self.reboot()

    def reboot(self) -> None:
        """Start with a right clock."""
        self.ahead, self.passed = timedelta(), 0.0

    def set_clock(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)

    def work(self, seconds: float) -> None:
        """Let time pass on this machine: all of its clocks go on."""
        self.passed += seconds
        self.set_clock(seconds)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    machine, seconds = Machine(), client_module._seconds

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + machine.ahead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "datetime", Clock)
        patch.setattr(submit, "datetime", Clock)
        patch.setattr(client_module, "_seconds", lambda: seconds() + machine.passed)
        yield machine


FAULTS = {"answer lost": "drop_after_accept", "never arrived": "drop_before"}


class Killed(BaseException):
    """The worker dies."""


class Mishap(Struct, frozen=True):
    """The clock jumps at one place of a submission, and something else goes wrong there too."""

    step: float = 0.0
    place: str = "sending"
    what: str = "nothing"
    shards: int = 1
    nth: int = 1


class Worker(Client):
    """A client on a machine; the mishap comes with its nth create."""

    def __init__(self, emulator: Emulator, machine: Machine, mishap: Mishap) -> None:
        super().__init__(Anthropic(api_key=CONNECTION["password"], base_url=emulator.base_url), "anthropic_default")
        self._emulator, self._machine, self._mishap, self._due = emulator, machine, mishap, mishap.nth

    def _come_by(self, place: str) -> None:
        if self._due == 1 and place == self._mishap.place:
            self._machine.set_clock(self._mishap.step)

    def newest(self) -> Any:
        if not self._machine.ahead:
            self._come_by("looking")
        return super().newest()

    def create(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        what = self._mishap.what if self._due == 1 else "nothing"
        if what in FAULTS:
            self._emulator.fault(FAULTS[what], operation="create")
        self._come_by("sending")
        try:
            if what == "killed before":
                raise Killed
            batch = super().create(self._upload(body), *args, **kwargs)
            if what == "killed after":
                raise Killed
            return batch
        finally:
            self._come_by("sent")
            self._due -= 1

    def _upload(self, body: Any) -> Iterator[bytes]:
        self._come_by("uploading")
        yield from body


mishaps = st.builds(
    Mishap,
    step=st.sampled_from(STEPS),
    place=st.sampled_from(["looking", "sending", "uploading", "sent"]),
    what=st.sampled_from(["answer lost", "never arrived", "killed before", "killed after", "nothing"]),
    shards=st.integers(1, 3),
    nth=st.integers(1, 3),
)


@settings(max_examples=40)
@example(mishap=Mishap(120, "sending", "answer lost"), remembers=True, moves=False)
@example(mishap=Mishap(-1200, "sending", "killed after"), remembers=True, moves=True)
@example(mishap=Mishap(3 * 86_400, "looking", "killed after", shards=3, nth=2), remembers=True, moves=True)
@example(mishap=Mishap(-3 * 86_400, "uploading", "answer lost", shards=3, nth=3), remembers=True, moves=False)
@given(mishap=mishaps, remembers=st.booleans(), moves=st.booleans())
def test_whenever_the_clock_jumps_each_shard_is_paid_once(
    mishap: Mishap, remembers: bool, moves: bool, process: Emulator, machine: Machine
) -> None:
    """What is in doubt is settled by the same worker or, with a right clock, by another one."""
    process.reset()
    process.clock(freeze=True)
    machine.reboot()
    requests, since = some_requests(2 * mishap.shards), datetime.now(UTC) - timedelta(hours=1)
    with Worker(process, machine, mishap) as first, Worker(process, machine, Mishap()) as second:
        task, receipt = Task(first, process, remembers=remembers), None
        with suppress(Killed):
            receipt = task.run(requests, shard_size=2) if remembers else task.finish(requests, shard_size=2)[0]
        if not isinstance(receipt, Receipt):
            if moves:
                task.client = second
                machine.reboot()
            receipt, _ = task.finish(requests, shard_size=2, since=None if remembers else since)
    assert receipt is not None
    assert paid(process) == [2] * mishap.shards
    taken = [call["batch_id"] for call in process.journal(operation="create") if call["batch_id"]]
    assert sorted(receipt.batch_ids) == sorted(taken)
    assert cancelled(process) == []


@pytest.fixture
def stopped(process: Emulator, machine: Machine) -> Emulator:
    """The API, whose time passes when the test says so, and a machine with a right clock."""
    process.reset()
    process.clock(freeze=True)
    machine.reboot()
    return process


class Sleeper(Worker):
    """A worker whose machine is suspended right before, or while, it uploads; then its clock is set right."""

    def _come_by(self, place: str) -> None:
        super()._come_by(place)
        if self._due == 1 and place == self._mishap.place:
            self._emulator.advance(self._mishap.step)


@pytest.mark.parametrize("place", ["sending", "uploading"])
def test_a_machine_that_slept_before_its_upload_sends_nothing_late(
    place: str, stopped: Emulator, machine: Machine
) -> None:
    with Sleeper(stopped, machine, Mishap(3 * 3600, place)) as sleeper:
        task = Task(sleeper, stopped)
        with pytest.raises(ApiUnavailable, match="too slow"):
            task.run(some_requests(2))
        assert paid(stopped) == []
        task.finish(some_requests(2))
    assert paid(stopped) == [2]


class Stalled(Worker):
    """A worker that stands still before its first create; another one goes on meanwhile."""

    meanwhile: Callable[[], object] | None = None

    def create(self, *args: Any, **kwargs: Any) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
            self._come_by("sending")
        return super().create(*args, **kwargs)


@pytest.mark.parametrize("step", [0.0, 3 * 86_400, -3 * 86_400])
@pytest.mark.parametrize("remembers", [True, False])
def test_a_first_try_that_is_alive_sends_nothing_late_however_its_clock_is_set(
    step: float, remembers: bool, stopped: Emulator, machine: Machine
) -> None:
    since = datetime.now(UTC) - timedelta(hours=1)

    def go_on() -> None:
        task.client = second
        receipt, pauses = task.finish(some_requests(2), since=None if remembers else since)
        assert receipt is not None
        machine.work(sum(pause.seconds for pause in pauses))

    with Stalled(stopped, machine, Mishap(step)) as first, Worker(stopped, machine, Mishap()) as second:
        task, first.meanwhile = Task(first, stopped, remembers=remembers), go_on
        with pytest.raises(ApiUnavailable, match="too slow"):
            task.run(some_requests(2))
    assert paid(stopped) == [2]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", ["answer lost", "never arrived"])
def test_a_note_of_an_older_version_is_not_believed_about_time(
    step: float, what: str, stopped: Emulator, machine: Machine
) -> None:
    """It holds what a worker's clock said, which may have been wrong then."""
    with Worker(stopped, machine, Mishap(what=what)) as worker:
        task = Task(worker, stopped)
        assert isinstance(task.run(some_requests(2)), Pause)
        (page,) = [value for value in task.store.values() if isinstance(value, list)]  # type: ignore[union-attr]
        for name in ("not_before", "not_after"):
            page[0].pop(name, None)
        for name in ("sent_at", "give_up_at"):
            page[0][name] = (datetime.fromisoformat(page[0][name]) + timedelta(seconds=step)).isoformat()
        receipt, pauses = task.finish(some_requests(2))
    assert receipt is not None
    assert paid(stopped) == [2]
    assert sum(pause.seconds for pause in pauses) < 27 * 3600


def test_a_submission_after_a_clear_is_named_after_the_one_before_though_the_clock_was_set_back(
    stopped: Emulator, machine: Machine
) -> None:
    with Worker(stopped, machine, Mishap()) as worker:
        task = Task(worker, stopped)
        before = task.run(some_requests(2))
        machine.set_clock(-86_400)
        task.clears += 1
        assert task.run(some_requests(2, text="Another")).submission > before.submission
