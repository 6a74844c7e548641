"""Runs `claude-batch emulate` as a process of its own and steers it."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Self

START_SECONDS = STOP_SECONDS = 120  # for a machine that has much else to do; one that hangs is noticed all the same
CONNECTION = {"conn_type": "anthropic", "password": "emulator-key"}
HEADERS = {"x-api-key": "test-key", "anthropic-version": "2026-10-21"}


class Emulator:
    """One emulator process on a free port of 127.0.0.1; a context manager.

    Options are those of the command: `Emulator("--batch-seconds", "100", "--live-counts")`.
    """

    def __init__(self, *options: str, state: Path | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="emulator-")
        self._home = Path(self._directory.name)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.state = state or self._home / "state.sqlite"
        self.base_url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return (self._home / "output.txt").read_text()

    def start(self) -> None:
        """Start and wait until calls are answered; a second start takes the same port again."""
        ready = self._home / "ready.json"
        ready.unlink(missing_ok=True)
        port = str(urllib.parse.urlsplit(self.base_url).port or 0)
        fixed = ["--port", port, "--state", str(self.state), "--ready-file", str(ready)]
        command = [sys.executable, "-m", "airflow_provider_claude_batch.cli", "emulate", *fixed, *self._options]
        with (self._home / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._give_up()
            time.sleep(0.01)
        self.base_url = json.loads(ready.read_text())["url"]
        self.control("GET", "health")

    def _give_up(self) -> NoReturn:
        output = self.output
        self.stop(signal.SIGKILL)
        self._directory.cleanup()
        raise RuntimeError(f"the emulator did not start: {output}")

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Stop this very process and return its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal_number)
        code = self._process.wait(STOP_SECONDS)
        self._process = None
        return code

    def restart(self, signal_number: int = signal.SIGTERM) -> None:
        self.stop(signal_number)
        self.start()

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Call `/emulator/<path>` and return its JSON."""
        return json.loads(self._call(method, path, body))

    def health(self) -> dict[str, Any]:
        return self.control("GET", "health")

    def reset(self) -> None:
        """Forget batches, faults, journal and clock changes."""
        self.control("POST", "reset")

    def clock(self, **change: object) -> dict[str, Any]:
        """Show the clock, or change it: now=, advance=, speed=, freeze=."""
        return self.control("POST", "clock", change) if change else self.control("GET", "clock")

    def advance(self, seconds: float) -> None:
        self.clock(advance=seconds)

    @contextmanager
    def advancing(self, seconds: float, *, after: str) -> Iterator[None]:
        """Stop the clock, and let so much time pass once this operation was answered, however late that is."""
        self.clock(freeze=True)
        over = threading.Event()

        def advance() -> None:
            while after not in self.summary():
                if over.wait(0.02):
                    return
            self.advance(seconds)

        waiting = threading.Thread(target=advance)
        waiting.start()
        try:
            yield
        finally:
            over.set()
            waiting.join()

    def fault(self, kind: str, **settings: object) -> None:
        """Ask for one failure, such as fault("status", status=529, operation="create")."""
        self.faults({"fault": kind, **settings})

    def faults(self, *faults: dict[str, Any]) -> list[dict[str, Any]]:
        """Ask for failures; without any, show those in force."""
        return self.control("POST", "faults", list(faults)) if faults else self.control("GET", "faults")

    def clear_faults(self) -> None:
        self.control("DELETE", "faults")

    def journal(self, **filters: object) -> list[dict[str, Any]]:
        """List the calls received, such as journal(operation="create")."""
        return self.control("GET", f"journal?{urllib.parse.urlencode(filters)}")

    def summary(self) -> dict[str, dict[str, int]]:
        return self.control("GET", "journal/summary")

    def submitted(self, batch_id: str) -> list[dict[str, Any]]:
        """List the requests of a batch as they were submitted."""
        lines = self._call("GET", f"batches/{batch_id}/requests").split(b"\n")
        return [json.loads(line) for line in lines if line]

    def _call(self, method: str, path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.base_url}/emulator/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ValueError(f"{error.code}: {error.read().decode()}") from None
