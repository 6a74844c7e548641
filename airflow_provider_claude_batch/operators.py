"""The operators: submit a batch, and load its results into a warehouse table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator, conf, redact

from airflow_provider_claude_batch import connection, declared, load, receipt, submit
from airflow_provider_claude_batch.arguments import (
    check_amount,
    check_choice,
    check_count,
    check_pair,
    check_share,
    check_source,
)
from airflow_provider_claude_batch.batch_queue import Drain, given_back
from airflow_provider_claude_batch.columns import Columns
from airflow_provider_claude_batch.connection import DEFAULT_CONN_ID
from airflow_provider_claude_batch.element import element_of
from airflow_provider_claude_batch.fate import Pause
from airflow_provider_claude_batch.links import LINKS
from airflow_provider_claude_batch.note import Clear, Notebook
from airflow_provider_claude_batch.order import Order
from airflow_provider_claude_batch.receipt import Receipt, Source, as_json
from airflow_provider_claude_batch.request import Defaults, OnInvalid
from airflow_provider_claude_batch.retry import Retry, canceled_at_deadline, next_attempt
from airflow_provider_claude_batch.reuse import ReuseMissing, judge_missing
from airflow_provider_claude_batch.row import COLUMNS
from airflow_provider_claude_batch.source import Reread, open_source, source_of
from airflow_provider_claude_batch.task import Unrendered, final_errors, open_argument, push, whole_within
from airflow_provider_claude_batch.trigger import ClaudeBatchPause
from airflow_provider_claude_batch.words import counted
from airflow_provider_claude_batch.writers import Answered, Retryable
from airflow_provider_claude_batch.writers.table import Table

if TYPE_CHECKING:
    from airflow.sdk import Context

_CLOCK_SKEW = timedelta(days=1)
_NO_RETRY = "There is nothing to retry: another try can better no answer."


class ClaudeBatchOperator(BaseOperator):
    """Submit requests as Message Batches, at half the price of live calls, and return a receipt.

    Each batch is paid once, whatever dies and whenever: a task that is retried or cleared takes up what it has sent.
    The task is skipped when there is nothing to send.

    :param requests: the requests, each a dict with ``custom_id`` and ``params``: a list, or the output of an upstream
        task, mapped or not (never rendered: ``{{ }}`` in a prompt stays text); a path or URI of a ``.jsonl``,
        ``.jsonl.gz`` or ``.parquet`` file (templated); ``SqlRequests``, or ``drain()`` of a ``BatchQueue`` (templated).
    :param defaults: what goes under the params of every request; ``betas`` in it becomes a header. (templated)
    :param columns: a Pydantic model or a JSON schema that every answer has to fit: structured output is asked for.
    :param retry_of: the receipt of a load: only what can succeed on another try is submitted again.
    :param retry_canceled: with ``retry_of``, send again what a wait has canceled at its deadline, too.
    :param reuse_from: the connection and the table of answers that are taken as they are: a request of the same id and
        content is not sent again. (templated)
    :param reuse_missing: ``fail`` when that table is missing, no load of this task makes it, and one has succeeded; or
        ``ok``, which only warns.
    :param element: a name that this element of a mapped task has in every run; by default, what its
        ``map_index_template`` renders, or else its map index. (templated)
    :param conn_id: the connection of type ``anthropic``. (templated)
    :param shard_size: the most requests in one batch, where the API's 100,000 are too many.
    :param max_requests: fail before anything is sent if there are more requests than this.
    :param max_cost_usd: fail before anything is sent if the estimate is higher than this.
    :param preflight: have this many requests answered live first, and stop where one has no usable answer.
    :param prime_cache: send one request first, and the others when the system prompt of ``defaults`` is in the cache.
    :param on_invalid: ``fail`` when requests cannot be sent, or ``skip`` up to 500 of them and submit the rest.
    """

    template_fields: Sequence[str] = ("requests", "defaults", "retry_of", "reuse_from", "conn_id", "element")
    template_fields_renderers: ClassVar[dict[str, str]] = {"defaults": "json", "reuse_from": "json"}
    operator_extra_links = LINKS
    leaves_receipt = True
    ui_color = "#f5e6dc"

    def __init__(
        self,
        *,
        requests: Any,
        defaults: Mapping[str, Any] | None = None,
        columns: Any = None,
        retry_of: Any = None,
        reuse_from: tuple[str, str] | None = None,
        reuse_missing: ReuseMissing = "fail",
        element: str | None = None,
        conn_id: str = DEFAULT_CONN_ID,
        shard_size: int | None = None,
        max_requests: int | None = None,
        max_cost_usd: float | None = None,
        preflight: int = 0,
        prime_cache: bool = False,
        on_invalid: OnInvalid = "fail",
        retry_canceled: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_source("requests", requests)
        check_choice("on_invalid", on_invalid, ("fail", "skip"))
        check_pair("reuse_from", reuse_from)
        check_choice("reuse_missing", reuse_missing, ("fail", "ok"))
        check_count("shard_size", shard_size, least=1, optional=True)
        check_count("preflight", preflight)
        check_amount("max_requests", max_requests)
        check_amount("max_cost_usd", max_cost_usd)
        Columns.of(columns)
        self.requests = Unrendered.wrap(requests)
        self.defaults = defaults
        self.columns = columns
        self.retry_of = Unrendered.wrap(retry_of)
        self.reuse_from = reuse_from
        self.reuse_missing = reuse_missing
        self.element = element
        self.conn_id = conn_id
        self.shard_size = shard_size
        self.max_requests = max_requests
        self.max_cost_usd = max_cost_usd
        self.preflight = preflight
        self.prime_cache = prime_cache
        self.on_invalid = on_invalid
        self.retry_canceled = retry_canceled

    @final_errors
    def execute(self, context: "Context") -> Any:
        """Submit, and return the receipt."""
        notebook = Notebook.of(context)
        may_have_sent = context["ti"].try_number > 1 and _is_forgetful(notebook)
        with given_back(self.requests, _own_receipt(context), context["ti"], notebook):
            return self._run(context, notebook, unremembered_since=_beginning(context) if may_have_sent else None)

    @final_errors
    def resume(self, context: "Context", event: dict[str, Any]) -> Any:
        """Go on after a pause."""
        notebook = Notebook.of(context, event["memo"])
        with given_back(self.requests, _own_receipt(context), context["ti"], notebook):
            return self._run(context, notebook, resumed=True)

    def _run(
        self,
        context: "Context",
        notebook: Notebook,
        *,
        resumed: bool = False,
        unremembered_since: datetime | None = None,
    ) -> Any:
        loaded = None if self.retry_of is None else self._loaded(context)
        kept = loaded and notebook.kept_for(loaded)
        if loaded and kept:
            loaded = [one for one in loaded if not {*one.batch_ids} <= {*(kept.of or ())}]
        lineage = next_attempt(loaded, retry_canceled=self.retry_canceled) if loaded else self._lineage(context)
        submitted: Receipt | Pause | None = submit.accepted(notebook, _clear(context), lineage)
        retry = self._retry(context, loaded) if loaded and submitted is None else None
        if submitted is None and (retry or loaded is None):
            with connection.open_client(self.conn_id) as client:
                order = self._order(context, lineage, notebook, unremembered_since)
                order = msgspec.structs.replace(order, kept=kept or None)
                submission = submit.Submission(order, client, notebook, lambda part: _publish(context, part))
                is_new = bool(self._drain) and unremembered_since is None and notebook.is_new
                requests = Reread(lambda: self._read(context, retry, is_new=is_new))
                submitted = submission.run(requests, resumed=resumed)
        submitted = submitted or kept or None
        if submitted is None:
            raise AirflowSkipException("There is nothing to send: no requests." if self.retry_of is None else _NO_RETRY)
        if isinstance(submitted, Pause):
            return self._defer(submitted, notebook)
        if self._drain:
            notebook.settle()
            self._drain.settle(submitted)
        return push(context, [submitted], many=False)

    def _lineage(self, context: "Context") -> Receipt:
        return receipt.replace(_own_receipt(context), element=element_of(context, self.element))

    @property
    def _drain(self) -> Drain | None:
        """The queue that this task claims from: a retry reads what its first submission has claimed."""
        return self.requests if isinstance(self.requests, Drain) and self.retry_of is None else None

    def _read(self, context: "Context", retry: Retry | None, *, is_new: bool) -> Iterator[Any]:
        """Open the source only when it is read: a task that has sent everything needs it no more."""
        raw = self._open(context, retry, is_new=is_new)
        yield from raw if retry is None else retry.select(raw, self._under_each())

    def _open(self, context: "Context", retry: Retry | None, *, is_new: bool) -> Iterator[Any]:
        if self._drain:
            return self._drain.claim(_own_receipt(context), is_new=is_new)
        if isinstance(self.requests, Drain) and retry is not None:
            return self.requests.read_again(retry.lineage)
        return open_source(self._given(context))

    def read_again(self, context: "Context", place: Receipt) -> Iterator[Any]:
        """Read what a task instance submitted again, from where the Dag's code says that requests come from."""
        if isinstance(self.requests, Drain):
            return self.requests.read_again(place)
        return open_source(open_argument(self.requests, context))

    def _given(self, context: "Context") -> Any:
        return open_argument(self.requests, context)

    def _defer(self, pause: Pause, notebook: Notebook) -> Any:
        until = (datetime.now(UTC) + timedelta(seconds=pause.seconds)).isoformat()
        ids = list(pause.batch_ids)
        trigger = ClaudeBatchPause(until=until, batch_ids=ids, conn_id=self.conn_id, memo=notebook.memo)
        return self.defer(trigger=trigger, method_name="resume")

    def _order(
        self, context: "Context", lineage: Receipt, notebook: Notebook, unremembered_since: datetime | None
    ) -> Order:
        ti = context["ti"]
        return Order(
            receipt=receipt.replace(lineage, conn_id=self.conn_id, source=self._source()),
            deployment=connection.deployment(),
            task_instance=(ti.dag_id, ti.run_id, ti.task_id, _map_index(context)),
            clear=_clear(context),
            prices=connection.prices(),
            defaults=self._under_each(),
            reader=Columns.of(self.columns),
            shard_size=self.shard_size,
            max_requests=self.max_requests,
            max_cost_usd=self.max_cost_usd,
            preflight=self.preflight,
            prime_cache=self.prime_cache,
            on_invalid=self.on_invalid,
            answered=partial(self._answered, context, notebook, unremembered_since) if self.reuse_from else None,
            begin=self._drain.begin if self._drain else None,
            keeps_notes=notebook.is_kept,
            unremembered_since=unremembered_since,
        )

    def _answered(
        self, context: "Context", notebook: Notebook, unremembered_since: datetime | None, moment: datetime
    ) -> Answered:
        conn_id, table = self.reuse_from or ("", "")
        writer = connection.open_warehouse(conn_id, table)
        answered = Answered(writer, moment)
        if not answered and not writer.exists():
            is_new = unremembered_since is None and notebook.read() is None  # else what is paid has to be taken up
            judge_missing((conn_id, table), context, may_fail=is_new and self.reuse_missing == "fail")
        return answered

    def _under_each(self) -> Defaults:
        return Defaults.of(whole_within(self.defaults), self._format())

    def _format(self) -> dict[str, Any] | None:
        from airflow_provider_claude_batch.client import output_format

        columns = Columns.of(self.columns)
        return output_format(columns.schema) if columns else None

    def _source(self) -> Source | None:
        if not isinstance(self.requests, Unrendered):
            source = source_of(self.requests)
            return source if redact(as_json(source)) == as_json(source) else None  # a secret may be rendered into it
        # Of a mapped task, Airflow has put the value in the place of what it was mapped over.
        upstream = self.requests.upstream or tuple(sorted(self.upstream_task_ids))
        return Source(tasks=upstream) if upstream else None

    def _loaded(self, context: "Context") -> list[Receipt]:
        loaded = [one for one in receipt.read(open_argument(self.retry_of, context)) if one.batches]
        if not loaded:
            raise AirflowSkipException(_NO_RETRY)
        return receipt.newest(loaded)

    def _retry(self, context: "Context", loaded: list[Receipt]) -> Retry | None:
        retry = Retry.of(loaded, partial(_read_back, context), retry_canceled=self.retry_canceled)
        if not self.retry_canceled and (left_out := canceled_at_deadline(loaded)):
            self.log.warning(
                "Not sent again: %s, canceled at the deadline. retry_canceled=True sends them again.",
                counted(left_out, "request"),
            )
        if retry is None:
            return None
        self.log.info(
            "Attempt %d of submission %s: %s to try again; %d of them were truncated, and are sent where max_tokens is "
            "higher now.",
            retry.lineage.attempt,
            retry.lineage.submission,
            counted(len(retry.used_tokens), "request"),
            len(retry.truncated),
        )
        return retry


