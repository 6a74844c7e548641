"""The sensor: waits until batches have ended, without holding a worker slot."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from airflow.providers.common.compat.sdk import AirflowSkipException, BaseSensorOperator
from airflow.sdk import PokeReturnValue

from airflow_provider_claude_batch import connection, receipt
from airflow_provider_claude_batch.batch import Batch, Counts
from airflow_provider_claude_batch.connection import DEFAULT_CONN_ID
from airflow_provider_claude_batch.errors import ApiRefused, ClaudeBatchError, WaitTimeout
from airflow_provider_claude_batch.task import Unrendered, final_errors, open_argument, push
from airflow_provider_claude_batch.trigger import ClaudeBatchTrigger, read_event
from airflow_provider_claude_batch.watch import Ending, Look, Wait, Watch, Why

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_claude_batch.client import Client
    from airflow_provider_claude_batch.receipt import Receipt


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
        self.batch = Unrendered.wrap(batch)
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.on_timeout = on_timeout
        self.cancel_on_kill = cancel_on_kill
        self._patience = timeout if timeout is None or isinstance(timeout, timedelta) else timedelta(seconds=timeout)
        self._watch: Watch | None = None
        self._watched_conn_id = DEFAULT_CONN_ID

    @final_errors
    def execute(self, context: "Context") -> Any:
        """Look once; then leave the wait to the triggerer, unless it is over already."""
        value = open_argument(self.batch, context)
        receipts = receipt.read(value)
        if not receipts:
            raise AirflowSkipException("There is nothing to wait for: no batch was given.")
        self._begin(receipts, context)
        if not self.deferrable:
            return super().execute(context)
        done = self.poke(context)
        if done:
            return done.xcom_value
        return self.defer(trigger=self._trigger(), method_name="resume")

    @final_errors
    def poke(self, context: "Context") -> PokeReturnValue:
        """Look at every batch that has not ended yet."""
        watch = self._watch or self._begin(receipt.read(open_argument(self.batch, context)), context)
        with connection.open_client(self._watched_conn_id) as client:
            verdict = watch.judge({batch_id: _look(batch_id, client) for batch_id in watch.waiting}, datetime.now(UTC))
            if isinstance(verdict, Ending) and verdict.why is Why.TIMEOUT and self.on_timeout == "cancel":
                self._cancel(client)
                return PokeReturnValue(is_done=False)
        if isinstance(verdict, Wait):
            self._tell(verdict, watch)
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._finish(context, verdict, watch.batches))

    @final_errors
    def resume(self, context: "Context", event: dict[str, Any]) -> Any:
        """Take over from the trigger."""
        return self._finish(context, *read_event(event))

    def on_kill(self) -> None:
        """Cancel the batches, where the Dag's author asked for it."""
        if self.cancel_on_kill and self._watch:
            with connection.open_client(self._watched_conn_id) as client:
                self._cancel(client)

    def _begin(self, receipts: "Sequence[Receipt]", context: "Context") -> Watch:
        self._watched_conn_id = self.conn_id or next((one.conn_id for one in receipts if one.conn_id), DEFAULT_CONN_ID)
        batch_ids = tuple(batch_id for one in receipts for batch_id in one.batch_ids)
        deadline = None if self._patience is None else self._began_at(context) + self._patience
        self._watch = Watch(batch_ids, interval=self.poke_interval, deadline=deadline)
        return self._watch

    def _began_at(self, context: "Context") -> datetime:
        """Airflow's own timeout would end in an error that is never retried; ours counts from the try's first look."""
        earlier = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
        return earlier or datetime.now(UTC)

    def _trigger(self) -> ClaudeBatchTrigger:
        assert self._watch is not None
        return ClaudeBatchTrigger(
            batch_ids=list(self._watch.batch_ids),
            conn_id=self._watched_conn_id,
            interval=self._watch.interval,
            deadline=self._watch.deadline.isoformat() if self._watch.deadline else None,
            on_timeout=self.on_timeout,
            cancel_on_kill=self.cancel_on_kill,
        )

    def _tell(self, verdict: Wait, watch: Watch) -> None:
        if verdict.trouble:
            self.log.warning("%s Nothing was changed; asking again.", verdict.trouble)
        for batch_id in watch.waiting:
            if batch := watch.batches.get(batch_id):
                self.log.info("Batch %s is %s; it expires at %s.", batch_id, batch.processing_status, batch.expires_at)

    def _cancel(self, client: "Client") -> None:
        assert self._watch is not None
        self.log.warning("Cancelling %s, to load what is finished.", ", ".join(self._watch.waiting))
        for batch_id in self._watch.waiting:
            client.cancel(batch_id)
        self._watch.deadline = datetime.max.replace(tzinfo=UTC)

    def _finish(self, context: "Context", ending: Ending, batches: Mapping[str, Batch]) -> Any:
        value = open_argument(self.batch, context)
        if ending.why is not Why.ENDED:
            self._fail(ending)
        receipts = [one.seen(batches) for one in receipt.read(value)]
        for batch in batches.values():
            self.log.info("Batch %s ended at %s: %s.", batch.id, batch.ended_at, _words(batch.request_counts))
        return push(context, receipts, many=isinstance(value, list))

    def _fail(self, ending: Ending) -> None:
        if self.soft_fail:
            raise AirflowSkipException(ending.message)
        if ending.why is Why.REFUSED:
            raise ApiRefused(ending.message)
        raise WaitTimeout(f"{ending.message}. They still run: clear this task to go on waiting.")


def _look(batch_id: str, client: "Client") -> Look:
    try:
        return client.retrieve(batch_id)
    except ClaudeBatchError as error:
        return error


def _words(counts: Counts) -> str:
    return (
        ", ".join(f"{count:,} {name}" for name, count in msgspec.structs.asdict(counts).items() if count)
        or "no requests"
    )
