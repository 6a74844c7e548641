"""Tallies: what a load adds up while rows go by, for the receipt."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

import msgspec

from airflow_provider_claude_batch.receipt import INLINE_IDS, Receipt, UsageTotal
from airflow_provider_claude_batch.row import Row

_COMMONEST = 5
_DISTINCT_ERRORS = 1_000
_VARIES = re.compile(r"\b[a-z]+_(?=\w*\d)\w{8,}|\b(?=[0-9a-f-]*\d)[0-9a-f-]{12,}\b|\d[\d,.]*\d\d")
_TOKENS = UsageTotal.__struct_fields__


class Tally:
    """Count rows, outcomes, tokens and dollars of one receipt."""

    def __init__(self) -> None:
        self.rows = self.retryable = self.unpriced = self.lost = 0
        self.counts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.retryable_by: Counter[str] = Counter()
        self.cost = self.live_cost = Decimal()
        self._tokens = dict.fromkeys(_TOKENS, 0)
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

    def fill(self, receipt: Receipt) -> Receipt:
        """Write everything into the receipt."""
        usage = UsageTotal(**self._tokens)
        return msgspec.structs.replace(
            receipt,
            rows=self.rows,
            counts=dict(self.counts),
            problems=dict(self.problems),
            retryable=self.retryable,
            retryable_by=dict(self.retryable_by),
            retry_ids=tuple(self._retry_ids),
            truncated_ids=self._truncated_ids,
            usage=usage,
            cost_usd=_dollars(self.cost),
            live_cost_usd=_dollars(self.live_cost),
            saved_usd=_dollars(self.live_cost - self.cost),
            cache_hit_rate=hit_rate(usage),
            errors=tuple(_alike(self.errors).most_common(_COMMONEST)),
        )

    def _add(self, row: Row) -> None:
        self.rows += 1
        self.counts[row.status] += 1
        if row.problem:
            self.problems[row.problem] += 1
        if row.retryable:
            self._add_retryable(row)
        if kind := row.error_type or (row.error_message and row.problem):
            self._add_error(f"{kind}: {row.error_message}"[:200])
        if row.model:
            self._add_message(row)

    def _add_error(self, error: str) -> None:
        """Count an error; of too many that differ, those that are alike become one, and the rarest are forgotten."""
        self.errors[error] += 1
        if len(self.errors) > _DISTINCT_ERRORS:
            self.errors = Counter(dict(_alike(self.errors).most_common(_DISTINCT_ERRORS // 2)))

    def _add_retryable(self, row: Row) -> None:
        self.retryable += 1
        self.retryable_by[row.problem or row.status] += 1
        if row.custom_id is None or self.retryable > INLINE_IDS:
            return
        if row.problem == "truncated":
            self._truncated_ids[row.custom_id] = row.output_tokens or 0
        else:
            self._retry_ids.append(row.custom_id)

    def _add_message(self, row: Row) -> None:
        tokens = self._tokens
        tokens["input_tokens"] += row.input_tokens or 0
        tokens["output_tokens"] += row.output_tokens or 0
        tokens["cache_write_5m_tokens"] += row.cache_write_5m_tokens or 0
        tokens["cache_write_1h_tokens"] += row.cache_write_1h_tokens or 0
        tokens["cache_read_tokens"] += row.cache_read_tokens or 0
        if row.cost_usd is None or row.live_cost_usd is None:
            self.unpriced += 1
            return
        self.cost += row.cost_usd
        self.live_cost += row.live_cost_usd


def _alike(errors: Counter[str]) -> Counter[str]:
    """Count errors as one that differ in ids and long numbers only: who reads them wants to know what happened."""
    groups: dict[str, list[str]] = {}
    for error in errors:
        groups.setdefault(_VARIES.sub("…", error), []).append(error)
    return Counter(
        {
            pattern if len(alike) > 1 else alike[0]: sum(errors[error] for error in alike)
            for pattern, alike in groups.items()
        }
    )


def accounted_for(counts: Mapping[str, int]) -> int:
    """Count requests by how they ended; a line that cannot be read stands for none."""
    return sum(counts.values()) - counts.get("unreadable", 0)


def without_answer(counts: Mapping[str, int], problems: Mapping[str, int]) -> int:
    """Count requests without a usable answer."""
    return accounted_for(counts) - counts.get("succeeded", 0) + sum(problems.values())


def _dollars(amount: Decimal) -> float:
    return float(round(amount, 6))


def hit_rate(usage: UsageTotal) -> float | None:
    """Return the share of all prompts that came out of the cache."""
    prompt = usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens + usage.cache_read_tokens
    return round(usage.cache_read_tokens / prompt, 4) if prompt else None
