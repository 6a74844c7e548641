"""The wire between a task and the emulator: it holds a call back where it is told to, in either direction."""

import contextlib
import selectors
import socket
import threading
from typing import Self
from urllib.parse import urlsplit

BATCHES = "/v1/messages/batches"
AFTERWARDS_SECONDS = 2.0
HEAD, BODY, HALF, ANSWER, DONE = "head", "body", "half", "answer", "done"


class Lost(Exception):
    """The call is over: its client died, or the wire was cut."""


class Hold:
    """One call that stops at a moment of its way until it is released or cut.

    `head`: nothing has been passed on; `body`: all of it has left the client, and nothing has arrived; `half`: half of
    the body has arrived; `answer`: the API has answered, and the client has not heard; `done`: it has.
    """

    def __init__(self, operation: str, moment: str, nth: int) -> None:
        self.operation, self.moment, self.left = operation, moment, nth
        self.reached = threading.Event()
        self.over = threading.Event()
        self._decided = threading.Event()
        self._cut = False

    def release(self) -> None:
        """Let the call go on, whether or not its client still lives."""
        self._decided.set()

    def cut(self) -> None:
        """Break the connections to both sides, unless the call was released before."""
        self._cut = not self._decided.is_set()
        self._decided.set()

    def wait(self) -> None:
        self.reached.set()
        self._decided.wait(300)
        if self._cut:
            raise Lost


class Wire:
    """A proxy on a free port of 127.0.0.1, one call for each connection; a context manager."""

    def __init__(self, base_url: str) -> None:
        place = urlsplit(base_url)
        self._upstream = (place.hostname or "127.0.0.1", place.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._holds: list[Hold] = []
        self._lock = threading.Lock()
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def hold(self, operation: str, moment: str, nth: int = 1) -> Hold:
        """Hold the nth call of an operation, counted from now."""
        hold = Hold(operation, moment, nth)
        with self._lock:
            self._holds.append(hold)
        return hold

    def clear(self) -> None:
        """Cut what is held, and hold nothing any more."""
        with self._lock:
            holds, self._holds = self._holds, []
        for hold in holds:
            hold.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(Lost, OSError):
            head, body = read_head(client)
            holds = self._of(operation_of(head))
            try:
                self._pass_on(client, head, body, holds)
            finally:
                for hold in holds:
                    hold.over.set()

    def _pass_on(self, client: socket.socket, head: bytes, body: bytes, holds: list[Hold]) -> None:
        self._pause(holds, HEAD)
        while len(body) < content_length(head):
            body += receive(client)
        self._pause(holds, BODY)
        with socket.create_connection(self._upstream) as upstream:
            upstream.sendall(closing(head) + body[: len(body) // 2])
            self._pause(holds, HALF)
            upstream.sendall(body[len(body) // 2 :])
            answer = read_answer(upstream, client)
        self._pause(holds, ANSWER)
        client.sendall(answer)
        self._pause(holds, DONE)

    def _of(self, operation: str) -> list[Hold]:
        with self._lock:
            mine = [hold for hold in self._holds if hold.operation == operation]
            for hold in mine:
                hold.left -= 1
            return [hold for hold in mine if hold.left == 0]

    def _pause(self, holds: list[Hold], moment: str) -> None:
        for hold in holds:
            if hold.moment == moment:
                hold.wait()


def read_head(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(client)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def receive(source: socket.socket) -> bytes:
    data = source.recv(1 << 16)
    if not data:
        raise Lost
    return data


def read_answer(upstream: socket.socket, client: socket.socket) -> bytes:
    """Read all of the answer; once the client is gone, only what comes at once."""
    answer, patience = b"", None
    with selectors.DefaultSelector() as selector:
        selector.register(upstream, selectors.EVENT_READ)
        selector.register(client, selectors.EVENT_READ)
        while ready := {key.fileobj for key, _ in selector.select(patience)}:
            if upstream in ready:
                data = upstream.recv(1 << 16)
                if not data:
                    return answer
                answer += data
            elif not client.recv(1 << 16):
                selector.unregister(client)
                patience = AFTERWARDS_SECONDS
    raise Lost


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def closing(head: bytes) -> bytes:
    """Ask for the end of the connection after the answer."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def operation_of(head: bytes) -> str:
    method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
    path = target.partition("?")[0]
    if path == BATCHES:
        return "create" if method == "POST" else "list"
    return path.rpartition("/")[2] if path.count("/") == 5 or not path.startswith(BATCHES) else "retrieve"
