"""The command itself: starting, stopping, state, the clock, and large batches."""

import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import anthropic
import httpx2
import psutil
import pytest
from emulator import HEADERS, Emulator

BATCHES = "/v1/messages/batches"
PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}


def client_of(emulator):
    return anthropic.Anthropic(api_key="test-key", base_url=emulator.base_url, max_retries=0)


def create(emulator, count=1):
    requests = [{"custom_id": f"r{at}", "params": PARAMS} for at in range(count)]
    with client_of(emulator) as client:
        return client.messages.batches.create(requests=requests)


def results(emulator, batch):
    with client_of(emulator) as client:
        return list(client.messages.batches.results(batch.id))


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_loses_nothing(signal_number):
    with Emulator("--batch-seconds", "50", "--now", "2026-11-21T00:00:00Z") as emulator:
        emulator.clock(freeze=True)
        ended = create(emulator, 20)
        emulator.advance(50)
        fresh, rows = create(emulator), results(emulator, ended)
        emulator.fault("status", status=529, operation="cancel", times=3)
        with client_of(emulator) as client, pytest.raises(anthropic.InternalServerError):
            client.messages.batches.cancel(fresh.id)
        before = (emulator.clock(), emulator.journal(), emulator.faults())
        emulator.restart(signal_number)
        assert (emulator.clock(), emulator.journal(), emulator.faults()) == before
        with client_of(emulator) as client:
            assert [batch.id for batch in client.messages.batches.list()] == [fresh.id, ended.id]
        assert results(emulator, ended) == rows
        assert emulator.submitted(ended.id)[0]["params"] == PARAMS
        assert emulator.faults()[0]["remaining"] == 2


def test_a_kill_right_after_an_answer_keeps_the_call_in_the_journal():
    body = {"requests": [{"custom_id": "a", "params": PARAMS}]}
    with Emulator() as emulator, httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=60) as http:
        answer = http.post(BATCHES, json=body)
        emulator.restart(signal.SIGKILL)
        assert [call["batch_id"] for call in emulator.journal()] == [answer.json()["id"]]


def test_a_state_of_another_version_is_refused(tmp_path):
    state = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(state)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RuntimeError, match="state of another version of the emulator"):
        Emulator(state=state).start()


def test_only_the_owner_may_read_a_state(tmp_path):
    state = tmp_path / "state.sqlite"
    before = os.umask(0o022)
    try:
        with Emulator(state=state) as emulator:
            create(emulator)
            kept = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    names = ("state.sqlite", "state.sqlite-lock", "state.sqlite-shm", "state.sqlite-wal")
    assert kept == dict.fromkeys(names, "0o600")


def test_a_state_that_others_could_read_is_closed_to_them(tmp_path):
    state = tmp_path / "state.sqlite"
    with Emulator(state=state) as emulator:
        create(emulator)
        emulator.stop(signal.SIGKILL)
        for path in tmp_path.iterdir():
            path.chmod(0o644)
        emulator.start()
        assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}


def test_a_state_that_another_emulator_holds_is_refused():
    with Emulator() as emulator:
        with pytest.raises(RuntimeError, match="another emulator"):
            Emulator(state=emulator.state).start()
        assert create(emulator)


def test_the_clock_can_be_moved_sped_up_frozen_and_set():
    with Emulator("--now", "2026-11-21T12:00:00Z", "--speed", "1000") as emulator:

        def now():
            return datetime.fromisoformat(emulator.clock()["now"]).timestamp()

        began = time.monotonic()
        first = now()
        time.sleep(0.1)
        # As much as passed here at most, and what was slept at least, but for how finely a clock ticks.
        assert 99 <= now() - first <= 1000 * (time.monotonic() - began) + 1
        emulator.clock(freeze=True)
        frozen = now()
        time.sleep(0.02)
        assert now() == frozen
        emulator.advance(3600)
        assert now() == frozen + 3600
        emulator.clock(now="2027-01-01T00:00:00+01:00")
        assert emulator.clock() == {"now": "2026-12-31T23:00:00.000000+00:00", "speed": 1000.0, "frozen": True}
        emulator.clock(freeze=False, speed=0)
        assert now() == now()
        for wrong in ({"speed": -1}, {"now": "tomorrow"}, {"advance": "1"}, {"colour": 1}, {"advance": 1e18}):
            with pytest.raises(ValueError, match="400"):
                emulator.clock(**wrong)


