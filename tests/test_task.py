"""Arguments that come from upstream tasks: our operators get what an ordinary task gets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from airflow.sdk import dag, task, task_group
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time.lazy_sequence import LazyXComSequence
from emulator import CONNECTION
from runs import states, xcom
from tries import DEFAULTS, some_requests

from airflow_provider_claude_batch import ClaudeBatchOperator, ClaudeBatchSensor, shards
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt import Part, Receipt

EMULATOR = ("--batch-seconds", "0")
ITEMS, MORE = 4, 8  # a function given to map() makes an item of the second half out of one of the first

Change = Callable[[Any], Any]


@task
def give(value: Any) -> Any:
    return value


@task
def give_one(value: Any) -> Any:
    return value


@task(multiple_outputs=True)
def give_part(value: Any) -> dict[str, Any]:
    return {"part": value}


@task
def give_unless_third(value: Any, third: Any) -> Any:
    return None if value == third else value


@task
def ordinary(value: Any) -> Any:
    """Return what an ordinary task sees, going through whatever it is given."""
    return seen(value)


def seen(value: Any) -> Any:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return [seen(item) for item in value] if is_sequence else value


FORMS: dict[str, Callable[[list[Any], Change], Any]] = {
    "list": lambda items, _: give(items),
    "nothing": lambda items, _: give(items[:0]),
    "mapped": lambda items, _: give_one.expand(value=items),
    "mapped, lists": lambda items, _: give_one.expand(value=[items[:2], items[2:]]),
    "mapped, one leaves nothing": lambda items, _: give_unless_third.partial(third=items[2]).expand(value=items),
    "map": lambda items, change: give(items).map(change),
    "map of nothing": lambda items, change: give(items[:0]).map(change),
    "map of lists": lambda items, change: give_one.expand(value=[items[:3], items]).map(
        lambda part: [change(part[-1])]
    ),
    "map of mapped": lambda items, change: give_one.expand(value=items).map(change),
    "map of map": lambda items, change: give(items).map(change).map(lambda item: [item]),
    "mapped over a map": lambda items, change: give_one.expand(value=give(items).map(change)),
    "zip": lambda items, _: give(items[:2]).zip(give_one.expand(value=items[2:])),
    "zip with fillvalue": lambda items, change: give(items[:2]).zip(give(items[2:3]), fillvalue=change(items[3])),
    "map of a zip": lambda items, change: give(items).zip(give(items)).map(lambda pair: [pair[0], change(pair[1])]),
    "concat": lambda items, change: give(items[:2]).concat(give_one.expand(value=items[2:]).map(change)),
    "concat of a zip": lambda items, _: give([items[:1]]).concat(give(items[1:2]).zip(give(items[2:]))),
    "map of a concat": lambda items, change: give(items[:1]).concat(give_one.expand(value=items[1:])).map(change),
    "key": lambda items, _: give_part(items)["part"],
    "key of mapped": lambda items, _: give_part.expand(value=items)["part"],
    "in a list": lambda items, change: [give(items[:2]), [give_one.expand(value=items[2:]).map(change)]],
}


def flat(value: Any) -> Iterator[Any]:
    """Yield the items of lists of lists."""
    if isinstance(value, list):
        for item in value:
            yield from flat(item)
    else:
        yield value


def submitted(emulator: Any) -> list[str]:
    batch_ids = [call["batch_id"] for call in emulator.journal(operation="create", status=200)]
    return sorted(r["params"]["messages"][0]["content"] for one in batch_ids for r in emulator.submitted(one))


def changes(items: list[Any]) -> Change:
    """Make another item of each of the first ones, and stumble over anything else."""
    key = msgspec.json.Encoder(order="deterministic").encode
    others = {key(item): items[place + ITEMS] for place, item in enumerate(items[:ITEMS])}
    return lambda item: others[key(item)]


def run_form(run_dag: Any, form: str, items: list[Any], consume: Callable[[Any], Any]) -> Any:
    """Give the same to an ordinary task and to one of ours."""

    @dag(schedule=None)
    def beside_an_ordinary_task() -> None:
        value = FORMS[form](items[:ITEMS], changes(items))
        ordinary(value)
        consume(value)

    return run_dag(beside_an_ordinary_task())


@pytest.mark.parametrize("form", FORMS)
def test_requests_are_what_an_ordinary_task_gets(form: str, emulator: Any, run_dag: Any) -> None:
    run = run_form(
        run_dag,
        form,
        some_requests(MORE),
        lambda value: ClaudeBatchOperator(task_id="submit", requests=value, defaults=DEFAULTS),
    )
    wanted = sorted(one["params"]["messages"][0]["content"] for one in flat(xcom(run, "ordinary")))
    assert submitted(emulator) == wanted
    assert states(run)["submit"] == ("success" if wanted else "skipped")


@pytest.fixture
def batch_ids(emulator: Any, sdk: Any) -> list[str]:
    """Batches of the connection's workspace that have ended."""
    requests = [{**one, "params": {**DEFAULTS, **one["params"]}} for one in some_requests(1)]
    key = {"x-api-key": CONNECTION["password"]}
    return [sdk.messages.batches.create(requests=requests, extra_headers=key).id for _ in range(MORE)]


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_what_an_ordinary_task_gets(form: str, emulator: Any, batch_ids: list[str], run_dag: Any) -> None:
    run = run_form(run_dag, form, batch_ids, lambda value: ClaudeBatchSensor(task_id="wait", batch=value))
    wanted = list(flat(xcom(run, "ordinary")))
    waited = [part["id"] for one in xcom(run, "wait") or [] for part in one["batches"]]
    assert waited == wanted
    assert states(run)["wait"] == ("success" if wanted else "skipped")


