"""A real Airflow labels 200 messages through an emulated Claude: `make demo` checks it, `make ui` leaves it running."""

import argparse
import fcntl
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from emulator import Emulator
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from stack import Stack, StackError, end_cleanly_when_terminated, interruptions_held, tail

REPO = Path(__file__).resolve().parent.parent
DAGS = REPO / "example_dags"
HOME = REPO / ".airflow" / "demo"
WAREHOUSE = HOME / "warehouse.duckdb"
DAG = "ticket_labels"
TABLE = "ticket_labels"
MESSAGES = 200
WAIT = "labels.wait"
STEPS = {"build_requests", "labels.submit", WAIT, "labels.load", "labels.total", "publish"}

console = Console(highlight=False, soft_wrap=True)


class DemoError(RuntimeError):
    """What the demo promises was not true; `log` is the end of the log that tells why."""

    def __init__(self, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.log = log


class Stages:
    """One line a stage: a spinner and the elapsed seconds on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        columns = SpinnerColumn(finished_text="[green]✓[/]"), TextColumn("{task.description}"), TimeElapsedColumn()
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)

    @contextmanager
    def stage(self, title: str) -> Iterator["Stage"]:
        stage = Stage(self, title)
        yield stage
        stage.finish()


class Stage:
    """A stage at work; `say` tells what it is at."""

    def __init__(self, stages: Stages, title: str) -> None:
        self.progress = stages.progress
        self.title = title
        self.detail = ""
        self.began = time.monotonic()
        self.line = self.progress.add_task(title, total=1)
        self._plain(f"{title} …")

    def say(self, detail: str) -> None:
        if detail != self.detail:
            self.detail = detail
            self.progress.update(self.line, description=f"{self.title}: {detail}")
            self._plain(f"  {detail}")

    def finish(self) -> None:
        self.progress.update(self.line, completed=1)
        self._plain(f"✓ {self.title} ({time.monotonic() - self.began:.1f} s)")

    def _plain(self, line: str) -> None:
        if self.progress.disable:
            console.print(line)


@dataclass
class Run:
    """One Dag run, as Airflow's REST API records it."""

    run_id: str
    task_instances: list[dict[str, Any]] = field(default_factory=list)
    sightings: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def see(self, task_instances: list[dict[str, Any]]) -> None:
        """Remember the task instances, and the wait while it is deferred: its trigger leaves no record afterwards."""
        self.task_instances = task_instances
        for ti in task_instances:
            if ti["task_id"] == WAIT and ti["state"] == "deferred" and ti["trigger"] and ti["triggerer_job"]:
                self.sightings[ti["trigger"]["id"]] = ti

    @property
    def progress(self) -> str:
        """Return what is at work and how much is done: `labels.wait deferred, 2 of 12 tasks done`."""
        active = [f"{_name(ti)} {ti['state']}" for ti in self.task_instances if ti["state"] and not ti["end_date"]]
        done = sum(ti["end_date"] is not None for ti in self.task_instances)
        return ", ".join([*active, f"{done} of {len(self.task_instances)} tasks done"])

    @property
    def unfinished(self) -> list[dict[str, Any]]:
        """Return the tasks that did not do their part, the failed first; a skipped retry had nothing to do."""
        accepted = {True: {"success"}, False: {"success", "skipped"}}
        unfinished = [ti for ti in self.task_instances if ti["state"] not in accepted[ti["task_id"] in STEPS]]
        return sorted(unfinished, key=lambda ti: ti["state"] != "failed")

    def seconds(self, *states: str) -> float:
        """Return how long the wait was in these states, by the audit log."""
        moments = [(event["event"], datetime.fromisoformat(event["when"])) for event in self.events]
        spans = pairwise(moments)
        return sum((end - start).total_seconds() for (state, start), (_, end) in spans if state in states)


@dataclass
class Landed:
    """What the run left in the warehouse."""

    rows: list[tuple[Any, ...]]
    statuses: list[tuple[int, str, int]]
    messages: int
    succeeded: int
    cost: Decimal | None
    live_cost: Decimal | None


def _name(ti: dict[str, Any]) -> str:
    return ti["task_id"] if ti["map_index"] < 0 else f"{ti['task_id']}[{ti['map_index']}]"


@contextmanager
def fresh_home() -> Iterator[None]:
    """Hold the demo's folder, emptied; two demos at once would delete each other's Airflow."""
    HOME.parent.mkdir(exist_ok=True)
    with HOME.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"Another demo is running in {_shown(HOME)}; stop it with Ctrl-C first.") from None
        shutil.rmtree(HOME, ignore_errors=True)
        HOME.mkdir()
        yield


