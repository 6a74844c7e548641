"""Paid once, whatever dies and whenever: real processes are killed, and the emulator says what it took."""

from collections.abc import Iterator
from typing import Any

import pytest
from crash import Verdict, crash, paid, some_requests
from emulator import Emulator
from processes import Nursery, Task
from wire import ANSWER, Wire

EMULATOR = ("--batch-seconds", "60")
COUNT = 2
IDS = [request["custom_id"] for request in some_requests(COUNT)]
LOST_ANSWERS = [
    ({"fault": "status_after_accept", "status": 502}, True),
    ({"fault": "drop_after_accept"}, False),
    ({"fault": "hang_after_accept"}, True),
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """A process that has imported Airflow, and forks."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def wire(process: Emulator) -> Iterator[Wire]:
    """The wire between the tasks and the emulator."""
    with Wire(process.base_url) as wire:
        yield wire


CRASHES = [
    ("counting", True),
    ("noted", True),
    ("connecting", True),
    ("uploading", False),
    ("delayed", True),
    ("accepted", True),
    ("answered", True),
    ("alive", True),
    ("cleared", True),
    ("skewed", False),
    ("random", True),
]


@pytest.mark.parametrize(("step", "store"), CRASHES)
def test_a_killed_submission_is_paid_once(
    step: str, store: bool, nursery: Nursery, process: Emulator, wire: Wire
) -> None:
    result = crash(nursery, process, wire, step, store=store, seed="test", more_kills=step == "answered")
    assert result.state == "success"
    assert result.verdict.is_clean, result.verdict


def test_a_worker_that_wakes_up_too_late_sends_nothing(nursery: Nursery, process: Emulator, wire: Wire) -> None:
    result = crash(nursery, process, wire, "frozen", store=True, seed="test")
    assert result.verdict.is_clean, result.verdict


def test_the_harness_sees_what_is_paid_twice(nursery: Nursery, emulator: Emulator, wire: Wire) -> None:
    task = Task(nursery, emulator, "paid_once:anthropic_peer", wire=wire, task_id="batch")
    hold = wire.hold("create", ANSWER)
    first = task.start()
    first.wait(hold.reached.is_set)
    assert task.kill(first)
    assert task.finish() == "success"
    assert len(paid(emulator)) == 2


class Equals:
    """Four task instances that send the same requests: ours, its mapped sibling, another task, another deployment."""

    def __init__(self, nursery: Nursery, emulator: Emulator, wire: Wire) -> None:
        database, dag = nursery.database(), "crash:equals"
        shared: dict[str, Any] = {"wire": wire, "patches": ["crash:lose_patience"]}
        elsewhere = {"AIRFLOW__CLAUDE_BATCH__DEPLOYMENT": "elsewhere"}

        def task(**differences: Any) -> Task:
            return Task(nursery, emulator, dag, {"count": COUNT}, **{**shared, "database": database, **differences})

        self.ours, self.sibling, self.other = task(map_index=0), task(map_index=1), task(task_id="other")
        self.foreign = task(map_index=0, database=nursery.database(), env=elsewhere)

    @property
    def decoys(self) -> list[Task]:
        return [self.foreign, self.other, self.sibling]

    @property
    def batch_ids(self) -> list[str]:
        return [batch_id for task in [self.ours, *self.decoys] for batch_id in task.batch_ids]


@pytest.fixture
def equals(nursery: Nursery, emulator: Emulator, wire: Wire) -> Equals:
    emulator.clock(freeze=True)
    return Equals(nursery, emulator, wire)


@pytest.mark.parametrize(("fault", "ours_is_slow"), LOST_ANSWERS, ids=["502", "dropped", "hung"])
def test_a_batch_whose_answer_was_lost_is_told_from_its_equals(
    fault: dict[str, Any], ours_is_slow: bool, equals: Equals, emulator: Emulator
) -> None:
    emulator.fault("slow_batch", times=1 if ours_is_slow else 2, after=2 if ours_is_slow else 0, seconds=300)
    for decoy in (equals.foreign, equals.other):
        decoy.finish()
    emulator.faults(fault)
    assert equals.ours.end(equals.ours.start()) == "deferred"
    equals.sibling.finish()
    assert equals.ours.finish() == "success"
    others = [batch_id for decoy in equals.decoys for batch_id in decoy.batch_ids]
    verdict = Verdict.of(emulator, equals.ours, IDS, foreign=others)
    assert verdict.is_clean, verdict
    assert len(paid(emulator)) == 4


def test_equals_whose_answers_were_all_lost_find_each_its_own(equals: Equals, emulator: Emulator) -> None:
    emulator.fault("drop_after_accept", times=4)
    tasks = [equals.ours, *equals.decoys]
    for task in tasks:
        assert task.end(task.start()) == "deferred"
    for task in tasks:
        assert task.finish() == "success"
        assert len(task.batch_ids) == 1
    assert sorted(equals.batch_ids) == sorted(paid(emulator))