@pytest.mark.parametrize("form", FORMS)
def test_what_to_retry_is_what_an_ordinary_task_gets(form: str, emulator: Any, run_dag: Any) -> None:
    requests = some_requests(MORE)
    run = run_form(
        run_dag,
        form,
        [loaded(request["custom_id"]) for request in requests],
        lambda value: ClaudeBatchOperator(task_id="retry", requests=requests, retry_of=value, defaults=DEFAULTS),
    )
    wanted = {custom_id for one in flat(xcom(run, "ordinary")) for custom_id in one["retry_ids"]}
    texts = {one["custom_id"]: one["params"]["messages"][0]["content"] for one in requests}
    assert submitted(emulator) == sorted(texts[custom_id] for custom_id in wanted)
    assert states(run)["retry"] == ("success" if wanted else "skipped")


def loaded(custom_id: str) -> dict[str, Any]:
    """Make the receipt of a load of one batch, of which one request can be retried."""
    part = Part(f"msgbatch_{custom_id}", 1, first=0)
    place = {"dag_id": "d", "run_id": "r", "submit_task": "submit"}
    receipt = Receipt("s", (part,), **place, requests=1, rows=1, retryable=1, retry_ids=(custom_id,))  # type: ignore[arg-type]
    return receipt.to_dict()


