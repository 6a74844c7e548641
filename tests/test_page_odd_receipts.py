"""Receipts of any shape: the page answers each request, shows those that are sound, and names those that are not."""

import json
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from history import HOUR, History, submission
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from page_client import NOW, PAGE, client, detail, listed, write

pytestmark = pytest.mark.filterwarnings("ignore")  # of Airflow's own application

GOOD = submission(2, NOW - 2 * HOUR)
BIG = 10**400
ODD = [
    ({"usage": {"input_tokens": 1 - BIG, "cache_read_tokens": BIG}}, "usage.input_tokens is not between 0 and"),
    ({"requests": 10**14}, "requests is not between 0 and 10,000,000,000,000"),
    ({"batches": [{"id": "msgbatch_a", "requests": 10**10}]}, "batches.requests is not between 0 and 1,000,000,000"),
    ({"batches": [{"id": "msgbatch_a", "counts": {"errored": -1}}]}, "batches.counts.errored is not between"),
    ({"map_index": -2}, "map_index is not between -1 and"),
    ({"attempt": 0}, "attempt is not between 1 and"),
    ({"cost_usd": 1e300}, "cost_usd is not between 0 and 1,000,000,000,000"),
    ({"cache_hit_rate": -1e308}, "cache_hit_rate is not between 0 and 1"),
    ({"by_model": {"m": {"rows": BIG}}}, "by_model.rows is not between"),
    ({"errors": [["why", -5]]}, "errors is not between"),
    ({"retryable_by": {"errored": -1}}, "retryable_by is not between"),
    ({"models": ["x" * 10_001]}, "models is longer than 10,000 characters"),
    ({"batches": [{"id": f"b{n}"} for n in range(10_001)]}, "batches has more than 10,000 entries"),
    ({"models": ["m"] * 10_001}, "models has more than 10,000 entries"),
    ({"submitted_at": "9999-12-31T23:59:59Z"}, "submitted_at has no time zone, or is not between the years"),
    ({"logical_date": "2026-11-20T00:00:00"}, "logical_date has no time zone"),
    ({"submission": "sub/../1"}, "submission, or the id of a batch, holds more than"),
    ({"counts": {"succeeded": "one"}}, "it cannot be read: Expected `int`, got `str` - at `$.counts[...]`"),
    ({"v": 99}, "it is not a receipt of version 1"),
    ({"submitted_at": "2900-01-01T00:00:00Z"}, "it was pushed more than a day before"),
]


@pytest.mark.parametrize(("fields", "why"), ODD, ids=[next(iter(fields)) for fields, _ in ODD])
def test_an_odd_receipt_is_left_out_and_named(viewer: Any, history: History, fields: Any, why: str) -> None:
    load = submission(1, NOW - 5 * HOUR)["load"].to_dict()
    run_id, _ = write(history, ("nightly", {"load": {**load, **fields}}), ("secret", GOOD))
    shown = listed(viewer)
    assert [one["id"] for one in shown["submissions"]] == [GOOD["submit"].submission]
    assert shown["left_out"]["total"] == 1
    (left_out,) = shown["left_out"]["receipts"]
    assert {name: left_out[name] for name in ("dag_id", "run_id", "task_id", "map_index")} == {
        "dag_id": "nightly",
        "run_id": run_id,
        "task_id": "load",
        "map_index": -1,
    }
    assert left_out["why"].startswith(why)
    assert viewer.get(f"{PAGE}/charts").json()["totals"]["submissions"] == 1


def test_one_odd_receipt_of_many_in_an_xcom_does_not_take_the_others_along(viewer: Any, history: History) -> None:
    odd = {**submission(1, NOW - 5 * HOUR)["submit"].to_dict(), "requests": -1}
    write(history, ("nightly", {"submit": [GOOD["submit"].to_dict(), odd, "text"]}))
    shown = listed(viewer)
    assert [one["id"] for one in shown["submissions"]] == [GOOD["submit"].submission]
    assert shown["left_out"]["total"] == 2


def test_odd_receipts_are_named_to_those_who_may_read_their_dag_and_in_the_run_that_is_shown(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "limited_auth.LimitedAuthManager")
    history.add_dags("public_one")
    odd = {**GOOD["load"].to_dict(), "rows": -1}
    run_id, _ = write(history, ("public_one", {**GOOD, "other": odd}), ("secret", {"load": odd}))
    with client("guest", "VIEWER") as guest:
        assert [one["dag_id"] for one in listed(guest)["left_out"]["receipts"]] == ["public_one"]
        assert listed(guest, dag_id="public_one", run_id="another")["left_out"]["total"] == 0
        shown = detail(guest, GOOD["submit"].submission, run_id, "public_one")
        assert [one["task_id"] for one in shown["left_out"]["receipts"]] == ["other"]


