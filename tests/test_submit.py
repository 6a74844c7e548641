"""Submitting, try after try: what was paid is never paid again."""

from datetime import UTC, datetime
from tempfile import TemporaryFile
from typing import Any

import msgspec
import pytest
from airflow.sdk import dag, task
from runs import xcom
from test_operators import DEFAULTS, some_requests, submit_dag

from airflow_provider_claude_batch import ClaudeBatchOperator
from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.errors import (
    ApiRefused,
    ApiUnavailable,
    ClaudeBatchError,
    FateUnknown,
    GuardExceeded,
    InvalidRequests,
    Misconfigured,
)
from airflow_provider_claude_batch.note import Notebook
from airflow_provider_claude_batch.price import PRICES
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.request import Defaults
from airflow_provider_claude_batch.submit import Order, accepted, submit

VALUE_BYTES = 64 * 1024


class Store(dict[str, Any]):
    """Keeps JSON, as Airflow's task_state_store does."""

    def set(self, key: str, value: Any) -> None:
        encoded = msgspec.json.encode(value)
        assert len(encoded) <= VALUE_BYTES
        self[key] = msgspec.json.decode(encoded)


class Task:
    """One task instance whose tries share a store."""

    def __init__(self, client: Client, task_id: str = "submit") -> None:
        self.client, self.store, self.clears, self.task_id = client, Store(), 0, task_id
        self.published: list[Receipt] = []

    def run(self, requests: list[dict[str, Any]], **limits: Any) -> Receipt | None:
        order = Order(
            receipt=Receipt(submission="", dag_id="d", run_id="r", submit_task=self.task_id),
            deployment="here",
            task_instance=("d", "r", self.task_id, -1),
            clear_number=self.clears,
            prices=PRICES,
            defaults=Defaults.of(DEFAULTS),
            **limits,
        )
        notebook = Notebook(self.store)
        earlier = accepted(notebook, self.clears)
        return earlier or submit(order, requests, self.client, notebook, self.published.append)


@pytest.fixture
def task_instance(client: Client) -> Task:
    return Task(client)


def paid(emulator: Any) -> list[int]:
    """Return how many requests each batch holds that the API took, whoever got to know of it."""
    return [call["requests"] for call in emulator.journal(operation="create") if call["batch_id"]]


def test_a_retry_returns_the_receipt_without_reading_the_source_again(task_instance: Task, emulator: Any) -> None:
    receipt = task_instance.run(some_requests())
    assert task_instance.run([{"not": "read"}]) == receipt
    assert paid(emulator) == [3]


def test_a_retry_sends_only_the_shards_that_are_missing(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", status=429, operation="create", after=2)
    with pytest.raises(ApiUnavailable):
        task_instance.run(some_requests(7), shard_size=2)
    assert [len(receipt.batches) for receipt in task_instance.published] == [1, 2]
    receipt = task_instance.run(some_requests(7), shard_size=2)
    assert receipt is not None
    assert paid(emulator) == [2, 2, 2, 1]
    assert receipt.batch_ids[:2] == task_instance.published[1].batch_ids
    assert receipt.submission == task_instance.published[0].submission


def test_a_note_of_a_thousand_shards_fits_the_store(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", status=429, operation="create", after=450)
    with pytest.raises(ApiUnavailable):
        task_instance.run(some_requests(990), shard_size=1)
    receipt = task_instance.run(some_requests(990), shard_size=1)
    assert receipt is not None
    assert len(set(receipt.batch_ids)) == len(paid(emulator)) == 990


def test_airflow_retries_what_the_api_put_off(emulator: Any, run_dag: Any) -> None:
    emulator.fault("queue_full", times=1)
    run = run_dag(submit_dag(requests=some_requests(), retries=1, retry_delay=0))
    assert run.state == "success"
    assert paid(emulator) == [3]
    assert xcom(run, "submit")["attempt"] == 1


@pytest.mark.parametrize(
    "fault", [{"fault": "status_after_accept", "status": 502}, {"fault": "drop_after_accept"}, {"fault": "drop_before"}]
)
def test_an_answer_that_never_came_is_never_sent_again(
    fault: dict[str, Any], task_instance: Task, emulator: Any
) -> None:
    emulator.faults({"operation": "create", **fault})
    for _ in range(3):
        with pytest.raises(FateUnknown) as told:
            task_instance.run(some_requests())
        assert not told.value.retryable
    assert len(emulator.journal(operation="create")) == 1


def test_a_connection_that_was_never_made_may_be_tried_again(emulator: Any) -> None:
    from anthropic import Anthropic

    with Client(Anthropic(api_key="k", base_url="http://127.0.0.1:9"), "c") as nobody:
        with pytest.raises(ApiUnavailable) as told:
            nobody.create([b"{}"], 2)
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
    assert [call["batch_id"] for call in emulator.journal(operation="cancel")] == list(old.batch_ids)


def test_a_retry_whose_source_changed_pays_nothing_and_says_so(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", status=429, operation="create", after=1)
    with pytest.raises(ApiUnavailable):
        task_instance.run(some_requests(4), shard_size=2)
    with pytest.raises(Misconfigured, match="not those of the try before"):
        task_instance.run(list(reversed(some_requests(4))), shard_size=2)
    assert paid(emulator) == [2]


def test_equal_requests_of_two_tasks_are_told_apart_by_their_marks(client: Client, emulator: Any) -> None:
    first, second = (Task(client, name).run(some_requests()) for name in ("submit", "other"))
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
        ({"status": 429, "message": "Slow down."}, ApiUnavailable, "Slow down"),
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
    assert receipt.submission.startswith(f"sub_{datetime.now(UTC):%Y%m%dT%H}")


def test_a_half_sent_submission_whose_source_came_back_empty_is_no_quiet_skip(
    task_instance: Task, emulator: Any
) -> None:
    emulator.fault("status", status=429, operation="create", after=1)
    with pytest.raises(ApiUnavailable):
        task_instance.run(some_requests(4), shard_size=2)
    with pytest.raises(Misconfigured, match="not those of the try before"):
        task_instance.run([])


def test_cleared_with_nothing_to_send_any_more_the_old_batch_is_cancelled(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    old = task_instance.run(some_requests())
    task_instance.clears += 1
    assert old is not None
    assert task_instance.run([]) is None
    assert [call["batch_id"] for call in emulator.journal(operation="cancel")] == list(old.batch_ids)


def test_a_guard_that_stops_the_new_submission_leaves_the_old_batch_alone(task_instance: Task, emulator: Any) -> None:
    emulator.clock(freeze=True)
    task_instance.run(some_requests())
    task_instance.clears += 1
    with pytest.raises(GuardExceeded):
        task_instance.run(some_requests(5), max_requests=4)
    assert emulator.journal(operation="cancel") == []


def test_every_try_publishes_what_is_accepted_for_airflow_forgets_it(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", status=429, operation="create", after=1, times=2)
    for _ in range(2):
        task_instance.published.clear()
        with pytest.raises(ApiUnavailable):
            task_instance.run(some_requests(4), shard_size=2)
        assert [len(receipt.batches) for receipt in task_instance.published] == [1]


def test_a_note_that_lost_a_page_pays_nothing(task_instance: Task, emulator: Any) -> None:
    task_instance.run(some_requests())
    del task_instance.store[next(key for key in task_instance.store if key != "claude_batch")]
    with pytest.raises(Misconfigured, match="has lost a page"):
        task_instance.run(some_requests())
    assert paid(emulator) == [3]