class ClaudeBatchResultsOperator(BaseOperator):
    """Write one row for each request of a batch to a warehouse table, and return the receipt with the sums.

    Loading twice leaves the same rows. The table is created when it is missing.

    :param batch: what to load: a receipt, a batch id, or a list of either. Never rendered inside.
    :param warehouse_conn_id: the connection of the warehouse; its type decides how rows are written. (templated)
    :param table: ``table``, ``schema.table`` or ``catalog.schema.table``. (templated)
    :param columns: the model or schema of the submission: each of its fields becomes a column of the table.
    :param conn_id: the connection of type ``anthropic``; by default the one that submitted. (templated)
    :param max_error_rate: fail, after everything is written, when a larger share has no usable answer.
    """

    template_fields: Sequence[str] = ("batch", "warehouse_conn_id", "table", "conn_id")
    operator_extra_links = LINKS
    leaves_receipt = loads_rows = True
    ui_color = "#e6f0dc"

    def __init__(
        self,
        *,
        batch: Any,
        warehouse_conn_id: str,
        table: str,
        columns: Any = None,
        conn_id: str | None = None,
        max_error_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not hasattr(table, "resolve") and "{" not in str(table):
            Table.parse(table or "")
        check_share("max_error_rate", max_error_rate)
        Columns.of(columns)
        self.batch = Unrendered.wrap(batch)
        self.warehouse_conn_id = warehouse_conn_id
        self.table = table
        self.columns = columns
        self.conn_id = conn_id
        self.max_error_rate = max_error_rate

    @final_errors
    def execute(self, context: "Context") -> Any:
        """Load, push the receipt, and only then judge it."""
        from airflow_provider_claude_batch import abandoned
        from airflow_provider_claude_batch.roster import Roster

        value = open_argument(self.batch, context)
        place = receipt.replace(_own_receipt(context), element=element_of(context))
        receipts = [
            receipt.replace(load.placed(one, place), table=self.table, warehouse_conn_id=self.warehouse_conn_id)
            for one in receipt.read(value)
        ]
        if not receipts:
            raise AirflowSkipException("There is nothing to load: no batch was given.")
        columns = Columns.of(self.columns)
        every = (*COLUMNS, *(columns.columns if columns else ()))
        writer = connection.open_warehouse(self.warehouse_conn_id, self.table, every)
        with connection.open_client(declared.conn_id_of(context, receipts, self.conn_id)) as client:
            prices = connection.prices()
            loader = load.Loader(client, prices, columns=columns, roster=Roster(context))
            written = loader.load(receipts, writer)
            loaded = [(abandoned.priced(one, client, prices), tally) for one, tally in written]
        pushed = push(context, [one for one, _ in loaded], many=isinstance(value, list))
        if self.do_xcom_push:
            context["ti"].xcom_push("return_value", pushed)  # it is there for who goes on in spite of the verdict
        for one, tally in loaded:
            load.report(one, tally)
        for _, tally in loaded:
            load.judge(tally, self.max_error_rate)
        return pushed

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Tell OpenLineage which table was written."""
        from airflow_provider_claude_batch.lineage import outputs

        del task_instance
        return outputs(self.warehouse_conn_id, self.table)


def _own_receipt(context: "Context") -> Receipt:
    """Begin a lineage: this task instance's place among runs and tasks."""
    ti, dag_run = context["ti"], context["dag_run"]
    return Receipt(
        submission="",
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        submit_task=ti.task_id,
        map_index=_map_index(context),
        logical_date=dag_run.logical_date,
    )


def _map_index(context: "Context") -> int:
    index = getattr(context["ti"], "map_index", None)
    return -1 if index is None else index


def _clear(context: "Context") -> Clear:
    """Return what changes when this very task is cleared."""
    return getattr(context["dag_run"], "clear_number", 0) or 0, getattr(context["ti"], "max_tries", 0)


def _is_forgetful(notebook: Notebook) -> bool:
    """Say whether an earlier try may have left no note of what it sent."""
    drops_notes = conf.getboolean("state_store", "clear_on_success", fallback=False)
    return not notebook.is_kept or (drops_notes and notebook.read() is None)


def _beginning(context: "Context") -> datetime:
    """Before this moment the run cannot have submitted anything: a day allows for a wrong clock of Airflow's."""
    dag_run = context["dag_run"]
    begun = dag_run.run_after or dag_run.start_date
    return begun - _CLOCK_SKEW if begun else datetime.fromtimestamp(0, UTC)


def _publish(context: "Context", submitted: Receipt) -> None:
    push(context, [submitted], many=False)


def _read_back(context: "Context", loaded: Receipt) -> Iterable[Retryable]:
    conn_id, table = declared.table_of(context, loaded)
    return connection.open_warehouse(conn_id, table).retryable(loaded.batch_ids)
