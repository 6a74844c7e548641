"""Batch queues: an application queues a request instead of calling the API, and a Dag drains them into a batch."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions.xcom_arg import XComArg

from airflow_provider_claude_batch import connection
from airflow_provider_claude_batch.errors import ClaudeBatchError, InvalidRequests, Misconfigured, TakenOver
from airflow_provider_claude_batch.note import Notebook
from airflow_provider_claude_batch.query import Columns
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.request import Defaults, Reading, encode
from airflow_provider_claude_batch.words import counted
from airflow_provider_claude_batch.writers.table import Table

if TYPE_CHECKING:
    from airflow_provider_claude_batch.queue_table import Item, QueueTable, Stale

_COLUMNS = Columns("custom_id", "params", is_prompt=False)
_STANDING_IN = Defaults({"model": "any", "max_tokens": 1, "messages": [{"role": "user", "content": "any"}]})

log = logging.getLogger(__name__)


class BatchQueue:
    """Queue requests in a table of PostgreSQL or SQLite, and drain them into batches.

    The table is created when it is missing. Nothing connects before the first call.

    :param conn_id: the connection of the database; outside of Airflow, ``AIRFLOW_CONN_<ID>`` in the environment is one.
    :param table: ``table`` or, in PostgreSQL, ``schema.table``.
    """

    def __init__(self, conn_id: str, table: str) -> None:
        if "{" not in table:
            Table.parse(table)
        self.conn_id = conn_id
        self.table = table

    def put(self, custom_id: str, params: Mapping[str, Any]) -> None:
        """Queue one request, in the place of one that still waits under the same id."""
        self.put_all([{"custom_id": custom_id, "params": params}])

    def put_all(self, requests: Iterable[Mapping[str, Any]]) -> None:
        """Queue requests, each a dict with ``custom_id`` and ``params``: all of them or, after an error, none."""
        if checked := [_checked(index, request) for index, request in enumerate(requests)]:
            self._open().put(checked)

    def find(self, custom_id: str) -> "list[Item]":
        """Tell what became of everything that was queued under an id, the newest first."""
        return self._open().find(custom_id)

    def waiting(self) -> int:
        """Count the requests that no task has claimed."""
        return self._open().waiting()

    def release(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, *, deployment: str | None = None
    ) -> int:
        """Let wait again what a task has claimed and not submitted, and return how much: the task must not run again.

        Clearing the task is safer: it finds what it has sent. What it sent and is released is paid twice.
        Where several Airflows drain the queue and have a run of this name, ``deployment`` says which of them.
        """
        place = dag_id, run_id, task_id, map_index
        return _open_table(self.conn_id, self.table, deployment).release(place).waiting

    def drain(self, limit: int | None = None) -> "Drain":
        """Return what ``ClaudeBatchOperator`` takes as its requests: what waits when it runs, oldest first.

        :param limit: the most requests that one task takes.
        """
        return Drain(self.conn_id, self.table, limit)

    def _open(self) -> "QueueTable":
        return _open_table(self.conn_id, self.table)


class Drain(ResolveMixin):
    """Take the requests of a submission from a queue: those that a task instance has claimed are its own on every try.

    Connection and table are templates.
    """

    template_fields: ClassVar[tuple[str, ...]] = ("conn_id", "table")

    def __init__(self, conn_id: str, table: str, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise Misconfigured(f"drain() takes a limit of at least 1, and was given {limit}.")
        self.conn_id = conn_id
        self.table = table
        self.limit = limit

    def iter_references(self) -> Iterator[tuple[Any, str]]:
        """Tell Airflow what is upstream."""
        for field in self.template_fields:
            yield from XComArg.iter_xcom_references(getattr(self, field))

    def resolve(self, context: Any) -> "Drain":
        """Render the template fields into a copy, for mapped tasks share what was written in the Dag."""
        rendered = copy(self)
        for field in self.template_fields:
            setattr(rendered, field, context["task"].render_template(getattr(self, field), context))
        return rendered

    def claim(self, place: Receipt, *, is_new: bool = False) -> Iterator[dict[str, Any]]:
        """Stream what the task instance at a place has claimed; it claims once, unless that was given back.

        One that is new, for it has no note, takes nothing for its own that was sent from there before.
        """
        table, owner = self._open(), _owner(place)
        if is_new and (submission := table.submission(owner)):
            raise Misconfigured(
                f"A run of this name has sent, or was about to send, requests of the queue {self.table} before, as "
                f"{submission}, and was deleted: nothing was sent again. What waits is taken by a run of another name."
            )
        claimed = table.claim(owner, self.limit)
        if claimed is not None:
            log.info("Claimed %s of the queue %s.", counted(claimed, "request"), self.table)
            self._warn_of_stale(table)
        yield from self.read_again(place)

    def read_again(self, place: Receipt) -> Iterator[dict[str, Any]]:
        """Stream what was claimed at a place, submitted or not, in the order of then, and claim nothing."""
        for custom_id, params in self._open().read(_owner(place)):
            yield _COLUMNS.to_request(custom_id, params)

    def begin(self, submission: Receipt) -> None:
        """Note which submission has what was claimed at its place, before the first of it is sent."""
        self._open().begin(_owner(submission), submission.submission)

    def settle(self, submitted: Receipt) -> None:
        """Mark everything that was claimed at the place of a complete submission as submitted."""
        self._open().settle(_owner(submitted), submitted.submission)

    def give_back(self, place: Receipt, *, is_new: bool = False) -> None:
        """Let wait again what was claimed at a place; one that is new leaves alone what was sent from there before."""
        table, owner = self._open(), _owner(place)
        if is_new and table.submission(owner):
            return
        released = table.release(owner)
        if released.waiting:
            log.info("Nothing was sent: %s requests wait again in the queue %s.", f"{released.waiting:,}", self.table)
        if released.replaced:
            said = counted(released.replaced, "request")
            log.info("Put again since they were claimed, so only the newer stays in %s: %s.", self.table, said)

    def serialize(self) -> str:
        """Stand in the serialized Dag and in the rendered fields."""
        return str(self)

    def __str__(self) -> str:
        return f"{self.conn_id}: {self.table}" + ("" if self.limit is None else f" (at most {self.limit:,})")

    __repr__ = __str__

    def _open(self) -> "QueueTable":
        return _open_table(self.conn_id, self.table, connection.deployment())

    def _warn_of_stale(self, table: "QueueTable") -> None:
        if stale := table.stale():
            named = "; ".join(f"{one.requests:,} by {_call_to_release(one)}" for one in stale)
            log.warning(
                "Requests of the queue %s were claimed over a day ago, and are not submitted: %s. Where a task does "
                "not run any more, clear it: it sends nothing twice. Where it surely sent nothing, "
                "BatchQueue(%r, %r).release(...) lets them wait again.",
                *(self.table, named, self.conn_id, self.table),
            )


@contextmanager
def given_back(requests: Any, place: Receipt, ti: Any, notebook: Notebook) -> Iterator[None]:
    """Give back to the queue what was claimed, when a task fails for good and has sent nothing."""
    try:
        yield
    except (AirflowSkipException, TakenOver):
        raise
    except (Exception, AirflowTaskTimeout) as error:
        if isinstance(requests, Drain) and _is_for_good(error, ti) and (notebook.is_kept or ti.try_number == 1):
            _give_back(requests, place, notebook)
        raise


def _give_back(drain: Drain, place: Receipt, notebook: Notebook) -> None:
    """Do it as a best effort: what fails now must not hide why the task failed."""
    try:
        if notebook.has_sent_nothing():
            drain.give_back(place, is_new=notebook.is_new)
    except Exception as error:  # noqa: BLE001 - a best effort
        log.warning("What was claimed of the queue %s stays claimed until this task is cleared. %s", drain.table, error)


def _is_for_good(error: BaseException, ti: Any) -> bool:
    is_final = isinstance(error, AirflowFailException) or (isinstance(error, ClaudeBatchError) and not error.retryable)
    return is_final or ti.try_number > getattr(ti, "max_tries", 0)


def _open_table(conn_id: str, table: str, deployment: str | None = None) -> "QueueTable":
    from airflow_provider_claude_batch.queue_table import QueueTable

    return QueueTable(conn_id, table, deployment)


def _call_to_release(stale: "Stale") -> str:
    """Write the call; it names the Airflow where that is another one than this."""
    is_elsewhere = stale.deployment not in {None, connection.deployment()}
    arguments = [*map(repr, stale.owner), *([f"deployment={stale.deployment!r}"] if is_elsewhere else [])]
    return f"release({', '.join(arguments)})"


def _owner(place: Receipt) -> tuple[str, str, str, int]:
    """Name the task instance that submits first: its retries read what it has claimed."""
    return place.dag_id or "", place.run_id or "", place.submit_task or "", place.map_index


def _checked(index: int, request: Any) -> tuple[str, str]:
    """Refuse what no batch would take, whatever defaults go under it; return the id, and the params as JSON."""
    try:
        for _ in Reading([request], _STANDING_IN):
            pass
    except InvalidRequests as error:
        raise InvalidRequests([f"request {index}" + error.offences[0].removeprefix("request 0")], 1) from None
    custom_id = request["custom_id"]
    if "\0" in custom_id:
        raise InvalidRequests([f"request {index}: custom_id holds a NUL, which no database keeps"], 1)
    return custom_id, encode(request["params"]).decode()
