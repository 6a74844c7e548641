"""What the tests of sources share: connections, requests, and the sentence that a broken source ends in."""

import json
import subprocess
import sys
from typing import Any

import pytest

from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured
from airflow_provider_claude_batch.source import open_source

SECRET = "the-body-of-a-ticket"
HI = {"messages": [{"role": "user", "content": "Hi"}]}


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, conn_type: str, host: Any = None, **more: Any) -> None:
    connection = {"conn_type": conn_type, "host": str(host) if host else None, **more}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


def request(custom_id: Any, text: Any = "Hi") -> dict[str, Any]:
    return {"custom_id": custom_id, "params": {"messages": [{"role": "user", "content": text}]}}


def sentence(value: Any, kind: type[ClaudeBatchError] = Misconfigured) -> str:
    """Read a source to its end, which it must not reach, and return what is said."""
    with pytest.raises(kind) as caught:
        list(open_source(value))
    said = str(caught.value)
    assert type(caught.value) is kind
    assert SECRET not in said
    assert "\n" not in said
    assert said.endswith((".", "?"))
    return said


def growth(code: str, *arguments: Any) -> tuple[int, float]:
    """Run a reader in a process of its own; return how many items it read, and by how many MB it grew."""
    program = f"""
import json, resource, sys, threading, time
import psutil
from airflow_provider_claude_batch.source import SqlRequests, open_source
{code}
items = open_source(source)
first = next(items)
process = psutil.Process()
before = peak = process.memory_info().rss
count = 1
for item in items:
    count += 1
    if count % 1000 == 0:
        peak = max(peak, process.memory_info().rss)
print(json.dumps([count, (peak - before) / 1e6]))
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    count, megabytes = json.loads(run.stdout.splitlines()[-1])
    return count, megabytes


def peak(code: str, *arguments: Any) -> tuple[list[str], dict[str, list[str]], float]:
    """Read requests in a process of its own: return what was sent, what was skipped, and by how many MB it grew."""
    program = f"""
import json, sys
from airflow_provider_claude_batch.request import Defaults, Reading
from airflow_provider_claude_batch.source import SqlRequests, open_source
import pyarrow.parquet
{code}

def most():  # not ru_maxrss, which begins with what the process was forked from
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before = most()
reading = Reading(open_source(source), Defaults({{"model": "m", "max_tokens": 1}}), on_invalid="skip")
sent = [one.custom_id for one in reading]
print(json.dumps([sent, reading.invalid, (most() - before) / 1e3]))
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    sent, invalid, megabytes = json.loads(run.stdout.splitlines()[-1])
    return sent, invalid, megabytes
