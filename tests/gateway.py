"""A gateway in front of the emulator: bodies end where the connection does, as a proxy of HTTP/1.0 sends them."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_NOT_PASSED_ON = {"host", "connection", "content-length", "accept-encoding"}


class Gateway:
    """Pass calls on that begin with a prefix; `change` may do anything to the body of an answer. A context manager.

    It redirects where `elsewhere` names another host, or `moved` a prefix that a path does not have yet: every call, or
    `only` those that begin so.
    """

    def __init__(self, upstream: str, prefix: str = "", change: Callable[[str, bytes], bytes] | None = None) -> None:
        self.paths: list[str] = []
        self.only, self.elsewhere, self.moved, self.status = "", "", "", 302
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                gateway.paths.append(self.path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0)) or None
                is_meant = f"{self.command} {self.path}".startswith(gateway.only)
                if is_meant and (gateway.elsewhere or not self.path.startswith(gateway.moved)):
                    self.send_response(gateway.status)
                    self.send_header("location", f"{gateway.elsewhere}{gateway.moved}{self.path}")
                    self.end_headers()
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
                url = upstream + self.path.removeprefix(gateway.moved).removeprefix(prefix).replace(
                    "/moved/", "/results"
                )
                request = urllib.request.Request(url, body, headers, method=self.command)
                try:
                    answer = urllib.request.urlopen(request, timeout=60)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    body = answer.read()
                self.send_response(answer.status)
                self.end_headers()
                self.wfile.write(change(self.path, body) if change else body)

            do_POST = do_GET  # noqa: N815 - so the standard library names it

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}{prefix}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
