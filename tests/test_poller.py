"""One poller for all triggers of a loop and a connection: real triggers, a real client, the emulator."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from emulator import CONNECTION
from gateway import Gateway

from airflow_provider_claude_batch import ClaudeBatchTrigger, poller, watch
from airflow_provider_claude_batch.poller import seat_at_poller
from airflow_provider_claude_batch.watch import FirstEnded, Wait, Watch, Why


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "FIRST_TICK", 0.05)
    monkeypatch.setattr(watch, "MIN_INTERVAL", 0.1)
    monkeypatch.setattr(watch, "AFTER_ERROR_INTERVAL", 0.3)


@pytest.fixture
def batch_ids(emulator: Any, sdk: Any) -> list[str]:
    """Twenty batches of one request that run until the clock moves."""
    from anthropic import Anthropic

    emulator.clock(freeze=True)
    params = {"model": "claude-haiku-4-5", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
    with Anthropic(api_key=CONNECTION["password"], base_url=emulator.base_url) as client:
        requests: Any = [{"custom_id": "a", "params": params}]
        return [client.messages.batches.create(requests=requests).id for _ in range(20)]


def trigger(*batch_ids: str, **arguments: Any) -> ClaudeBatchTrigger:
    return ClaudeBatchTrigger(batch_ids=list(batch_ids), conn_id="anthropic_default", **{"interval": 0.2, **arguments})


async def event_of(one: ClaudeBatchTrigger) -> dict[str, Any]:
    async for event in one.run():
        payload: dict[str, Any] = event.payload
        return payload
    raise AssertionError("no event")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.02)


async def soon(awaited: Coroutine[Any, Any, Any]) -> Any:
    return await asyncio.wait_for(awaited, 120)


def calls(emulator: Any, operation: str) -> int:
    return len(emulator.journal(operation=operation))


def test_twenty_triggers_are_one_list_a_tick(emulator: Any, batch_ids: list[str]) -> None:
    async def wait_for_all() -> list[dict[str, Any]]:
        tasks = [asyncio.create_task(event_of(trigger(batch_id))) for batch_id in batch_ids]
        await until(lambda: calls(emulator, "list") >= 3)
        assert calls(emulator, "retrieve") == 0
        emulator.advance(3600)
        return await asyncio.gather(*tasks)

    events = asyncio.run(wait_for_all())
    assert [list(event["batches"]) for event in events] == [[batch_id] for batch_id in batch_ids]
    assert {event["ending"]["why"] for event in events} == {"ended"}
    assert all(event["looks"] >= 3 for event in events)


def test_triggers_come_and_go_and_the_last_one_out_closes_the_client(emulator: Any, batch_ids: list[str]) -> None:
    async def come_and_go() -> None:
        first = [asyncio.create_task(event_of(trigger(batch_id))) for batch_id in batch_ids[:5]]
        await until(lambda: calls(emulator, "list") >= 1)
        (found,) = poller._pollers[asyncio.get_running_loop()].values()
        client = found._client
        later = asyncio.create_task(event_of(trigger(batch_ids[5])))
        first[0].cancel()
        await until(lambda: len(found._seats) == 5)
        emulator.advance(3600)
        await asyncio.gather(*first[1:], later)
        await until(found._task.done)
        assert poller._pollers[asyncio.get_running_loop()] == {}
        assert client is not None
        assert client._sdk.is_closed()

    asyncio.run(come_and_go())


SECRET = "sk-ant-1234"


class Unexpected(Exception):
    """An error of no library that we know; its text may hold a secret."""


def raises(*_: Any) -> Any:
    raise Unexpected(SECRET)


def test_what_goes_wrong_in_a_poll_is_told_and_the_wait_goes_on(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait() -> list[Any]:
        with (
            seat_at_poller("anthropic_default", Watch((batch_ids[0],), interval=0.2)) as one,
            seat_at_poller("anthropic_default", Watch((batch_ids[1],), interval=0.2)) as other,
        ):
            with monkeypatch.context() as broken:
                broken.setattr("airflow_provider_claude_batch.roll_call.Roll.call", raises)
                told = [await soon(seat.hear()) for seat in (one, other)]
            emulator.advance(3600)
            return [*told, await soon(one.hear()), await soon(other.hear())]

    told, also_told, *endings = asyncio.run(wait())
    assert (
        told.trouble == also_told.trouble == "Asking for batches failed (Unexpected): the triggerer's log says where."
    )
    assert [ending.why for ending in endings] == [Why.ENDED] * 2
    assert "in raises" in caplog.text
    assert SECRET not in caplog.text


def test_what_goes_wrong_in_every_poll_is_believed(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", timedelta(seconds=0.3))
    monkeypatch.setattr("airflow_provider_claude_batch.roll_call.Roll.call", raises)

    async def wait() -> list[dict[str, Any]]:
        return await asyncio.gather(*(event_of(trigger(batch_id)) for batch_id in batch_ids[:3]))

    assert {event["ending"]["why"] for event in asyncio.run(soon(wait()))} == {"refused"}


def test_an_odd_batch_id_is_the_trouble_of_its_own_wait(emulator: Any, batch_ids: list[str]) -> None:
    emulator.advance(3600)

    async def wait() -> tuple[Any, Any]:
        with seat_at_poller("anthropic_default", Watch((batch_ids[1],), interval=0.2)) as sound:
            odd: Any = ("\ud800",)
            with seat_at_poller("anthropic_default", Watch((batch_ids[0], *odd), interval=0.2)) as broken:
                return await soon(sound.hear()), await soon(broken.hear())

    ending, told = asyncio.run(wait())
    assert ending.why is Why.ENDED
    assert "Asking for batches failed (UnicodeEncodeError)" in told.trouble


def test_a_wait_that_cannot_be_judged_ends_no_other(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait() -> Any:
        naive = datetime(2030, 1, 1)  # noqa: DTZ001 - no trigger of ours lets it in
        with (
            seat_at_poller("anthropic_default", Watch((batch_ids[0],), interval=0.2)) as sound,
            seat_at_poller("anthropic_default", Watch((batch_ids[1],), interval=0.2, deadline=naive)) as broken,
        ):
            with pytest.raises(TypeError, match="offset-naive"):
                await soon(broken.hear())
            emulator.advance(3600)
            return await soon(sound.hear())

    assert asyncio.run(wait()).why is Why.ENDED


def test_two_connections_and_two_loops_have_a_poller_each(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({**CONNECTION, "host": emulator.base_url}))

    async def both() -> set[str]:
        with seat_at_poller("anthropic_default", Watch((batch_ids[0],))), seat_at_poller("other", Watch(("b",))):
            return set(poller._pollers[asyncio.get_running_loop()])

    assert asyncio.run(both()) == {"anthropic_default", "other"}
    assert asyncio.run(both()) == {"anthropic_default", "other"}


def test_trouble_is_told_once_and_the_end_is_still_noticed(
    emulator: Any, batch_ids: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def wait() -> None:
        with seat_at_poller("anthropic_default", Watch(tuple(batch_ids), interval=0.2)) as seat:
            emulator.fault("status", status=503, operation="list", times=3)
            heard = await seat.hear()
            assert isinstance(heard, Wait)
            assert "The API answered 503" in (heard.trouble or "")
            await until(lambda: calls(emulator, "list") >= 5)
            emulator.advance(3600)
            assert (await seat.hear()).why is Why.ENDED  # type: ignore[union-attr]

    asyncio.run(wait())
    assert "503" not in caplog.text  # a poller's words belong to no one task's log


def test_a_key_that_was_changed_is_read_again(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait() -> dict[str, Any]:
        task = asyncio.create_task(event_of(trigger(*batch_ids)))
        await until(lambda: calls(emulator, "list") >= 1)
        emulator.fault("status", status=401, type="authentication_error", operation="list", times=1)
        monkeypatch.setenv(
            "AIRFLOW_CONN_ANTHROPIC_DEFAULT",
            json.dumps({**CONNECTION, "host": emulator.base_url, "extra": {"anthropic_client_kwargs": {}}}),
        )
        (found,) = poller._pollers[asyncio.get_running_loop()].values()
        before = found._client
        await until(lambda: found._client not in {None, before})
        emulator.advance(3600)
        return await task

    assert asyncio.run(wait())["ending"]["why"] == "ended"


def test_a_missing_connection_is_told_to_the_task(emulator: Any, batch_ids: list[str]) -> None:
    async def wait() -> None:
        with seat_at_poller("nowhere", Watch(tuple(batch_ids))) as seat:
            heard = await seat.hear()
            assert isinstance(heard, Wait)
            assert "There is no connection 'nowhere'" in (heard.trouble or "")

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("connection", "cause"),
    [
        (None, "There is no connection 'anthropic_default'"),
        ({"conn_type": "anthropic"}, "has no API key"),
        ({"conn_type": "http", "password": "secret"}, "is of type 'http'"),
        ({**CONNECTION, "extra": {"platform": "aws"}}, "No AWS region"),
        ({**CONNECTION, "host": "localhost:1"}, "is no address"),
    ],
)
def test_a_connection_that_cannot_work_is_told_and_then_believed(
    connection: dict[str, Any] | None, cause: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", timedelta(seconds=0.3))
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    if connection is None:
        monkeypatch.delenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT")
    else:
        host = {"host": emulator.base_url, **connection}
        monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", json.dumps(host))

    async def wait() -> list[Any]:
        with seat_at_poller("anthropic_default", Watch(("msgbatch_a", "msgbatch_b"), interval=0.2)) as seat:
            return [await soon(seat.hear()), await soon(seat.hear())]

    told, ending = asyncio.run(wait())
    assert cause in told.trouble
    assert ending.why is Why.REFUSED
    assert cause in ending.message


class Backend:
    """A secrets backend of somebody else, asked before Airflow's own: it does something first, and knows nothing."""

    def __init__(self, first: Callable[[str], None]) -> None:
        self._first = first

    def get_connection(self, conn_id: str) -> None:
        self._first(conn_id)


