"""Receipts: the small JSON that a step returns, the next step takes, and the page lists."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from airflow_provider_claude_batch.batch import Batch, Counts
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt_bounds import oddity

XCOM_KEY = "claude_batch"
_OF_THE_WHOLE = ("reused", "estimate_usd", "preflight_usd", "preflight_unpriced", "abandoned")
INLINE_IDS = 500


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """One batch of a submission: what was sent, its place among the requests, and what the wait learned of it."""

    id: str
    requests: int | None = None
    bytes: int | None = None
    mark: str | None = None
    counts: Counts | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    first: int | None = None
    ids_hash: str | None = None

    @property
    def total(self) -> int:
        """How many requests were sent, by our own count or else by the API's."""
        return self.requests if self.requests is not None else self.counts.total if self.counts else 0

    def seen(self, batch: Batch) -> "Part":
        """Add what the API said of the batch."""
        return msgspec.structs.replace(
            self,
            counts=batch.request_counts,
            created_at=batch.created_at,
            ended_at=batch.ended_at,
            expires_at=batch.expires_at,
        )


class Estimate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a submission may cost, about and with answers as long as they may be, and how that was found out."""

    usd: float | None
    input_tokens: int
    max_output_tokens: int
    basis: str


class Abandoned(msgspec.Struct, frozen=True, omit_defaults=True):
    """A batch of the submission that this one replaced: what it had answered is paid.

    There is no id where the answer to its create never came. `counts` and `cost_usd` are known once the load has read
    them; `unpriced` counts the answers in it whose price is not known.
    """

    id: str | None = None
    requests: int = 0
    counts: Counts | None = None
    cost_usd: float | None = None
    unpriced: int = 0

    @property
    def is_priced(self) -> bool:
        return self.cost_usd is not None and not self.unpriced


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the requests came from, for people: a URI, a query, a queue, or the tasks whose XComs they were.

    Never credentials. Nothing is read from here: an XCom can be edited.
    """

    uri: str | None = None
    conn_id: str | None = None
    sql: str | None = None
    custom_id: str | None = None
    queue: str | None = None
    tasks: tuple[str, ...] = ()


