"""The decorator: ``@task.claude_batch``, a submission of the requests that a function returns."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import DecoratedOperator, determine_kwargs, task_decorator_factory

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.operators import ClaudeBatchOperator
from airflow_provider_claude_batch.receipt import Receipt

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator


class _Decorated(DecoratedOperator, ClaudeBatchOperator):
    """Submit what a function returns; a submission that goes on after a pause asks the function again."""

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *ClaudeBatchOperator.template_fields)
    custom_operator_name = "@task.claude_batch"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Sequence[Any] | None = None,
        op_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, requests=None, **kwargs)

    def read_again(self, context: "Context", place: Receipt) -> Iterator[Any]:
        """Leave the function alone: calling it again is for the task that submits."""
        del context, place
        raise Misconfigured("a function returned them, and only the task that submits calls it.")

    def _given(self, context: "Context") -> Any:
        known: Any = {**context, **self.op_kwargs}
        return self.python_callable(*self.op_args, **determine_kwargs(self.python_callable, self.op_args, known))


def claude_batch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> "TaskDecorator":
    """Make a function a submission of what it returns, or yields; all else is as with ``ClaudeBatchOperator``."""
    return task_decorator_factory(
        python_callable=python_callable, multiple_outputs=False, decorated_operator_class=_Decorated, **kwargs
    )
