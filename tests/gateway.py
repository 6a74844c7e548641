"""A gateway in front of the emulator: bodies end where the connection does, as a proxy of HTTP/1.0 sends them."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_NOT_PASSED_ON = {"host", "connection", "content-length", "accept-encoding"}


class Gateway:
    """Pass calls on that begin with a prefix; `change` may do anything to the body of an answer. A context manager."""

    def __init__(self, upstream: str, prefix: str = "", change: Callable[[str, bytes], bytes] | None = None) -> None:
        self.paths: list[str] = []
        self.elsewhere = ""  # where everybody is sent
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                gateway.paths.append(self.path)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
                url = upstream + self.path.removeprefix(prefix).replace("/moved/", "/results")
                try:
                    answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    body = answer.read()
                self.send_response(302 if gateway.elsewhere else answer.status)
                self.send_header("location", f"{gateway.elsewhere}{self.path}")
                self.end_headers()
                self.wfile.write(change(self.path, body) if change else body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}{prefix}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
