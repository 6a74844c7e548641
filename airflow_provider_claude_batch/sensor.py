"""The sensor: waits until batches have ended, without holding a worker slot."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, BaseSensorOperator

from airflow_provider_claude_batch import connection, declared, metrics, receipt
from airflow_provider_claude_batch.arguments import check_amount, check_choice
from airflow_provider_claude_batch.batch import Batch, Counts
from airflow_provider_claude_batch.errors import ApiRefused, ClaudeBatchError, Misconfigured, WaitTimeout
from airflow_provider_claude_batch.links import LINKS
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.roll_call import Roll
from airflow_provider_claude_batch.task import Unrendered, final_errors, open_argument, push
from airflow_provider_claude_batch.trigger import ClaudeBatchTrigger, Finding, tell
from airflow_provider_claude_batch.watch import Ending, Look, Wait, Watch, Why
from airflow_provider_claude_batch.words import counted

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_claude_batch.client import Client


class ClaudeBatchSensor(BaseSensorOperator):
    """Wait until every batch has ended, and return the receipt with what became of it.

    One look on a worker; then the triggerer waits, and no worker is held until the end.

    :param batch: what to wait for: a receipt, a batch id, or a list of either. Never rendered inside.
    :param conn_id: the connection of type ``anthropic``; by default the one that submitted. (templated)
    :param deferrable: wait in the triggerer (the default), or on a worker.
    :param timeout: seconds to wait; by default until an hour after the API lets the batch expire.
    :param on_timeout: ``fail``, or ``cancel`` the batches and go on with what is finished.
    :param cancel_on_kill: cancel the batches when the task is killed or cleared while it waits (in the triggerer, this
        needs Airflow 3.3).
    """

    template_fields: Sequence[str] = ("batch", "conn_id")
    operator_extra_links = LINKS
    leaves_receipt = True
    ui_color = "#e0e6f5"

    def __init__(
        self,
        *,
        batch: Any,
        conn_id: str | None = None,
        deferrable: bool = True,
        timeout: float | timedelta | None = None,
        on_timeout: Literal["fail", "cancel"] = "fail",
        cancel_on_kill: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.mode != "poke":
            raise Misconfigured("ClaudeBatchSensor holds no worker as it is: leave mode out.")
        check_choice("on_timeout", on_timeout, ("fail", "cancel"))
        check_amount("timeout", timeout.total_seconds() if isinstance(timeout, timedelta) else timeout)
        self.batch = Unrendered.wrap(batch)
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.on_timeout = on_timeout
        self.cancel_on_kill = cancel_on_kill
        self._patience = timeout if timeout is None or isinstance(timeout, timedelta) else timedelta(seconds=timeout)
        self._watching: tuple[str, Watch] | None = None

    @final_errors
    def execute(self, context: "Context") -> Any:
        """Look once; then leave the wait to the triggerer, unless it is over already."""
        with self._lenience():
            receipts = receipt.read(open_argument(self.batch, context))
            if not receipts:
                raise AirflowSkipException("There is nothing to wait for: no batch was given.")
            conn_id = declared.conn_id_of(context, receipts, self.conn_id)
            watch = self._watch(tuple(batch_id for one in receipts for batch_id in one.batch_ids))
            self._watching = conn_id, watch
            with connection.open_client(conn_id) as client:
                verdict, looks = self._wait(conn_id, watch, client)
        if isinstance(verdict, Wait):
            return self.defer(trigger=self._trigger(conn_id, watch), method_name="resume")
        return self._finish(context, Finding(verdict, watch.batches, looks, datetime.now(UTC)))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: "Context") -> Any:
        """Resume, and skip only at the deadline: Airflow's soft_fail skips at any error after a deferral."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException as skip:
            error = skip.__cause__
            if self.never_fail or error is None or isinstance(error, AirflowSensorTimeout):
                raise
            raise error from error.__cause__

    @final_errors
    def resume(self, context: "Context", event: dict[str, Any]) -> Any:
        """Take over from the trigger."""
        return self._finish(context, Finding.of_event(event))

    def _wait(self, conn_id: str, watch: Watch, client: "Client") -> tuple[Ending | Wait, int]:
        """Look once, or on and on where the worker is to be held."""
        look, looks = partial(self._look, conn_id, watch, client, Roll()), 1
        verdict = look()
        self._tell_beginning(watch)
        while isinstance(verdict, Wait) and not self.deferrable:
            time.sleep(verdict.seconds)
            verdict, looks = look(), looks + 1
        return verdict, looks

    def on_kill(self) -> None:
        """Cancel the batches, where the Dag's author asked for it."""
        if self.cancel_on_kill and self._watching:
            conn_id, watch = self._watching
            with connection.open_client(conn_id) as client:
                for batch_id in watch.waiting:
                    with suppress(ClaudeBatchError):
                        client.cancel(batch_id)

    def _watch(self, batch_ids: tuple[str, ...]) -> Watch:
        deadline = None if self._patience is None else datetime.now(UTC) + self._patience
        cancel = self.on_timeout == "cancel"
        return Watch(batch_ids, interval=self.poke_interval, deadline=deadline, cancel_at_deadline=cancel)

    def _look(self, conn_id: str, watch: Watch, client: "Client", roll: Roll) -> Ending | Wait:
        known = {batch.id: batch.created_at for batch in watch.batches.values()}
        looks = roll.drive(watch.waiting, known, client.answer)
        metrics.count_poll(conn_id, calls=roll.asked, looks=looks.values())
        if mistake := next((look for look in looks.values() if isinstance(look, Misconfigured)), None):
            raise mistake
        if watch.cancelling:
            running = [look for look in looks.values() if isinstance(look, Batch)]
            looks |= {one.id: _cancelled(one, client) for one in running if one.processing_status == "in_progress"}
        verdict = watch.judge(looks, datetime.now(UTC))
        if isinstance(verdict, Wait):
            tell(self.log, verdict)
        return verdict

    def _trigger(self, conn_id: str, watch: Watch) -> ClaudeBatchTrigger:
        return ClaudeBatchTrigger(
            batch_ids=list(watch.batch_ids),
            conn_id=conn_id,
            interval=watch.interval,
            deadline=watch.due(datetime.now(UTC)).isoformat(),
            on_timeout=self.on_timeout,
            cancel_on_kill=self.cancel_on_kill,
        )

    def _tell_beginning(self, watch: Watch) -> None:
        running = [watch.batches[batch_id] for batch_id in watch.waiting if batch_id in watch.batches]
        if running:
            self.log.info(
                "Waiting for %d of %s, %s. The first was submitted at %s, the last expires at %s. "
                "Asking every %.0f s, and less often as they age.",
                len(watch.waiting),
                counted(len(watch.batch_ids), "batch"),
                counted(sum(batch.request_counts.total for batch in running), "request"),
                _moment(min(batch.created_at for batch in running)),
                _moment(max(batch.expires_at for batch in running)),
                watch.interval,
            )

    def _finish(self, context: "Context", found: Finding) -> Any:
        with self._lenience():
            if found.ending.why is Why.REFUSED:
                raise ApiRefused(found.ending.message)
            if found.ending.why is Why.TIMEOUT:
                raise WaitTimeout(found.ending.message)
        value = open_argument(self.batch, context)
        receipts = receipt.read(value)
        conn_id = declared.conn_id_of(context, receipts, self.conn_id)
        for batch in found.batches.values():
            ran = f" after {_span(batch.ended_at - batch.created_at)}" if batch.ended_at else ""
            self.log.info("Batch %s ended%s: %s.", batch.id, ran, _words(batch.request_counts))
            metrics.time_batch(conn_id, batch, found.noticed_at)
        self.log.info("Asked %s.", counted(found.looks, "time"))
        seen = [receipt.replace(self._seen(one, found), conn_id=conn_id) for one in receipts]
        return push(context, seen, many=isinstance(value, list))

    def _seen(self, one: Receipt, found: Finding) -> Receipt:
        """Add what became of the batches; the rounds of a group leave out what was canceled at a deadline."""
        batches = [found.batches[batch_id] for batch_id in one.batch_ids if batch_id in found.batches]
        # A wait that was interrupted while it canceled finds the batch ended: so the batch tells, and no flag of ours.
        canceled = self.on_timeout == "cancel" and any(batch.cancel_initiated_at for batch in batches)
        return receipt.replace(one.seen(found.batches), canceled_at_deadline=canceled or None)

    @contextmanager
    def _lenience(self) -> Iterator[None]:
        """Keep what Airflow promises of its sensors: soft_fail skips at the deadline, never_fail skips at any error."""
        try:
            yield
        except ClaudeBatchError as error:
            if self.never_fail or (self.soft_fail and isinstance(error, WaitTimeout)):
                raise AirflowSkipException(str(error)) from error
            raise


def _cancelled(batch: Batch, client: "Client") -> Look:
    try:
        return client.cancel(batch.id)
    except ClaudeBatchError as error:
        return error


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _span(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))


def _words(counts: Counts) -> str:
    return (
        ", ".join(f"{count:,} {name}" for name, count in msgspec.structs.asdict(counts).items() if count)
        or "no requests"
    )
