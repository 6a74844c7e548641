"""Whatever is given as requests: a submission, or one clear error of ours, and then nothing was sent."""

import datetime as dt
import decimal
from tempfile import TemporaryFile
from typing import Any

import msgspec
import pytest
from asked import PARAMS, raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tries import DEFAULTS, Task, paid

from airflow_provider_claude_batch.client import Client
from airflow_provider_claude_batch.errors import ClaudeBatchError, InvalidRequests, Misconfigured
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.request import Defaults, Reading
from airflow_provider_claude_batch.shard import cut
from airflow_provider_claude_batch.source import open_source

odd_values = st.sampled_from(
    [
        float("nan"),
        float("inf"),
        2**70,
        -(2**200),
        "\ud83d",
        "\x00",
        b"bytes",
        bytearray(b"x"),
        {1, 2},
        object(),
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        decimal.Decimal("1.5"),
        lambda: None,
        {1: "a"},
        {None: "b"},
        {("a",): "c"},
        (1, 2),
        range(3),
        1e308,
        -0.0,
        True,
        "",
        "x" * 100_000,
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | odd_values
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=8,
)
near_params = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just("claude-haiku-4-5") | anything,
        "max_tokens": st.just(8) | anything,
        "messages": st.just(PARAMS["messages"]) | anything,
        "system": anything,
        "stream": anything,
        "betas": anything,
        "cache_control": anything,
        "tools": anything,
        "metadata": anything,
    },
)
near_requests = st.fixed_dictionaries(
    {}, optional={"custom_id": st.text(max_size=70) | anything, "params": near_params | anything, "extra": anything}
)
good = st.builds(raw, st.text("abcdef0123456789", min_size=1, max_size=20))
lines = st.binary(max_size=60) | good.map(msgspec.json.encode) | good.map(lambda one: msgspec.json.encode(one)[:-3])
items = near_requests | anything | lines | good
many = settings(
    max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@many
@given(st.lists(items, max_size=6), st.sampled_from(["fail", "skip"]), near_params)
def test_reading_and_cutting_end_in_shards_or_in_one_error_of_ours(
    given_items: list[Any], on_invalid: Any, defaults: dict[str, Any]
) -> None:
    with TemporaryFile() as spool:
        try:
            reading = Reading(given_items, Defaults.of(defaults), on_invalid=on_invalid)
            shards = cut(reading, spool)
        except (InvalidRequests, Misconfigured):
            return
        body = b"".join(piece for shard in shards for piece in shard.body("markabc"))
        sent = msgspec.json.decode(body)["requests"] if body else []
        assert len(sent) + reading.total_invalid == len(given_items)
        msgspec.json.encode(reading.invalid)


@pytest.fixture(scope="module")
def module_client(process: Any) -> Any:
    from anthropic import Anthropic

    with Client(Anthropic(api_key="emulator-key", base_url=process.base_url, max_retries=0), "anthropic_default") as it:
        yield it


@settings(parent=many, max_examples=300)
@given(requests=anything | st.lists(items, max_size=6) | st.lists(good, min_size=1, max_size=5))
def test_a_submission_ends_in_a_receipt_or_in_one_error_of_ours(
    requests: Any, process: Any, module_client: Client
) -> None:
    process.reset()
    task = Task(module_client, process)
    try:
        result = task.run(open_source(requests), defaults=DEFAULTS)
    except ClaudeBatchError:
        assert paid(process) == []
        return
    assert paid(process) == ([result.requests] if isinstance(result, Receipt) else [])