def start_emulator(started: ExitStack) -> Emulator:
    """Start an emulator whose first batch takes a while and where some requests fail, as on a usual night."""
    options = "--fault", "slow_batch:seconds=15", "--batch-seconds", "3", "--rate", "overloaded_error=0.03"
    try:
        with interruptions_held():
            return started.enter_context(Emulator(*options))
    except RuntimeError as error:
        raise DemoError(f"{error}") from error


def build_stack(emulator_url: str) -> Stack:
    connections = {
        "anthropic_default": {"conn_type": "anthropic", "host": emulator_url, "password": "no-key-needed"},
        "warehouse": {"conn_type": "duckdb", "host": str(WAREHOUSE)},
    }
    # The examples' own schedules would start runs beside the one that is shown.
    return Stack(HOME, DAGS, connections, {"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"})


def run_dag(stack: Stack, emulator: Emulator, stage: Stage) -> Run:
    """Run the Dag; the API's clock stands still until the wait was seen, however long a busy machine takes for it."""
    stack.api.wait_dag(DAG)
    frozen = emulator.clock(freeze=True)["frozen"]
    run = Run(stack.api.trigger(DAG))
    for task_instances in stack.api.watch_run(DAG, run.run_id):
        stack.check_running()
        run.see(task_instances)
        stage.say(run.progress)
        if frozen and run.sightings:
            frozen = emulator.clock(freeze=False, now=datetime.now(UTC).isoformat())["frozen"]
    run.events = stack.api.event_logs(DAG, run.run_id, WAIT)
    return run


@contextmanager
def components_blamed(stack: Stack) -> Iterator[None]:
    """Report a component that ended, with its log, rather than the call that failed because of it."""
    try:
        yield
    except StackError:
        stack.check_running()
        raise


def read_landed(run: Run) -> Landed:
    import duckdb

    try:
        return _select_landed(run)
    except duckdb.Error as error:
        raise DemoError(f"The table {TABLE} in {_shown(WAREHOUSE)} cannot be read: {error}") from error


def _select_landed(run: Run) -> Landed:
    import duckdb

    with duckdb.connect(str(WAREHOUSE), read_only=True) as connection:

        def select(columns: str, rest: str = "") -> list[tuple[Any, ...]]:
            return connection.execute(f"SELECT {columns} FROM {TABLE} WHERE run_id = ? {rest}", [run.run_id]).fetchall()

        shown = "custom_id, status, label, urgency, wants_refund, cost_usd"
        rows = select(shown, "ORDER BY custom_id, attempt LIMIT 8")
        statuses = select("attempt, status, count(*)", "GROUP BY ALL ORDER BY attempt, 3 DESC")
        [(messages, succeeded, cost, live_cost)] = select(
            "count(DISTINCT custom_id), count(DISTINCT custom_id) FILTER (status = 'succeeded'), "
            "sum(cost_usd), sum(live_cost_usd)"
        )
    return Landed(rows, statuses, messages, succeeded, cost, live_cost)


