"""Tallies: what a load adds up while rows go by, for the receipt."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from airflow_provider_claude_batch.commonest import Commonest
from airflow_provider_claude_batch.receipt import INLINE_IDS, Receipt, UsageTotal
from airflow_provider_claude_batch.row import Row
from airflow_provider_claude_batch.spending import Spending, Spent


class Tally:
    """Count rows, outcomes, tokens and dollars of one receipt."""

    def __init__(self) -> None:
        self.rows = self.retryable = self.lost = 0
        self.counts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.retryable_by: Counter[str] = Counter()
        self.errors = Commonest()
        self._spending = Spending()
        self._retry_ids: list[str] = []
        self._truncated_ids: dict[str, int] = {}

    def observe(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on, adding them up."""
        for row in rows:
            self._add(row)
            yield row

    def miss(self, requests: int) -> None:
        """Count requests that no line of the results spoke of, and of which nobody knows the names."""
        if requests > 0:
            self.lost += requests
            self.counts["missing"] += requests

    @property
    def requests(self) -> int:
        """Requests that are accounted for, in whatever way; a line that cannot be read stands for none."""
        return accounted_for(self.counts)

    @property
    def failed(self) -> int:
        """Requests without a usable answer."""
        return without_answer(self.counts, self.problems)

    @property
    def error_rate(self) -> float:
        return self.failed / self.requests if self.requests else 0.0

    @property
    def spent(self) -> Spent:
        """What all answers used and cost."""
        return self._spending.total

    @property
    def unpriced_models(self) -> list[str]:
        """Name the models of which some answer has no price."""
        return self._spending.unpriced_models

    def fill(self, receipt: Receipt) -> Receipt:
        """Write everything into the receipt."""
        spent = self.spent
        whole = spent.rounded
        return msgspec.structs.replace(
            receipt,
            rows=self.rows,
            counts=dict(self.counts),
            problems=dict(self.problems),
            retryable=self.retryable,
            retryable_by=dict(self.retryable_by),
            retry_ids=tuple(self._retry_ids),
            truncated_ids=self._truncated_ids,
            usage=spent.usage,
            cost_usd=whole.cost_usd,
            live_cost_usd=whole.live_cost_usd,
            saved_usd=spent.saved_usd,
            unpriced=spent.unpriced,
            by_model=self._spending.by_model,
            cache_hit_rate=hit_rate(spent.usage),
            errors=self.errors.counts,
            error_examples=self.errors.examples,
        )

    def _add(self, row: Row) -> None:
        self.rows += 1
        self.counts[row.status] += 1
        if row.problem:
            self.problems[row.problem] += 1
        if row.retryable:
            self._add_retryable(row)
        if kind := row.error_type or (row.error_message and row.problem):
            self.errors.add(f"{kind}: {row.error_message}"[:200], 1, (row.custom_id,))
        if row.model:
            self._spending[row.model].add(row)

    def _add_retryable(self, row: Row) -> None:
        self.retryable += 1
        self.retryable_by[row.problem or row.status] += 1
        if row.custom_id is None or self.retryable > INLINE_IDS:
            return
        if row.problem == "truncated":
            self._truncated_ids[row.custom_id] = row.output_tokens or 0
        else:
            self._retry_ids.append(row.custom_id)


def accounted_for(counts: Mapping[str, int]) -> int:
    """Count requests by how they ended; a line that cannot be read stands for none."""
    return sum(counts.values()) - counts.get("unreadable", 0)


def without_answer(counts: Mapping[str, int], problems: Mapping[str, int]) -> int:
    """Count requests without a usable answer."""
    return accounted_for(counts) - counts.get("succeeded", 0) + sum(problems.values())


def hit_rate(usage: UsageTotal) -> float | None:
    """Return the share of all prompts that came out of the cache."""
    prompt = usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens + usage.cache_read_tokens
    return round(usage.cache_read_tokens / prompt, 4) if prompt else None
