"""A queue whatever the order of puts, claims, releases and deaths: of each id, what was put last is never lost."""

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from queues import KINDS, Database, connect_queue, open_queue, params

from airflow_provider_claude_batch.errors import ClaudeBatchError
from airflow_provider_claude_batch.receipt import Receipt

IDS = ("a", "b")
RUNS = ("1", "2", "3")


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """An empty database behind the connection `app_db`."""
    return connect_queue(request.param, tmp_path, monkeypatch)


def place(run_id: str) -> Receipt:
    return Receipt(submission=f"sub_{run_id}", dag_id="d", run_id=run_id, submit_task="submit")


def claim(run_id: str, limit: int | None = None) -> list[tuple[str, int]]:
    """Claim, and return each id with the number of its put."""
    taken = open_queue().drain(limit).claim(place(run_id))
    return [(item["custom_id"], int(item["params"]["messages"][0]["content"])) for item in taken]


def put(custom_id: str, number: int) -> None:
    open_queue().put(custom_id, params(str(number)))


def test_of_two_runs_that_fail_in_the_order_in_which_they_claimed_the_newer_request_waits(database: Database) -> None:
    put("a", 1)
    claim("1")
    put("a", 2)
    claim("2")
    for run_id in ("1", "2"):
        open_queue().drain().give_back(place(run_id))
    assert [item.state for item in open_queue().find("a")] == ["waiting"]
    assert claim("3") == [("a", 2)]


def test_an_older_request_does_not_wait_again_after_a_newer_one_was_sent(database: Database, caplog: Any) -> None:
    put("a", 1)
    put("b", 1)
    claim("1")
    put("a", 2)
    claim("2")
    open_queue().drain().settle(place("2"))
    open_queue().drain().give_back(place("1"))
    assert "only the newer stays in claude_queue: 1 request" in caplog.text
    assert claim("3") == [("b", 1)]


@pytest.mark.parametrize("many", [False, True])
def test_a_put_onto_a_row_that_is_older_than_a_claimed_one_is_the_newest_all_the_same(
    database: Database, many: bool
) -> None:
    for number in (1, 2):
        put("a", number)
        claim(str(number))
    owner = ", ".join(f"{name} = NULL" for name in ("dag_id", "run_id", "task_id", "map_index", "deployment"))
    database.execute(f"UPDATE claude_queue SET claimed_at = NULL, {owner} WHERE run_id = '1'")
    more = [{"custom_id": "b", "params": params("3")}] if many else []
    open_queue().put_all([{"custom_id": "a", "params": params("3")}, *more])
    open_queue().drain().give_back(place("2"))
    assert dict(claim("3")) == {"a": 3, **({"b": 3} if many else {})}
    assert len(open_queue().find("a")) == 1


class Interleaving(RuleBasedStateMachine):
    """Play producers, runs that claim, send, fail and die, and compare with what is known of each put."""

    def __init__(self) -> None:
        super().__init__()
        self.database.execute("DELETE FROM claude_queue")
        self.puts = 0
        self.newest: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.held: dict[str, dict[str, int]] = {}
        self.sent: dict[str, dict[str, int]] = {}

    database: Database

    @rule(custom_id=st.sampled_from(IDS))
    def put(self, custom_id: str) -> None:
        self.puts += 1
        put(custom_id, self.puts)
        self.newest[custom_id] = self.waiting[custom_id] = self.puts

    @rule()
    def put_all(self) -> None:
        self.puts += 1
        open_queue().put_all({"custom_id": name, "params": params(str(self.puts))} for name in IDS)
        self.newest |= dict.fromkeys(IDS, self.puts)
        self.waiting |= dict.fromkeys(IDS, self.puts)

    @rule(run_id=st.sampled_from(RUNS), limit=st.sampled_from([1, None]))
    def claim(self, run_id: str, limit: int | None) -> None:
        taken = dict(claim(run_id, limit))
        if known := self.held.get(run_id) or self.sent.get(run_id):
            assert taken == known
            return
        assert taken.items() <= self.waiting.items()
        assert len(taken) == min(len(self.waiting), limit or len(IDS))
        for custom_id in taken:
            del self.waiting[custom_id]
        if taken:
            self.held[run_id] = taken

    @rule(run_id=st.sampled_from(RUNS))
    def begin_and_die(self, run_id: str) -> None:
        open_queue().drain().begin(place(run_id))

    @rule(run_id=st.sampled_from(RUNS))
    def submit(self, run_id: str) -> None:
        open_queue().drain().settle(place(run_id))
        if held := self.held.pop(run_id, None):
            self.sent[run_id] = held

    @rule(run_id=st.sampled_from(RUNS), by_hand=st.booleans())
    def fail(self, run_id: str, by_hand: bool) -> None:
        held = self.held.pop(run_id, {})
        again = {custom_id: number for custom_id, number in held.items() if number == self.newest[custom_id]}
        if by_hand:
            assert open_queue().release("d", run_id, "submit") == len(again)
        else:
            open_queue().drain().give_back(place(run_id))
        self.waiting |= again

    @invariant()
    def what_was_put_last_is_there(self) -> None:
        rows = self.database.query("SELECT custom_id, params, run_id, submitted_at IS NOT NULL FROM claude_queue")
        found = [(name, number_in(text), run_id, bool(is_sent)) for name, text, run_id, is_sent in rows]
        assert {name: number for name, number, run_id, _ in found if run_id is None} == self.waiting
        assert {(name, number) for name, number, *_ in found} >= self.newest.items()
        for held, is_sent in ((self.held, False), (self.sent, True)):
            kept = {(name, number, run_id) for name, number, run_id, sent in found if run_id and sent is is_sent}
            assert kept == {(name, number, run_id) for run_id, one in held.items() for name, number in one.items()}


def number_in(text: str) -> int:
    return int(msgspec.json.decode(text)["messages"][0]["content"])


def test_whatever_the_order_of_puts_claims_failures_and_deaths_the_newest_put_wins(database: Database) -> None:
    open_queue().waiting()  # which creates the table
    Interleaving.database = database
    examples = 60 if database.is_sqlite else 20
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Interleaving, settings=settings(max_examples=examples, stateful_step_count=15, deadline=None)
    )


def test_what_was_put_last_survives_claims_and_failures_that_run_beside_the_puts(database: Database) -> None:
    errors: list[ClaudeBatchError] = []
    done = threading.Event()

    def drain(run_id: str) -> None:
        try:
            while not done.is_set():
                claim(run_id)
                open_queue().drain().give_back(place(run_id))
        except ClaudeBatchError as error:
            errors.append(error)

    threads = [threading.Thread(target=drain, args=(run_id,)) for run_id in RUNS]
    for thread in threads:
        thread.start()
    for number in range(40):
        put("a", number)
        put("b", number)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(claim("last")) == [("a", 39), ("b", 39)]
