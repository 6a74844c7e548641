"""What batches had answered before another submission replaced theirs: paid, and in the receipt of the new one."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from tries import Task, cancelled, some_requests

from airflow_provider_claude_batch import abandoned
from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.entry import Entry
from airflow_provider_claude_batch.fate import Pause
from airflow_provider_claude_batch.page.listing import Filter, Listing
from airflow_provider_claude_batch.price import PRICES, PriceList
from airflow_provider_claude_batch.receipt import Abandoned, Receipt, read, replace
from airflow_provider_claude_batch.result import decode
from airflow_provider_claude_batch.spending import told
from airflow_provider_claude_batch.submission import gather

EMULATOR = ("--batch-seconds", "100")
pytestmark = pytest.mark.usefixtures("stopped_clock")
DAY = 86_400


@pytest.fixture
def task(client: Client, emulator: Any) -> Task:
    return Task(client, emulator)


@pytest.fixture
def replaced(task: Task, emulator: Any) -> tuple[str, Receipt]:
    """A batch that was cancelled when six of its ten requests had an answer, and the submission that replaced it."""
    old = task.run(some_requests(10, "v1"))
    emulator.advance(60)
    task.clears += 1
    new = task.run(some_requests(10, "v2"))
    assert cancelled(emulator) == list(old.batch_ids)
    return old.batch_ids[0], new


def bill(client: Client, batch_id: str) -> float:
    """Price a batch line by line."""
    messages = [line.result.message for raw in client.results(batch_id) if (line := decode(raw))]
    costs = [PRICES.cost(one.model, one.usage, client.now().date()) for one in messages if one]
    return float(sum(cost.cost_usd for cost in costs if cost))


def test_the_new_receipt_names_what_it_replaced_and_the_load_learns_what_that_cost(
    replaced: tuple[str, Receipt], client: Client, emulator: Any
) -> None:
    old_id, new = replaced
    assert new.abandoned == (Abandoned(old_id, 10),)
    assert told(new).endswith("plus an unknown amount for 1 abandoned batch")
    emulator.advance(300)
    (one,) = abandoned.priced(new, client, PRICES).abandoned or ()
    assert one.counts is not None
    assert (one.counts.succeeded, one.counts.canceled) == (6, 4)
    assert one.cost_usd == pytest.approx(bill(client, old_id), abs=1e-6)
    assert one.cost_usd > 0
    priced = abandoned.priced(new, client, PRICES)
    assert read(json.loads(json.dumps(priced.to_dict()))) == [priced]


def test_while_it_has_not_ended_nobody_knows_what_it_cost(
    replaced: tuple[str, Receipt], client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    old_id, new = replaced
    with caplog.at_level(logging.WARNING):
        assert abandoned.priced(new, client, PRICES) == new
    assert f"Abandoned batch {old_id} has not ended yet" in caplog.text


@pytest.mark.parametrize("fault", [{"fault": "not_found", "operation": "retrieve"}, {"fault": "not_found"}])
def test_what_cannot_be_read_is_unknown_and_stops_no_load(
    fault: dict[str, Any], replaced: tuple[str, Receipt], client: Client, emulator: Any, caplog: Any
) -> None:
    emulator.advance(300)
    emulator.faults({"operation": "results", "times": -1, **fault})
    assert abandoned.priced(replaced[1], client, PRICES) == replaced[1]
    assert f"The cost of abandoned batch {replaced[0]} is not known." in caplog.text


def test_answers_of_a_model_without_a_price_are_counted(
    replaced: tuple[str, Receipt], client: Client, emulator: Any
) -> None:
    emulator.advance(300)
    (one,) = abandoned.priced(replaced[1], client, PriceList(())).abandoned or ()
    assert (one.cost_usd, one.unpriced) == (None, 6)


def test_a_batch_without_an_answer_cost_nothing_and_its_results_are_not_read(
    task: Task, client: Client, emulator: Any
) -> None:
    task.run(some_requests(10, "v1"))
    task.clears += 1
    new = task.run(some_requests(10, "v2"))
    emulator.advance(300)
    (one,) = abandoned.priced(new, client, PRICES).abandoned or ()
    assert one.cost_usd == 0.0
    assert emulator.journal(operation="results") == []


def test_one_that_replaces_the_replacement_names_both(replaced: tuple[str, Receipt], task: Task, emulator: Any) -> None:
    task.clears += 1
    newest = task.run(some_requests(10, "v3"))
    assert newest.abandoned == (Abandoned(replaced[0], 10), Abandoned(replaced[1].batch_ids[0], 10))


def test_a_batch_whose_answer_never_came_is_named_without_an_id(task: Task, client: Client, emulator: Any) -> None:
    emulator.fault("drop_after_accept", operation="create")
    assert isinstance(task.run(some_requests(10, "v1")), Pause)
    task.clears += 1
    new = task.run(some_requests(10, "v2"))
    assert new.abandoned == (Abandoned(None, 10),)
    assert abandoned.priced(new, client, PRICES) == new


def test_a_task_that_is_cleared_with_the_same_requests_replaces_nothing(task: Task) -> None:
    task.run(some_requests(10))
    task.clears += 1
    assert task.run(some_requests(10)).abandoned is None


def test_the_page_shows_what_was_paid_beside_the_answers(replaced: tuple[str, Receipt]) -> None:
    old_id, new = replaced
    lost = Abandoned(None, 3)
    new = replace(new, abandoned=(Abandoned(old_id, 10), lost))
    priced = replace(new, rows=10, preflight_unpriced=2, abandoned=(Abandoned(old_id, 10, cost_usd=0.5), lost))
    now = datetime.now(UTC)

    def shown(*receipts: Receipt) -> dict[str, Any]:
        entries = [Entry(one, "d", "r", f"task_{at}", -1, now) for at, one in enumerate(receipts)]
        (only,) = Listing(gather(entries), Filter(), {}, now).page(0, 1)["submissions"]
        return only

    assert shown(new)["abandoned"] == {"batches": 2, "usd": None, "unpriced": 2}
    assert shown(new, priced)["abandoned"] == {"batches": 2, "usd": 0.5, "unpriced": 1}
    assert shown(priced)["preflight_unpriced"] == 2
