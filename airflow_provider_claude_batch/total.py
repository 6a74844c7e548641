"""The total: one receipt for a submission and all of its retries, and the verdict on all of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator
from airflow.sdk.definitions.xcom_arg import XComArg

from airflow_provider_claude_batch import receipt, rounds
from airflow_provider_claude_batch.arguments import check_share
from airflow_provider_claude_batch.errors import TooManyErrors, Unfinished
from airflow_provider_claude_batch.links import LINKS
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.spending import told
from airflow_provider_claude_batch.tally import Tally, accounted_for, without_answer
from airflow_provider_claude_batch.task import Unrendered, final_errors, instances, push
from airflow_provider_claude_batch.words import counted

if TYPE_CHECKING:
    from airflow.sdk import Context

_NAMED = 3


class ClaudeBatchTotal(BaseOperator):
    """Add up the rounds of a submission: it runs on a night without retries as on one with many.

    :param rounds: what each round loaded, the first one first; one that was skipped counts for nothing.
    :param submitted: what each round submitted: what of it was not loaded is named, and counts as missing.
    :param max_error_rate: fail when a larger share of what was asked has no usable answer after all rounds.
    """

    template_fields: Sequence[str] = ("rounds", "submitted")
    operator_extra_links = LINKS
    leaves_receipt = True
    ui_color = "#e8e8e8"

    def __init__(
        self, *, rounds: Any, submitted: Any = None, max_error_rate: float | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("trigger_rule", "none_failed")
        super().__init__(**kwargs)
        check_share("max_error_rate", max_error_rate)
        self.rounds = Unrendered.wrap(rounds)
        self.submitted = Unrendered.wrap(submitted)
        self.max_error_rate = max_error_rate
        self._loads = [[task.task_id for task, _ in XComArg.iter_xcom_references(one)] for one in rounds]

    @final_errors
    def execute(self, context: "Context") -> Any:
        """Push the receipt, and only then judge it."""
        loaded = self._read(self.rounds, context)
        submitted = self._read(self.submitted, context) if self.submitted else [[] for _ in loaded]
        rest = [
            rounds.not_loaded(paid, found, is_first=place == 0)
            for place, (paid, found) in enumerate(zip(submitted, loaded, strict=True))
        ]
        every = [found + left for found, left in zip(loaded, rest, strict=True) if found or left]
        failed, is_element = self._failed(context), _map_index(context) >= 0
        if not every and failed:
            raise Unfinished(failed, "failed", "Nothing was submitted.")
        if not every and not is_element:
            raise AirflowSkipException("There is nothing to add up: nothing was submitted.")
        total = rounds.add_up(every) if every else _nothing(context)
        pushed = push(context, [total], many=False)
        if any(loaded) or is_element:  # one that is skipped would skip what comes after all elements
            context["ti"].xcom_push("return_value", pushed)  # it is there for who goes on in spite of the verdict
        self._report(total)
        if failed:
            raise Unfinished(failed, "failed", _left(total))
        if marked := self._marked(context, submitted, loaded):
            raise Unfinished(marked, "is marked a success and has left no receipt", _left(total))
        judge(total, self.max_error_rate)
        if not any(loaded) and not is_element:
            raise AirflowSkipException(f"There is nothing to add up yet. {_left(total)}")
        return pushed

    def _read(self, given: Any, context: "Context") -> list[list[Receipt]]:
        return [receipt.read(one) for one in given.open(context, current=True)]

    def _failed(self, context: "Context") -> list[str]:
        """Name what failed and made others fail; another trigger rule lets no failure through."""
        if self.trigger_rule != "all_done":
            return []
        before = sorted(self.get_flat_relative_ids(upstream=True))
        return [name for one in before for name, state in instances(context, one).items() if state == "failed"]

    def _marked(self, context: "Context", submitted: list[list[Receipt]], loaded: list[list[Receipt]]) -> list[str]:
        """Name the loads that are a success, and have left fewer receipts than that: a person has marked them."""
        marked = []
        for tasks, paid, found in zip(self._loads, submitted, loaded, strict=True):
            known = {one.submission for one in paid}
            receipts = sum(one.submission in known for one in found)
            states = [state for task_id in tasks for state in instances(context, task_id).values()] if known else []
            marked += tasks if states.count("success") > receipts else []
        return marked

    def _report(self, total: Receipt) -> None:
        outcomes = ", ".join(f"{count:,} {status}" for status, count in sorted((total.counts or {}).items()))
        self.log.info("After %s: %s.", counted(total.rounds or 0, "round"), outcomes or "nothing")
        if failed := without_answer(total.counts or {}, total.problems or {}):
            self.log.warning("%s without a usable answer.", counted(failed, "request"))
        for problem, count in (total.problems or {}).items():
            self.log.warning("Not usable among the succeeded: %s, %s.", counted(count, "answer"), problem)
        if total.not_loaded:
            self.log.warning("%s Clear what was skipped before its load to go on.", _left(total))
        if total.reused:
            self.log.info("%s answers of before were taken, and not asked for again.", f"{total.reused:,}")
        self.log.info("Cost of all rounds: %s.", told(total))


def _map_index(context: "Context") -> int:
    index = getattr(context["ti"], "map_index", None)
    return -1 if index is None else index


def _nothing(context: "Context") -> Receipt:
    """Make the receipt of an element without requests."""
    ti = context["ti"]
    empty = Tally().fill(Receipt("", dag_id=ti.dag_id, run_id=ti.run_id, map_index=_map_index(context), rounds=0))
    return receipt.replace(empty, counts={"succeeded": 0})  # a report that asks for it finds it


def _left(total: Receipt) -> str:
    """Say which batches are paid and not loaded."""
    ids = total.not_loaded or ()
    if not ids:
        return ""
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return f"Paid and not loaded: {counted(len(ids), 'batch')}, {', '.join(ids[:_NAMED])}{more}."


def judge(total: Receipt, max_error_rate: float | None) -> None:
    """Fail where too many requests have no usable answer after all rounds; one that was reused has one."""
    counts, problems = total.counts or {}, total.problems or {}
    requests, failed = accounted_for(counts) + (total.reused or 0), without_answer(counts, problems)
    if max_error_rate is not None and requests and failed / requests > max_error_rate:
        raise TooManyErrors(failed, requests, max_error_rate)
