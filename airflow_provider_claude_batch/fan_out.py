"""Fan-out: one receipt for each batch of a submission, so that each is waited for and loaded by itself."""

from typing import Any

from airflow.sdk import task

from airflow_provider_claude_batch import receipt
from airflow_provider_claude_batch.receipt import Receipt


@task
def shards(submitted: Any) -> list[dict[str, Any]]:
    """Return one receipt for each batch: ``ClaudeBatchSensor.partial(...).expand(batch=shards(submit.output))``."""
    return [part.to_dict() for one in receipt.read(submitted) for part in split(one)]


def split(whole: Receipt) -> list[Receipt]:
    """Cut a receipt into those of its batches, or leave it whole where everything was reused.

    What belongs to all of them goes with the first. Only what is invalid stays with each: no batch has it, and whoever
    reads the source again has to pass over it.
    """
    parts = [receipt.replace(whole, batches=(part,), requests=part.total) for part in whole.batches] or [whole]
    return parts[:1] + [receipt.replace(part, reused=None, estimate_usd=None, preflight_usd=None) for part in parts[1:]]
