"""Crashes: kill a submission at a step of its way, let Airflow go on with it, and ask the API alone what was paid."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import msgspec
from emulator import Emulator
from processes import Broken, Nursery, Process, Task
from wire import ANSWER, BODY, DONE, HALF, HEAD, Hold, Wire

RETRIES: dict[str, Any] = {"retries": 30, "retry_delay": 0}
DEFAULTS = {"model": "claude-haiku-4-5", "max_tokens": 512}
TAIL_CHARS = 16  # of a wire id, after the custom_id itself
USUAL_SECONDS = 0.6  # that a worker needs for a submission, Airflow's own part included
SKEW = timedelta(minutes=10)
UPLOAD_SECONDS = 5.0  # where uploads are given up fast, and yet not those of a machine that is busy

STEPS = {
    "counting": "while the tokens are counted, before the note",
    "noted": "right after something was written into the task_state_store",
    "connecting": "a create on its way of which nothing has arrived, or ever does",
    "uploading": "half of a create has arrived",
    "delayed": "all of a create has left the worker, and arrives during the retry",
    "accepted": "the API has taken the batch, and its answer is on its way",
    "answered": "the answer has arrived, up to 30 ms ago",
    "alive": "not killed but cut off: the worker lives on and its create arrives during the retry",
    "skewed": "the API has taken the batch, and its clock is ten minutes behind Airflow's",
    "cleared": "the API has taken the batch; a user clears the task",
    "frozen": "not killed but frozen right before a create, and thawed when the retry is through",
    "random": "any moment",
}
NEEDS_STORE = {"noted"}
_HELD = {
    "counting": ("count_tokens", HEAD),
    "connecting": ("create", HEAD),
    "uploading": ("create", HALF),
    "delayed": ("create", BODY),
    "accepted": ("create", ANSWER),
    "answered": ("create", DONE),
    "alive": ("create", HEAD),
    "skewed": ("create", ANSWER),
    "cleared": ("create", ANSWER),
}


class Crash:
    """What befalls one submission: a kill, or its like, at one step of its way."""

    def __init__(self, task: Task, wire: Wire, step: str, rng: random.Random, shards: int) -> None:
        self._task, self._wire, self._step, self._rng = task, wire, step, rng
        operation, moment = _HELD.get(step, (None, None))
        nth = rng.randint(1, shards) if operation == "create" else 1
        self._hold: Hold | None = wire.hold(operation, moment, nth) if operation and moment else None

    def strike(self) -> None:
        """Run the first try as far as the step, and kill it there."""
        if self._step == "frozen":
            return self._freeze()
        first = self._task.start()
        self._wait(first)
        if self._hold and not self._hold.reached.is_set():
            raise Broken(f"{self._step} was not reached: {first.outcome}")
        if self._step == "alive":
            self._task.abandon(first)
        else:
            self._task.kill(first)
        if self._step == "cleared":
            self._task.clear()
        if self._step in {"delayed", "alive"}:
            self._arrive_late()
        self._wire.clear()
        first.wait()
        return None

    def _wait(self, first: Process) -> None:
        if self._hold:
            first.wait(self._hold.reached.is_set)
        elif self._step == "noted":
            self._wait_for_note(first)
        else:
            first.wait(seconds=self._rng.uniform(0, USUAL_SECONDS))
        if self._step == "answered":
            time.sleep(self._rng.uniform(0, 0.03))

    def _freeze(self) -> None:
        first = self._task.start("crash:freeze_before_create")
        if first.wait(lambda: first.is_frozen):
            raise Broken(f"{self._step} was not reached: {first.outcome}")
        self._task.abandon(first)
        self._task.finish()
        time.sleep(UPLOAD_SECONDS)
        first.thaw()
        first.wait()

    def strike_again(self, times: int) -> None:
        """Kill what comes after it too, at any moment."""
        for _ in range(times):
            if self._task.is_finished:
                return
            process = self._task.start()
            process.wait(seconds=self._rng.uniform(0, USUAL_SECONDS))
            self._task.kill(process)

    def _wait_for_note(self, process: Process) -> None:
        seen: list[Any] = [[]]
        which = self._rng.randint(1, 5)

        def is_due() -> bool:
            if (notes := self._task.notes) not in seen:
                seen.append(notes)
            return len(seen) > which

        process.wait(is_due)

    def _arrive_late(self) -> None:
        """Let the create arrive once the next try has looked for it."""
        assert self._hold
        looked = self._wire.hold("list", DONE)
        second = self._task.start()
        second.wait(looked.reached.is_set)
        self._hold.release()
        looked.release()
        self._hold.over.wait(60)
        self._task.end(second)


class Verdict(msgspec.Struct):
    """What the API took, and what the task says that it sent."""

    twice: list[str]
    never: list[str]
    cancelled: list[str]
    unnamed: list[str]
    invented: list[str]

    @classmethod
    def of(cls, emulator: Emulator, task: Task, custom_ids: Iterable[str], foreign: Iterable[str] = ()) -> Self:
        """Judge by the emulator's journal; the batches of others, which are known, are left out."""
        own, named = set(paid(emulator)) - set(foreign), Counter(task.batch_ids)
        times = Counter(line["custom_id"][:-TAIL_CHARS] for batch_id in own for line in emulator.submitted(batch_id))
        return cls(
            twice=[custom_id for custom_id, number in times.items() if number > 1],
            never=[custom_id for custom_id in custom_ids if not times[custom_id]],
            cancelled=[call["batch_id"] for call in emulator.journal(operation="cancel")],
            unnamed=sorted(own - set(named)),
            invented=[batch_id for batch_id, number in named.items() if number > 1 or batch_id not in own],
        )

    @property
    def is_clean(self) -> bool:
        return not any(msgspec.structs.astuple(self))


