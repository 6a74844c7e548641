"""What becomes of a create whose answer never came: found, proved, and never paid twice."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from tries import Store, Task, cancelled, paid, some_requests

from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.errors import ApiUnavailable, FateUnknown, TakenOver
from airflow_provider_claude_batch.fate import Pause
from airflow_provider_claude_batch.note import Notebook

pytestmark = pytest.mark.usefixtures("stopped_clock")  # a batch runs until a test lets time pass, however slow we are
LOST_ANSWERS = [
    {"fault": "status_after_accept", "status": 502},
    {"fault": "status_after_accept", "status": 409},
    {"fault": "drop_after_accept"},
]


@pytest.fixture
def task(client: Client, emulator: Any) -> Task:
    return Task(client, emulator)


def decoy(client: Client, emulator: Any, **differences: Any) -> str:
    """Have another task submit as many requests at the same time, and return its batch."""
    other = Task(client, emulator, differences.get("task_id", "submit"))
    other.deployment = differences.get("deployment", "here")
    receipt = other.run(some_requests(text=differences.get("text", "Say hello")))
    return receipt.batch_ids[0]


@pytest.mark.parametrize("fault", LOST_ANSWERS)
def test_a_batch_whose_answer_was_lost_is_found_and_proved_and_paid_once(
    fault: dict[str, Any], task: Task, emulator: Any
) -> None:
    emulator.faults({"operation": "create", **fault})
    receipt, pauses = task.finish(some_requests())
    assert receipt is not None
    assert paid(emulator) == [3]
    assert list(receipt.batch_ids) == [call["batch_id"] for call in emulator.journal(operation="create")]
    assert pauses[0].batch_ids == receipt.batch_ids
    assert "results of 1 listed will tell" in pauses[0].why


def test_what_never_arrived_is_sent_again_but_not_before_it_is_certain(task: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    emulator.fault("drop_before", operation="create")
    first = task.run(some_requests())
    assert isinstance(first, Pause)
    assert first.batch_ids == ()
    assert first.seconds > 600
    emulator.advance(first.seconds - 5)
    assert isinstance(task.run(some_requests()), Pause)
    assert paid(emulator) == []
    emulator.advance(7)
    receipt = task.run(some_requests())
    assert paid(emulator) == [3]
    assert len(receipt.batch_ids) == 1


@pytest.mark.parametrize(
    "differences", [{"task_id": "other"}, {"task_id": "submit", "deployment": "elsewhere"}, {"text": "Another text"}]
)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("arrived", [True, False])
def test_a_batch_of_equal_size_is_never_taken_unproved(
    differences: dict[str, Any], moment: str, arrived: bool, client: Client, emulator: Any
) -> None:
    emulator.clock(freeze=True)
    others = [decoy(client, emulator, **differences)] if moment == "before" else []
    emulator.fault("drop_after_accept" if arrived else "drop_before", operation="create")
    task = Task(client, emulator)
    first = task.run(some_requests())
    others += [decoy(client, emulator, **differences)] if moment == "after" else []
    assert isinstance(first, Pause)
    receipt, _ = task.finish(some_requests())
    assert receipt is not None
    assert not set(receipt.batch_ids) & set(others)
    assert paid(emulator) == [3, 3]
    assert cancelled(emulator) == []


def test_of_two_shards_without_an_answer_each_gets_its_own(task: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create", times=2)
    receipt, _ = task.finish(some_requests(6), shard_size=2)
    assert receipt is not None
    assert paid(emulator) == [2, 2, 2]
    ids = {
        call["batch_id"]: emulator.submitted(call["batch_id"])[0]["custom_id"]
        for call in emulator.journal(operation="create")
    }
    assert [ids[batch_id][:3] for batch_id in receipt.batch_ids] == ["r-0", "r-2", "r-4"]


def test_the_other_shards_do_not_wait_for_one_in_doubt(task: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create", times=1)
    assert isinstance(task.run(some_requests(6), shard_size=2), Pause)
    assert paid(emulator) == [2, 2, 2]
    assert len(task.published[-1].batches) == 2


def test_what_is_found_needs_no_source_any_more(task: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    emulator.advance(3600)

    def unread() -> Iterator[Any]:
        raise AssertionError("the source was read again")
        yield

    assert len(task.run(unread()).batch_ids) == 1


def test_a_clear_with_the_same_requests_finds_it_too(task: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    task.clears += 1
    receipt, _ = task.finish(some_requests())
    assert receipt is not None
    assert paid(emulator) == [3]


def test_a_batch_whose_results_are_not_shown_is_asked_for_again(task: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    emulator.advance(60)
    emulator.fault("not_found", operation="results", times=1)
    pause = task.run(some_requests())
    assert isinstance(pause, Pause)
    assert pause.seconds <= 300
    receipt, _ = task.finish(some_requests())
    assert receipt is not None
    assert paid(emulator) == [3]


def test_what_can_never_be_proved_is_for_a_person_to_decide(task: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    emulator.advance(30 * 24 * 3600)
    with pytest.raises(FateUnknown, match="claude-batch forget") as told:
        task.run(some_requests())
    assert not told.value.retryable
    assert paid(emulator) == [3]


def test_a_404_on_somebody_elses_batch_hides_nothing(task: Task, client: Client, emulator: Any) -> None:
    other = decoy(client, emulator, task_id="other")
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    emulator.advance(3600)
    emulator.fault("not_found", operation="results", batch=other, times=-1)
    receipt = task.run(some_requests())
    assert not isinstance(receipt, Pause)
    assert other not in receipt.batch_ids


def test_results_without_a_readable_line_prove_nothing(
    task: Task, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    emulator.advance(3600)
    with monkeypatch.context() as unread:
        unread.setattr(task.client, "results", lambda *_: (line for line in [b"{", b"<html>"]))
        assert isinstance(task.run(some_requests()), Pause)
    assert not isinstance(task.run(some_requests()), Pause)
    assert paid(emulator) == [3]


def test_a_gateway_that_gives_up_after_minutes_is_no_proof_that_nothing_arrived(
    task: Task, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API takes the batch eight minutes after it was sent, and the gateway answers 504."""
    create = task.client.create

    def slow(*args: Any, **kwargs: Any) -> Any:
        emulator.advance(480)
        return create(*args, **kwargs)

    emulator.clock(freeze=True)
    emulator.fault("status_after_accept", status=504)
    monkeypatch.setattr(task.client, "create", slow)
    monkeypatch.setattr(task.client, "_stopping", lambda body, _: body)
    receipt, _ = task.finish(some_requests())
    assert receipt is not None
    assert paid(emulator) == [3]


