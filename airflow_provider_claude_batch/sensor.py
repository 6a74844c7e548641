"""The sensor: waits until batches have ended, without holding a worker slot."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from airflow.providers.common.compat.sdk import AirflowSkipException, BaseSensorOperator

from airflow_provider_claude_batch import connection, receipt
from airflow_provider_claude_batch.batch import Batch, Counts
from airflow_provider_claude_batch.connection import DEFAULT_CONN_ID
from airflow_provider_claude_batch.errors import ApiRefused, ClaudeBatchError, Misconfigured, WaitTimeout
from airflow_provider_claude_batch.task import Unrendered, final_errors, open_argument, push
from airflow_provider_claude_batch.trigger import ClaudeBatchTrigger, read_event
from airflow_provider_claude_batch.watch import Ending, Look, Wait, Watch, Why

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
    :param cancel_on_kill: cancel the batches when the task is killed or cleared while it waits.
    """

    template_fields: Sequence[str] = ("batch", "conn_id")
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
        receipts = receipt.read(open_argument(self.batch, context))
        if not receipts:
            raise AirflowSkipException("There is nothing to wait for: no batch was given.")
        with self._lenience():
            conn_id = receipt.conn_id_of(receipts, self.conn_id, DEFAULT_CONN_ID)
            watch = self._watch(tuple(batch_id for one in receipts for batch_id in one.batch_ids))
            self._watching = conn_id, watch
            with connection.open_client(conn_id) as client:
                verdict = self._look(watch, client)
                while isinstance(verdict, Wait) and not self.deferrable:
                    time.sleep(verdict.seconds)
                    verdict = self._look(watch, client)
        if isinstance(verdict, Wait):
            return self.defer(trigger=self._trigger(conn_id, watch), method_name="resume")
        return self._finish(context, verdict, watch.batches)

    @final_errors
    def resume(self, context: "Context", event: dict[str, Any]) -> Any:
        """Take over from the trigger."""
        return self._finish(context, *read_event(event))

    def on_kill(self) -> None:
        """Cancel the batches, where the Dag's author asked for it."""
        if self.cancel_on_kill and self._watching:
            conn_id, watch = self._watching
            with connection.open_client(conn_id) as client:
                for batch_id in watch.waiting:
                    _look(batch_id, client, cancel=True)

    def _watch(self, batch_ids: tuple[str, ...]) -> Watch:
        deadline = None if self._patience is None else datetime.now(UTC) + self._patience
        cancel = self.on_timeout == "cancel"
        return Watch(batch_ids, interval=self.poke_interval, deadline=deadline, cancel_at_deadline=cancel)

    def _look(self, watch: Watch, client: "Client") -> Ending | Wait:
        looks = {batch_id: _look(batch_id, client, cancel=watch.cancelling) for batch_id in watch.waiting}
        verdict = watch.judge(looks, datetime.now(UTC))
        if isinstance(verdict, Wait):
            self._tell(verdict, watch)
        return verdict

    def _trigger(self, conn_id: str, watch: Watch) -> ClaudeBatchTrigger:
        return ClaudeBatchTrigger(
            batch_ids=list(watch.batch_ids),
            conn_id=conn_id,
            interval=watch.interval,
            deadline=watch.deadline.isoformat() if watch.deadline else None,
            on_timeout=self.on_timeout,
            cancel_on_kill=self.cancel_on_kill,
        )

    def _tell(self, verdict: Wait, watch: Watch) -> None:
        if verdict.trouble:
            self.log.warning("%s Asking again.", verdict.trouble)
        for batch_id in watch.waiting:
            if batch := watch.batches.get(batch_id):
                self.log.info("Batch %s is %s; it expires at %s.", batch_id, batch.processing_status, batch.expires_at)

    def _finish(self, context: "Context", ending: Ending, batches: Mapping[str, Batch]) -> Any:
        with self._lenience():
            if ending.why is Why.REFUSED:
                raise ApiRefused(ending.message)
            if ending.why is Why.TIMEOUT:
                raise WaitTimeout(f"{ending.message}. Nothing was cancelled: clear this task to go on waiting.")
        value = open_argument(self.batch, context)
        receipts = receipt.read(value)
        conn_id = receipt.conn_id_of(receipts, self.conn_id, DEFAULT_CONN_ID)
        for batch in batches.values():
            self.log.info("Batch %s ended at %s: %s.", batch.id, batch.ended_at, _words(batch.request_counts))
        seen = [receipt.replace(one.seen(batches), conn_id=conn_id) for one in receipts]
        return push(context, seen, many=isinstance(value, list))

    @contextmanager
    def _lenience(self) -> Iterator[None]:
        """Keep what Airflow promises of its sensors: soft_fail skips at the deadline, never_fail skips at any error."""
        try:
            yield
        except ClaudeBatchError as error:
            if self.never_fail or (self.soft_fail and isinstance(error, WaitTimeout)):
                raise AirflowSkipException(str(error)) from error
            raise


def _look(batch_id: str, client: "Client", *, cancel: bool) -> Look:
    try:
        batch = client.look(batch_id)
        return client.cancel(batch_id) if cancel and batch.processing_status == "in_progress" else batch
    except ClaudeBatchError as error:
        return error


def _words(counts: Counts) -> str:
    return (
        ", ".join(f"{count:,} {name}" for name, count in msgspec.structs.asdict(counts).items() if count)
        or "no requests"
    )