class UsageTotal(msgspec.Struct, frozen=True):
    """Tokens of all rows."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0


class ModelTotal(UsageTotal, frozen=True):
    """Rows, tokens and dollars of one model; no dollars where its price is not known."""

    rows: int = 0
    cost_usd: float | None = None
    live_cost_usd: float | None = None


class Receipt(msgspec.Struct, frozen=True):
    """What one step knows of a submission; every step adds to what it was given."""

    submission: str
    batches: tuple[Part, ...] = ()
    dag_id: str | None = None
    run_id: str | None = None
    submit_task: str | None = None
    map_index: int = -1
    element: str | None = None
    logical_date: datetime | None = None
    attempt: int = 1
    conn_id: str | None = None
    requests: int = 0
    models: tuple[str, ...] = ()
    source: Source | None = None
    invalid: dict[str, tuple[str, ...]] | None = None
    reused: int | None = None
    estimate_usd: float | None = None
    estimate_basis: str | None = None
    preflight_usd: float | None = None
    preflight_unpriced: int | None = None
    abandoned: tuple[Abandoned, ...] | None = None
    submitted_at: datetime | None = None

    table: str | None = None
    warehouse_conn_id: str | None = None
    rows: int | None = None
    counts: dict[str, int] | None = None
    problems: dict[str, int] | None = None
    retryable: int | None = None
    retryable_by: dict[str, int] | None = None
    retry_ids: tuple[str, ...] | None = None
    truncated_ids: dict[str, int] | None = None
    usage: UsageTotal | None = None
    cost_usd: float | None = None
    live_cost_usd: float | None = None
    saved_usd: float | None = None
    unpriced: int | None = None
    by_model: dict[str, ModelTotal] | None = None
    cache_hit_rate: float | None = None
    errors: tuple[tuple[str, int], ...] | None = None
    error_examples: dict[str, tuple[str, ...]] | None = None
    rounds: int | None = None
    of: tuple[str, ...] | None = None
    canceled_at_deadline: bool | None = None
    left_out: int | None = None
    not_loaded: tuple[str, ...] | None = None

    @property
    def batch_ids(self) -> tuple[str, ...]:
        return tuple(part.id for part in self.batches)

    @property
    def place(self) -> tuple[Any, ...]:
        """Tell which task instance submitted; of a batch that was submitted elsewhere, nobody knows."""
        elsewhere = self.submission if self.submission in self.batch_ids else None
        return elsewhere, self.dag_id, self.run_id, self.submit_task, self.map_index

    @property
    def is_beginning(self) -> bool:
        """Say whether it stands for the whole submission or its first batch, with which skipped requests go."""
        return not self.batches or not self.batches[0].first

    @property
    def pseudo_batch(self) -> str:
        """Name what holds the rows of requests that were never sent."""
        return self.submission if self.attempt == 1 else f"{self.submission}_{self.attempt}"

    def to_dict(self) -> dict[str, Any]:
        """Write it as the JSON of an XCom: its version first, and last the batches, which may be many."""
        known = {key: value for key, value in as_json(self).items() if value is not None}
        batches = known.pop("batches")
        return {"v": 1, **known, "batches": batches}

    def of_some(self, parts: Sequence[Part]) -> "Receipt":
        """Keep some of the batches; what belongs to all of them goes with the first."""
        some = msgspec.structs.replace(self, batches=tuple(parts), requests=sum(part.total for part in parts))
        if not parts or parts[0] == self.batches[0]:
            return some
        without: dict[str, None] = dict.fromkeys(_OF_THE_WHOLE)
        return msgspec.structs.replace(some, **without)

    def seen(self, batches: Mapping[str, Batch]) -> "Receipt":
        """Add what the API said of the batches."""
        parts = tuple(part.seen(batches[part.id]) if part.id in batches else part for part in self.batches)
        return msgspec.structs.replace(self, batches=parts)


replace = msgspec.structs.replace


def newest(receipts: Sequence[Receipt]) -> list[Receipt]:
    """Keep what belongs to the newest submission of each task instance; names of submissions sort by time."""
    latest: dict[Any, str] = {}
    for receipt in receipts:
        latest[receipt.place] = max(receipt.submission, latest.get(receipt.place, ""))
    return [receipt for receipt in receipts if receipt.submission == latest[receipt.place]]


def conn_id_of(receipts: Sequence[Receipt], given: str | None, default: str) -> str:
    """Return the connection to ask with: the one that is given, or the one that submitted."""
    known = {receipt.conn_id for receipt in receipts if receipt.conn_id}
    if given is None and len(known) > 1:
        raise Misconfigured(f"These batches were submitted with several connections: {', '.join(sorted(known))}.")
    return given or next(iter(known), default)


def as_json(record: Any) -> Any:
    """Write a record as Airflow wants JSON: no tuples, no moments."""
    return msgspec.json.decode(msgspec.json.encode(record))


def read(value: Any) -> list[Receipt]:
    """Take a receipt, a batch id, a list of either, or nothing at all."""
    if value is None:
        return []
    if isinstance(value, str):
        return [_of_id(value)]
    if isinstance(value, Mapping):
        return [_of_dict(value)]
    if isinstance(value, Sequence):
        return [receipt for item in value for receipt in read(item)]
    raise Misconfigured(
        f"This is no receipt, no batch id, and no list of either: it is of type {type(value).__name__}."
    )


def _of_id(batch_id: str) -> Receipt:
    if not batch_id.startswith("msgbatch_"):
        raise Misconfigured(f"{batch_id[:80]!r} is not the id of a Message Batch: these start with 'msgbatch_'.")
    return Receipt(submission=batch_id, batches=(Part(batch_id),))


def _of_dict(value: Mapping[str, Any]) -> Receipt:
    if value.get("v") != 1:
        raise Misconfigured(
            f"This is not a receipt of version 1, but a dict with the keys {sorted(map(str, value))[:10]}."
        )
    try:
        receipt = msgspec.convert({k: v for k, v in value.items() if k != "v"}, Receipt)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"This receipt cannot be read: {error}.") from None
    if found := oddity(receipt):
        raise Misconfigured(f"This receipt cannot be read: {found}.")
    return receipt