class Result(msgspec.Struct):
    """How one crash ended."""

    step: str
    store: bool
    kills: int
    state: str
    seconds: float
    verdict: Verdict


def crash(
    nursery: Nursery, emulator: Emulator, wire: Wire, step: str, *, store: bool, seed: object, more_kills: int = 0
) -> Result:
    """Crash one submission of several shards, let it come to its end, and judge."""
    begin, rng = time.monotonic(), random.Random(str(seed))
    emulator.reset()
    if step == "skewed":
        emulator.clock(now=(datetime.now(UTC) - SKEW).isoformat())
    shards = rng.randint(1, 4)
    requests = shards * 2 - rng.randint(0, 1)
    arguments = {"count": requests, "shard_size": 2}
    patches = ["crash:upload_fast"] if step == "frozen" else []
    task = Task(nursery, emulator, "crash:submission", arguments, wire=wire, store=store, patches=patches)
    struck = Crash(task, wire, step, rng, shards)
    struck.strike()
    struck.strike_again(more_kills)
    state = task.finish()
    verdict = Verdict.of(emulator, task, [request["custom_id"] for request in some_requests(requests)])
    return Result(step, store, task.kills, state, time.monotonic() - begin, verdict)


def paid(emulator: Emulator) -> list[str]:
    """Return the batches that the API took, in this order, whoever got to know of them."""
    return [call["batch_id"] for call in emulator.journal(operation="create") if call["batch_id"]]


def submission(count: int, shard_size: int = 2, **options: Any) -> Any:
    """Build the Dag of one submit task."""
    from airflow.sdk import DAG

    with DAG("crash", schedule=None) as dag:
        submit(task_id="submit", requests=some_requests(count), shard_size=shard_size, **options)
    return dag


def equals(count: int) -> Any:
    """Build a Dag that submits the same requests three times: from two mapped tasks, and from another."""
    from airflow.sdk import DAG

    from airflow_provider_claude_batch import ClaudeBatchOperator

    with DAG("crash", schedule=None) as dag:
        mapped = ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS, **RETRIES)
        mapped.expand(requests=[some_requests(count), some_requests(count)])
        submit(task_id="other", requests=some_requests(count))
    return dag


def submit(**arguments: Any) -> None:
    from airflow_provider_claude_batch import ClaudeBatchOperator

    ClaudeBatchOperator(defaults=DEFAULTS, **RETRIES, **arguments)


def upload_fast() -> None:
    """Give an upload up after some seconds."""
    from airflow_provider_claude_batch import submit

    submit.upload_seconds = lambda _: UPLOAD_SECONDS


def freeze_before_create() -> None:
    """Stand still between the note and the create, as a worker does whose machine is suspended."""
    from airflow_provider_claude_batch.client import Client

    create = Client.create

    def frozen(*arguments: Any, **options: Any) -> Any:
        Client.create = create  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGSTOP)
        return create(*arguments, **options)

    Client.create = frozen  # type: ignore[method-assign]


def lose_patience() -> None:
    """Wait three seconds for the answer to a create, which is long enough for one that comes."""
    import httpx2

    from airflow_provider_claude_batch import client

    client._CREATE_TIMEOUT = httpx2.Timeout(3.0)


def some_requests(count: int) -> list[dict[str, Any]]:
    return [
        {"custom_id": f"r-{n}", "params": {"messages": [{"role": "user", "content": f"Say hello {n}"}]}}
        for n in range(count)
    ]