def list_in_vain(http):
    with pytest.raises(httpx2.TransportError):
        http.get(BATCHES)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_even_with_open_streams(signal_number):
    with Emulator("--batch-seconds", "0") as emulator:
        batch = create(emulator, 10)
        emulator.faults({"fault": "stall_results", "rows": 1, "times": -1}, {"fault": "hang", "operation": "list"})
        http = httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=30)
        with http, http.stream("GET", f"{BATCHES}/{batch.id}/results") as answer:
            chunks = answer.iter_raw()
            assert next(chunks)
            hanging = threading.Thread(target=list_in_vain, args=(http,))
            hanging.start()
            while "list" not in emulator.summary():
                time.sleep(0.01)
            assert emulator.stop(signal_number) == 0  # the streams would stay open for ever
            with pytest.raises(httpx2.TransportError):
                list(chunks)
            hanging.join(25)  # which is less than the client's own patience
        assert not hanging.is_alive()
        assert "Traceback" not in emulator.output


def test_it_says_where_it_is_and_how_to_connect():
    with Emulator() as emulator:
        create(emulator)
        assert emulator.base_url in emulator.output.splitlines()[0]
        (line,) = (line for line in emulator.output.splitlines() if "AIRFLOW_CONN" in line)
        connection = json.loads(re.search(r"'(.*)'", line)[1])
        assert (connection["conn_type"], connection["host"]) == ("anthropic", emulator.base_url)
        (curl,) = (line for line in emulator.output.splitlines() if line.startswith("curl"))
        called = subprocess.run(shlex.split(curl)[1:], capture_output=True, check=True)
        assert json.loads(called.stdout)["data"] == []
        assert emulator.health()["status"] == "ok"
        assert "POST" not in emulator.output


def test_verbose_shows_calls_and_command_line_faults_strike():
    row = '{"fault": "row", "outcome": "refusal"}'
    short = "status:status=529,operation=list,times=2"
    with Emulator("--verbose", "--fault", short, "--fault", row, "--batch-seconds", "0") as emulator:
        batch = create(emulator)
        with client_of(emulator) as client:
            for _ in range(2):
                with pytest.raises(anthropic.InternalServerError):
                    client.messages.batches.list()
            assert len(client.messages.batches.list().data) == 1
        (result,) = results(emulator, batch)
        assert result.result.message.stop_reason == "refusal"
        assert f"POST {BATCHES}" in emulator.output


@pytest.mark.parametrize(
    "options",
    [
        ["--rate", "lost=0.1"],
        ["--rate", "expired=0.6", "--rate", "refusal=0.6"],
        ["--rate", "expired"],
        ["--batch-seconds", "10-2"],
        ["--fault", "earthquake"],
        ["--now", "tomorrow"],
        ["--now", "9999-12-31T23:59:59Z"],
        ["--speed", "-1"],
        ["--key", "=workspace"],
        ["--port", "70000"],
        ["--state", str(Path(__file__).parent)],
        ["--host", "192.0.2.1"],
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(options):
    with pytest.raises(RuntimeError, match="Invalid value"):
        Emulator(*options).start()


def test_without_a_state_file_nothing_stays_behind(tmp_path):
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "airflow_provider_claude_batch.cli", "emulate", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--ready-file", ready], env={"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL
    )
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert json.loads(ready.read_text())["pid"] == process.pid
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] != []
    process.terminate()
    assert process.wait(60) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ready.json"]


