"""What is found out, and warmed up, before all of it is paid: preflight, a primed cache, the estimate."""

from typing import Any

import pytest
from tries import DEFAULTS, Task, paid, some_requests

from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.columns import Columns
from airflow_provider_claude_batch.errors import (
    ApiRefused,
    PreflightFailed,
)
from airflow_provider_claude_batch.row import Unfit

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
