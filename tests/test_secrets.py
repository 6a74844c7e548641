"""Secrets: whatever a connection holds is in no error, log, XCom or page, however a library has written it."""

import asyncio
import base64
import json
import logging
import re
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import dag
from airflow.sdk.log import redact
from hypothesis import example, given
from hypothesis import strategies as st
from page_client import detail, write
from runs import states, xcom
from tattler import repeated, tattler

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchResultsOperator, ClaudeBatchSensor, masking
from airflow_provider_claude_batch.connection import open_async_client, open_client, open_warehouse
from airflow_provider_claude_batch.errors import ApiUnavailable, ClaudeBatchError, FateUnknown, Misconfigured

CORE = "canary"  # no key of these tests looks like one of Anthropic's: nothing is masked for its shape alone
KEYS = {
    "a line feed at its end": f"{CORE}-7731\n",
    "spaces around it": f" \t{CORE}-7731  ",
    "quotes": f"'{CORE}\"-7731'",
    "percent signs": f"{CORE}%0A-%7731",
    "backslashes": f"{CORE}\\n-7731\\",
    "a letter outside ASCII": f"{CORE}\u00e9-7731",
    "a line break inside": f"{CORE}-77\r\n31-{CORE}",
}
UNSENT = ("a letter outside ASCII", "a line break inside")
LATER = datetime(2100, 1, 1, tzinfo=UTC)
BATCH = "msgbatch_013Zva2CMHLNnXjNJJKqJ2EF"
PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
CALLS: dict[str, Callable[[Any], Any]] = {
    "clock": lambda client: client.now(),
    "list": lambda client: client.page(),
    "create": lambda client: client.create([b"{}"], 2, until=LATER),
    "retrieve": lambda client: client.retrieve(BATCH),
    "look": lambda client: client.look(BATCH),
    "cancel": lambda client: client.cancel(BATCH),
    "results": lambda client: list(client.results(BATCH)),
    "count": lambda client: client.count_tokens(PARAMS),
    "preflight": lambda client: client.message(PARAMS),
}
AWAITED: dict[str, Callable[[Any], Any]] = {
    "list": lambda client: client.page(),
    "look": lambda client: client.look(BATCH),
    "cancel": lambda client: client.cancel(BATCH),
}


@contextmanager
def forgetting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "_known", {})
        patch.setattr(masking, "_longest_first", ())
        yield


def connect(monkeypatch: pytest.MonkeyPatch, key: str, url: str, **extra: Any) -> None:
    kwargs = {"max_retries": 0, **extra}
    given = {"conn_type": "anthropic", "password": key, "host": url, "extra": {"anthropic_client_kwargs": kwargs}}
    monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", json.dumps(given))


def leaks(key: str, text: str) -> list[str]:
    """Return the forms of a key that stand in a text."""
    bare = key.strip()
    coded = [base64.b64encode(f"{scheme}{bare}".encode()).decode().rstrip("=")[:-2] for scheme in ("", "Bearer ")]
    quoted = [urllib.parse.quote(bare), urllib.parse.quote_plus(bare)]
    escaped = [repr(bare)[1:-1], repr(bare.encode())[2:-1], json.dumps(bare)[1:-1]]
    return [form for form in (key, bare, *coded, *quoted, *escaped, CORE) if form in text]


async def raised_in_the_triggerer(call: Callable[[Any], Any]) -> str:
    with pytest.raises(ClaudeBatchError) as raised:
        async with await open_async_client("anthropic_default") as client:
            await call(client)
    return str(raised.value)


def raised(call: Callable[[Any], Any]) -> ClaudeBatchError:
    with pytest.raises(ClaudeBatchError) as raised, open_client("anthropic_default") as client:
        call(client)
    return raised.value


# What every call says


