"""The decorator: ``@task.claude_batch``, a submission of the requests that a function returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    Asset,
    DecoratedOperator,
    ObjectStoragePath,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.operators import ClaudeBatchOperator
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.task import Unrendered

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator

_SHORT = 100


class _Decorated(DecoratedOperator, ClaudeBatchOperator):
    """Submit what a function returns; a submission that goes on after a pause asks the function again."""

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *ClaudeBatchOperator.template_fields)
    custom_operator_name = "@task.claude_batch"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Sequence[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=[_closed(one) for one in op_args or ()],
            op_kwargs={name: _closed(one) for name, one in (op_kwargs or {}).items()},
            requests=None,
            **kwargs,
        )
        given = signature(python_callable).bind_partial(*op_args or (), **op_kwargs or {}).arguments
        self._like_templates = [name for name, one in given.items() if isinstance(one, str) and "{{" in one]

    def execute(self, context: "Context") -> Any:
        """Submit, and return the receipt."""
        is_mapped = context["ti"].map_index not in {None, -1}  # over data of another task, it may be
        for name in () if is_mapped else self._like_templates:
            self.log.warning(
                "The argument %s holds {{ and stays as it is: arguments of @task.claude_batch are data, not templates. "
                "For a value of the run, give the function a parameter of that name, such as ds or dag_run.",
                name,
            )
        return super().execute(context)

    def read_again(self, context: "Context", place: Receipt) -> Iterator[Any]:
        """Leave the function alone: calling it again is for the task that submits."""
        del context, place
        raise Misconfigured("a function returned them, and only the task that submits calls it.")

    def _given(self, context: "Context") -> Any:
        args = [_opened(one, context) for one in self.op_args]
        known: Any = {**context, **{name: _opened(one, context) for name, one in self.op_kwargs.items()}}
        return self.python_callable(*args, **determine_kwargs(self.python_callable, args, known))


def claude_batch_task(
    python_callable: Callable[..., Any] | None = None, *, multiple_outputs: bool | None = None, **kwargs: Any
) -> "TaskDecorator":
    """Make a function a submission of what it returns, or yields; all else is as with ``ClaudeBatchOperator``."""
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=bool(multiple_outputs),  # of the receipt: what the function returns says nothing of it
        decorated_operator_class=_Decorated,
        **kwargs,
    )


class _Argument(Unrendered):
    """An argument of the function; a template that names it, as that of a map index may, shows a short value."""

    __repr__ = Unrendered.__repr__

    def __str__(self) -> str:
        is_short = isinstance(self._value, str | int | float) and len(str(self._value)) <= _SHORT
        return str(self._value) if is_short else repr(self)

    def serialize(self) -> str:
        """Stand in the rendered fields with a few words, however short the value is."""
        return repr(self)


def _closed(value: Any) -> Any:
    """Keep an argument out of Jinja, a text too; what declares its own templates, and what Airflow looks for, stays."""
    is_open = isinstance(value, Asset | ObjectStoragePath) or hasattr(value, "template_fields")
    return value if is_open else _Argument(value)


def _opened(value: Any, context: "Context") -> Any:
    return value.open_for_function(context) if isinstance(value, Unrendered) else value
