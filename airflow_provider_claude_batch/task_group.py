"""The task group: submit, wait, load, send again what failed, and add up."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from inspect import signature
from itertools import pairwise
from typing import Any, Literal, TypedDict, Unpack

from airflow.sdk import TaskGroup
from airflow.sdk.definitions.taskgroup import MappedTaskGroup
from airflow.sdk.definitions.xcom_arg import XComArg

from airflow_provider_claude_batch.arguments import check_count
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.fan_out import shards
from airflow_provider_claude_batch.operators import ClaudeBatchOperator, ClaudeBatchResultsOperator
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
    night on which nothing failed, too; when nothing was submitted at all, it is skipped.

    :param requests: as of ``ClaudeBatchOperator``, and so are ``defaults``, ``columns`` and ``conn_id``.
    :param warehouse_conn_id: as of ``ClaudeBatchResultsOperator``, and so is ``table``.
    :param rounds: how often what can succeed on another try is sent again, at most.
    :param retry_defaults: what goes over ``defaults`` when something is sent again, such as more ``max_tokens``; or a
        list of it, one for each round, of which the last one lasts. Beside it, ``defaults`` is a dict, and no output.
    :param fan_out: load each batch as it ends, where a submission is more than one.
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
        submit = ClaudeBatchOperator(task_id="submit", **_given(defaults=defaults), **lead)
        loads = [_fanned_out(submit, waiting, place) if fan_out else _loaded(submit, "", waiting, place)]
        for attempt, over in enumerate(_each_over(submit.defaults, retry_defaults, rounds), start=2):
            submit = ClaudeBatchOperator(
                task_id=f"submit_{attempt}", defaults=over, retry_of=loads[-1], **{**lead, **_OF_THE_FIRST}
            )
            loads.append(_loaded(submit, f"_{attempt}", waiting, place))
        rate = _given(max_error_rate=max_error_rate)
        group.output = ClaudeBatchTotal(task_id="total", rounds=loads, trigger_rule="none_failed", **rate).output
    return group


def _loaded(submit: ClaudeBatchOperator, suffix: str, waiting: dict[str, Any], place: dict[str, Any]) -> XComArg:
    wait = ClaudeBatchSensor(task_id=f"wait{suffix}", batch=submit.output, **waiting)
    return ClaudeBatchResultsOperator(task_id=f"load{suffix}", batch=wait.output, **place).output


def _fanned_out(submit: ClaudeBatchOperator, waiting: dict[str, Any], place: dict[str, Any]) -> XComArg:
    waits = ClaudeBatchSensor.partial(task_id="wait", **waiting).expand(batch=shards(submit.output))
    return ClaudeBatchResultsOperator.partial(task_id="load", **place).expand(batch=waits.output).output


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
        raise TypeError(f"claude_batch() takes no {', '.join(unknown)}: it takes {', '.join(sorted({*known, *own}))}.")
    submitting = {name: value for name, value in arguments.items() if name in Submitting.__annotations__}
    return submitting, {name: value for name, value in arguments.items() if name not in submitting}


def _refuse_mapped_fan_out(group: TaskGroup | None, *, fan_out: bool) -> None:
    """Airflow cannot map what is in a group that is mapped itself."""
    while fan_out and group is not None:
        if isinstance(group, MappedTaskGroup):
            raise Misconfigured("fan_out= does not work in a task group that is mapped: map it, or fan out.")
        group = group.parent_group