def test_the_emulator_loads_neither_the_sdk_nor_airflow_nor_the_rest_of_the_package():
    listing = "import sys, airflow_provider_claude_batch.emulator.server; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout
    modules = set(output.split())
    ours = {name for name in modules if name.startswith("airflow_provider_claude_batch.")}
    assert all(name.startswith("airflow_provider_claude_batch.emulator") for name in ours)
    assert not modules & {"airflow", "anthropic", "pydantic", "httpx2"}


def test_the_command_line_imports_nothing_heavy():
    listing = "import sys, airflow_provider_claude_batch.cli; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout
    assert not set(output.split()) & {"starlette", "uvicorn", "sqlite3", "anthropic", "airflow"}


def test_ten_thousand_requests_stream_in_and_out_in_flat_memory():
    padding = "x" * 2000
    params = {**PARAMS, "messages": [{"role": "user", "content": padding}]}

    def body():
        yield b'{"requests":['
        for at in range(10_000):
            row = json.dumps({"custom_id": f"r{at}", "params": params}).encode()
            yield row if at == 0 else b"," + row
        yield b"]}"

    with Emulator("--batch-seconds", "0", "--rate", "overloaded_error=0.1") as emulator:
        before = psutil.Process(emulator.pid).memory_info().rss
        with httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=60) as http:
            batch = http.post(BATCHES, content=body()).json()
            kinds = {}
            with http.stream("GET", f"{BATCHES}/{batch['id']}/results") as answer:
                for line in answer.iter_lines():
                    row = json.loads(line)
                    kinds[row["custom_id"]] = row["result"]["type"]
            counts = http.get(f"{BATCHES}/{batch['id']}").json()["request_counts"]
        assert psutil.Process(emulator.pid).memory_info().rss - before < 20_000_000
    assert len(kinds) == 10_000
    assert counts["errored"] == list(kinds.values()).count("errored") > 800
    assert counts["succeeded"] == 10_000 - counts["errored"]


def test_other_calls_are_answered_while_a_large_batch_arrives():
    row = '{"custom_id":"%d","params":{"x":"' + "y" * 500 + '"}}'
    body = ('{"requests":[' + ",".join(row % at for at in range(20_000)) + "]}").encode()
    with Emulator() as emulator, httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=60) as http:
        sending = threading.Thread(target=httpx2.post, args=(emulator.base_url + BATCHES,), kwargs={
            "headers": HEADERS, "content": body, "timeout": 200
        })  # fmt: skip
        sending.start()
        created = 0
        while sending.is_alive():
            created += http.post(BATCHES, json={"requests": [{"custom_id": "a", "params": PARAMS}]}).is_success
        assert created > 3
        assert len(http.get(BATCHES, params={"limit": 1000}).json()["data"]) == created + 1


def test_a_reset_in_the_midst_of_a_create_leaves_nothing_of_it():
    with Emulator("--batch-seconds", "0") as emulator:
        # As many as there may be: so soon after the first are stored, the last are not.
        sending = threading.Thread(target=create_in_vain, args=(emulator, 100_000))
        sending.start()
        while not stored_requests(emulator):
            time.sleep(0.01)
        emulator.reset()
        assert len(results(emulator, create(emulator))) == 1
        sending.join()
        assert stored_requests(emulator) == 1


def create_in_vain(emulator, count):
    body = b'{"requests":[%s]}' % b",".join(b'{"custom_id":"r%d","params":{}}' % at for at in range(count))
    assert httpx2.post(emulator.base_url + BATCHES, headers=HEADERS, content=body, timeout=200).status_code == 404


def stored_requests(emulator):
    with closing(sqlite3.connect(emulator.state)) as connection:
        return connection.execute("SELECT COUNT(*) FROM requests").fetchone()[0]


def test_an_upload_that_breaks_off_leaves_nothing():
    with Emulator() as emulator:
        host, port = emulator.base_url.removeprefix("http://").split(":")
        head = f"POST {BATCHES} HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f'{head}content-length: 9000\r\n\r\n{{"requests": ['.encode())
        while not (entries := emulator.journal()):
            time.sleep(0.01)
        assert (entries[0]["operation"], entries[0]["status"]) == ("create", "left")
        assert "Traceback" not in emulator.output
