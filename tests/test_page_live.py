"""How batches stand right now: asked for with the connection of the receipt, seldom, and for what is in view."""

import json
from datetime import timedelta
from typing import Any

import pytest
from emulator import CONNECTION, Emulator
from history import HOUR, History, submission
from page_client import NOW, detail, listed, names, write

from airflow_provider_claude_batch.page import live

pytestmark = pytest.mark.filterwarnings("ignore")  # of Airflow's own application
EMULATOR = ("--batch-seconds", "3600")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the API as long as it takes, on a machine that is busy too."""
    monkeypatch.setattr(live, "_PATIENCE", 60.0)


def test_batches_that_run_are_asked_for_live_and_not_too_often(
    viewer: Any, history: History, emulator: Emulator, sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_FRESH", 600.0)
    params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    key = {"x-api-key": CONNECTION["password"]}
    batch = sdk.messages.batches.create(requests=[{"custom_id": "one", "params": params}], extra_headers=key)
    receipts = running(batch.id)
    (run_id,) = write(history, ("nightly", receipts))
    calls = len(emulator.journal())
    assert listed(viewer, live=True)["submissions"][0]["outcomes"] == {"processing": 1}
    for _ in range(3):
        assert listed(viewer, live=True)["live"]["problems"] == []
    assert len(emulator.journal()) == calls + 1
    assert detail(viewer, receipts["submit"].submission, run_id, live=True)["submission"]["state"] == "in_progress"


def running(batch_id: str) -> dict[str, Any]:
    from airflow_provider_claude_batch.receipt import Part, replace

    receipt = submission(1, NOW - HOUR, steps=1, requests=1)["submit"]
    return {"submit": replace(receipt, batches=(Part(batch_id, 1),))}


def test_the_end_is_shown_while_airflow_still_waits(
    viewer: Any, history: History, emulator: Emulator, sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_FRESH", 0.0)
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    key = {"x-api-key": CONNECTION["password"]}
    batch = sdk.messages.batches.create(requests=[{"custom_id": "one", "params": params}], extra_headers=key)
    write(history, ("nightly", running(batch.id)))
    assert listed(viewer, live=True)["submissions"][0]["state"] == "in_progress"
    emulator.advance(3600)
    (only,) = listed(viewer, live=True)["submissions"]
    assert (only["state"], only["outcomes"], only["shards"]) == ("ended", {"succeeded": 1}, {"ended": 1, "total": 1})
    assert names(viewer, state="ended") == [only["id"]]


def test_old_batches_are_asked_for_a_few_at_a_time_and_not_again_when_they_are_gone(
    viewer: Any, history: History, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_claude_batch.receipt import Part, replace

    monkeypatch.setattr(live, "_PAUSE", 0.0)
    monkeypatch.setattr(live, "_FRESH", 0.0)
    old = submission(1, NOW - timedelta(days=3), steps=1)["submit"]
    parts = tuple(Part(f"msgbatch_gone{n:02d}", 1) for n in range(30))
    older = submission(2, NOW - timedelta(days=40), steps=1)["submit"]
    write(history, ("nightly", {"submit": replace(old, batches=parts)}), ("nightly", {"submit": older}))
    asked = []
    for _ in range(3):
        before = len(emulator.journal(operation="retrieve"))
        assert listed(viewer, live=True)["live"]["problems"] == []
        asked.append(len(emulator.journal(operation="retrieve")) - before)
    assert asked == [20, 10, 0]


def test_a_problem_is_told_in_full_where_xcoms_may_be_read_and_gone_when_it_is_solved(
    viewer: Any, history: History, emulator: Emulator, sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    monkeypatch.setattr(live, "_FRESH_ERROR", 0.0)
    nowhere = json.dumps({**CONNECTION, "host": "http://127.0.0.1:1"})
    receipts = running("msgbatch_1")
    (run_id,) = write(history, ("nightly", receipts))
    with monkeypatch.context() as broken:
        broken.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", nowhere)
        (said,) = listed(viewer, live=True)["live"]["problems"]
        assert ("anthropic_default" in said, "127.0.0.1" in said) == (True, False)
        (said,) = detail(viewer, receipts["submit"].submission, run_id, live=True)["live"]["problems"]
        assert "127.0.0.1" in said
    assert listed(viewer, live=True)["live"]["problems"] == []


def test_a_connection_that_cannot_be_asked_is_named_and_nothing_else_fails(
    viewer: Any, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", raising=False)
    write(history, ("nightly", running("msgbatch_1")))
    shown = listed(viewer, live=True)
    assert "anthropic_default" in shown["live"]["problems"][0]
    assert shown["submissions"][0]["state"] == "in_progress"
