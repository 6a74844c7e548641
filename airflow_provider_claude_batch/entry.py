"""Entries: receipts where tasks have left them."""

from datetime import datetime
from enum import StrEnum

import msgspec

from airflow_provider_claude_batch.receipt import Receipt


class Step(StrEnum):
    """Which task left a receipt."""

    SUBMIT = "submit"
    WAIT = "wait"
    LOAD = "load"


class Entry(msgspec.Struct, frozen=True):
    """One receipt, and where and when a task left it."""

    receipt: Receipt
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    at: datetime


def step_of(entry: Entry) -> Step:
    """Tell which step left a receipt: each says more than the one before."""
    receipt = entry.receipt
    if receipt.rows is not None:
        return Step.LOAD
    is_own = entry.task_id == receipt.submit_task
    return Step.WAIT if not is_own and all(part.ended_at for part in receipt.batches) else Step.SUBMIT
