"""The total: one receipt for a submission and all of its retries, and the verdict on all of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator

from airflow_provider_claude_batch import receipt, rounds
from airflow_provider_claude_batch.arguments import check_share
from airflow_provider_claude_batch.errors import TooManyErrors
from airflow_provider_claude_batch.links import LINKS
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.spending import told
from airflow_provider_claude_batch.tally import accounted_for, without_answer
from airflow_provider_claude_batch.task import Unrendered, final_errors, push
from airflow_provider_claude_batch.words import counted

if TYPE_CHECKING:
    from airflow.sdk import Context


class ClaudeBatchTotal(BaseOperator):
    """Add up the rounds of a submission: it runs on a night without retries as on one with many.

    :param rounds: what each round loaded, the first one first; one that was skipped counts for nothing.
    :param max_error_rate: fail when a larger share of what was asked has no usable answer after all rounds.
    """

    template_fields: Sequence[str] = ("rounds",)
    operator_extra_links = LINKS
    leaves_receipt = True
    ui_color = "#e8e8e8"

    def __init__(self, *, rounds: Any, max_error_rate: float | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("trigger_rule", "none_failed")
        super().__init__(**kwargs)
        check_share("max_error_rate", max_error_rate)
        self.rounds = Unrendered.wrap(rounds)
        self.max_error_rate = max_error_rate

    @final_errors
    def execute(self, context: "Context") -> Any:
        """Push the receipt, and only then judge it."""
        loaded = [found for one in self.rounds.open(context, current=True) if (found := receipt.read(one))]
        if not loaded:
            raise AirflowSkipException("There is nothing to add up: nothing was submitted.")
        total = rounds.add_up(loaded)
        pushed = push(context, [total], many=False)
        context["ti"].xcom_push("return_value", pushed)  # it is there for who goes on in spite of the verdict
        self._report(total)
        judge(total, self.max_error_rate)
        return pushed

    def _report(self, total: Receipt) -> None:
        outcomes = ", ".join(f"{count:,} {status}" for status, count in sorted((total.counts or {}).items()))
        self.log.info("After %s: %s.", counted(total.rounds or 1, "round"), outcomes or "nothing")
        if failed := without_answer(total.counts or {}, total.problems or {}):
            self.log.warning("%s without a usable answer.", counted(failed, "request"))
        for problem, count in (total.problems or {}).items():
            self.log.warning("Not usable among the succeeded: %s, %s.", counted(count, "answer"), problem)
        if total.reused:
            self.log.info("%s answers of before were taken, and not asked for again.", f"{total.reused:,}")
        self.log.info("Cost of all rounds: %s.", told(total))


def judge(total: Receipt, max_error_rate: float | None) -> None:
    """Fail where too many requests have no usable answer after all rounds; one that was reused has one."""
    counts, problems = total.counts or {}, total.problems or {}
    requests, failed = accounted_for(counts) + (total.reused or 0), without_answer(counts, problems)
    if max_error_rate is not None and requests and failed / requests > max_error_rate:
        raise TooManyErrors(failed, requests, max_error_rate)
