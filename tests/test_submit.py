"""Submitting, try after try: what was paid is never paid again."""

from datetime import UTC, datetime, timedelta
from tempfile import TemporaryFile
from typing import Any

import pytest
from airflow.sdk import dag, task
from tries import DEFAULTS, Task, cancelled, paid, some_requests

from airflow_provider_claude_batch import ClaudeBatchOperator
from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.errors import (
    ApiRefused,
    ApiUnavailable,
    BatchGone,
    ClaudeBatchError,
    GuardExceeded,
    InvalidRequests,
    Misconfigured,
    SourceUnavailable,
)
from airflow_provider_claude_batch.fate import Pause
from airflow_provider_claude_batch.receipt import replace

REFUSED = {"status": 403, "type": "permission_error", "operation": "create"}


@pytest.fixture
def task_instance(client: Client, emulator: Any) -> Task:
    return Task(client, emulator)


def test_a_retry_returns_the_receipt_without_reading_the_source_again(task_instance: Task, emulator: Any) -> None:
    receipt = task_instance.run(some_requests())
    assert task_instance.run([{"not": "read"}]) == receipt
    assert paid(emulator) == [3]


def test_a_retry_sends_only_the_shards_that_are_missing(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", **REFUSED, after=2)
    with pytest.raises(ApiRefused):
        task_instance.run(some_requests(7), shard_size=2)
    assert [len(receipt.batches) for receipt in task_instance.published] == [1, 2, 2]
    receipt = task_instance.run(some_requests(7), shard_size=2)
    assert receipt is not None
    assert paid(emulator) == [2, 2, 2, 1]
    assert receipt.batch_ids[:2] == task_instance.published[1].batch_ids
    assert receipt.submission == task_instance.published[0].submission


def test_a_note_of_a_thousand_shards_fits_the_store(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", **REFUSED, after=450)
    with pytest.raises(ApiRefused):
        task_instance.run(some_requests(990), shard_size=1)
    receipt = task_instance.run(some_requests(990), shard_size=1)
    assert receipt is not None
    assert len(set(receipt.batch_ids)) == len(paid(emulator)) == 990


def test_a_connection_that_was_never_made_may_be_tried_again(emulator: Any) -> None:
    from anthropic import Anthropic

    with Client(Anthropic(api_key="k", base_url="http://127.0.0.1:9"), "c") as nobody:
        with pytest.raises(ApiUnavailable) as told:
            nobody.create([b"{}"], 2, until=datetime.max.replace(tzinfo=UTC))
        assert told.value.retryable


def test_cleared_with_the_same_requests_it_is_the_same_batch_for_free(task_instance: Task, emulator: Any) -> None:
    receipt = task_instance.run(some_requests())
    task_instance.clears += 1
    again = task_instance.run(some_requests())
    assert again is not None
    assert receipt is not None
    assert again.batches == receipt.batches
    assert paid(emulator) == [3]


def test_cleared_with_changed_requests_it_is_a_new_submission_and_the_old_batch_is_cancelled(
    task_instance: Task, emulator: Any
) -> None:
    emulator.clock(freeze=True)
    old = task_instance.run(some_requests())
    task_instance.clears += 1
    new = task_instance.run(some_requests(text="Another question"))
    assert old is not None
    assert new is not None
    assert new.submission > old.submission
    assert new.batch_ids != old.batch_ids
    assert cancelled(emulator) == list(old.batch_ids)


def test_a_retry_whose_source_changed_pays_nothing_and_says_so(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", **REFUSED, after=1)
    with pytest.raises(ApiRefused):
        task_instance.run(some_requests(4), shard_size=2)
    with pytest.raises(Misconfigured, match="not those of the try before"):
        task_instance.run(list(reversed(some_requests(4))), shard_size=2)
    assert paid(emulator) == [2]


@pytest.mark.parametrize("clears", [1, 0], ids=["cleared", "cleared while it ran, which is no clear for Airflow"])
def test_a_retry_takes_up_its_batches_for_the_submission_that_is_there_now(
    clears: int, task_instance: Task, emulator: Any
) -> None:
    task_instance.lineage = replace(task_instance.lineage, submission="sub_1", attempt=2)
    old = task_instance.run(some_requests())
    task_instance.clears += clears
    task_instance.lineage = replace(task_instance.lineage, submission="sub_2", attempt=3)
    new = task_instance.run(some_requests())
    assert new == replace(old, submission="sub_2", attempt=3)
    assert task_instance.published[-1] == task_instance.run(some_requests()) == new
    assert paid(emulator) == [3]


def test_a_retry_of_another_submission_may_be_of_other_requests(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    task_instance.lineage = replace(task_instance.lineage, submission="sub_1", attempt=2)
    old = task_instance.run(some_requests())
    task_instance.lineage = replace(task_instance.lineage, submission="sub_2")
    assert task_instance.run(some_requests(2)).submission == "sub_2"
    assert paid(emulator) == [3, 2]
    assert cancelled(emulator) == list(old.batch_ids)


def test_a_retry_that_was_sent_in_part_goes_on_for_the_submission_that_is_there_now(
    task_instance: Task, emulator: Any
) -> None:
    emulator.clock(freeze=True)
    emulator.faults(
        {"fault": "drop_after_accept", "after": 1, "times": 1}, {"fault": "status", **REFUSED, "after": 2, "times": 1}
    )
    task_instance.lineage = replace(task_instance.lineage, submission="sub_1", attempt=2)
    with pytest.raises(ApiRefused):
        task_instance.run(some_requests(6), shard_size=2)
    task_instance.clears += 1
    task_instance.lineage = replace(task_instance.lineage, submission="sub_2")
    receipt, pauses = task_instance.finish(some_requests(6), shard_size=2)
    assert pauses
    assert receipt is not None
    assert receipt.submission == "sub_2"
    assert paid(emulator) == [2, 2, 2]
    assert [part.requests for part in receipt.batches] == [2, 2, 2]
    assert cancelled(emulator) == []


def test_equal_requests_of_two_tasks_are_told_apart_by_their_marks(client: Client, emulator: Any) -> None:
    first, second = (Task(client, emulator, name).run(some_requests()) for name in ("submit", "other"))
    assert first is not None
    assert second is not None
    assert first.batches[0].mark != second.batches[0].mark


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ({"status": 402, "type": "billing_error", "message": "Payment failed."}, ApiRefused, "refused to spend more"),
        (
            {"status": 429, "details": {"error_code": "enforced_spend_limit_reached"}, "message": "Limit."},
            ApiRefused,
            "Raise the limit",
        ),
        ({"status": 403, "type": "permission_error", "message": "Not yours."}, ApiRefused, "Not yours"),
        ({"status": 413, "message": "Request exceeds the maximum size"}, ApiRefused, "exceeds the maximum size"),
    ],
)
def test_a_create_that_was_surely_refused_leaves_no_doubt_behind(
    fault: dict[str, Any], error: type[ClaudeBatchError], sentence: str, task_instance: Task, emulator: Any
) -> None:
    emulator.fault("status", operation="create", **fault)
    with pytest.raises(error, match=sentence):
        task_instance.run(some_requests())
    assert task_instance.run(some_requests()) is not None
    assert paid(emulator) == [3]


def test_one_bad_request_among_many_stops_all_and_is_named(task_instance: Task, emulator: Any) -> None:
    requests = some_requests(1_000)
    for n in range(500, 520):
        requests[n]["params"]["stream"] = True
    with pytest.raises(InvalidRequests) as told:
        task_instance.run(requests)
    assert told.value.total == 20
    assert "request 500 ('r-500')" in str(told.value)
    assert "and 10 more" in str(told.value)
    assert emulator.journal(operation="create") == []


def test_the_spool_is_gone_whatever_happens(
    task_instance: Task, emulator: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    emulator.fault("status", status=403, operation="create")
    with pytest.raises(ApiRefused):
        task_instance.run(some_requests())
    with TemporaryFile() as own:
        assert own.writable()
    assert list(tmp_path.iterdir()) == []


def test_neither_the_key_nor_a_prompt_is_in_the_log(emulator: Any, run_dag: Any, capfd: Any, caplog: Any) -> None:
    @dag(schedule=None)
    def quiet() -> None:
        @task(show_return_value_in_logs=False)
        def build() -> list[dict[str, Any]]:
            return some_requests(3, "a secret prompt")

        ClaudeBatchOperator(task_id="submit", requests=build(), defaults=DEFAULTS)

    run = run_dag(quiet())
    output = capfd.readouterr().out + caplog.text
    assert run.state == "success"
    assert "Submitting 3 requests" in output
    assert "a secret prompt" not in output
    assert "emulator-key" not in output


def test_a_submission_is_named_by_its_moment(task_instance: Task, emulator: Any) -> None:
    receipt = task_instance.run(some_requests())
    assert receipt is not None
    moment = datetime.strptime(f"{receipt.submission.split('_')[1]}+0000", "%Y%m%dT%H%M%S%f%z")
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=10)


def test_a_half_sent_submission_whose_source_came_back_empty_is_no_quiet_skip(
    task_instance: Task, emulator: Any
) -> None:
    emulator.fault("status", **REFUSED, after=1)
    with pytest.raises(ApiRefused):
        task_instance.run(some_requests(4), shard_size=2)
    with pytest.raises(Misconfigured, match="not those of the try before"):
        task_instance.run([])


def test_cleared_with_nothing_to_send_any_more_the_old_batch_is_cancelled(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    old = task_instance.run(some_requests())
    task_instance.clears += 1
    assert old is not None
    assert task_instance.run([]) is None
    assert cancelled(emulator) == list(old.batch_ids)


def test_a_guard_that_stops_the_new_submission_leaves_the_old_batch_alone(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    task_instance.run(some_requests())
    task_instance.clears += 1
    with pytest.raises(GuardExceeded):
        task_instance.run(some_requests(5), max_requests=4)
    assert cancelled(emulator) == []


def test_every_try_publishes_what_is_accepted_for_airflow_forgets_it(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", **REFUSED, after=1, times=2)
    for _ in range(2):
        task_instance.published.clear()
        with pytest.raises(ApiRefused):
            task_instance.run(some_requests(4), shard_size=2)
        assert {len(receipt.batches) for receipt in task_instance.published} == {1}


def test_a_note_that_lost_a_page_pays_nothing(task_instance: Task, emulator: Any) -> None:
    task_instance.run(some_requests())
    del task_instance.store[next(key for key in task_instance.store if key.endswith("_0"))]
    with pytest.raises(Misconfigured, match="has lost a page"):
        task_instance.run(some_requests())
    assert paid(emulator) == [3]


@pytest.mark.parametrize("retry_after", [None, 40])
def test_a_full_queue_makes_the_remaining_shards_wait_and_not_the_worker(
    retry_after: float | None, task_instance: Task, emulator: Any
) -> None:
    emulator.clock(freeze=True)
    asked = {} if retry_after is None else {"retry_after": retry_after}
    emulator.fault("queue_full", after=1, times=3, **asked)
    receipt, pauses = task_instance.finish(some_requests(6), shard_size=2)
    assert receipt is not None
    assert paid(emulator) == [2, 2, 2]
    assert [pause.seconds for pause in pauses] == ([15, 30, 60] if retry_after is None else [40, 40, 60])
    assert len(task_instance.published[0].batches) == 1
    assert all(pause.batch_ids == () for pause in pauses)


def test_a_queue_that_stays_full_for_days_is_an_error_that_may_be_tried_again(
    task_instance: Task, emulator: Any
) -> None:
    emulator.clock(freeze=True)
    emulator.fault("queue_full", times=-1)
    assert isinstance(task_instance.run(some_requests()), Pause)
    emulator.advance(49 * 3600)
    with pytest.raises(ApiUnavailable, match="For two days no batch was accepted, and 1 of 1 are left") as told:
        task_instance.run(some_requests(), resumed=True)
    assert told.value.retryable
    assert isinstance(task_instance.run(some_requests()), Pause)  # Airflow's next try has two days of its own


def test_the_pauses_begin_anew_where_there_was_room_again(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    emulator.faults(
        {"fault": "queue_full", "times": 3},
        {"fault": "queue_full", "after": 1, "times": 1, "retry_after": 10**9},
    )
    _, pauses = task_instance.finish(some_requests(4), shard_size=2)
    assert [pause.seconds for pause in pauses] == [15, 30, 60, 3600]


def test_one_request_of_ten_thousand_changed_and_the_task_cleared(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    requests = some_requests(10_000)
    old = task_instance.run(requests)
    requests[7_000]["params"]["messages"][0]["content"] += "!"
    task_instance.clears += 1
    new = task_instance.run(requests)
    assert new.submission != old.submission
    assert paid(emulator) == [10_000, 10_000]
    assert cancelled(emulator) == list(old.batch_ids)


def test_cleared_a_batch_that_the_api_lost_is_not_paid_again(task_instance: Task, emulator: Any) -> None:
    task_instance.run(some_requests())
    task_instance.clears += 1
    emulator.fault("not_found", operation="retrieve")
    with pytest.raises(BatchGone, match="claude-batch forget d r submit") as told:
        task_instance.run(some_requests())
    assert told.value.retryable
    assert task_instance.run(some_requests()).batch_ids
    assert paid(emulator) == [3]


def test_cleared_after_its_results_are_deleted_it_says_how_to_ask_anew(task_instance: Task, emulator: Any) -> None:
    task_instance.run(some_requests())
    task_instance.clears += 1
    emulator.advance(30 * 24 * 3600)
    with pytest.raises(Misconfigured, match=r"deleted the results .* `claude-batch forget d r submit`"):
        task_instance.run(some_requests())
    assert paid(emulator) == [3]


def test_cleared_back_to_requests_whose_batch_was_cancelled_it_is_a_new_submission(
    task_instance: Task, emulator: Any
) -> None:
    emulator.clock(freeze=True)
    first = task_instance.run(some_requests())
    for requests in ([], some_requests(), some_requests(text="Other"), some_requests()):
        task_instance.clears += 1
        last = task_instance.run(requests)
    assert last.batch_ids[0] not in cancelled(emulator)
    assert first.batch_ids[0] in cancelled(emulator)
    assert paid(emulator) == [3, 3, 3, 3]
    marks = {part.mark for part in (*first.batches, *last.batches)}
    assert len(marks) == 2


def test_another_tasks_clear_is_no_clear_of_this_one(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", **REFUSED, after=1)
    with pytest.raises(ApiRefused):
        task_instance.run(some_requests(4), shard_size=2)
    task_instance.other_clears += 1
    with pytest.raises(Misconfigured, match="not those of the try before"):
        task_instance.run(list(reversed(some_requests(4))), shard_size=2)
    assert paid(emulator) == [2]


def test_what_is_skipped_on_a_later_try_is_named_too(task_instance: Task, emulator: Any) -> None:
    task_instance.run(some_requests())
    task_instance.clears += 1
    bad = {"custom_id": "bad", "params": {}}
    receipt = task_instance.run([*some_requests(), bad], on_invalid="skip")
    assert receipt.invalid == {"messages must be a list that is not empty": ("bad",)}
    assert paid(emulator) == [3]


def test_a_person_can_have_a_note_that_lost_a_page_forgotten(task_instance: Task, emulator: Any) -> None:
    task_instance.run(some_requests())
    assert task_instance.store is not None
    del task_instance.store[next(key for key in task_instance.store if key.endswith("_0"))]
    task_instance.store.set("claude_batch_forget", "2026-11-21T00:00:00")
    assert task_instance.run(some_requests()).batch_ids
    assert paid(emulator) == [3, 3]


def test_the_notes_of_many_tries_leave_no_pages_behind(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", **REFUSED, after=1, times=3)
    for _ in range(3):
        with pytest.raises(ApiRefused):
            task_instance.run(some_requests(4), shard_size=2)
    assert task_instance.store is not None
    assert len(task_instance.store) == 3


def test_a_refused_count_names_the_request(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", status=400, operation="count_tokens", message="messages.0.role: wrong", times=-1)
    with pytest.raises(ApiRefused, match=r"Request 'r-\d', counted before anything is sent: .*messages.0.role"):
        task_instance.run(some_requests())


def test_forgotten_it_is_a_new_submission_with_marks_of_its_own(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    old = task_instance.run(some_requests())
    assert task_instance.store is not None
    task_instance.store.set("claude_batch_forget", "2026-11-21T00:00:00")
    new = task_instance.run(some_requests())
    assert new.batches[0].mark != old.batches[0].mark
    assert cancelled(emulator) == list(old.batch_ids)
    assert task_instance.run(some_requests()) == new


def test_what_cannot_be_sent_is_skipped_and_named_in_the_receipt(task_instance: Task, emulator: Any) -> None:
    requests = some_requests(4)
    requests[2]["params"]["stream"] = True
    receipt = task_instance.run(requests, on_invalid="skip")
    assert receipt.invalid == {"batches do not take stream": ("r-2",)}
    assert receipt.requests == 3
    assert paid(emulator) == [3]


def test_a_full_disk_is_one_sentence(task_instance: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("airflow_provider_claude_batch.draft.cut", full)
    with pytest.raises(SourceUnavailable, match="Point TMPDIR to a larger one"):
        task_instance.run(some_requests())


def test_the_log_says_how_many_how_big_for_which_model_and_what_it_may_cost(
    task_instance: Task, emulator: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "airflow_provider_claude_batch")
    task_instance.run(some_requests(7), shard_size=3)
    assert "Submitting 7 requests (" in caplog.text
    assert "as 3 batches for claude-haiku-4-5" in caplog.text
    assert "It may cost about $0.0" in caplog.text
    assert "5 requests counted" in caplog.text
    assert "https://platform.claude.com/" in caplog.text
    caplog.clear()
    task_instance.run(some_requests(7), shard_size=3)
    assert "An earlier try submitted all of it" in caplog.text
    assert "Nothing was sent" in caplog.text
    caplog.clear()
    task_instance.clears += 1
    task_instance.run(some_requests(7), shard_size=3)
    assert "all of them were submitted" in caplog.text
    assert "Nothing is sent" in caplog.text
    caplog.clear()
    task_instance.clears += 1
    task_instance.run(some_requests(2))
    assert "This is a new submission, in the place of one whose batches were paid" in caplog.text
