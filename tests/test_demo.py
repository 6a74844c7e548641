"""`make demo` as a person sees it: a whole pipeline on a real Airflow, and nothing left behind."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parent.parent


def ours() -> set[int]:
    """Return the processes that run in the demo's folder."""
    home = str(ROOT / ".airflow" / "demo")
    found = set()
    for process in psutil.process_iter(["pid", "cwd", "status"]):
        if (process.info["cwd"] or "").startswith(home) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.info["pid"])
    return found


def test_the_demo_shows_all_that_it_promises_and_stops_what_it_started() -> None:
    before = ours()
    run = subprocess.run(
        [sys.executable, "tests/demo.py"], cwd=ROOT, capture_output=True, text=True, timeout=550, check=False
    )
    said = run.stdout
    assert run.returncode == 0, said + run.stderr
    assert re.search(r"deferred +TriggererJob \d+: ClaudeBatchTrigger", said)
    assert re.search(r"Deferred for \d+\.\d s without a worker", said)
    assert re.search(r"labels\.total +success", said)
    assert re.search(r"ticket-48\d{3}-\d{4} +succeeded +(billing|technical|account|other) +[1-5] +(True|False)", said)
    assert re.search(r"Messages: +200, of which \d+ succeeded", said)
    assert re.search(r"Cost: +\$0\.\d+ in batches, \$0\.\d+ live", said)
    assert "warehouse.duckdb" in said
    assert "make ui" in said
    assert (ROOT / ".airflow" / "demo" / "warehouse.duckdb").exists()
    assert ours() == before


def test_ctrl_c_in_the_middle_leaves_nothing_behind() -> None:
    before = ours()
    with subprocess.Popen(
        [sys.executable, "-u", "tests/demo.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as demo:
        assert demo.stdout is not None
        assert any("tasks done" in line for line in demo.stdout)
        assert len(ours() - before) > 4
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(timeout=120) == 130, rest
    assert ours() == before
