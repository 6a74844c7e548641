"""What the operators and the sensor share: arguments that are resolved, never rendered, and errors that are final."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import PurePath
from typing import Any, Concatenate, ParamSpec, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException, Asset, ObjectStoragePath, XComNotFound
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions._internal.types import NOTSET
from airflow.sdk.definitions.xcom_arg import ConcatXComArg, MapXComArg, XComArg, ZipXComArg
from airflow.sdk.execution_time.lazy_sequence import LazyXComSequence

from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured
from airflow_provider_claude_batch.receipt import XCOM_KEY, Receipt

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_NOT_RUN = frozenset({"skipped", "upstream_failed", "removed", None})

log = logging.getLogger(__name__)


class Unrendered(ResolveMixin):
    """Keep data out of Jinja and out of the rendered fields: only what is upstream of it shows."""

    def __init__(self, value: Any) -> None:
        self._value = value

    @classmethod
    def wrap(cls, value: Any) -> Any:
        """Wrap what is data; what names a source of data stays a template: a text, a path, a query."""
        if isinstance(value, PurePath):
            return str(value)
        is_name = isinstance(value, str | ObjectStoragePath) or hasattr(value, "template_fields")
        return value if value is None or is_name or isinstance(value, cls) else cls(value)

    def iter_references(self) -> Iterator[tuple[Any, str]]:
        """Tell Airflow what is upstream."""
        yield from XComArg.iter_xcom_references(self._value)

    def resolve(self, context: Any) -> "Unrendered":
        """Stay closed when Airflow renders the task's fields."""
        del context
        return self

    def serialize(self) -> str:
        """Stand in the serialized Dag and in the rendered fields with a few words."""
        return str(self)

    def open(self, context: Any, *, current: bool = False) -> Any:
        """Fetch what is upstream; everything else is as the Dag's author, or an upstream task, wrote it.

        Airflow keeps the XComs of a task that is skipped, now that its run was cleared: `current` leaves them out.
        """
        return whole(_filled(self._value, lambda upstream: _fetch(upstream, context, current=current)))

    def open_for_function(self, context: Any) -> Any:
        """Fetch what is upstream as an ordinary task gets it: XComs of a mapped task are read when they are used."""
        return _filled(self._value, lambda upstream: upstream.resolve(context))

    @property
    def upstream(self) -> tuple[str, ...]:
        """Name the tasks whose XComs the data is."""
        return tuple(sorted({operator.task_id for operator, _ in self.iter_references()}))

    def __str__(self) -> str:
        if self.upstream:
            return f"from {', '.join(self.upstream)}"
        return f"{len(self._value):,} given" if isinstance(self._value, Sequence | Mapping) else "given"

    __repr__ = __str__


def open_argument(value: Any, context: Any) -> Any:
    """Fetch the value of an argument that may be wrapped."""
    return value.open(context) if isinstance(value, Unrendered) else value


def whole(value: Any) -> Any:
    """Make a list of what Airflow reads item by item; a mapped upstream is one call instead of one for each item."""
    if isinstance(value, LazyXComSequence):
        return list(value[:])
    is_other = isinstance(value, Sequence) and not isinstance(value, str | bytes | list)
    return list(value) if is_other else value  # a slice of what map() makes is one call of its function


def whole_within(value: Any) -> Any:
    """Make lists of what Airflow reads item by item, wherever it stands in a rendered template."""
    if isinstance(value, dict):
        return {key: whole_within(item) for key, item in value.items()}
    value = whole(value)
    return [whole_within(item) for item in value] if isinstance(value, list) else value


def push(context: Mapping[str, Any], receipts: Sequence[Receipt], *, many: bool) -> Any:
    """Push what the page reads, tell it to who waits for the task's assets, and return what the next task takes."""
    values = [receipt.to_dict() for receipt in receipts]
    value = values if many else values[0]
    context["ti"].xcom_push(XCOM_KEY, value)
    for outlet in getattr(context["task"], "outlets", ()):
        if isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra = {XCOM_KEY: value}
    return value