def test_of_very_many_odd_receipts_the_newest_are_named_and_all_are_counted(viewer: Any, history: History) -> None:
    write(history, *(("nightly", {"load": {"v": 1, "submission": 5}}) for _ in range(25)))
    left_out = listed(viewer)["left_out"]
    assert (left_out["total"], len(left_out["receipts"])) == (25, 10)


# Whatever stands in a receipt

figures = st.one_of(
    st.integers(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([BIG, -BIG, 1 - BIG, 10**13, 10**12, 10**9, 2**63, 2**64, -1, 0]),
    st.floats(),
)
texts = st.text(max_size=6) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "x" * 20_000,
        "../..",
        "{",
        "1e400",
        "NaN",
        "0001-01-01T00:00:00Z",
        "2000-01-01T00:00:00+23:59",
        "2026-01-01T00:00:00",
        "2999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-23:59",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | figures | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
nested = st.integers(1, 500).map(lambda depth: json.loads("[" * depth + "]" * depth))
refigured = st.lists(figures, min_size=1, max_size=5).map(tuple)  # a tuple stands for all figures below
USAGE = sorted(submission(1, NOW)["load"].to_dict()).index("usage")
mutations = st.lists(
    st.tuples(
        st.sampled_from(["submit", "wait", "load"]),
        st.lists(st.integers(0, 60), min_size=1, max_size=4),
        values | nested | st.just("delete") | st.just("double") | refigured,
    ),
    min_size=1,
    max_size=4,
)


def mutate(value: Any, path: list[int], new: Any) -> None:
    """Go down by counting, and replace, delete or double what is there."""
    where, *further = path
    keys = sorted(value) if isinstance(value, dict) else range(len(value))
    key: Any = keys[where % len(keys)]
    if further and isinstance(value[key], dict | list) and value[key]:
        return mutate(value[key], further, new)
    if isinstance(new, tuple):
        value[key] = with_figures(value[key], cycle(new))
    elif new == "delete":
        del value[key]
    elif new == "double" and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = new
    return None


def with_figures(value: Any, figures: Iterator[Any]) -> Any:
    if isinstance(value, dict):
        return {name: with_figures(inner, figures) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_figures(inner, figures) for inner in value]
    return value if isinstance(value, str | None) else next(figures)


def mutated(changes: list[tuple[str, list[int], Any]]) -> dict[str, Any]:
    receipts = {step: receipt.to_dict() for step, receipt in submission(1, NOW - 5 * HOUR).items()}
    for step, path, new in changes:
        mutate(receipts[step], path, new)
    return receipts


@pytest.fixture
def everybody(history: History, emulator: Any) -> Iterator[Any]:
    """Somebody who may read all Dags, for all the examples of a test."""
    with client("viewer", "VIEWER") as http:
        yield http


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=mutations)
@example(changes=[("load", [USAGE], (1 - BIG, 0, 0, 0, BIG))])
@example(changes=[(step, [n], (BIG,)) for step in ("submit", "wait", "load") for n in range(40)])
def test_no_request_fails_whatever_stands_in_a_receipt(everybody: Any, history: History, changes: Any) -> None:
    odd = mutated(changes)
    odd_run, good_run = write(history, ("nightly", odd), ("secret", GOOD))
    try:
        shown = listed(everybody, live=True)
        assert is_bounded(shown)
        assert GOOD["submit"].submission in [one["id"] for one in shown["submissions"]]
        places = [(one["id"], one["dag_id"], one["run_id"]) for one in shown["submissions"]]
        left_out = [one for one in shown["left_out"]["receipts"] if one["run_id"] == odd_run]
        assert len(left_out) + len([one for one in places if one[2] == odd_run]) > 0
        for query in ({}, {"since": "2000-01-01", "until": "2999-12-31"}, {"dag_id": "nightly", "run_id": odd_run}):
            charts = everybody.get(f"{PAGE}/charts", params=query)
            assert charts.status_code == 200
            assert is_bounded(charts.json())
        for name, dag_id, run_id in places:
            one = detail(everybody, name, run_id, dag_id, live=True)
            assert one["submission"]["id"] == name
            assert is_bounded(one)
            place = {"dag_id": dag_id, "run_id": run_id}
            assert everybody.get(f"{PAGE}/submissions/{name}/rows", params=place).status_code == 200
        assert detail(everybody, GOOD["submit"].submission, good_run, "secret")["submission"]["state"] == "loaded"
    finally:
        forget(odd_run, good_run)


def is_bounded(value: Any) -> bool:
    """Say whether every figure fits into 64 bits: nothing adds up to more."""
    if isinstance(value, dict | list):
        return all(map(is_bounded, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or abs(value) < 2**63


def forget(*run_ids: str) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        session.query(DagRun).filter(DagRun.run_id.in_(run_ids)).delete()
