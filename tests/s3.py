"""Read sources from an S3 server in this process' environment, and print as JSON what came of each; for test_s3.py."""

import gzip
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import psutil
import pyarrow as pa
from airflow.sdk import ObjectStoragePath
from pyarrow import parquet

from airflow_provider_claude_batch.errors import ClaudeBatchError
from airflow_provider_claude_batch.source import open_source, source_of

SECRET = "the-secret-key"
LINES = b'{"custom_id": "a"}\r\n\n{"custom_id": "b"}\n'
MANY = 40_000


class Trouble(BaseHTTPRequestHandler):
    """Answer everything with the status that is the name of the bucket."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_moto() -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while server.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return server, f"http://127.0.0.1:{port}"
    return start_moto()  # the port was taken meanwhile


def check_keys_from_now_on(endpoint: str) -> None:
    plain = {"Content-Type": "text/plain"}
    urlopen(Request(f"{endpoint}/moto-api/reset-auth", b"0", plain), timeout=60).close()


def connect(conn_id: str, endpoint: str) -> None:
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1", "config_kwargs": {"retries": {"max_attempts": 0}}}
    connection = {"conn_type": "aws", "login": "AKIAIOSFODNN7EXAMPLE", "password": SECRET, "extra": extra}
    os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(connection)


def fill(endpoint: str) -> None:
    table = io.BytesIO()
    parquet.write_table(pa.table({"custom_id": [1, 2], "prompt": ["Hi", "Ho"], "other": [0, 0]}), table)
    line = json.dumps({"custom_id": "r", "params": {"x": "x" * 2_000}}).encode() + b"\n"
    s3 = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    s3.create_bucket(Bucket="bucket")
    for key, body in {
        "x.jsonl": LINES,
        "x.jsonl.gz": gzip.compress(LINES),
        "x.parquet": table.getvalue(),
        "many.jsonl": line * MANY,
        "cut.jsonl.gz": gzip.compress(os.urandom(9_000))[:-9],
        "cut.parquet": table.getvalue()[:-9],
        "folder.jsonl/part": LINES,
    }.items():
        s3.put_object(Bucket="bucket", Key=key, Body=body)


def read(value: Any) -> dict[str, Any]:
    """Return the items, or the error, and what a receipt would name."""
    source = source_of(value)
    try:
        items = [item.decode() if isinstance(item, bytes) else item for item in open_source(value)]
    except ClaudeBatchError as error:
        return {"kind": type(error).__name__, "said": str(error)}
    return {"items": items, "uri": source.uri if source else None}


def measure(uri: str) -> dict[str, Any]:
    """Return how many lines there are, and by how many MB this process grew."""
    process = psutil.Process()
    lines = open_source(uri)
    next(lines)
    before = peak = process.memory_info().rss
    count = 1
    for _ in lines:
        count += 1
        if count % 500 == 0:
            peak = max(peak, process.memory_info().rss)
    return {"count": count, "megabytes": (peak - before) / 1e6}


def main(report: Path) -> None:
    moto, endpoint = start_moto()
    trouble = ThreadingHTTPServer(("127.0.0.1", 0), Trouble)
    threading.Thread(target=trouble.serve_forever, daemon=True).start()
    try:
        fill(endpoint)
        connect("aws_conn", endpoint)
        connect("trouble", f"http://127.0.0.1:{trouble.server_port}")
        connect("dead", f"http://127.0.0.1:{free_port()}")
        found = {uri: read(uri) for uri in json.loads(sys.stdin.read())}
        found["object"] = read(ObjectStoragePath("s3://bucket/x.jsonl", conn_id="aws_conn"))
        found["memory"] = measure("s3://aws_conn@bucket/many.jsonl")
        check_keys_from_now_on(endpoint)
        found["wrong key"] = read("s3://aws_conn@bucket/x.jsonl.gz")
        report.write_text(json.dumps(found))
    finally:
        trouble.shutdown()
        moto.terminate()
        moto.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
