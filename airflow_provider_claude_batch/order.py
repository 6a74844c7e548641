"""Orders: what is to be submitted, for whom, and within which limits."""

from collections.abc import Callable, Container
from datetime import datetime

import msgspec

from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.errors import GuardExceeded
from airflow_provider_claude_batch.note import Clear
from airflow_provider_claude_batch.price import PriceList, dollars
from airflow_provider_claude_batch.receipt import Estimate, Receipt
from airflow_provider_claude_batch.request import Defaults, OnInvalid
from airflow_provider_claude_batch.row import Reader
from airflow_provider_claude_batch.shard import Shard

Answered = Callable[[datetime], Container[tuple[str, str]]]


class Order(msgspec.Struct, frozen=True):
    """What a task instance submits; `answered` tells what had an answer, by id and hash, at some moment.

    `reader` knows what an answer has to fit. `begin` hears of the submission before the first of it is sent.
    `unremembered_since` is set where an earlier try left no note. `kept` is what this retry has sent before.
    """

    receipt: Receipt
    deployment: str
    task_instance: tuple[str, str, str, int]
    clear: Clear
    prices: PriceList
    defaults: Defaults
    reader: Reader | None = None
    shard_size: int | None = None
    max_requests: int | None = None
    max_cost_usd: float | None = None
    preflight: int = 0
    prime_cache: bool = False
    on_invalid: OnInvalid = "fail"
    answered: Answered | None = None
    begin: Callable[[Receipt], None] | None = None
    keeps_notes: bool = True
    unremembered_since: datetime | None = None
    kept: Receipt | None = None

    @property
    def way_to_forget(self) -> str:
        """Say how a person asks for answers anew."""
        if not self.keeps_notes:
            return "a changed request, or another run, is submitted anew"
        dag_id, run_id, task_id, map_index = self.task_instance
        which = f" --map-index {map_index}" if map_index >= 0 else ""
        return f"`claude-batch forget {dag_id} {run_id} {task_id}{which}` lets this task submit anew when it is cleared"

    def mark(self, shard: Shard, generation: int) -> str:
        """Prove on the API's side whose shard it is, content and all."""
        parts = [self.deployment, *self.task_instance, shard.index, shard.digest, generation]
        return wire_id.mark_of(msgspec.json.encode(parts))

    def guard_size(self, requests: int) -> None:
        """Refuse more requests than the Dag's author allows."""
        if self.max_requests is not None and requests > self.max_requests:
            raise GuardExceeded("max_requests", f"{self.max_requests:,} requests", f"{requests:,}")

    def guard_cost(self, estimate: Estimate) -> None:
        """Refuse what may cost more than the Dag's author allows; an unknown price is more than any limit."""
        if self.max_cost_usd is None:
            return
        limit = dollars(self.max_cost_usd)
        if estimate.usd is None:
            raise GuardExceeded("max_cost_usd", limit, "a model whose price is not known")
        if estimate.usd > self.max_cost_usd:
            actual = f"an estimate of about {dollars(estimate.usd)} ({estimate.basis})"
            raise GuardExceeded("max_cost_usd", limit, actual)