def final_errors(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Let Airflow try again only where another try can go better."""

    @wraps(method)
    def run(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except ClaudeBatchError as error:
            log.error("%s", error)  # noqa: TRY400 - a line for itself, above the trace that Airflow writes
            if error.retryable:
                raise
            raise AirflowFailException(str(error)) from None

    return run


def _filled(value: Any, fetch: Callable[[ResolveMixin], Any]) -> Any:
    """Copy data, and fetch what is upstream of it."""
    if isinstance(value, ResolveMixin):
        return fetch(value)
    if isinstance(value, list):
        return [_filled(item, fetch) for item in value]
    if isinstance(value, tuple):
        items = [_filled(item, fetch) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {key: _filled(item, fetch) for key, item in value.items()}
    return value


def _fetch(value: ResolveMixin, context: Any, *, current: bool) -> Any:
    """Fetch an XCom; a task of ours that a person marked a success has none, and what it has paid would be lost."""
    if not isinstance(value, XComArg):
        return whole(value.resolve(context))
    upstream = {operator.task_id: operator for operator, _ in value.iter_references()}
    if current and all(set() < _states(context, task_id) <= _NOT_RUN for task_id in upstream):
        return None
    try:
        fetched = _present(whole(_sliced(value).resolve(context)))
    except XComNotFound:  # a task that failed may have published nothing
        if not current:
            raise
        fetched = None
    if fetched is None:
        for task_id, operator in upstream.items():
            kind = getattr(operator, "operator_class", type(operator))
            if getattr(kind, "leaves_receipt", False) and _states(context, task_id) == {"success"}:
                raise Misconfigured(
                    f"{task_id} is marked a success and has left no receipt, so nobody knows of its batches: "
                    "clear it, and what is paid is not paid again. (With do_xcom_push=False, it never leaves one.)"
                )
    return fetched


def _present(fetched: Any) -> Any:
    """Leave out instances without an XCom: before 3.2, Airflow puts a placeholder there for those of a mapped group."""
    if not isinstance(fetched, list) or all(one is not NOTSET for one in fetched):
        return fetched
    return [one for one in fetched if one is not NOTSET] or None


def instances(context: Any, task_id: str) -> dict[str, str | None]:
    """Return the states of a task's instances in this run: where it is mapped with us, of our own map index."""
    ti = context["ti"]
    found = ti.get_task_states(dag_id=ti.dag_id, task_ids=[task_id], run_ids=[ti.run_id]).get(ti.run_id, {})
    ours = f"{task_id}_{getattr(ti, 'map_index', None)}"  # so Airflow names the instances of a mapped task
    mine = {ours: found[ours]} if ours in found else found
    # Airflow names them task_3; a person reads task[3].
    return {f"{task_id}[{name[len(task_id) + 1 :]}]" if name != task_id else name: mine[name] for name in mine}


def _states(context: Any, task_id: str) -> set[str | None]:
    return {*instances(context, task_id).values()}


class _Sliced(ResolveMixin):
    """An XCom that is fetched in one call, however many mapped instances have pushed it."""

    def __init__(self, arg: XComArg) -> None:
        self._arg = arg

    def resolve(self, context: Any) -> Any:
        """Fetch all of it, even where Airflow would fetch each item when it is read."""
        return whole(self._arg.resolve(context))


def _sliced(arg: XComArg) -> Any:
    """Leave map(), zip() and concat() to Airflow; only what they read is fetched in one call."""
    if isinstance(arg, MapXComArg):
        return MapXComArg(_sliced(arg.arg), arg.callables)
    if isinstance(arg, ZipXComArg):
        return ZipXComArg([_sliced(one) for one in arg.args], fillvalue=arg.fillvalue)
    if isinstance(arg, ConcatXComArg):
        return ConcatXComArg([_sliced(one) for one in arg.args])
    return _Sliced(arg)
