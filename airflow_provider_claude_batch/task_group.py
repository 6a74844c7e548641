"""The task group: submit, wait, load, send again what failed, and add up."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any, Literal, TypedDict, Unpack

from airflow.sdk import TaskGroup, task_group
from airflow.sdk.definitions.taskgroup import MappedTaskGroup
from airflow.sdk.definitions.xcom_arg import XComArg

from airflow_provider_claude_batch.arguments import check_count
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.fan_out import shards
from airflow_provider_claude_batch.operators import ClaudeBatchOperator, ClaudeBatchResultsOperator
from airflow_provider_claude_batch.receipt import XCOM_KEY
from airflow_provider_claude_batch.request import OnInvalid
from airflow_provider_claude_batch.reuse import ReuseMissing
from airflow_provider_claude_batch.sensor import ClaudeBatchSensor
from airflow_provider_claude_batch.total import ClaudeBatchTotal

_OF_THE_FIRST: dict[str, Any] = {"preflight": 0, "prime_cache": False, "max_requests": None, "reuse_from": None}


class Submitting(TypedDict, total=False):
    """Arguments of ``ClaudeBatchOperator``."""

    shard_size: int
    max_requests: int
    max_cost_usd: float
    preflight: int
    prime_cache: bool
    on_invalid: OnInvalid
    retry_canceled: bool
    reuse_from: tuple[str, str]
    reuse_missing: ReuseMissing
    element: str


class Waiting(TypedDict, total=False):
    """Arguments of ``ClaudeBatchSensor``."""

    poke_interval: float | timedelta
    deferrable: bool
    timeout: float | timedelta
    on_timeout: Literal["fail", "cancel"]
    cancel_on_kill: bool
    soft_fail: bool
    never_fail: bool


class Arguments(Submitting, Waiting, total=False):
    """What the tasks of the group take beside what the group itself takes."""


class ClaudeBatchGroup(TaskGroup):
    """The tasks of one submission and its retries; what hangs on the group hangs on its total."""

    output: XComArg


def claude_batch(
    group_id: str = "claude_batch",
    *,
    requests: Any,
    warehouse_conn_id: str,
    table: str,
    defaults: Mapping[str, Any] | None = None,
    columns: Any = None,
    conn_id: str | None = None,
    rounds: int = 2,
    retry_defaults: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    fan_out: bool = False,
    max_error_rate: float | None = None,
    default_args: dict[str, Any] | None = None,
    **arguments: Unpack[Arguments],
) -> ClaudeBatchGroup:
    """Submit requests, wait, load their rows, and send what failed again, as a group of tasks that ends in ``total``.

    What comes after hangs on the group, or takes its ``output``: the receipt that adds all rounds up. It is there on a
    night on which nothing failed, too. When nothing was submitted at all, it is skipped; in a task group that is
    mapped, it returns an empty receipt, so that what comes after all elements runs.

    :param requests: as of ``ClaudeBatchOperator``, and so are ``defaults``, ``columns`` and ``conn_id``.
    :param warehouse_conn_id: as of ``ClaudeBatchResultsOperator``, and so is ``table``.
    :param rounds: how often what can succeed on another try is sent again, at most.
    :param retry_defaults: what goes over ``defaults`` when something is sent again, such as more ``max_tokens``; or a
        list of it, one for each round, of which the last one lasts. Beside it, ``defaults`` is a dict, and no output.
    :param fan_out: load each batch as it ends, where a submission is more than one. One that fails holds back no other.
    :param max_error_rate: fail in the end when a larger share has no usable answer after all rounds.
    :param default_args: what all tasks of the group take, such as ``retries`` or ``pool``.
    :param arguments: whatever else the operator and the sensor take, by name.
    """
    check_count("rounds", rounds)
    submitting, waiting = _sorted(arguments)
    typed = _given(columns=columns)
    lead: dict[str, Any] = {"requests": requests, **typed, **_given(conn_id=conn_id), **submitting}
    place: dict[str, Any] = {"warehouse_conn_id": warehouse_conn_id, "table": table, "max_error_rate": None, **typed}
    shared: Any = default_args or {}
    group = ClaudeBatchGroup(group_id, default_args=shared)
    with group:
        _refuse_mapped_fan_out(group, fan_out=fan_out)
        submits = [ClaudeBatchOperator(task_id="submit", **_given(defaults=defaults), **lead)]
        load = partial(_load_each_batch, group) if fan_out else _load
        loads = [load(submits[0].output, waiting, place)]
        # A batch whose wait has failed holds back neither the retries of the others nor the sum.
        after: dict[str, Any] = {"trigger_rule": "all_done"} if fan_out else {}
        for attempt, over in enumerate(_each_over(submits[0].defaults, retry_defaults, rounds), start=2):
            again: dict[str, Any] = {"retry_of": loads[-1], "retry_canceled": False, **lead, **_OF_THE_FIRST}
            again |= after if len(loads) == 1 else {}
            submits.append(ClaudeBatchOperator(task_id=f"submit_{attempt}", defaults=over, **again))
            loads.append(_load(submits[-1].output, waiting, place, named=f"{{}}_{attempt}".format))
        last: dict[str, Any] = {"trigger_rule": "none_failed", **after, **_given(max_error_rate=max_error_rate)}
        paid = [XComArg(submit, XCOM_KEY) for submit in submits]
        group.output = ClaudeBatchTotal(task_id="total", rounds=loads, submitted=paid, **last).output
    return group


def _load(batch: Any, waiting: dict[str, Any], place: dict[str, Any], *, named: Callable[[str], str] = str) -> XComArg:
    wait = ClaudeBatchSensor(task_id=named("wait"), batch=batch, **waiting)
    return ClaudeBatchResultsOperator(task_id=named("load"), batch=wait.output, **place).output


def _load_each_batch(group: TaskGroup, submitted: Any, waiting: dict[str, Any], place: dict[str, Any]) -> Any:
    """Map wait and load as a pair: a load that is mapped by itself begins when the last wait is over."""

    @task_group(prefix_group_id=False)
    def each_batch(batch: Any) -> Any:
        return _load(batch, waiting, place, named=group.child_id)

    return each_batch.expand(batch=shards(submitted))


def _given(**arguments: Any) -> dict[str, Any]:
    """Leave to the default_args what is not given."""
    return {name: value for name, value in arguments.items() if value is not None}


def _each_over(defaults: Any, over: Mapping[str, Any] | Sequence[Mapping[str, Any]], rounds: int) -> list[Any]:
    """Put what each round has of its own over what all have; the last one lasts."""
    every = [over] if isinstance(over, Mapping) else [*over]
    if not any(every):
        return [defaults] * rounds
    if not isinstance(defaults, Mapping | None):
        raise Misconfigured(
            "retry_defaults= goes over a dict, and defaults= is only known when the task runs: leave one out."
        )
    merged = [{**(defaults or {}), **every[min(place, len(every) - 1)]} for place in range(rounds)]
    _refuse_too_late([one.get("max_tokens") for one in (defaults or {}, *merged)])
    return merged


def _refuse_too_late(limits: Sequence[Any]) -> None:
    """Refuse more room for answers after a round without it, which leaves them out: the next does not know of them."""
    if not all(isinstance(limit, int) for limit in limits):
        return
    for place, (cut, then) in enumerate(pairwise(limits)):
        most = max(limits[place + 1 :])
        if then <= cut < most:
            raise Misconfigured(
                f"retry_defaults= allows {most} max_tokens too late: what was cut at {cut} is not sent again by "
                f"submit_{place + 2}, and a round sees only what the one before it has sent. Allow more in "
                f"submit_{place + 2} already."
            )


def _sorted(arguments: Arguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the arguments of the submission from those of the wait."""
    known = {**Submitting.__annotations__, **Waiting.__annotations__}
    if unknown := sorted(arguments.keys() - known.keys()):
        own = signature(claude_batch).parameters.keys() - {"arguments"}
        raise TypeError(
            f"claude_batch() takes no {', '.join(unknown)}: it takes {', '.join(sorted({*known, *own}))}. "
            "Give what all tasks of Airflow take, such as retries or pool, as default_args."
        )
    submitting = {name: value for name, value in arguments.items() if name in Submitting.__annotations__}
    return submitting, {name: value for name, value in arguments.items() if name not in submitting}


def _refuse_mapped_fan_out(group: TaskGroup | None, *, fan_out: bool) -> None:
    """Airflow maps nothing in a group that is mapped itself: a group in it parses, and fails when it runs."""
    while fan_out and group is not None:
        if isinstance(group, MappedTaskGroup):
            raise Misconfigured(
                "fan_out= does not work in a task group that is mapped, because Airflow maps nothing inside one. "
                "Leave it out: each element then loads all of its batches at once."
            )
        group = group.parent_group
