"""Snowflake as fakesnow plays it: a server of its own, behind TLS, for the driver and the hook as they are."""

import atexit
import datetime as dt
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import snowflake.connector
from warehouse import set_connection

NOT_PLAYED = ["DROP STAGE", "ALTER SESSION SET LOCK_TIMEOUT"]  # what fakesnow does not know, and may pass over
_numbers = count(1)


class Snowflake:
    """Looks into a database with the driver."""

    kind, text, number, wrong = "snowflake", "VARCHAR", "NUMBER(38,0)", "BOOLEAN"
    grows = 150
    lacks: ClassVar = {
        "test_a_swap_that_fails_leaves_the_old_rows": "Snowflake enforces nothing unique; see test_snowflake.py",
        'test_odd_names_name_a_table["it\'s"]': "fakesnow describes no table with a quote in its name",
    }

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with snowflake.connector.connect(**self.arguments) as con:
            return con.cursor().execute(sql).fetchall()

    def execute(self, *statements: str) -> None:
        with snowflake.connector.connect(**self.arguments) as con:
            for statement in statements:
                con.cursor().execute(statement)

    def types(self, table: str = "t") -> dict[str, str]:
        """What is told in upper case was written without quotes."""
        found = self.query(f"DESCRIBE TABLE {table}")
        return {name.lower() if name.isupper() else name: kind.partition("(16777216)")[0] for name, kind, *_ in found}


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Snowflake:
    """Make the connection to a database that is new."""
    port = serve()
    place = {"host": "localhost", "port": port, "database": f"db_{next(_numbers)}", "insecure_mode": True}
    session_parameters = {"nop_regexes": NOT_PLAYED, "CLIENT_OUT_OF_BAND_TELEMETRY_ENABLED": False}
    extra = {"account": "fakesnow", **place, "session_parameters": session_parameters}
    set_connection(monkeypatch, "snowflake", login="user", password="a-secret", schema="public", extra=extra)
    return Snowflake(user="user", password="a-secret", schema="public", **extra)


@cache
def serve() -> int:
    """Start the server of this process; its certificate is its own, and trusted by this process and its children."""
    folder = Path(tempfile.mkdtemp(prefix="fakesnow_"))
    certify(folder)
    os.environ["REQUESTS_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"] = str(folder / "certificate.pem")
    server = subprocess.Popen(
        [sys.executable, __file__, str(folder)], stdin=subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder)}
    )
    atexit.register(server.terminate)
    port = folder / "port"
    while not port.exists():
        assert server.poll() is None
        time.sleep(0.05)
    return int(port.read_text())


def certify(folder: Path) -> None:
    """Write a key, and a certificate that it signs for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))


def main(folder: Path) -> None:
    """Serve until the one who started this closes our input, or is gone."""
    import socket
    from threading import Thread

    import fakesnow.arrow
    import fakesnow.server
    import pyarrow as pa
    import uvicorn

    plain = fakesnow.arrow.timestamp_to_sf_struct

    def with_nulls(moments: Any) -> pa.StructArray:
        """Of a moment that is NULL, fakesnow sends 1970."""
        struct = plain(moments)
        return pa.StructArray.from_arrays(
            struct.flatten(), fields=list(struct.type), mask=moments.is_null().combine_chunks()
        )

    fakesnow.arrow.timestamp_to_sf_struct = with_nulls
    listening = socket.create_server(("127.0.0.1", 0))
    files = {"ssl_certfile": folder / "certificate.pem", "ssl_keyfile": str(folder / "key.pem")}
    server = uvicorn.Server(uvicorn.Config(fakesnow.server.app, log_level="error", **files))

    def stop() -> None:
        sys.stdin.read()
        server.should_exit = True

    Thread(target=stop, daemon=True).start()
    (folder / "port.new").write_text(str(listening.getsockname()[1]))
    (folder / "port.new").rename(folder / "port")
    server.run([listening])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