def test_a_map_takes_its_share_of_each_part(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def sample() -> None:
        @task
        def part(number: int) -> list[dict[str, Any]]:
            return [{**one, "custom_id": f"{number}-{one['custom_id']}"} for one in some_requests(10)]

        ClaudeBatchOperator(
            task_id="submit", requests=part.expand(number=[1, 2]).map(lambda rows: rows[:2]), defaults=DEFAULTS
        )

    assert xcom(run_dag(sample()), "submit")["requests"] == 4


def test_what_stands_deep_in_a_request_is_filled_in(emulator: Any, run_dag: Any) -> None:
    @task
    def greet() -> list[str]:
        return ["Hello {{ 7 * 6 }}"]

    def to_message(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    @dag(schedule=None)
    def deep() -> None:
        messages = give_one.expand(value=greet()).map(to_message)
        requests = [{"custom_id": "a", "params": {"messages": messages}}]
        ClaudeBatchOperator(task_id="submit", requests=requests, defaults=DEFAULTS)

    run_dag(deep())
    assert submitted(emulator) == ["Hello {{ 7 * 6 }}"]


def test_a_function_that_skips_skips_the_task_as_it_does_an_ordinary_one(emulator: Any, run_dag: Any) -> None:
    def only_the_first(request: Mapping[str, Any]) -> Any:
        if request["custom_id"] != "r-0":
            raise AirflowSkipException
        return request

    @dag(schedule=None)
    def skipping() -> None:
        few = give(some_requests(3)).map(only_the_first)
        ordinary(few)
        ClaudeBatchOperator(task_id="submit", requests=few, defaults=DEFAULTS)
        ordinary.override(task_id="each").expand(value=few)
        ClaudeBatchOperator.partial(task_id="submit_each", defaults=DEFAULTS).expand(
            requests=few.map(lambda one: [one])
        )

    run = run_dag(skipping())
    assert states(run)["submit"] == states(run)["ordinary"] == "skipped"
    each = {(ti.task_id, ti.map_index): ti.state for ti in run.get_task_instances()}
    assert [each["submit_each", n] for n in range(3)] == [each["each", n] for n in range(3)]
    assert submitted(emulator) == ["Say hello 0"]


def test_what_is_mapped_over_is_what_an_ordinary_task_gets(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def mapped() -> None:
        pairs = give(some_requests(2)).zip(
            give_one.expand(value=[{**one, "custom_id": "z"} for one in some_requests(2)])
        )
        parts = pairs.concat(give([some_requests(1, "Hi")]))
        ordinary.expand(value=parts)
        ClaudeBatchOperator.partial(task_id="submit", defaults=DEFAULTS).expand(requests=parts)

        @task_group
        def each(part: Any) -> None:
            ClaudeBatchOperator(task_id="submit", requests=part, defaults=DEFAULTS)

        each.expand(part=parts)

    run = run_dag(mapped())
    wanted = [len(xcom(run, "ordinary", map_index=n)) for n in range(3)]
    assert wanted == [2, 2, 1]
    assert [xcom(run, "submit", map_index=n)["requests"] for n in range(3)] == wanted
    assert [xcom(run, "each.submit", map_index=n)["requests"] for n in range(3)] == wanted


def test_shards_of_receipts_that_were_mapped_are_those_of_each(
    emulator: Any, batch_ids: list[str], run_dag: Any
) -> None:
    @dag(schedule=None)
    def mapped() -> None:
        shards(give(batch_ids).map(lambda batch_id: {"v": 1, "submission": batch_id, "batches": [{"id": batch_id}]}))

    run = run_dag(mapped())
    assert [one["batches"][0]["id"] for one in xcom(run, "shards")] == batch_ids


def test_each_mapped_task_is_fetched_in_one_call(
    emulator: Any, batch_ids: list[str], run_dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | slice] = []
    get = LazyXComSequence.__getitem__

    def count(xcoms: Any, key: Any) -> Any:
        asked.append(key)
        return get(xcoms, key)

    @dag(schedule=None)
    def mapped() -> None:
        some = give_one.expand(value=some_requests(3))
        others = give_one.expand(value=[{**one, "custom_id": f"other-{n}"} for n, one in enumerate(some_requests(3))])
        pairs = some.zip(others).map(list)
        last = give_one.expand(value=[[{**one, "custom_id": "last"}] for one in some_requests(1)])
        ClaudeBatchOperator(task_id="submit", requests=pairs.concat(last), defaults=DEFAULTS)
        shards(give_one.expand(value=batch_ids))

    monkeypatch.setattr(LazyXComSequence, "__getitem__", count)
    run = run_dag(mapped())
    assert xcom(run, "submit")["requests"] == 7
    assert asked
    assert all(isinstance(key, slice) for key in asked)
    assert len(xcom(run, "shards")) == MORE


TEMPLATE = "{{ 7 * 6 }} {% raw %}"


@task
def text() -> str:
    return TEMPLATE


@task
def params() -> dict[str, Any]:
    return {**DEFAULTS, "system": TEMPLATE}


@task
def params_of_each() -> list[dict[str, Any]]:
    return [{**DEFAULTS, "system": TEMPLATE}]


def defaulted(**arguments: Any) -> Any:
    return ClaudeBatchOperator.partial(task_id="submit", requests=some_requests(1), **arguments)


DEFAULTED: dict[str, Callable[[], Any]] = {
    "as a whole": lambda: ClaudeBatchOperator(task_id="submit", requests=some_requests(1), defaults=params()),
    "in part": lambda: ClaudeBatchOperator(
        task_id="submit", requests=some_requests(1), defaults={**DEFAULTS, "system": text()}
    ),
    "partial": lambda: defaulted(defaults=params()).expand(shard_size=[1]),
    "expand": lambda: defaulted().expand(
        defaults=give_one.expand(value=[1]).map(lambda _: {**DEFAULTS, "system": TEMPLATE})
    ),
}


@pytest.mark.parametrize("form", DEFAULTED)
def test_defaults_that_a_task_returns_are_not_rendered(form: str, emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def given() -> None:
        DEFAULTED[form]()

    run_dag(given())
    ((call,),) = [emulator.journal(operation="create", status=200)]
    assert [one["params"]["system"] for one in emulator.submitted(call["batch_id"])] == [TEMPLATE]


def test_what_stands_deep_in_defaults_is_filled_in(emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def deep() -> None:
        words = give_one.expand(value=["stop", "end"])
        blocks = words.map(lambda word: {"type": "text", "text": word})
        defaults = {
            **DEFAULTS,
            "stop_sequences": words.map(str.upper),
            "system": blocks,
            "metadata": {"user_id": text()},
        }
        ClaudeBatchOperator(task_id="submit", requests=some_requests(1), defaults=defaults)

    run_dag(deep())
    ((call,),) = [emulator.journal(operation="create", status=200)]
    (sent,) = emulator.submitted(call["batch_id"])
    assert sent["params"]["stop_sequences"] == ["STOP", "END"]
    assert [block["text"] for block in sent["params"]["system"]] == ["stop", "end"]
    assert sent["params"]["metadata"] == {"user_id": TEMPLATE}


@task
def receipts() -> list[dict[str, Any]]:
    return [loaded(TEMPLATE)]


@task
def receipts_by_name() -> list[dict[str, Any]]:
    return [{"retry_of": loaded(TEMPLATE)}]


def retry(**arguments: Any) -> Any:
    requests = [{**some_requests(1)[0], "custom_id": TEMPLATE}]
    return ClaudeBatchOperator.partial(task_id="retry", requests=requests, defaults=DEFAULTS, **arguments)


RETRIED: dict[str, Callable[[], Any]] = {
    "literal": lambda: retry(retry_of=[loaded(TEMPLATE)]).expand(shard_size=[1]),
    "literal, expand": lambda: retry().expand(retry_of=[loaded(TEMPLATE)]),
    "partial": lambda: retry(retry_of=receipts()).expand(shard_size=[1]),
    "expand": lambda: retry().expand(retry_of=receipts()),
    "expand_kwargs": lambda: retry().expand_kwargs(receipts_by_name()),
}


@pytest.mark.parametrize("form", RETRIED)
def test_receipts_are_not_rendered(form: str, emulator: Any, run_dag: Any) -> None:
    @dag(schedule=None)
    def retried() -> None:
        RETRIED[form]()

    assert xcom(run_dag(retried()), "retry", map_index=0)["requests"] == 1
    assert submitted(emulator) == ["Say hello 0"]


def test_columns_come_from_the_dag_and_not_from_a_task() -> None:
    @dag(schedule=None)
    def typed() -> None:
        ClaudeBatchOperator(task_id="submit", requests=[], columns=params())

    with pytest.raises(Misconfigured, match="columns= takes a Pydantic model or a JSON schema, and was given a PlainX"):
        typed()
