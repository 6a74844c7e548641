"""Receipts in Airflow's database, and elsewhere: what is new, odd, replaced or gone."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from history import HOUR, History, fill, replace_receipt, submission
from page_client import NOW, PAGE, Counted, client, detail, listed, names, write

from airflow_provider_claude_batch.batch import Counts
from airflow_provider_claude_batch.page import archive, elsewhere
from airflow_provider_claude_batch.receipt import Part, replace

pytestmark = pytest.mark.filterwarnings("ignore")  # of Airflow's own application


def test_what_comes_and_goes_in_airflow_comes_and_goes_on_the_page(viewer: Any, history: History) -> None:
    receipts = submission(1, NOW - 2 * HOUR)
    (run_id,) = write(history, ("nightly", {"submit": receipts["submit"]}))
    assert listed(viewer)["submissions"][0]["state"] == "in_progress"
    write(history, ("secret", submission(2, NOW - HOUR)))
    assert len(names(viewer)) == 2
    forget(run_id)
    assert names(viewer) == [submission(2, NOW - HOUR)["submit"].submission]


def forget(run_id: str) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        session.query(DagRun).filter(DagRun.run_id == run_id).delete()


def test_a_receipt_that_was_replaced_is_seen_even_where_clocks_differ(
    viewer: Any, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_LOOK_AGAIN", 1e-9)
    receipts = submission(1, NOW - 2 * HOUR)
    (run_id,) = write(history, ("nightly", {"submit": receipts["submit"]}))
    write(history, ("secret", submission(2, NOW - HOUR)))
    assert listed(viewer, dag_id="nightly")["submissions"][0]["state"] == "in_progress"
    replace_receipt(run_id, "submit", receipts["load"], NOW - 4 * HOUR)
    assert listed(viewer, dag_id="nightly")["submissions"][0]["state"] == "loaded"


def test_the_number_of_queries_does_not_grow(viewer: Any, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_LOOK_AGAIN", 1e9)  # a minute that ends meanwhile would be one look more
    asked = []
    for count in (20, 400):
        list(fill(count))
        listed(viewer)
        with Counted() as counted:
            for path in ("submissions", "submissions?offset=15&state=loaded", "charts"):
                assert viewer.get(f"{PAGE}/{path}").status_code == 200
                asked.append(counted.take())
    assert asked[:3] == asked[3:]
    assert max(asked) <= 4


ODD = [{"v": 2, "submission": "x"}, {"v": 1}, [1, 2], "text", 7, None, {"v": 1, "submission": 5}, "{", "[[["]


TIMELESS = [
    {"v": 1, "submission": "sub_1", "submitted_at": "2026-11-20T00:00:00"},
    {"v": 1, "submission": "sub_1", "submitted_at": "9999-12-31T23:59:59Z"},
    {"v": 1, "submission": "sub_1", "batches": [{"id": "b", "created_at": "0001-01-01T00:00:00Z"}]},
    {"v": 1, "submission": "sub_1", "submitted_at": "2900-01-01T00:00:00Z"},
]


HARMFUL = [
    {"v": 1, "submission": "sub/../1"},
    {"v": 1, "submission": "sub_1", "batches": [{"id": "../../v1/models/x"}]},
    {"v": 1, "submission": "sub_1", "batches": [{"id": "msgbatch_\n"}]},
    {"v": 1, "submission": "sub_1", "attempt": 0},
    {"v": 1, "submission": "sub_1", "rows": 1, "cost_usd": -50.0},
    {"v": 1, "submission": "sub_1", "rows": 1, "counts": {"succeeded": -1}},
    {"v": 1, "submission": "sub_1", "batches": [{"id": f"b{n}"} for n in range(10_001)]},
    {"v": 1, "submission": "sub_1", "conn_id": "x" * 5_000_000},
]


@pytest.mark.parametrize("value", [*ODD, *TIMELESS, *HARMFUL], ids=lambda value: str(value)[:60])
def test_what_others_push_under_our_key_is_passed_over(viewer: Any, history: History, value: Any) -> None:
    good = submission(1, NOW - 2 * HOUR)
    write(history, ("nightly", good), ("nightly", {"other": value}))
    assert names(viewer) == [good["submit"].submission]
    assert viewer.get(f"{PAGE}/charts").json()["totals"]["submissions"] == 1


def test_a_submission_of_as_many_batches_as_are_taken_is_read_whole(viewer: Any, history: History) -> None:
    at = NOW - 30 * HOUR
    receipts = submission(1, at)
    parts = [
        Part(f"msgbatch_01{n:022d}", 15, 54_321, "abcdefghijk", Counts(succeeded=15), at, at, at, 15 * n, "0" * 12)
        for n in range(10_000)
    ]
    write(history, ("nightly", {step: replace(one, batches=tuple(parts)) for step, one in receipts.items()}))
    (found,) = listed(viewer)["submissions"]
    assert (found["state"], found["cost_usd"]) == ("loaded", receipts["load"].cost_usd)


@pytest.mark.parametrize("threshold", ["0", "300"])
def test_receipts_that_a_backend_keeps_elsewhere_are_read_there(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: str
) -> None:
    from airflow.providers.common.io.xcom import backend
    from airflow.sdk.execution_time import xcom

    monkeypatch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH", f"file://{tmp_path}")
    monkeypatch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD", threshold)
    monkeypatch.setattr(xcom, "XCom", backend.XComObjectStorageBackend)
    monkeypatch.setattr(archive, "_PATIENCE", 60.0)
    monkeypatch.setattr(elsewhere, "_PATIENCE", 60.0)
    for cached in (backend._get_base_path, backend._get_compression, backend._get_threshold):
        cached.cache_clear()
    receipts = submission(1, NOW - 5 * HOUR)
    stored = {step: kept_elsewhere(backend, step, receipt) for step, receipt in receipts.items()}
    assert all(isinstance(value, str) for value in stored.values())
    (run_id,) = write(history, ("nightly", stored))
    with client("viewer", "VIEWER") as viewer:
        assert listed(viewer)["submissions"][0]["state"] == "loaded"
        assert detail(viewer, receipts["submit"].submission, run_id)["submission"]["rounds"][0]["errors"] != []
        for path in tmp_path.rglob("*.json"):
            path.unlink()
        assert listed(viewer)["total"] == 1
        write(history, ("nightly", {"submit": "s3://nowhere/at/all.json"}))
        assert listed(viewer)["total"] == 1


def test_a_store_that_hangs_holds_up_nobody_and_one_that_comes_back_is_read(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.execution_time import xcom

    monkeypatch.setattr(elsewhere, "_PATIENCE", 0.1)
    monkeypatch.setattr(elsewhere, "_LATER", 0.0)
    receipts, store = submission(1, NOW - 5 * HOUR), Store()
    monkeypatch.setattr(xcom, "XCom", store)
    here = submission(2, NOW - HOUR)
    write(history, ("nightly", {"submit": "s3://bucket/one.json"}), ("nightly", here))
    with client("viewer", "VIEWER") as viewer:
        for _ in range(3):
            shown = listed(viewer)
            assert (shown["total"], shown["capped"]) == (1, True)
        store.opened.set()
        store.holds = OSError("down")
        listed(viewer)
        store.holds = receipts["submit"].to_dict()
        wait_for(lambda: listed(viewer)["total"] == 2)
        assert listed(viewer)["capped"] is False


@pytest.mark.parametrize("hangs", [False, True])
def test_a_store_that_fails_or_hangs_later_takes_no_submission_off_the_page(
    history: History, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    from airflow.sdk.execution_time import xcom

    receipts, store = submission(1, NOW - 5 * HOUR), Store()
    store.opened.set()
    monkeypatch.setattr(xcom, "XCom", store)
    monkeypatch.setattr(archive, "_PATIENCE", 0.1)
    store.holds = [receipt.to_dict() for receipt in receipts.values()]
    (run_id,) = write(history, ("nightly", {"submit": "s3://bucket/one.json", "other": receipts["load"]}))
    name, place = receipts["submit"].submission, {"dag_id": "nightly", "run_id": run_id}
    with client("viewer", "VIEWER") as viewer:
        wait_for(lambda: listed(viewer)["capped"] is False)
        whole = detail_when_read(viewer, name, run_id)
        assert whole["submission"]["rounds"][0]["errors"] != []
        store.holds = OSError("down")
        if hangs:
            store.opened.clear()
        shown = detail(viewer, name, run_id)
        (problem,) = shown["problems"]
        assert problem.startswith("1 receipt of this submission cannot be read now, because the XCom store gives no")
        assert (shown["submission"]["state"], shown["submission"]["cost_usd"]) == ("loaded", receipts["load"].cost_usd)
        assert viewer.get(f"{PAGE}/submissions/{name}/rows", params=place).status_code == 200
        assert listed(viewer)["total"] == 1
        store.holds = [receipt.to_dict() for receipt in receipts.values()]
        store.opened.set()
        assert detail_when_read(viewer, name, run_id) == whole


def detail_when_read(viewer: Any, name: str, run_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = {}

    def is_whole() -> bool:
        shown.update(detail(viewer, name, run_id))
        return shown["problems"] == []

    wait_for(is_whole)
    return shown


def test_a_store_that_hangs_is_waited_for_once_and_not_by_each_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time import xcom

    store, waited = Store(), elsewhere.Elsewhere()
    monkeypatch.setattr(xcom, "XCom", store)
    reference = "s3://bucket/one.json"
    for _ in range(50):
        assert waited.read([reference], 0.1) == {}
    assert store.asked == 1
    store.opened.set()
    store.holds = submission(1, NOW)["submit"].to_dict()
    wait_for(lambda: waited.read([reference], 60.0) != {})
    assert waited.take(reference) is None


class Store:
    """An XCom backend that hangs until it is opened."""

    def __init__(self) -> None:
        self.opened = Event()
        self.holds: Any = OSError("down")
        self.asked = 0

    def deserialize_value(self, result: Any) -> Any:
        assert result.value == "s3://bucket/one.json"
        self.asked += 1
        self.opened.wait(60)
        if isinstance(self.holds, Exception):
            raise self.holds
        return self.holds


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline


def kept_elsewhere(backend: Any, step: str, receipt: Any) -> Any:
    place = {"key": "claude_batch", "task_id": step, "dag_id": "nightly", "run_id": "r", "map_index": -1}
    stored = backend.XComObjectStorageBackend.serialize_value(receipt.to_dict(), **place)
    return json.loads(stored) if stored.startswith('"') else stored
