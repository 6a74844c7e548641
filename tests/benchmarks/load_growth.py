"""Load batches of 1,000 to 1,000,000 results from the emulator into a warehouse: does the time grow, does the memory?

    python tests/benchmarks/load_growth.py [kinds] [results ...]
    python tests/benchmarks/load_growth.py duckdb,postgres 1000 10000 100000 1000000

A load is all that the task does: the client, the rows, the tally and the writer, in a process of its own. More than
100,000 results are several batches of one submission. The emulator makes its lines while they are read, on the same
machine, which is most of the seconds; memory is that of the loading process above what it takes idle, all imported.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH = 100_000
PROMPT = "The customer writes that the export of {n} rows stops at once, and asks for a refund."
PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 512}


def submit(url: str, mark: str, count: int) -> dict[str, Any]:
    """Submit a batch with wire ids, as our own tasks write them, and return its part of a receipt."""
    from anthropic import Anthropic

    from airflow_provider_claude_batch.client import Client
    from airflow_provider_claude_batch.wire_id import WireId

    def pieces() -> Any:
        for n in range(count):
            params = PARAMS | {"messages": [{"role": "user", "content": PROMPT.format(n=f"{mark} {n}")}]}
            request = {"custom_id": str(WireId(f"ticket-{n}", mark, "hA-h_1")), "params": params}
            yield (b"," if n else b'{"requests":[') + json.dumps(request).encode()
        yield b"]}"

    body = b"".join(pieces())
    with Client(Anthropic(api_key="emulator-key", base_url=url), "benchmark") as client:
        until = client.now().replace(year=9_000)
        batch = client.create([body], len(body), until=until)
    return {"id": batch.id, "requests": count, "mark": mark}


def load(url: str, receipt: dict[str, Any]) -> dict[str, float]:
    from anthropic import Anthropic
    from loads import Peak

    from airflow_provider_claude_batch import receipt as receipts
    from airflow_provider_claude_batch.client import Client
    from airflow_provider_claude_batch.connection import open_warehouse
    from airflow_provider_claude_batch.load import Loader
    from airflow_provider_claude_batch.price import PRICES

    writer = open_warehouse("warehouse", "t")
    list(writer.answered())  # what the driver imports late is idle memory too
    with Client(Anthropic(api_key="emulator-key", base_url=url), "benchmark") as client:
        client.now()
        with Peak() as peak:
            begin, busy = time.perf_counter(), time.process_time()
            ((_, tally),) = Loader(client, PRICES).load(receipts.read(receipt), writer)
            seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    return {"rows": tally.rows, "seconds": seconds, "busy": busy, "memory": peak.most - peak.start}


def measure(kind: str, url: str, parts: list[dict[str, Any]]) -> dict[str, float]:
    import pytest
    from warehouse import connect_warehouse

    receipt = {"v": 1, "submission": "sub_1", "batches": parts, "dag_id": "dag", "run_id": "run", "submit_task": "s"}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        warehouse = connect_warehouse(kind, Path(folder), patch)
        env = os.environ | {"AIRFLOW_HOME": folder, "TMPDIR": folder, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        command = [sys.executable, __file__, "--child", url, json.dumps(receipt)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout
        found: dict[str, float] = json.loads(output.splitlines()[-1])
        ((stored,),) = warehouse.query("SELECT count(*) FROM t")
        assert stored == found["rows"] == sum(part["requests"] for part in parts)
    return found


def main(kinds: str = "duckdb", *counts: str) -> None:
    from emulator import Emulator

    sizes = [int(count) for count in counts] or [1_000, 10_000, 100_000]
    print(f"{'warehouse':10} {'results':>10} {'seconds':>9} {'of them busy':>13} {'rows/s':>9} {'above idle':>11}")
    with Emulator() as emulator:
        for size in sizes:
            batches = [min(BATCH, size - start) for start in range(0, size, BATCH)]
            parts = [submit(emulator.base_url, f"m{size:05}{n}"[-7:], count) for n, count in enumerate(batches)]
            emulator.advance(3_600)
            for kind in kinds.split(","):
                found = measure(kind, emulator.base_url, parts)
                rate = size / found["seconds"]
                print(
                    f"{kind:10} {size:10,} {found['seconds']:8.1f}s {found['busy']:12.1f}s {rate:9,.0f} "
                    f"{found['memory']:8.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(load(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main(*sys.argv[1:])
