"""What is found out, and warmed up, before all of it is paid: preflight, a primed cache, the estimate."""

from typing import Any

import pytest
import tries
from tries import DEFAULTS, Task, paid, some_requests

from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.columns import Columns
from airflow_provider_claude_batch.errors import ApiRefused, ApiUnavailable, PreflightFailed, QueueFull
from airflow_provider_claude_batch.price import PriceList, dollars
from airflow_provider_claude_batch.row import Unfit
from airflow_provider_claude_batch.spending import told

REFUSED = {"status": 403, "type": "permission_error", "operation": "create"}


@pytest.fixture
def task_instance(client: Client, emulator: Any) -> Task:
    return Task(client, emulator)


def test_a_preflight_is_answered_live_once_and_then_all_of_it_is_submitted(task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", **REFUSED)
    for _ in range(2):
        try:
            receipt = task_instance.run(some_requests(5), preflight=2)
        except ApiRefused:
            continue
    assert len(emulator.journal(operation="messages")) == 2
    assert paid(emulator) == [5]
    assert receipt.preflight_usd > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_tokens": 1}, r"'r-0' was truncated \(max_tokens\); 'r-1' was truncated"),
        ({"max_tokens": 10**9}, "'r-0': The API refused"),
    ],
)
def test_a_preflight_stops_on_a_bad_prompt(
    change: dict[str, Any], sentence: str, task_instance: Task, emulator: Any
) -> None:
    with pytest.raises(PreflightFailed, match=sentence):
        task_instance.run(some_requests(5), preflight=2, defaults={**DEFAULTS, **change})
    assert emulator.journal(operation="create") == []


def test_what_failed_preflights_cost_is_in_their_receipts_and_in_the_next(task_instance: Task, emulator: Any) -> None:
    short, enough = {**DEFAULTS, "max_tokens": 1}, {**DEFAULTS, "max_tokens": 512}
    alone = Task(task_instance.client, emulator, "alone").run(some_requests(5, "v3"), preflight=3, defaults=enough)
    for text in ("v1", "v2"):
        with pytest.raises(PreflightFailed):
            task_instance.run(some_requests(5, text), preflight=3, defaults=short)
        task_instance.clears += 1
    failed = [one.preflight_usd for one in task_instance.published]
    assert failed == [pytest.approx(failed[0]), pytest.approx(2 * failed[0])]
    receipt = task_instance.run(some_requests(5, "v3"), preflight=3, defaults=enough)
    assert receipt.preflight_usd == pytest.approx(failed[1] + alone.preflight_usd)
    assert receipt.preflight_unpriced is None
    assert receipt.batches


def test_a_live_request_whose_answer_never_came_has_an_unknown_price(task_instance: Task, emulator: Any) -> None:
    emulator.fault("drop_before", operation="messages")
    with pytest.raises(ApiUnavailable):
        task_instance.run(some_requests(5), preflight=1)
    (lost,) = task_instance.published
    assert (lost.preflight_usd, lost.preflight_unpriced) == (None, 1)
    receipt = task_instance.run(some_requests(5), preflight=1)
    assert receipt.preflight_usd > 0
    assert receipt.preflight_unpriced == 1
    assert told(receipt).endswith(f"plus at least {dollars(receipt.preflight_usd)} for live preflight")


def test_a_worker_that_dies_in_a_preflight_leaves_a_note_of_what_it_asked(
    task_instance: Task, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(client, "message", die)
        with pytest.raises(Killed):
            task_instance.run(some_requests(5), preflight=1)
    assert task_instance.run(some_requests(5), preflight=1).preflight_unpriced == 1


@pytest.mark.parametrize("status", [403, 429])
def test_a_live_request_that_was_refused_costs_nothing(status: int, task_instance: Task, emulator: Any) -> None:
    emulator.fault("status", status=status, operation="messages")
    with pytest.raises((PreflightFailed, QueueFull)):
        task_instance.run(some_requests(5), preflight=1)
    assert task_instance.published == []


def test_live_answers_of_a_model_without_a_price_are_said_to_have_none(
    task_instance: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "PRICES", PriceList(()))
    receipt = task_instance.run(some_requests(5), preflight=2)
    assert (receipt.preflight_usd, receipt.preflight_unpriced) == (None, 2)
    assert told(receipt) == "not known; plus an unknown amount for live preflight"


def test_a_preflight_stops_on_answers_that_do_not_fit(task_instance: Task, emulator: Any) -> None:
    def refuse(_: str) -> tuple[Any, ...]:
        raise Unfit("label: Field required")

    reader = Columns({}, (), refuse)
    sentence = r"'r-0' was invalid_output \(label: Field required\); 'r-1' was invalid_output"
    with pytest.raises(PreflightFailed, match=sentence):
        task_instance.run(some_requests(5), preflight=2, reader=reader)
    assert emulator.journal(operation="create") == []


SYSTEM = "A style guide that all requests share. " * 500


def test_a_primed_cache_is_written_by_the_first_request_and_read_by_the_others(
    task_instance: Task, emulator: Any, client: Client
) -> None:
    import json

    defaults = {**DEFAULTS, "system": SYSTEM}
    receipt, pauses = task_instance.finish(some_requests(5), prime_cache=True, defaults=defaults)
    assert receipt is not None
    assert paid(emulator) == [1, 4]
    assert [pause.batch_ids for pause in pauses] == [receipt.batch_ids[:1]]
    emulator.advance(600)
    usages = [
        json.loads(line)["result"]["message"]["usage"]
        for batch_id in receipt.batch_ids
        for line in client.results(batch_id)
    ]
    assert [usage["cache_creation"]["ephemeral_1h_input_tokens"] > 0 for usage in usages] == [True] + [False] * 4
    assert [usage["cache_read_input_tokens"] > 0 for usage in usages] == [False] + [True] * 4


def test_a_refused_prime_holds_the_others_back(task_instance: Task, emulator: Any) -> None:
    emulator.fault("row", outcome="invalid_request_error", match="r-0")
    with pytest.raises(PreflightFailed, match="the one that primes the cache: invalid_request_error"):
        task_instance.finish(some_requests(5), prime_cache=True, defaults={**DEFAULTS, "system": SYSTEM})
    assert paid(emulator) == [1]


def test_a_prime_whose_answer_was_lost_is_still_the_first(task_instance: Task, emulator: Any) -> None:
    emulator.fault("drop_before", operation="create")
    defaults = {**DEFAULTS, "system": SYSTEM}
    receipt, _ = task_instance.finish(some_requests(5), prime_cache=True, defaults=defaults)
    assert receipt is not None
    assert paid(emulator) == [1, 4]


def test_an_estimate_knows_where_answers_are_made_and_how_long_prompts_are(task_instance: Task, emulator: Any) -> None:
    def estimate(**defaults: Any) -> float:
        task = Task(task_instance.client, emulator, f"submit_{len(emulator.journal(operation='create'))}")
        return task.run(some_requests(20), defaults={**DEFAULTS, "model": "claude-haiku-5-5", **defaults}).estimate_usd

    plain = estimate()
    assert estimate(inference_geo="us") == pytest.approx(plain * 1.1, rel=1e-3)
    assert estimate(system="x " * 300_000) == pytest.approx(0.25 * 3 + plain, rel=0.05)  # 3M tokens at $0.50, halved
