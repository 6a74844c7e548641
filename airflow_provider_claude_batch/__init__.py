"""Claude Message Batches for Apache Airflow: half the price, one row per request, nothing paid twice."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from airflow_provider_claude_batch.batch_queue import BatchQueue
    from airflow_provider_claude_batch.fan_out import shards
    from airflow_provider_claude_batch.operators import ClaudeBatchOperator, ClaudeBatchResultsOperator
    from airflow_provider_claude_batch.query import SqlRequests
    from airflow_provider_claude_batch.sensor import ClaudeBatchSensor
    from airflow_provider_claude_batch.task_group import claude_batch
    from airflow_provider_claude_batch.trigger import ClaudeBatchTrigger

__all__ = [
    "BatchQueue",
    "ClaudeBatchOperator",
    "ClaudeBatchResultsOperator",
    "ClaudeBatchSensor",
    "ClaudeBatchTrigger",
    "SqlRequests",
    "__version__",
    "claude_batch",
    "shards",
]

_HOMES = {
    "BatchQueue": "batch_queue",
    "ClaudeBatchOperator": "operators",
    "ClaudeBatchResultsOperator": "operators",
    "ClaudeBatchSensor": "sensor",
    "ClaudeBatchTrigger": "trigger",
    "SqlRequests": "query",
    "claude_batch": "task_group",
    "shards": "fan_out",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