@pytest.mark.parametrize("status", [0, 401, 403, 404, 409, 429, 500])
@pytest.mark.parametrize("odd", sorted(KEYS.keys() - UNSENT))
def test_no_error_of_a_call_repeats_the_key(odd: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with tattler(status) as url:
        connect(monkeypatch, KEYS[odd], url)
        said = {name: str(raised(call)) for name, call in CALLS.items() if name != "clock" or status}
        said |= {f"await {name}": asyncio.run(raised_in_the_triggerer(call)) for name, call in AWAITED.items()}
    assert {name: found for name, text in said.items() if (found := leaks(KEYS[odd], text))} == {}
    assert all(masking.MASK in text for text in said.values())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("odd", UNSENT)
def test_a_key_that_no_header_can_hold_is_final_and_not_repeated(
    odd: str, call: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, KEYS[odd], emulator.base_url)
    error = raised(CALLS[call])
    assert isinstance(error, Misconfigured)
    assert str(error).startswith("The API key of connection 'anthropic_default' cannot be sent: it holds a line break")
    assert leaks(KEYS[odd], str(error)) == []
    assert asyncio.run(raised_in_the_triggerer(AWAITED["look"])) == str(error)
    assert emulator.journal() == []


@pytest.mark.parametrize("key", ["emulator-key\n", "  emulator-key\t", "\r\nemulator-key \r\n"])
def test_whitespace_around_a_key_is_none_of_it(key: str, emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "emulator-key", emulator.base_url)
    with open_client("anthropic_default") as client:
        list(client.recent())
    connect(monkeypatch, key, emulator.base_url)
    with open_client("anthropic_default") as client:
        list(client.recent())
    asyncio.run(listed())
    assert [call["status"] for call in emulator.journal()] == [200, 200, 200]
    assert len({call["workspace"] for call in emulator.journal()}) == 1


async def listed() -> Any:
    async with await open_async_client("anthropic_default") as client:
        return await client.page()


def test_a_key_of_whitespace_is_no_key(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, " \n", emulator.base_url)
    assert str(raised(CALLS["look"])).endswith("has no API key: put one into its password.")


@pytest.mark.parametrize("value", ["canary-7731\n", " canary-7731", "can\u00e1ry-7731", "canary\n-7731"])
def test_a_header_that_cannot_be_sent_is_named_and_not_repeated(
    value: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "emulator-key", emulator.base_url, default_headers={"X-Gateway": value})
    error = raised(CALLS["look"])
    assert isinstance(error, Misconfigured)
    assert str(error).startswith("The header 'X-Gateway' of connection 'anthropic_default' cannot be sent")
    assert "7731" not in str(error)


def test_what_a_gateway_asks_for_is_masked_like_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with tattler(403) as url:
        connect(monkeypatch, "key-7732", url, default_headers={"Authorization": "Own 7734-7734"})
        said = str(raised(CALLS["look"]))
    assert re.findall("773[24]", said) == []
    assert masking.MASK in said


@pytest.mark.parametrize("password", ["canary-7731", "canary%2F7731", "can#ary-7731/x", "can@ary-7731"])
def test_a_password_in_the_host_is_not_repeated(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tattler(401) as url:
        connect(monkeypatch, "key-7732", url.replace("://", f"://someone:{password}@"))
        said = str(raised(CALLS["look"]))
    assert [form for form in (password, "7731", "ary-", "someone:") if form in said] == []


# What a run of a Dag leaves behind


@pytest.mark.parametrize("odd", ["a line feed at its end", "quotes", *UNSENT])
def test_no_log_and_no_xcom_of_a_run_holds_the_key(
    odd: str, run_dag: Any, capfd: Any, caplog: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "duckdb", "host": str(tmp_path / "w.duckdb")})
    )
    requests = [{"custom_id": "a", "params": PARAMS}]

    @dag(schedule=None)
    def everything() -> None:
        ClaudeBatchOperator(task_id="submit", requests=requests)
        ClaudeBatchOperator(task_id="preflight", requests=requests, preflight=1)
        ClaudeBatchSensor(task_id="wait", batch=BATCH, timeout=1, deferrable=False, poke_interval=1)
        ClaudeBatchSensor(task_id="deferred", batch=BATCH, timeout=1, poke_interval=1)
        ClaudeBatchResultsOperator(task_id="load", batch=BATCH, warehouse_conn_id="warehouse", table="t")

    with caplog.at_level(logging.DEBUG), tattler(401) as url:
        connect(monkeypatch, KEYS[odd], url)
        run = run_dag(everything())
    assert set(states(run).values()) == {"failed"}
    shown = capfd.readouterr()
    kept = [xcom(run, task_id, key) for task_id in states(run) for key in ("return_value", "claude_batch")]
    assert "anthropic_default" in shown.out + shown.err
    for text in (shown.out, shown.err, caplog.text, json.dumps(kept)):
        assert leaks(KEYS[odd], text) == []


