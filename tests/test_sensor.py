"""ClaudeBatchSensor: the deferred wait, the wait on a worker, and their endings."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import dag
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferralError, TaskDeferred
from emulator import CONNECTION
from runs import states, xcom
from test_operators import DEFAULTS, some_requests, submit_dag

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchSensor, metrics, watch
from airflow_provider_claude_batch.errors import Misconfigured


def deferred(**arguments: Any) -> Any:
    """Return the trigger that a sensor leaves its wait to."""
    with pytest.raises(TaskDeferred) as left:
        ClaudeBatchSensor(task_id="wait", **arguments).execute({})
    return left.value.trigger


@pytest.fixture
def receipt(emulator: Any, run_dag: Any) -> dict[str, Any]:
    """A batch that runs for three seconds of a clock that stands still."""
    emulator.clock(freeze=True)
    return xcom(run_dag(submit_dag(requests=some_requests())), "submit")


def wait_dag(batch: Any, **arguments: Any) -> Any:
    @dag(schedule=None)
    def one_wait() -> None:
        ClaudeBatchSensor(task_id="wait", batch=batch, **arguments)

    return one_wait()


def test_a_deferred_wait_adds_what_became_of_each_batch(
    receipt: dict[str, Any], emulator: Any, run_dag: Any, capfd: Any
) -> None:
    with emulator.advancing(3, after="retrieve"):
        run = run_dag(wait_dag(receipt, poke_interval=5))
    seen = xcom(run, "wait")
    assert run.state == "success"
    assert "DEFERRED" in capfd.readouterr().out
    assert seen == xcom(run, "wait", key="claude_batch")
    assert seen["submission"] == receipt["submission"]
    assert seen["batches"][0]["counts"]["succeeded"] == 3
    assert {"created_at", "ended_at", "expires_at"} <= seen["batches"][0].keys()


def test_a_batch_that_has_ended_needs_no_deferral(
    receipt: dict[str, Any], emulator: Any, run_dag: Any, capfd: Any
) -> None:
    emulator.advance(3600)
    run = run_dag(wait_dag(receipt))
    assert run.state == "success"
    assert "DEFERRED" not in capfd.readouterr().out
    assert len(emulator.journal(operation="retrieve")) == 1


def test_a_wait_on_a_worker_ends_the_same(receipt: dict[str, Any], emulator: Any, run_dag: Any, capfd: Any) -> None:
    with emulator.advancing(3, after="retrieve"):
        run = run_dag(wait_dag(receipt, deferrable=False, poke_interval=1))
    assert run.state == "success"
    assert "DEFERRED" not in capfd.readouterr().out
    assert len(emulator.journal(operation="retrieve")) > 1
    assert xcom(run, "wait")["batches"][0]["counts"]["succeeded"] == 3


def test_ids_are_waited_for_like_receipts(receipt: dict[str, Any], emulator: Any, run_dag: Any) -> None:
    emulator.advance(3600)
    batch_id = receipt["batches"][0]["id"]
    one, many = (xcom(run_dag(wait_dag(batch)), "wait") for batch in (batch_id, [batch_id, receipt]))
    assert one["batches"][0]["id"] == batch_id
    assert [r["batches"][0]["counts"]["succeeded"] for r in many] == [3, 3]


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_deadline_fails_and_changes_nothing(
    deferrable: bool, receipt: dict[str, Any], emulator: Any, run_dag: Any, capfd: Any
) -> None:
    run = run_dag(wait_dag(receipt, timeout=1, deferrable=deferrable, poke_interval=1))
    assert run.state == "failed"
    assert "WaitTimeout: 1 of the batches had not ended" in capfd.readouterr().out
    assert emulator.journal(operation="cancel") == []


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_deadline_may_cancel_and_go_on_with_what_is_finished(
    deferrable: bool, receipt: dict[str, Any], emulator: Any, run_dag: Any
) -> None:
    emulator.fault("slow_batch", seconds=80_000)
    slow = xcom(run_dag(submit_dag(requests=some_requests())), "submit")
    emulator.clock(freeze=False, speed=60)
    run = run_dag(wait_dag(slow, timeout=1, on_timeout="cancel", deferrable=deferrable, poke_interval=1))
    assert run.state == "success"
    assert len(emulator.journal(operation="cancel")) == 1
    assert xcom(run, "wait")["batches"][0]["counts"]["canceled"] > 0


@pytest.mark.parametrize(
    "fault", [{"fault": "not_found"}, {"fault": "status", "status": 529, "operation": "retrieve", "times": 3}]
)
def test_a_hiccup_of_the_api_is_waited_out(
    fault: dict[str, Any], receipt: dict[str, Any], emulator: Any, run_dag: Any, capfd: Any
) -> None:
    emulator.faults(fault)
    emulator.clock(freeze=False, speed=60)
    run = run_dag(wait_dag(receipt, poke_interval=5))
    assert run.state == "success"
    assert "Asking again" in capfd.readouterr().out


def test_a_template_in_a_batch_argument_stays_text(emulator: Any, run_dag: Any, capfd: Any) -> None:
    run = run_dag(wait_dag(["{{ 7 * 6 }}"]))
    assert run.state == "failed"
    assert "'{{ 7 * 6 }}' is not the id of a Message Batch" in capfd.readouterr().out


def test_an_empty_receipt_passes_through(emulator: Any, run_dag: Any) -> None:
    empty = {"v": 1, "submission": "sub_x", "batches": [], "conn_id": "anthropic_default"}
    run = run_dag(wait_dag(empty))
    assert run.state == "success"
    assert xcom(run, "wait")["submission"] == "sub_x"
    assert emulator.journal(operation="retrieve") == []


def test_a_mapped_wait_takes_its_own_receipt_each(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def fan_out() -> None:
        submit = ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS).expand(
            requests=[some_requests(1), some_requests(2)]
        )
        ClaudeBatchSensor.partial(task_id="wait").expand(batch=submit.output)

    emulator.clock(freeze=False, speed=3600)
    run = run_dag(fan_out())
    assert set(states(run).values()) == {"success"}
    assert [xcom(run, "wait", map_index=n)["requests"] for n in (0, 1)] == [1, 2]
    assert [xcom(run, "wait", map_index=n)["map_index"] for n in (0, 1)] == [0, 1]


def test_a_cancel_that_fails_is_tried_again_until_all_is_cancelled(emulator: Any, run_dag: Any) -> None:
    emulator.fault("slow_batch", seconds=80_000, times=2)
    slow = xcom(run_dag(submit_dag(requests=some_requests(4), shard_size=2)), "submit")
    emulator.fault("status", status=529, operation="cancel", times=1)
    emulator.clock(speed=60)
    run = run_dag(wait_dag(slow, timeout=1, on_timeout="cancel", poke_interval=5))
    assert run.state == "success"
    assert all(part["counts"]["canceled"] > 0 for part in xcom(run, "wait")["batches"])


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("leniency", ["soft_fail", "never_fail"])
def test_a_lenient_sensor_is_skipped_at_its_deadline(
    deferrable: bool, leniency: str, receipt: dict[str, Any], run_dag: Any
) -> None:
    run = run_dag(wait_dag(receipt, timeout=1, deferrable=deferrable, **{leniency: True}))
    assert states(run) == {"wait": "skipped"}


@pytest.mark.parametrize("batch", ["mistyped", {"v": 2}, 7])
def test_a_sensor_that_never_fails_is_skipped_at_a_mistake_in_its_argument_too(
    batch: Any, emulator: Any, run_dag: Any
) -> None:
    assert states(run_dag(wait_dag(batch, never_fail=True))) == {"wait": "skipped"}
    assert states(run_dag(wait_dag(batch, soft_fail=True))) == {"wait": "failed"}


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize(
    ("connection", "cause"),
    [({"password": ""}, "has no API key: put one"), ({"host": "localhost:1"}, "is no address: write it with http://")],
)
def test_a_connection_that_cannot_work_fails_at_once(
    connection: dict[str, str],
    cause: str,
    deferrable: bool,
    receipt: dict[str, Any],
    emulator: Any,
    run_dag: Any,
    monkeypatch: Any,
    capfd: Any,
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    broken = json.dumps({**CONNECTION, "host": emulator.base_url, **connection})
    monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", broken)
    assert run_dag(wait_dag(receipt, deferrable=deferrable, timeout=10)).state == "failed"
    said = capfd.readouterr().out
    assert cause in said
    assert "DEFERRED" not in said
    assert "Asking again" not in said


def test_the_wait_that_is_left_to_the_triggerer_has_its_deadline(receipt: dict[str, Any], emulator: Any) -> None:
    """However often a triggerer begins it anew, and whether or not it sees the batch."""
    batch = receipt["batches"][0]["id"]
    seen = deferred(batch=[batch, receipt])
    created = datetime.fromisoformat(emulator.clock()["now"])
    assert seen.batch_ids == [batch]
    assert abs(datetime.fromisoformat(seen.deadline) - created - timedelta(hours=25)) < timedelta(minutes=5)
    emulator.fault("status", status=503, operation="retrieve", times=1)
    unseen = deferred(batch=batch)
    assert abs(datetime.fromisoformat(unseen.deadline) - datetime.now(UTC) - timedelta(hours=25)) < timedelta(minutes=5)


def test_a_cancel_that_leads_nowhere_is_said_to_have_failed(
    receipt: dict[str, Any], emulator: Any, run_dag: Any, capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(watch, "GRACE", timedelta(seconds=1))
    emulator.fault("status", status=403, operation="cancel", times=-1)
    arguments = {"timeout": 1, "on_timeout": "cancel", "deferrable": False, "poke_interval": 5}
    assert run_dag(wait_dag(receipt, **arguments)).state == "failed"
    said = capfd.readouterr().out
    assert "What still runs is to be cancelled" in said
    assert "None of these could be cancelled" in said
    assert "The last trouble was: The API refused (403)" in said
    assert "Nothing was cancelled" not in said


def test_a_wait_on_a_worker_counts_its_polls(
    receipt: dict[str, Any], emulator: Any, run_dag: Any, monkeypatch: Any
) -> None:
    counted: list[tuple[str, int]] = []
    monkeypatch.setattr(metrics.Stats, "incr", lambda name, count=1, **_: counted.append((name, count)))
    emulator.fault("status", status=529, operation="retrieve", times=1)
    emulator.advance(3600)
    assert run_dag(wait_dag(receipt, deferrable=False, poke_interval=5)).state == "success"
    polls, errors = [f"claude_batch.{name}" for name in ("polls", "poll_errors")]
    assert [one for one in counted if one[0] in {polls, errors}] == [(polls, 1), (errors, 1), (polls, 1)]


def test_a_soft_fail_does_not_hide_a_mistake(receipt: dict[str, Any], run_dag: Any) -> None:
    assert states(run_dag(wait_dag(receipt, conn_id="nowhere", soft_fail=True))) == {"wait": "failed"}


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("leniency", ["soft_fail", "never_fail"])
def test_a_soft_fail_does_not_hide_a_refusal(
    deferrable: bool, leniency: str, receipt: dict[str, Any], emulator: Any, run_dag: Any, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", timedelta(0))
    emulator.fault("status", status=401, operation="retrieve", times=-1)
    run = run_dag(wait_dag(receipt, deferrable=deferrable, **{leniency: True}))
    assert states(run) == {"wait": "failed" if leniency == "soft_fail" else "skipped"}
    assert "does not accept the key" in capfd.readouterr().out


def test_a_soft_fail_does_not_hide_a_poller_that_died(receipt: dict[str, Any]) -> None:
    sensor = ClaudeBatchSensor(task_id="wait", batch=receipt, soft_fail=True)
    with pytest.raises(TaskDeferralError):
        sensor.resume_execution("__fail__", {"error": "Trigger failure"}, {})
    with pytest.raises(AirflowSkipException):
        sensor.resume_execution("__fail__", {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, {})


def test_airflows_own_timeout_does_not_strike(receipt: dict[str, Any], emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None, default_args={"timeout": 1})
    def one_wait() -> None:
        ClaudeBatchSensor(task_id="wait", batch=receipt, deferrable=False, on_timeout="cancel")

    with emulator.advancing(3, after="cancel"):
        run = run_dag(one_wait())
    assert run.state == "success"
    assert len(emulator.journal(operation="cancel")) == 1


def test_a_wait_on_a_worker_keeps_the_pace_of_the_watch(receipt: dict[str, Any], emulator: Any, run_dag: Any) -> None:
    with emulator.advancing(3, after="retrieve"):
        run = run_dag(wait_dag(receipt, deferrable=False, poke_interval=0.2))
    assert run.state == "success"
    assert len(emulator.journal(operation="retrieve")) == 2


def test_a_mode_of_its_own_is_refused() -> None:
    with pytest.raises(Misconfigured, match="leave mode out"):
        ClaudeBatchSensor(task_id="wait", batch="msgbatch_1", mode="reschedule")


def test_the_connection_that_was_given_is_passed_on(emulator: Any, run_dag: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({**CONNECTION, "host": emulator.base_url}))
    batch_id = xcom(run_dag(submit_dag(requests=some_requests(), conn_id="other")), "submit")["batches"][0]["id"]
    emulator.advance(3600)
    assert xcom(run_dag(wait_dag(batch_id, conn_id="other")), "wait")["conn_id"] == "other"


def test_batches_of_several_connections_are_refused(emulator: Any, run_dag: Any, capfd: Any) -> None:
    receipts = [{"v": 1, "submission": name, "conn_id": name, "batches": [{"id": "msgbatch_1"}]} for name in "ab"]
    assert run_dag(wait_dag(receipts)).state == "failed"
    assert "submitted with several connections: a, b" in capfd.readouterr().out
