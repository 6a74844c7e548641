"""BigQuery as bqemulator plays it: a process of its own, for the hook and the client as they are."""

import atexit
import datetime as dt
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from warehouse import set_connection

PROJECT = "a-project"
_NO_NAME = "BigQuery has no such names; see test_bigquery.py"
LACKS = {
    'test_odd_names_name_a_table["odd name"]': "bqemulator cannot ask a view of a view with a space in its name",
    **{
        f"test_views_are_of_the_new_table_after_the_old_one_was_renamed[{by}]": "bqemulator loses what is renamed"
        for by in ("the user", "the load")
    },
    **{
        f"test_odd_names_name_a_table[{name}]": _NO_NAME
        for name in ('"say ""hi"""', '"a.b"', '"it\'s"', '"; DROP TABLE t"', '"%s?"', r'"\U0001f3ab"')
    },
}
_NAMES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}
_numbers = count(1)


class BigQuery:
    """Looks into a dataset with the client."""

    kind, text, number, wrong = "bigquery", "STRING", "INT64", "BOOL"
    grows = 250
    lacks = LACKS

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.client = bigquery.Client(PROJECT, AnonymousCredentials())
        self.client.create_dataset(dataset)
        self.client.default_query_job_config = bigquery.QueryJobConfig(default_dataset=f"{PROJECT}.{dataset}")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(map(_plain, row.values())) for row in self.client.query(_ticked(sql)).result()]

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self.client.query(_ticked(statement)).result()

    def types(self, table: str = "t") -> dict[str, str]:
        found = self.client.get_table(f"{PROJECT}.{self.dataset}.{table}")
        return {field.name: _NAMES.get(field.field_type, field.field_type) for field in found.schema}


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> BigQuery:
    """Make the connection to a dataset that is new."""
    serve()
    dataset = f"dataset_{next(_numbers)}"
    default = {"query": {"defaultDataset": {"projectId": PROJECT, "datasetId": dataset}}}
    extra = {"is_anonymous": True, "project": PROJECT, "use_legacy_sql": False, "api_resource_configs": default}
    set_connection(monkeypatch, "gcpbigquery", extra=extra)
    return BigQuery(dataset)


@cache
def serve() -> None:
    """Start the emulator of this process; the client finds it by the environment, and so do our children."""
    from duckdb_extensions import import_extension

    import_extension("spatial")
    folder = Path(tempfile.mkdtemp(prefix="bqemulator_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ports = free_ports(2)
    command = [sys.executable, __file__, "start", "--log-level", "error"]
    options = ["--rest-port", str(ports[0]), "--grpc-port", str(ports[1])]
    env = {**os.environ, "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        emulator = subprocess.Popen(
            [*command, *options], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, env=env
        )
    atexit.register(emulator.wait)
    atexit.register(emulator.terminate)
    os.environ[bigquery._helpers.BIGQUERY_EMULATOR_HOST] = f"http://127.0.0.1:{ports[0]}"
    while True:
        assert emulator.poll() is None, (folder / "log").read_text()[-3000:]
        try:
            socket.create_connection(("127.0.0.1", ports[0]), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return


def free_ports(number: int) -> list[int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in listening]
    for one in listening:
        one.close()
    return ports


def _ticked(sql: str) -> str:
    """Quote names as BigQuery does."""
    return re.sub(r'"((?:[^"]|"")+)"', lambda found: f"`{found[1]}`", sql)


def _plain(value: Any) -> Any:
    """Say a moment as the other warehouses do."""
    return value.astimezone(dt.UTC).replace(tzinfo=None) if isinstance(value, dt.datetime) else value


def main() -> None:
    """Run the emulator, and let it do in three respects what BigQuery is documented to do."""
    import sqlglot
    from bqemulator import cli
    from bqemulator.catalog import ddl_sync
    from bqemulator.jobs import executor
    from bqemulator.scripting import interpreter
    from bqemulator.storage import arrow_bridge, sql_identifiers, type_map
    from sqlglot.generators.duckdb import DuckDBGenerator

    # a table may have any letter and a space in its name
    sql_identifiers._SQL_SAFE_ID_RE = re.compile(r"\w[\w -]*")

    # a BIGNUMERIC has more than nine digits after the point; 38 as in BigQuery are more than DuckDB has
    type_map._BQ_TO_DUCKDB["BIGNUMERIC"] = "DECIMAL(38, 12)"
    DuckDBGenerator.TYPE_PARAM_SETTINGS[sqlglot.exp.DType.BIGDECIMAL] = ((38, 12), (38, 38))
    named = arrow_bridge._ARROW_SCALAR_TO_BQ_NAME
    is_big = (lambda kind: pa.types.is_decimal(kind) and kind.scale > 9, "BIGNUMERIC")
    arrow_bridge._ARROW_SCALAR_TO_BQ_NAME = (is_big, *named)

    # a column that is added or dropped shows when the table is asked for
    created = ddl_sync.sync_created_table

    def sync(sql: str, project: str, ctx: Any) -> None:
        created(sql, project, ctx)
        if sql.lstrip().upper().startswith("ALTER TABLE"):
            place = ddl_sync._split_target(sqlglot.parse_one(sql, read="bigquery").this, project)
            schema = ddl_sync._introspect_schema(*place, ctx)
            ctx.catalog.update_table(ctx.catalog.get_table(*place).model_copy(update={"schema_": schema}))

    executor.sync_created_table = interpreter.sync_created_table = sync
    Thread(target=end_with_parent, daemon=True).start()
    cli.main()


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
