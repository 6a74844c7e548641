"""Spending: what answers used and cost, model by model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from msgspec.structs import asdict

from airflow_provider_claude_batch import price
from airflow_provider_claude_batch.receipt import Abandoned, ModelTotal, Receipt, UsageTotal
from airflow_provider_claude_batch.row import Row
from airflow_provider_claude_batch.words import counted

_MODELS = 20
_OTHER = "other"
_DIGITS = 6
_TOKENS = UsageTotal.__struct_fields__


@dataclass(slots=True)  # a Struct adds up more slowly, and this happens for each row
class Spent:
    """What some answers used and cost, to the last digit."""

    rows: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    cost_usd: Decimal = Decimal()
    live_cost_usd: Decimal = Decimal()

    @property
    def usage(self) -> UsageTotal:
        return UsageTotal(*(getattr(self, name) for name in _TOKENS))

    @property
    def rounded(self) -> ModelTotal:
        """Write it as a receipt does; where no answer has a price there is no cost."""
        costs = self.cost_usd, self.live_cost_usd
        cost, live = map(dollars, costs) if self.is_priced else (None, None)
        return ModelTotal(**asdict(self.usage), rows=self.rows, cost_usd=cost, live_cost_usd=live)

    @property
    def is_priced(self) -> bool:
        return self.unpriced < self.rows or not self.rows

    @property
    def saved_usd(self) -> float | None:
        return dollars(self.live_cost_usd - self.cost_usd) if self.is_priced else None

    def add(self, row: Row) -> None:
        """Add an answer."""
        self.rows += 1
        self.input_tokens += row.input_tokens or 0
        self.output_tokens += row.output_tokens or 0
        self.cache_write_5m_tokens += row.cache_write_5m_tokens or 0
        self.cache_write_1h_tokens += row.cache_write_1h_tokens or 0
        self.cache_read_tokens += row.cache_read_tokens or 0
        if row.cost_usd is None or row.live_cost_usd is None:
            self.unpriced += 1
            return
        self.cost_usd += row.cost_usd
        self.live_cost_usd += row.live_cost_usd


class Spending(dict[str, Spent]):
    """What answers used and cost, by the model that gave them."""

    def __missing__(self, model: str) -> Spent:
        spent = self[model] = Spent()
        return spent

    @property
    def total(self) -> Spent:
        """Add up all models."""
        amounts: dict[str, Any] = {name: _sum(self.values(), name) for name in Spent.__slots__}
        return Spent(**amounts)

    @property
    def unpriced_models(self) -> list[str]:
        """Name the models of which some answer has no price."""
        return sorted(model for model, spent in self.items() if spent.unpriced)

    @property
    def by_model(self) -> dict[str, ModelTotal]:
        """Tell the models apart, as a receipt does."""
        return add_up([{model: spent.rounded for model, spent in self.items()}])


def add_up(totals: Iterable[Mapping[str, ModelTotal]]) -> dict[str, ModelTotal]:
    """Add up what is known of each model; a receipt is small, so those with the fewest rows become one."""
    groups: dict[str, list[ModelTotal]] = {}
    for by_model in totals:
        for model, total in by_model.items():
            groups.setdefault(model, []).append(total)
    rest = groups.pop(_OTHER, [])
    whole = {model: _whole(group) for model, group in groups.items()}
    ranked = sorted(whole, key=lambda model: whole[model].rows, reverse=True)
    rest += [whole[model] for model in ranked[_MODELS:]]
    return {model: whole[model] for model in ranked[:_MODELS]} | ({_OTHER: _whole(rest)} if rest else {})


def _whole(totals: Sequence[ModelTotal]) -> ModelTotal:
    return ModelTotal(
        **{name: _sum(totals, name) for name in ("rows", *_TOKENS)},
        cost_usd=known_sum(total.cost_usd for total in totals),
        live_cost_usd=known_sum(total.live_cost_usd for total in totals),
    )


def _sum(records: Iterable[Any], name: str) -> Any:
    return sum(getattr(record, name) for record in records)


def known_sum(amounts: Iterable[float | None]) -> float | None:
    """Add up the dollars that are known, if any are."""
    known = [amount for amount in amounts if amount is not None]
    return round(sum(known), _DIGITS) if known else None


def abandoned(receipts: Iterable[Receipt]) -> tuple[Abandoned, ...]:
    """Name every abandoned batch once, with its cost where a receipt knows it; one without an id is itself."""
    found: dict[object, Abandoned] = {}
    for one in (one for receipt in receipts for one in receipt.abandoned or ()):
        key = one.id or object()
        if key not in found or found[key].cost_usd is None:
            found[key] = one
    return tuple(found.values())


def of_abandoned(batches: Sequence[Abandoned]) -> tuple[float | None, int]:
    """Add up what abandoned batches cost, and count those of which not everything has a known price."""
    return known_sum(one.cost_usd for one in batches), sum(not one.is_priced for one in batches)


def amount(usd: float | None, unpriced: int | None) -> str:
    """Say an amount in which something may have no known price."""
    if usd is None:
        return "an unknown amount" if unpriced else price.dollars(0.0)
    return f"{'at least ' if unpriced else ''}{price.dollars(usd)}"


def told(receipt: Receipt) -> str:
    """Say what the answers cost and saved, as far as their prices are known, and what else was paid."""
    said = [_told_answers(receipt)]
    if receipt.preflight_usd or receipt.preflight_unpriced:
        said.append(f"plus {amount(receipt.preflight_usd, receipt.preflight_unpriced)} for live preflight")
    if receipt.abandoned:
        batches = counted(len(receipt.abandoned), "abandoned batch")
        said.append(f"plus {amount(*of_abandoned(receipt.abandoned))} for {batches}")
    return "; ".join(said)


def _told_answers(receipt: Receipt) -> str:
    if receipt.cost_usd is None:
        return "not known"
    least = "at least " if receipt.unpriced else ""
    amounts = price.alike(receipt.cost_usd, receipt.live_cost_usd or 0.0, receipt.saved_usd or 0.0)
    cost, live, saved = (least + amount for amount in amounts)
    return f"{cost}; live it would have been {live}: {saved} saved"


def dollars(amount: Decimal) -> float:
    """Round dollars as a receipt has them."""
    return float(round(amount, _DIGITS))
