"""Submit 100,000 requests from a file, beside the SDK's own `messages.batches.create`: time and memory, in one run.

    python tests/benchmarks/submit_file.py [requests] [rounds]

Each measurement is a process of its own. The other side of the wire takes bodies as fast as they come and throws them
away, so that what is compared is the client's work. The SDK gets its requests as a list that is in memory already, and
once more from the same file as we do.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

WORDS = ["invoice", "charged", "twice", "please", "refund", "export", "fails", "with", "naïve", "again", "thanks"]
SYSTEM = "Label the ticket with one word: billing, technical or other."
BATCH = {
    "id": "msgbatch_01",
    "type": "message_batch",
    "processing_status": "in_progress",
    "request_counts": {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
    "created_at": "2026-11-21T14:25:40.914571+00:00",
    "expires_at": "2026-11-22T14:25:40.914571+00:00",
    "ended_at": None,
    "archived_at": None,
    "cancel_initiated_at": None,
    "results_url": None,
}


def one_turn(rng: random.Random) -> list[dict[str, Any]]:
    return [{"role": "user", "content": " ".join(rng.choices(WORDS, k=300))}]


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    turns = []
    for n in range(7):
        text = {"type": "text", "text": " ".join(rng.choices(WORDS, k=36))}
        turns.append({"role": "assistant" if n % 2 else "user", "content": [text]})
    return turns


SHAPES = {"one turn": one_turn, "seven turns": conversation}


def write(path: Path, shape: str, count: int) -> None:
    rng = random.Random(7)
    with path.open("w") as file:
        for n in range(count):
            params = {"model": "claude-haiku-4-5", "max_tokens": 64, "system": SYSTEM, "messages": SHAPES[shape](rng)}
            file.write(json.dumps({"custom_id": f"ticket-{n}", "params": params}, ensure_ascii=False) + "\n")


class Sink(BaseHTTPRequestHandler):
    """Takes everything and keeps nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        left = int(self.headers["content-length"])  # who sends none is not answered
        pit = memoryview(bytearray(1 << 20))
        while left:
            left -= self.rfile.readinto(pit[: min(left, len(pit))])
        self._answer({"input_tokens": 500} if "count_tokens" in self.path else BATCH)

    def do_GET(self) -> None:
        self._answer({"data": [], "has_more": False, "first_id": None, "last_id": None})

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def peak_mb() -> float:
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


def by_us(url: str, path: str) -> tuple[float, float]:
    from anthropic import Anthropic
    from tries import Task

    from airflow_provider_claude_batch.client import Client
    from airflow_provider_claude_batch.source import open_source

    with Client(Anthropic(api_key="benchmark-key", base_url=url), "benchmark") as client:
        task = Task(client, None)
        client.now()
        idle = peak_mb()
        begin = time.perf_counter()
        task.run(open_source(path), defaults={})
        return time.perf_counter() - begin, peak_mb() - idle


def by_the_sdk(url: str, path: str, *, with_reading: bool) -> tuple[float, float]:
    from anthropic import Anthropic

    with Anthropic(api_key="benchmark-key", base_url=url, max_retries=0) as sdk:
        idle = peak_mb()
        begin = time.perf_counter()
        with Path(path).open() as file:
            requests = [json.loads(line) for line in file]
        if not with_reading:
            begin = time.perf_counter()
        sdk.messages.batches.create(requests=requests)
        return time.perf_counter() - begin, peak_mb() - idle


WAYS = {
    "ours": by_us,
    "SDK": lambda url, path: by_the_sdk(url, path, with_reading=False),
    "SDK, from the file": lambda url, path: by_the_sdk(url, path, with_reading=True),
}


def measure(way: str, url: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "--child", way, url, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, megabytes = json.loads(output.splitlines()[-1])
    return seconds, megabytes


def main(count: int = 100_000, rounds: int = 5) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            path = Path(folder) / "requests.jsonl"
            write(path, shape, count)
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, results in found.items():
                    results.append(measure(way, url, path))
            report(shape, count, path.stat().st_size, found)
    server.shutdown()


def report(shape: str, count: int, size: int, found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"\n{count:,} requests of {shape}, {size / 1e6:.0f} MB of JSON lines")
    ours = statistics.median(seconds for seconds, _ in found["ours"])
    for way, results in found.items():
        seconds = statistics.median(seconds for seconds, _ in results)
        memory = statistics.median(memory for _, memory in results)
        print(f"  {way:20} {seconds:6.2f} s   ours is {ours / seconds:.2f} of it   +{memory:.0f} MB above idle")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(WAYS[sys.argv[2]](*sys.argv[3:])))
    else:
        main(*map(int, sys.argv[1:]))
