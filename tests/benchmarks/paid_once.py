"""Count what is paid when things go wrong, by this provider and by its two peers, and kill our own task 200 times.

Run it with `.venv/bin/python tests/benchmarks/paid_once.py [kills] [seed]`. The peers are
`pip install apache-airflow-providers-anthropic 'apache-airflow-providers-common-ai[anthropic]'`. All talk to the same
emulator, through the same wire, on an Airflow database of their own for each story, with `retries=1`.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from crash import DEFAULTS, NEEDS_STORE, STEPS, Result, crash, paid, some_requests
from emulator import CONNECTION, Emulator
from processes import Broken, Nursery, Task
from wire import ANSWER, DONE, Wire

REQUESTS = 4
ONE_RETRY: dict[str, Any] = {"retries": 1, "retry_delay": 0}
FAILED_POLLS = 5
PEERS = ("airflow.providers.anthropic.operators.batch", "airflow.providers.common.ai.operators.llm_batch")
CALLS_FOR_EACH_POLL = 3  # the SDK asks twice more when the API answers 503


def ours(deferrable: bool = True) -> Any:
    """Submit, then wait; the answers are not loaded here, for the first peer does not either."""
    from airflow.sdk import DAG

    from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchSensor

    with DAG("ours", schedule=None) as dag:
        submit = ClaudeBatchOperator(task_id="submit", requests=some_requests(REQUESTS), defaults=DEFAULTS, **ONE_RETRY)
        ClaudeBatchSensor(task_id="wait", batch=submit.output, deferrable=deferrable, **ONE_RETRY)
    return dag


def anthropic_peer(deferrable: bool = True) -> Any:
    from airflow.providers.anthropic.operators.batch import AnthropicBatchOperator
    from airflow.sdk import DAG

    requests = [{**one, "params": {**DEFAULTS, **one["params"]}} for one in some_requests(REQUESTS)]
    with DAG("anthropic_peer", schedule=None) as dag:
        AnthropicBatchOperator(task_id="batch", requests=requests, deferrable=deferrable, **ONE_RETRY)
    return dag


def common_ai_peer(result_path: str, deferrable: bool = True) -> Any:
    from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator
    from airflow.sdk import DAG

    with DAG("common_ai_peer", schedule=None) as dag:
        LLMBatchOperator(
            task_id="batch",
            requests=[one["params"]["messages"][0]["content"] for one in some_requests(REQUESTS)],
            result_path=result_path,
            llm_conn_id="pydanticai_default",
            model_id=f"anthropic:{DEFAULTS['model']}",
            max_tokens=DEFAULTS["max_tokens"],
            deferrable=deferrable,
            **ONE_RETRY,
        )
    return dag


class Contender(NamedTuple):
    name: str
    dag: str
    task_ids: tuple[str, ...]


CONTENDERS = (
    Contender("ClaudeBatchOperator >> ClaudeBatchSensor", "paid_once:ours", ("submit", "wait")),
    Contender("AnthropicBatchOperator", "paid_once:anthropic_peer", ("batch",)),
    Contender("LLMBatchOperator", "paid_once:common_ai_peer", ("batch",)),
)


class Attempt:
    """One contender in one story, on a database of its own."""

    def __init__(
        self, contender: Contender, nursery: Nursery, emulator: Emulator, wire: Wire, *, deferrable: bool
    ) -> None:
        self.emulator, self.wire = emulator, wire
        database = nursery.database()
        arguments: dict[str, Any] = {"deferrable": deferrable}
        if "common_ai" in contender.dag:
            arguments["result_path"] = f"file://{database}.results"
        host = {"password": CONNECTION["password"], "host": wire.base_url}
        env = {"AIRFLOW_CONN_PYDANTICAI_DEFAULT": json.dumps({"conn_type": "pydanticai", **host})}
        self.tasks = [
            Task(nursery, emulator, contender.dag, arguments, wire=wire, database=database, task_id=task_id, env=env)
            for task_id in contender.task_ids
        ]

    def finish(self) -> str:
        """Let every task come to its end."""
        for task in self.tasks:
            if task.finish() != "success":
                return "failed"
        return "success"

    def kill_while_waiting(self) -> None:
        """Kill the process that looks whether the batch has ended, whichever it is, after its first look."""
        looked = self.wire.hold("retrieve", DONE)
        for task in self.tasks:
            while not task.is_finished:
                process = task.start()
                process.wait(looked.reached.is_set)
                if looked.reached.is_set():
                    task.kill(process)
                    return self.wire.clear()
                task.end(process)
        raise Broken("nobody looked")

    def kill_after_yes(self) -> None:
        """Kill the worker when the API has taken the batch and the worker has not heard."""
        hold = self.wire.hold("create", ANSWER)
        process = self.tasks[0].start()
        process.wait(hold.reached.is_set)
        self.tasks[0].kill(process)
        self.wire.clear()


def undisturbed(attempt: Attempt) -> str:
    return attempt.finish()


def bad_gateway(attempt: Attempt) -> str:
    attempt.emulator.fault("status_after_accept", status=502)
    return attempt.finish()


def dropped(attempt: Attempt) -> str:
    attempt.emulator.fault("drop_after_accept")
    return attempt.finish()


def not_found_once(attempt: Attempt) -> str:
    attempt.emulator.fault("not_found", operation="retrieve")
    return attempt.finish()


def five_failing_polls(attempt: Attempt) -> str:
    attempt.emulator.fault("status", status=503, operation="retrieve", times=FAILED_POLLS * CALLS_FOR_EACH_POLL)
    return attempt.finish()


def killed_after_yes(attempt: Attempt) -> str:
    attempt.kill_after_yes()
    return attempt.finish()


def killed_while_waiting(attempt: Attempt) -> str:
    attempt.kill_while_waiting()
    return attempt.finish()


def cleared(attempt: Attempt) -> str:
    attempt.finish()
    for task in attempt.tasks:
        task.clear()
    return attempt.finish()


def cleared_and_not_found_once(attempt: Attempt) -> str:
    attempt.finish()
    for task in attempt.tasks:
        task.clear()
    attempt.emulator.fault("not_found", operation="retrieve")
    return attempt.finish()


class Story(NamedTuple):
    name: str
    run: Callable[[Attempt], str]
    deferrable: bool = True


STORIES = (
    Story("nothing goes wrong", undisturbed),
    Story("502 after the API took the batch", bad_gateway),
    Story("connection dropped after the API took the batch", dropped),
    Story("worker killed after the API took the batch, before the answer", killed_after_yes),
    Story("triggerer killed while it waits for the end", killed_while_waiting),
    Story("`deferrable=False`: worker killed while it waits for the end", killed_while_waiting, deferrable=False),
    Story("one 404 on the first look at the batch", not_found_once),
    Story("five failing polls in a row (503)", five_failing_polls),
    Story("task cleared after success, same input", cleared),
    Story("task cleared after success, same input, and one 404 on the first look", cleared_and_not_found_once),
)


def tell_stories(nursery: Nursery, emulator: Emulator, wire: Wire) -> None:
    """Print, for each story and contender: batches paid, batches cancelled, and how the last task ended."""
    print("| what goes wrong |", " | ".join(f"`{one.name}`" for one in CONTENDERS), "|")
    print("|---|" + "---|" * len(CONTENDERS))
    for story in STORIES:
        cells = []
        for contender in CONTENDERS:
            emulator.reset()
            wire.clear()
            state = story.run(Attempt(contender, nursery, emulator, wire, deferrable=story.deferrable))
            cancelled = len(emulator.journal(operation="cancel"))
            cells.append(f"{len(paid(emulator))} paid{f', {cancelled} cancelled' if cancelled else ''}, {state}")
        print(f"| {story.name} |", " | ".join(cells), "|", flush=True)


def tell_kills(results: list[Result]) -> None:
    """Print, for each step, what the API took and what the receipts say."""
    print("| when | with `task_state_store` | without (Airflow 3.1, 3.2) |")
    print("|---|---|---|")
    for step, when in STEPS.items():
        cells = [_words([one for one in results if (one.step, one.store) == (step, store)]) for store in (True, False)]
        print(f"| {when} |", " | ".join(cells), "|")


def _words(results: list[Result]) -> str:
    if not results:
        return ""
    verdicts = [one.verdict for one in results]
    wrong = {
        "paid twice": sum(bool(one.twice) for one in verdicts),
        "paid never": sum(bool(one.never) for one in verdicts),
        "cancelled": sum(bool(one.cancelled) for one in verdicts),
        "with a wrong receipt": sum(bool(one.unnamed or one.invented) for one in verdicts),
        "failed": sum(one.state != "success" for one in results),
    }
    found = ", ".join(f"**{count} {name}**" for name, count in wrong.items() if count) or "each paid once"
    return f"{len(results)} submissions, {sum(one.kills for one in results)} kills: {found}"


def kill_many(nursery: Nursery, emulator: Emulator, wire: Wire, kills: int, seed: int) -> list[Result]:
    """Crash one submission after the other, at each step in turn, until there were that many kills."""
    kinds = [(step, store) for step in STEPS for store in (True, False) if store or step not in NEEDS_STORE]
    results: list[Result] = []
    while sum(one.kills for one in results) < kills:
        number = len(results)
        step, store = kinds[number % len(kinds)]
        more = number // len(kinds) % 3
        result = crash(nursery, emulator, wire, step, store=store, seed=(seed, number), more_kills=more)
        if result.state != "success" or not result.verdict.is_clean:
            print(f"{seed=} {number=} {result}", file=sys.stderr)
        results.append(result)
    return results


def main(kills: int = 200, seed: int = 0) -> None:
    peers = ("apache-airflow", "apache-airflow-providers-anthropic", "apache-airflow-providers-common-ai", "anthropic")
    print("; ".join(f"{name} {importlib.metadata.version(name)}" for name in peers), "\n")
    with Emulator("--batch-seconds", "600") as emulator, Wire(emulator.base_url) as wire, Nursery(*PEERS) as nursery:
        tell_stories(nursery, emulator, wire)
        print()
        results = kill_many(nursery, emulator, wire, kills, seed)
        tell_kills(results)
        seconds = sum(one.seconds for one in results)
        print(
            f"\n{sum(one.kills for one in results)} kills in {len(results)} submissions, {seconds:.0f} s, seed {seed}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