@pytest.mark.parametrize("odd", sorted(KEYS.keys() - UNSENT))
def test_airflow_masks_the_key_in_what_others_say_too(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, KEYS[odd], "http://127.0.0.1:1")
    open_client("anthropic_default").__exit__()
    assert leaks(KEYS[odd], str(redact(repeated(KEYS[odd].strip())))) == []


@pytest.mark.filterwarnings("ignore")  # of Airflow's own application
@pytest.mark.parametrize("odd", KEYS)
def test_the_page_shows_no_key(
    odd: str, viewer: Any, history: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from history import HOUR, submission
    from page_client import NOW

    from airflow_provider_claude_batch.page import live

    monkeypatch.setattr(live, "_PATIENCE", 60.0)
    receipt = submission(1, NOW - HOUR, steps=1, requests=1)["submit"]
    (run_id,) = write(history, ("nightly", {"submit": receipt}))
    with caplog.at_level(logging.DEBUG), tattler(401) as url:
        connect(monkeypatch, KEYS[odd], url)
        shown = detail(viewer, receipt.submission, run_id, live=True)
    assert len(shown["live"]["problems"]) == 1
    assert leaks(KEYS[odd], json.dumps(shown)) == leaks(KEYS[odd], caplog.text) == []


# What databases say


def test_no_error_of_a_source_repeats_a_secret_of_its_connection(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_claude_batch import SqlRequests

    given = {"conn_type": "sqlite", "host": str(tmp_path / "s.sqlite"), "extra": {"token": "canary-7731"}}
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", json.dumps(given))
    source = SqlRequests("source", f'SELECT * FROM "{"x" * 270} canary-7731"', prompt="p")
    with pytest.raises(Misconfigured, match=r"no such table: x+ \*\*\*") as raised:
        list(source.read())
    assert "canary" not in str(raised.value)


def test_no_error_of_a_warehouse_repeats_a_secret_of_its_connection(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "canary-7731.duckdb"
    place.write_bytes(b"no database at all" * 1_000)
    given = {"conn_type": "duckdb", "host": str(place), "extra": {"api_key": "canary-7731"}}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(given))
    with pytest.raises(ClaudeBatchError, match=r"DuckDB could not use connection 'warehouse'.*\*\*\*") as raised:
        open_warehouse("warehouse", "t").replace(["msgbatch_1"], iter(()))
    assert "canary" not in str(raised.value)


# What is secret, and how it is found


def every_error(root: type[ClaudeBatchError] = ClaudeBatchError) -> Iterator[type[ClaudeBatchError]]:
    yield root
    for error in root.__subclasses__():
        yield from every_error(error)


def test_every_error_of_ours_is_masked() -> None:
    masking.remember(["canary-7731"])
    said = {error.__name__: str(instance_of(error, "It is canary-7731.")) for error in every_error()}
    assert {name for name, text in said.items() if "canary" in text} == set()
    assert {Misconfigured.__name__, ApiUnavailable.__name__, FateUnknown.__name__} <= said.keys()


def instance_of(error: type[ClaudeBatchError], text: str) -> ClaudeBatchError:
    """Make an error; those that take figures instead of a text get the text where they take one."""
    special: dict[str, tuple[Any, ...]] = {
        "InvalidRequests": ([text], 1),
        "GuardExceeded": (text, text, text),
        "PreflightFailed": ([text],),
        "TakenOver": (),
        "TooManyErrors": (1, 2, 0.1),
        "Unfinished": ([text], text, text),
        "_Later": (),
    }
    return error(*special.get(error.__name__, (text,)))


WRITERS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "stripped": str.strip,
    "repr": lambda text: repr(text)[1:-1],
    "repr beside both quotes": lambda text: repr(f"'\"{text}")[4:-1],
    "ascii": lambda text: ascii(text)[1:-1],
    "bytes": lambda text: repr(text.encode())[2:-1],
    "repr of bytes in a repr": lambda text: repr(repr(text.encode()))[3:-2],
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda text: json.dumps(json.dumps(text))[3:-3],
    "percent": urllib.parse.quote,
    "percent, slashes too": lambda text: urllib.parse.quote(text, safe=""),
    "form": urllib.parse.quote_plus,
}


@given(st.text(min_size=8, max_size=40).filter(lambda text: len(text.strip()) >= 8), st.sampled_from(sorted(WRITERS)))
@example("canary-7731\n", "bytes")
@example("'canary\"", "repr beside both quotes")
def test_a_secret_is_masked_however_it_is_written(secret: str, how: str) -> None:
    written = WRITERS[how](secret)
    with forgetting():
        masking.remember([secret])
        assert written not in masking.mask(f"<{written}>").replace(masking.MASK, "")


@given(
    st.binary(max_size=5),
    st.text(min_size=8, max_size=40).filter(lambda text: len(text.strip()) >= 8),
    st.binary(max_size=5),
)
def test_a_secret_is_masked_wherever_it_stands_in_base64(before: bytes, secret: str, after: bytes) -> None:
    with forgetting():
        masking.remember([secret])
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            left = masking.mask(encode(before + secret.encode() + after).decode())
            assert masking.MASK in left
            assert len(left) <= len(masking.MASK) + 4 * (len(before) // 3 + 1) + 4 * (len(after) // 3 + 2)


CONNECTIONS: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "nested": (
        {"extra": {"anthropic_client_kwargs": {"auth_token": "t0ken-1", "default_headers": {"X-Tenant": "tenant-1"}}}},
        {"t0ken-1", "tenant-1"},
        set(),
    ),
    "a key file as a text": (
        {"extra": {"keyfile_dict": json.dumps({"private_key": "-----BEGIN-----\nabcdefgh\n", "project_id": "p-1234"})}},
        {"abcdefgh", "-----BEGIN-----\\nabcdefgh"},
        {"p-1234"},
    ),
    "what is none": (
        {"extra": {"platform": "anthropic", "private_key_file": "/etc/key.pem", "authenticator": "oauth", "ssl": True}},
        set(),
        {"anthropic", "/etc/key.pem", "oauth", "True"},
    ),
    "extra that is no JSON": ({"extra": "what is this"}, {"what is this"}, set()),
    "an address": ({"host": "md:x?motherduck_token=m0ther-1&a=bcdefg"}, {"m0ther-1"}, {"bcdefg"}),
    "Airflow's default": ({"password": "airflow"}, set(), {"airflow"}),
}


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_what_is_secret_in_a_connection(connection: str) -> None:
    from airflow.sdk import Connection

    from airflow_provider_claude_batch.credentials import secrets_of

    fields, secret, public = CONNECTIONS[connection]
    extra = fields.get("extra")
    fields = {**fields, "extra": json.dumps(extra) if isinstance(extra, dict) else extra}
    masking.remember(secrets_of(Connection(conn_id="c", conn_type="generic", **fields)))
    assert {text for text in secret if text in masking.mask(f"<{text}>")} == set()
    assert {text for text in public if text not in masking.mask(f"<{text}>")} == set()


def test_the_trace_of_a_foreign_error_is_masked() -> None:
    masking.remember(["canary-7731"])
    trace = masking.masked_trace(ValueError(repeated("canary-7731")))
    assert "ValueError: You sent ***" in trace
    assert leaks("canary-7731", trace.partition("You sent")[2]) == []


def test_of_many_secrets_the_oldest_are_forgotten() -> None:
    masking.remember(["canary-0000"])
    for number in range(masking._MOST - 1):
        masking.remember([f"secret-{number:04}"])
    masking.remember(["canary-0000", "canary-0001"])
    assert masking.mask("canary-0000 secret-0000 secret-0001") == "*** secret-0000 ***"
