"""Fan-out: one receipt for each batch of a submission, so that each is waited for and loaded by itself."""

from typing import Any

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import task

from airflow_provider_claude_batch import receipt
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.task import whole


@task
def shards(submitted: Any) -> list[dict[str, Any]]:
    """Return one receipt for each batch, for a group of wait and load: ``pair.expand(batch=shards(submit.output))``.

    Where they are more than Airflow maps over, some go together.
    """
    receipts = receipt.read(whole(submitted))
    most = conf.getint("core", "max_map_length", fallback=1024) // max(len(receipts), 1)
    return [part.to_dict() for one in receipts for part in split(one, max(most, 1))]


def split(whole: Receipt, most: int) -> list[Receipt]:
    """Cut a receipt into those of its batches, or leave it whole where everything was reused.

    What belongs to all of them goes with the first. Only what is invalid stays with each: no batch has it, and whoever
    reads the source again has to pass over it.
    """
    size = -(-len(whole.batches) // most)
    groups = [whole.batches[at : at + size] for at in range(0, len(whole.batches), size or 1)]
    return [whole.of_some(group) for group in groups] or [whole]