def test_batches_of_another_size_or_from_before_are_not_even_looked_at(
    task: Task, client: Client, emulator: Any
) -> None:
    Task(client, emulator, "earlier").run(some_requests())
    emulator.advance(120)
    Task(client, emulator, "larger").run(some_requests(4))
    emulator.fault("drop_before", operation="create")
    task.finish(some_requests())
    assert emulator.journal(operation="results") == []


def test_batches_that_come_once_nothing_can_arrive_any_more_are_not_waited_for(
    task: Task, client: Client, emulator: Any
) -> None:
    emulator.fault("drop_before", operation="create")
    pause = task.run(some_requests())
    assert isinstance(pause, Pause)
    emulator.advance(pause.seconds + 5)
    rival = decoy(client, emulator, task_id="rival")
    waiting = task.run(some_requests())
    assert isinstance(waiting, Pause)
    assert waiting.batch_ids == (rival,)
    emulator.advance(3600)
    decoy(client, emulator, task_id="later")
    assert not isinstance(task.run(some_requests()), Pause)
    assert [call["batch_id"] for call in emulator.journal(operation="results")] == [rival]


def test_last_months_batch_of_equal_size_is_no_suspect_though_its_results_are_deleted(
    task: Task, client: Client, emulator: Any
) -> None:
    last_month = decoy(client, emulator, task_id="last_month")
    emulator.advance(30 * 86_400)
    emulator.fault("drop_after_accept", operation="create")
    receipt, _ = task.finish(some_requests())
    assert receipt is not None
    assert last_month not in receipt.batch_ids
    assert paid(emulator) == [3, 3]


def test_a_stranger_is_asked_for_its_name_once(task: Task, client: Client, emulator: Any) -> None:
    emulator.fault("drop_before", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    decoy(client, emulator, task_id="other")
    emulator.advance(30)
    for _ in range(3):
        assert isinstance(task.run(some_requests()), Pause)
    assert len(emulator.journal(operation="results")) == 1


def test_lines_of_nobody_before_ours_do_not_hide_the_proof(task: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests()), Pause)
    emulator.advance(60)
    emulator.faults({"fault": "foreign_lines", "count": 3}, {"fault": "garbage_lines", "count": 2})
    receipt = task.run(some_requests())
    assert not isinstance(receipt, Pause)
    assert paid(emulator) == [3]


