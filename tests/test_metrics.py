"""What Airflow's own metrics say of waiting, over a real socket."""

import json
import os
import re
import socket
import subprocess
import sys
from typing import Any

from emulator import CONNECTION

SCRIPT = """
import asyncio, sys
from datetime import UTC, datetime
from airflow_provider_claude_batch import poller, watch
from airflow_provider_claude_batch.metrics import time_batch
from airflow_provider_claude_batch.trigger import ClaudeBatchTrigger, Finding

poller.FIRST_TICK = watch.MIN_INTERVAL = 0.1

async def wait():
    trigger = ClaudeBatchTrigger(batch_ids=sys.argv[1:], conn_id="anthropic_default", interval=0.2)
    async for event in trigger.run():
        found = Finding.of_event(event.payload)
        for batch in found.batches.values():
            time_batch("anthropic_default", batch, found.noticed_at)

asyncio.run(wait())
"""


def test_airflow_counts_what_waits_what_is_asked_and_how_long_it_took(emulator: Any) -> None:
    from anthropic import Anthropic

    emulator.clock(freeze=True)
    params = {"model": "claude-haiku-4-5", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
    with Anthropic(api_key=CONNECTION["password"], base_url=emulator.base_url) as client:
        requests: Any = [{"custom_id": "a", "params": params}]
        ids = [client.messages.batches.create(requests=requests).id for _ in range(2)]
    emulator.fault("status", status=503, operation="list", times=1)
    emulator.advance(3600)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        settings = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(listener.getsockname()[1]),
            "AIRFLOW_CONN_ANTHROPIC_DEFAULT": json.dumps({**CONNECTION, "host": emulator.base_url}),
        }
        subprocess.run([sys.executable, "-c", SCRIPT, *ids], env={**os.environ, **settings}, check=True, timeout=120)
        heard = []
        while sum("notice_delay" in line for line in heard) < 2 or "waiting_batches:0" not in heard[-1]:
            heard.append(listener.recv(4096).decode())
    said = " ".join(heard)
    assert re.findall(r"airflow\.claude_batch\.waiting_batches:(\d+)\|g", said) == ["2", "0", "0"]
    assert "airflow.claude_batch.polls:1|c" in said
    assert "airflow.claude_batch.poll_errors:2|c" in said
    assert len(re.findall(r"airflow\.claude_batch\.batch_duration:3\d\d\d\.\d+\|ms", said)) == 2
