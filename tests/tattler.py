"""A gateway that tells everything: whatever it is asked, its error repeats the credentials that it was sent."""

import base64
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def tattler(status: int) -> Iterator[str]:
    """Answer every call with a status (0: with what is no HTTP); return the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            told = self.headers.get("authorization") or self.headers.get("x-api-key") or "nothing"
            if not status:
                self.wfile.write(f"{told} is no status line\r\n\r\n".encode())
                return
            body = json.dumps({"type": "error", "error": {"type": "api_error", "message": repeated(told)}}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - so the standard library names them

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def repeated(secret: str) -> str:
    """Write a secret in the ways in which libraries write what they were given."""
    coded = base64.b64encode(secret.encode()).decode()
    quoted = (urllib.parse.quote(secret), urllib.parse.quote_plus(secret), json.dumps(secret))
    return " ".join(("You sent", secret, repr(secret), repr(secret.encode()), *quoted, repr(json.dumps(secret)), coded))