class Halted(Exception):
    """A process that stands still for a while, and then goes on."""


def test_a_first_try_that_is_still_alive_sends_nothing_more(
    task: Task, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie, requests = task.notebook(), some_requests(6)
    late = task.submission(zombie, shard_size=2)
    sent = 0

    def retried_meanwhile(part: Any) -> None:
        nonlocal sent
        sent += 1
        assert sent == 1, "what the later try published was overwritten"
        if sent == 1:  # the first shard is accepted; now the process stalls, and Airflow starts the next try
            receipt, _ = task.finish(requests, shard_size=2)
            assert receipt is not None
            assert len(receipt.batch_ids) == 3

    monkeypatch.setattr(late, "_publish", retried_meanwhile)
    with pytest.raises(TakenOver):
        late.run(requests)
    assert paid(emulator) == [2, 2, 2]
    again, _ = task.finish(requests, shard_size=2)
    assert again is not None
    assert len(again.batch_ids) == 3
    assert paid(emulator) == [2, 2, 2]


def test_an_upload_of_a_first_try_that_is_still_on_its_way_is_waited_for(task: Task, emulator: Any) -> None:
    """The first try hangs in its upload; the second finds its note, and waits until nothing can arrive any more."""
    emulator.clock(freeze=True)
    create = task.client.create

    def stalled(*args: Any, **kwargs: Any) -> Any:
        raise Halted

    task.client.create = stalled  # type: ignore[method-assign]
    with pytest.raises(Halted):
        task.run(some_requests())
    task.client.create = create  # type: ignore[method-assign]
    pause = task.run(some_requests())
    assert isinstance(pause, Pause)
    assert pause.seconds > 120
    assert paid(emulator) == []
    receipt, _ = task.finish(some_requests())
    assert receipt is not None
    assert paid(emulator) == [3]


def test_an_upload_stops_when_its_time_is_over(client: Client, emulator: Any) -> None:
    from itertools import repeat

    with pytest.raises(ApiUnavailable, match="too slow"):
        client.create(repeat(b"{" * 1000, 1000), 1_000_000, until=client.now() - timedelta(seconds=2))
    assert paid(emulator) == []


@pytest.fixture
def forgetful(client: Client, emulator: Any) -> Task:
    return Task(client, emulator, remembers=False)


@pytest.mark.parametrize("arrived", [True, False])
def test_without_a_store_a_retry_looks_for_what_the_first_try_sent(
    arrived: bool, forgetful: Task, client: Client, emulator: Any
) -> None:
    emulator.clock(freeze=True)
    since = client.now()
    others = [decoy(client, emulator, task_id="other")]
    if arrived:
        forgetful.run(some_requests())
    others.append(decoy(client, emulator, task_id="other", text="Another text"))
    emulator.advance(600)
    receipt, pauses = forgetful.finish(some_requests(), since=since)
    assert receipt is not None
    assert not set(receipt.batch_ids) & set(others)
    assert paid(emulator) == [3, 3, 3]
    assert sum(pause.seconds for pause in pauses) > 0 or arrived


def test_without_a_store_the_note_travels_with_the_trigger(forgetful: Task, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create")
    notebook = forgetful.notebook()
    pause = forgetful.run(some_requests(), notebook)
    assert isinstance(pause, Pause)
    assert notebook.memo
    emulator.advance(3600)
    receipt = forgetful.run(some_requests(), forgetful.notebook(notebook.memo))
    assert receipt.batch_ids == pause.batch_ids
    assert paid(emulator) == [3]


def test_with_a_store_no_trigger_carries_anything() -> None:
    assert Notebook(Store()).memo is None


def test_batches_from_before_the_run_are_not_even_looked_at(forgetful: Task, client: Client, emulator: Any) -> None:
    emulator.clock(freeze=True)
    decoy(client, emulator, task_id="other")
    emulator.advance(7200)
    since = datetime.fromisoformat(emulator.clock()["now"]) - timedelta(hours=1)
    forgetful.finish(some_requests(), since=since)
    assert emulator.journal(operation="results") == []
    assert paid(emulator) == [3, 3]