def show_tasks(run: Run) -> None:
    table = Table(
        "task", "state", "tries", "seconds", title="Tasks", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for ti in sorted(run.task_instances, key=lambda ti: (ti["start_date"] or "~", ti["task_id"])):
        table.add_row(_name(ti), ti["state"], str(ti["try_number"]), f"{ti['duration'] or 0:.1f}")
    console.print(table)


def show_wait(run: Run) -> None:
    """Show that nothing but the triggerer waited, in the words of Airflow's audit log."""
    title = "The wait, from Airflow's audit log (Browse > Audit Log)"
    table = Table("at", "event", "who has it", title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    triggers = iter(run.sightings.values())
    for event in run.events:
        ti = next(triggers, None) if event["event"] == "deferred" else None
        holder = {"running": "a worker", "deferred": "the triggerer"}.get(event["event"], "")
        if ti:
            kind = ti["trigger"]["classpath"].rsplit(".", 1)[-1]
            holder = f"{ti['triggerer_job']['job_type']} {ti['triggerer_job']['id']}: {kind} {ti['trigger']['id']}"
        table.add_row(f"{datetime.fromisoformat(event['when']):%H:%M:%S.%f}"[:-4], event["event"], holder)
    console.print(table)
    deferred, working = run.seconds("deferred"), run.seconds("running")
    console.print(f"Deferred for {deferred:.1f} s without a worker; workers were needed for {working:.1f} s.\n")


def show_rows(landed: Landed) -> None:
    title = f"{TABLE}: the first {len(landed.rows)} of {sum(count for _, _, count in landed.statuses)} rows"
    headers = "custom_id", "status", "label", "urgency", "wants_refund", "cost_usd"
    table = Table(*headers, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in landed.rows:
        table.add_row(*(_shortened(value) for value in row))
    console.print(table)
    for attempt, statuses in groupby(landed.statuses, key=itemgetter(0)):
        console.print(f"Attempt {attempt}: " + ", ".join(f"{count} {status}" for _, status, count in statuses))
    console.print(f"Messages:  {landed.messages}, of which {landed.succeeded} succeeded")


def show_cost(landed: Landed) -> None:
    if landed.cost is None or not landed.live_cost:
        return
    saved = landed.live_cost - landed.cost
    share = saved / landed.live_cost
    console.print(
        f"Cost:      [bold]${landed.cost:.6f}[/] in batches, ${landed.live_cost:.6f} live: "
        f"[bold green]${saved:.6f} ({share:.1%}) saved[/]"
    )


def _shortened(value: Any, width: int = 28) -> str:
    if value is None:
        return ""
    text = f"{value.normalize():f}" if isinstance(value, Decimal) else " ".join(str(value).split())
    return escape(text if len(text) <= width else text[: width - 1] + "…")


def _shown(path: Path) -> str:
    return str(path.relative_to(REPO))


def check_run(stack: Stack, run: Run) -> None:
    missing = STEPS - {ti["task_id"] for ti in run.task_instances}
    if missing:
        raise DemoError(f"The Dag {DAG} has no task {', '.join(sorted(missing))}.")
    for ti in run.unfinished:
        lines = stack.api.task_log(DAG, run.run_id, ti["task_id"], ti["try_number"], ti["map_index"])
        raise DemoError(f"The task {_name(ti)} ended {ti['state']}.", "\n".join(lines[-25:]))


def check_wait(stack: Stack, run: Run) -> None:
    lines = stack.api.task_log(DAG, run.run_id, WAIT)
    if not run.seconds("deferred"):
        raise DemoError(f"Airflow's audit log does not say that the task {WAIT} was deferred.", "\n".join(lines[-25:]))
    if not run.sightings:
        raise DemoError(f"No triggerer was seen holding the task {WAIT} while it was deferred.", "\n".join(lines[-25:]))


def check_landed(landed: Landed) -> None:
    if landed.messages != MESSAGES:
        raise DemoError(f"The table {TABLE} accounts for {landed.messages} messages, not {MESSAGES}.")
    if landed.cost is None or landed.live_cost is None:
        raise DemoError(f"The table {TABLE} does not say what the batches cost.")
    if not landed.cost < landed.live_cost:
        raise DemoError(f"The batches cost ${landed.cost}, not less than the ${landed.live_cost} of live calls.")


def run_demo(started: ExitStack) -> Stack:
    """Start everything, run the Dag, show what came of it, and raise unless all of it is as promised."""
    stages = Stages()
    with stages.progress:
        with stages.stage("Emulator of the Claude API") as stage:
            emulator = start_emulator(started)
            stage.say(emulator.base_url)
        with stages.stage("Airflow: API server, scheduler, triggerer, Dag processor") as stage:
            stack = started.enter_context(build_stack(emulator.base_url))
            stack.wait_healthy()
        with stages.stage(f"Dag {DAG}") as stage, components_blamed(stack):
            run = run_dag(stack, emulator, stage)
    show_tasks(run)
    check_run(stack, run)
    show_wait(run)
    landed = read_landed(run)
    show_rows(landed)
    show_cost(landed)
    check_wait(stack, run)
    check_landed(landed)
    console.print(f"Table:     {TABLE} in {_shown(WAREHOUSE)} (DuckDB)")
    return stack


def keep_running(stack: Stack) -> None:
    console.print(f"\nAirflow:   [bold]{stack.url}[/]  login [bold]{stack.username}[/] / [bold]{stack.password}[/]")
    console.print(f"The page:  [bold]{stack.url}/plugin/claude-batches[/]")
    console.print("Ctrl-C stops everything.")
    with suppress(KeyboardInterrupt):
        while True:
            stack.check_running()
            time.sleep(1)


def demo(ui: bool) -> None:
    began = time.monotonic()
    with fresh_home(), ExitStack() as started:
        stack = run_demo(started)
        if ui:
            keep_running(stack)
    seconds = time.monotonic() - began
    console.print(
        f"Stopped after {seconds:.0f} s." + ("" if ui else " `make ui` does the same and leaves Airflow running.")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ui", action="store_true", help="leave Airflow running until Ctrl-C")
    ui = parser.parse_args().ui
    end_cleanly_when_terminated()
    try:
        demo(ui)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    except (DemoError, StackError) as error:
        return _fail(error)
    return 0


def _fail(error: DemoError | StackError) -> int:
    log = error.log if isinstance(error, DemoError) else error.log and tail(error.log)
    if log:
        console.print(escape(log), style="dim")
    console.print(f"[bold red]✗[/] {escape(str(error))}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
