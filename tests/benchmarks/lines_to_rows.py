"""Turn the lines of 100,000 results into rows, beside the SDK's own `messages.batches.results`: time and memory.

    python tests/benchmarks/lines_to_rows.py [results] [rounds]

Each measurement is a process of its own. The other side of the wire is the same for all: it sends a finished file, with
the headers and in the chunks of the API, for the emulator makes its lines more slowly than they can be read. What we do
more than the SDK does is counted: rows are priced, their ids are proved, and a tally adds them up.
"""

import hashlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from airflow_provider_claude_batch.wire_id import WireId, mark_of, request_hash_of

BATCH_ID, MARK, CHUNK = "msgbatch_01", mark_of(b"benchmark"), 1 << 18
CREATED_AT = datetime(2026, 11, 21, 14, 25, 40, tzinfo=UTC)
WORDS = ["invoice", "charged", "twice", "please", "refund", "export", "fails", "with", "again", "customer", "thanks"]
ODD = ["\n\n", '"quoted"', "Größe", "naïve", "— so"]
BATCH = {
    "id": BATCH_ID,
    "type": "message_batch",
    "processing_status": "ended",
    "request_counts": {"processing": 0, "succeeded": 1, "errored": 0, "canceled": 0, "expired": 0},
    "created_at": CREATED_AT.isoformat(),
    "expires_at": "2026-11-22T14:25:40+00:00",
    "ended_at": "2026-11-21T14:55:40+00:00",
    "archived_at": None,
    "cancel_initiated_at": None,
    "results_url": f"/v1/messages/batches/{BATCH_ID}/results",
}


def prose(rng: random.Random, *, odd: bool) -> str:
    """Write about 1.4 kB, in lines and with some quotes; each third text has letters beyond ASCII."""
    words = rng.choices(WORDS, k=188)
    for place in range(9, len(words), 12):
        words[place] = rng.choice(ODD if odd else ODD[:2])
    return " ".join(words)


def result(rng: random.Random, n: int) -> dict[str, Any]:
    if n % 100 == 0:
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return {"type": "errored", "error": {"type": "error", "error": error, "request_id": f"req_{n:024}"}}
    message = {
        "model": "claude-haiku-4-5-20251001",
        "id": f"msg_01{rng.getrandbits(110):022x}",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": prose(rng, odd=n % 3 == 0)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "usage": {
            "input_tokens": rng.randrange(50, 900),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 2_048,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": rng.randrange(200, 400),
            "service_tier": "batch",
            "inference_geo": "not_available",
        },
    }
    return {"type": "succeeded", "message": message}


def write(path: Path, count: int) -> None:
    rng = random.Random(7)
    with path.open("w") as file:
        for n in range(count):
            request_hash = request_hash_of(hashlib.sha256(str(n).encode()).digest())
            line = {"custom_id": str(WireId(f"ticket-{n}", MARK, request_hash)), "result": result(rng, n)}
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


class Api(BaseHTTPRequestHandler):
    """Knows one batch, whose results are a file."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    file = Path()

    def do_GET(self) -> None:
        if not self.path.endswith("/results"):
            return self._answer(json.dumps(BATCH).encode())
        self.send_response(200)
        self.send_header("content-type", "application/x-jsonl")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        size = self.file.stat().st_size
        with self.file.open("rb") as file:
            for start in range(0, size, CHUNK):
                count = min(CHUNK, size - start)
                self._send(b"%x\r\n" % count)
                self.connection.sendfile(file, start, count)
                self._send(b"\r\n")
        return self._send(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        self.connection.send(data, socket.MSG_MORE)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def peak_mb() -> float:
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


def by_us(url: str) -> tuple[int, float, float]:
    from anthropic import Anthropic

    from airflow_provider_claude_batch.client import Client
    from airflow_provider_claude_batch.price import PRICES
    from airflow_provider_claude_batch.row import Origin, Row, of_line
    from airflow_provider_claude_batch.tally import Tally

    blank = Row("dag", "run", "submit", -1, "", CREATED_AT, "sub_1", 1, BATCH_ID)
    origin, tally = Origin(blank, MARK, CREATED_AT), Tally()
    with Client(Anthropic(api_key="benchmark-key", base_url=url), "benchmark") as client:
        client.retrieve(BATCH_ID)
        idle = peak_mb()
        begin = time.perf_counter()
        deque(tally.observe(of_line(line, origin, PRICES) for line in client.results(BATCH_ID)), maxlen=0)
        return tally.rows, time.perf_counter() - begin, peak_mb() - idle


def by_the_sdk(url: str) -> tuple[int, float, float]:
    from anthropic import Anthropic

    with Anthropic(api_key="benchmark-key", base_url=url) as sdk:
        sdk.messages.batches.retrieve(BATCH_ID)
        idle = peak_mb()
        begin = time.perf_counter()
        count = sum(1 for _ in sdk.messages.batches.results(BATCH_ID))
        return count, time.perf_counter() - begin, peak_mb() - idle


WAYS = {"ours": by_us, "SDK": by_the_sdk}


def measure(way: str, url: str, count: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--child", way, url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, seconds, megabytes = json.loads(output.splitlines()[-1])
    assert found == count
    return seconds, megabytes


def main(count: int = 100_000, rounds: int = 5) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        Api.file = Path(folder) / "results.jsonl"
        write(Api.file, count)
        size = Api.file.stat().st_size
        for _ in range(rounds):
            for way, results in found.items():
                results.append(measure(way, url, count))
    server.shutdown()
    report(count, size, found)


def report(count: int, size: int, found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{count:,} results, {size / 1e6:.0f} MB of JSON lines; medians of {len(found['ours'])} runs")
    ours = statistics.median(seconds for seconds, _ in found["ours"])
    for way, results in found.items():
        seconds = statistics.median(seconds for seconds, _ in results)
        memory = statistics.median(memory for _, memory in results)
        print(f"  {way:6} {seconds:6.2f} s   {seconds / ours:5.1f} times ours   +{memory:.0f} MB above idle")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(WAYS[sys.argv[2]](*sys.argv[3:])))
    else:
        main(*map(int, sys.argv[1:]))