@pytest.fixture
def put_backend_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Ask another secrets backend before those that Airflow has."""
    from airflow.sdk.execution_time import supervisor

    own = supervisor.ensure_secrets_backend_loaded()

    def put(first: Callable[[str], None]) -> None:
        monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda: [Backend(first), *own])

    return put


def test_a_secrets_backend_that_refuses_for_a_moment_is_asked_again(
    emulator: Any, airflow_db: None, batch_ids: list[str], put_backend_first: Any
) -> None:
    from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

    refusals = [AirflowSecretsBackendAccessDenied("403")]

    def refuse_once(conn_id: str) -> None:
        if refusals:
            raise refusals.pop()

    put_backend_first(refuse_once)
    emulator.advance(3600)

    async def wait() -> list[Any]:
        with (
            seat_at_poller("anthropic_default", Watch((batch_ids[0],), interval=0.2)) as one,
            seat_at_poller("anthropic_default", Watch((batch_ids[1],), interval=0.2)) as other,
        ):
            return [await soon(seat.hear()) for seat in (one, other, one, other)]

    *told, ending, other_ending = asyncio.run(wait())
    said = (
        "Connection 'anthropic_default' cannot be read (AirflowSecretsBackendAccessDenied): check the secrets backend"
    )
    assert {one.trouble.partition(", and")[0] for one in told} == {said}
    assert ending.why is other_ending.why is Why.ENDED


def test_a_secrets_backend_that_hangs_holds_up_neither_other_connections_nor_the_loop(
    emulator: Any, airflow_db: None, batch_ids: list[str], put_backend_first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SLOW", json.dumps({**CONNECTION, "host": emulator.base_url}))
    over, hanging = threading.Event(), threading.Event()

    def hang(conn_id: str) -> None:
        if conn_id == "slow":
            hanging.set()
            over.wait(120)

    put_backend_first(hang)
    emulator.advance(3600)

    async def wait() -> tuple[Any, Any]:
        with seat_at_poller("slow", Watch((batch_ids[0],), interval=0.2)) as slow:
            await until(hanging.is_set)
            event = await soon(event_of(trigger(batch_ids[1])))
            assert not over.is_set()
            over.set()
            return event, await soon(slow.hear())

    try:
        event, ending = asyncio.run(wait())
    finally:
        over.set()
    assert event["ending"]["why"] == "ended"
    assert ending.why is Why.ENDED


def test_while_a_secrets_backend_hangs_deadlines_are_kept(
    emulator: Any, airflow_db: None, batch_ids: list[str], put_backend_first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "READ_SECONDS", 0.2)
    over = threading.Event()
    asked = []

    def hang(conn_id: str) -> None:
        asked.append(conn_id)
        over.wait(120)

    put_backend_first(hang)
    soon_over = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    try:
        event = asyncio.run(soon(event_of(trigger(batch_ids[0], deadline=soon_over))))
    finally:
        over.set()
    assert event["ending"]["why"] == "timeout"
    assert "Connection 'anthropic_default' cannot be read (TimeoutError)" in event["ending"]["message"]
    assert asked == ["anthropic_default"]  # one thread hangs, however often the poll is tried


@pytest.mark.parametrize("broken", [{"host": "http://127.0.0.1:1"}, {"password": ""}])
def test_a_connection_that_is_mended_is_read_again(
    broken: dict[str, Any], emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    good = {**CONNECTION, "host": emulator.base_url}
    monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", json.dumps({**good, **broken}))
    emulator.advance(3600)

    async def wait() -> Any:
        with seat_at_poller("anthropic_default", Watch(tuple(batch_ids), interval=0.2)) as seat:
            assert (await soon(seat.hear())).trouble
            monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", json.dumps(good))
            return await soon(seat.hear())

    assert asyncio.run(wait()).why is Why.ENDED


def test_however_many_batches_are_gone_a_tick_opens_one_client(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_async_client = [], poller.connection.open_async_client

    async def count(conn_id: str) -> Any:
        opened.append(conn_id)
        return await open_async_client(conn_id)

    monkeypatch.setattr(poller.connection, "open_async_client", count)

    async def wait() -> None:
        ids = tuple(f"msgbatch_gone{n}" for n in range(20))
        with seat_at_poller("anthropic_default", Watch((batch_ids[0], *ids), interval=0.2)) as seat:
            await until(lambda: seat.looks >= 3)
            assert len(opened) <= seat.looks + 1

    asyncio.run(wait())


@pytest.mark.parametrize(
    "joiner",
    [lambda ids: Watch(ids, interval=0.2), lambda ids: FirstEnded(ids, datetime.now(UTC) + timedelta(hours=1))],
    ids=["wait", "pause"],
)
def test_nobody_who_joins_asks_sooner_than_the_api_wants_to_be_asked(
    joiner: Any, emulator: Any, batch_ids: list[str]
) -> None:
    emulator.fault("status", status=429, retry_after=600, times=-1, operation=["list", "retrieve"])

    async def wait() -> None:
        with seat_at_poller("anthropic_default", Watch((batch_ids[0],), interval=0.2)) as first:
            await until(lambda: first.looks == 1)
            with seat_at_poller("anthropic_default", joiner((batch_ids[1],))) as second:
                await asyncio.sleep(2)
                assert (first.looks, second.looks) == (1, 0)
        await until(lambda: len(asyncio.all_tasks()) == 1)  # and who leaves is not kept

    asyncio.run(wait())
    assert [call["operation"] for call in emulator.journal() if call["status"] == 429] == ["retrieve"]


def test_when_the_api_wants_to_be_asked_again_it_is(emulator: Any, batch_ids: list[str]) -> None:
    emulator.fault("status", status=429, retry_after=1, times=1, operation="retrieve")

    async def wait() -> float:
        begin = asyncio.get_running_loop().time()
        assert (await event_of(trigger(batch_ids[0], interval=0.2)))["looks"] == 2
        return asyncio.get_running_loop().time() - begin

    emulator.advance(3600)
    assert asyncio.run(wait()) > 1


def test_an_answer_that_is_no_text_is_trouble_and_nobody_dies_of_it(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.advance(3600)
    broken = [b'{"id": "\xff"}', b'{"data": [{"id": "\xff\xfe"}]}']
    with Gateway(emulator.base_url, change=lambda _, body: broken.pop() if broken else body) as gateway:
        connection = json.dumps({**CONNECTION, "host": gateway.base_url})
        monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", connection)
        assert asyncio.run(soon(event_of(trigger(*batch_ids[:2]))))["ending"]["why"] == "ended"


def test_a_key_that_may_not_list_is_asked_for_each_batch(emulator: Any, batch_ids: list[str]) -> None:
    emulator.fault("status", status=403, times=-1, operation="list")
    emulator.advance(3600)
    assert asyncio.run(soon(event_of(trigger(*batch_ids))))["ending"]["why"] == "ended"


def test_a_cancel_that_leads_nowhere_ends_the_wait(
    emulator: Any, batch_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GRACE", timedelta(seconds=0.5))
    emulator.fault("status", status=503, times=-1, operation="cancel")
    late = datetime.now(UTC).isoformat()
    event = asyncio.run(soon(event_of(trigger(batch_ids[0], deadline=late, on_timeout="cancel"))))
    assert event["ending"]["why"] == "timeout"
    assert "None of these could be cancelled" in event["ending"]["message"]
    assert "The last trouble was: The API answered 503" in event["ending"]["message"]


def test_who_joins_a_sleeping_poller_waits_no_longer_than_its_own_interval(emulator: Any, batch_ids: list[str]) -> None:
    async def wait() -> None:
        patient = asyncio.create_task(event_of(trigger(batch_ids[0], interval=300)))
        await until(lambda: calls(emulator, "retrieve") >= 1)
        emulator.advance(3600)
        async with asyncio.timeout(120):  # long before those 300 seconds
            assert (await event_of(trigger(batch_ids[1], interval=0.2)))["looks"] == 1
        assert (await patient)["looks"] == 2  # and the patient one is served on the way

    asyncio.run(wait())


def test_a_cancelled_trigger_leaves_nothing_behind(emulator: Any, batch_ids: list[str]) -> None:
    async def wait() -> None:
        task = asyncio.create_task(event_of(trigger(batch_ids[0])))
        await until(lambda: calls(emulator, "retrieve") >= 1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert poller._pollers[asyncio.get_running_loop()] == {}
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(wait())


def test_the_loop_never_stands_still_for_long_however_many_wait(emulator: Any, batch_ids: list[str], sdk: Any) -> None:
    """A thousand seats, judged tick after tick, the SDK imported already."""
    import anthropic  # noqa: F401

    async def longest_stall() -> float:
        loop, longest, before = asyncio.get_running_loop(), 0.0, calls(emulator, "list")
        tasks = [asyncio.create_task(event_of(trigger(batch_ids[n % 20]))) for n in range(1_000)]
        await until(lambda: calls(emulator, "list") > before)
        for _ in range(200):
            begin = loop.time()
            await asyncio.sleep(0.005)
            longest = max(longest, loop.time() - begin - 0.005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return longest

    # 50 ms on a quiet machine; see docs/measurements.md. One that is busy may hold up any process for a while, but not
    # each time: a loop that stands still by our doing does so whenever it is tried.
    assert any(asyncio.run(longest_stall()) < 0.5 for _ in range(8))
