"""Dollars for tokens: a dated price list, and what a message cost by batch and would have cost live."""

import re
from datetime import date
from decimal import Decimal
from functools import cached_property, lru_cache
from itertools import chain
from typing import Annotated

import msgspec
from msgspec import Meta

from airflow_provider_claude_batch.result import Usage

_PICO = Decimal("1e-12")
_CENT = Decimal("0.01")
_LIVE_MICRODOLLARS_PER_SEARCH = 10_000
_DATE_SUFFIX = re.compile(r"-\d{8}$")

Dollars = Annotated[float, Meta(ge=0, le=1_000)]  # whatever is priced so fits the columns of money


class Price(msgspec.Struct, frozen=True, dict=True):
    """Dollars per million tokens outside batches, of one model from one day on, for prompts longer than `over`."""

    model: str
    input: str
    output: str
    cache_read: str
    since: date = date.min
    over: int = 0
    geo_multiplier: bool = True

    @cached_property
    def rates(self) -> tuple[int, int, int]:
        """Picodollars per token: input, output, cache read."""
        return _per_token(self.input), _per_token(self.output), _per_token(self.cache_read)

    def picodollars(self, usage: Usage) -> int:
        """What the usage costs live, in millionths of a millionth of a dollar, exactly."""
        input_, output, cache_read = self.rates
        minutes_5, hour_1 = usage.cache_writes
        tokens = (
            usage.input_tokens * input_
            + usage.output_tokens * output
            + minutes_5 * input_ * 5 // 4
            + hour_1 * input_ * 2
            + usage.cache_read_tokens * cache_read
        )
        return tokens * 11 // 10 if self.geo_multiplier and usage.inference_geo == "us" else tokens


class GivenPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price as people write it, in the words of `Price`; a cache is read for a tenth, where nothing else is said."""

    input: Dollars
    output: Dollars
    cache_read: Dollars | None = None
    since: date = date.min
    over: Annotated[int, Meta(ge=0)] = 0
    geo_multiplier: bool = True

    def of(self, model: str) -> Price:
        """Make it the price of a model."""
        input_, cache_read = Decimal(str(self.input)), self.cache_read
        read = input_ / 10 if cache_read is None else cache_read
        return Price(model, str(input_), str(self.output), str(read), self.since, self.over, self.geo_multiplier)


class Cost(msgspec.Struct, frozen=True):
    """What a message cost in its batch, and what the same tokens cost live."""

    cost_usd: Decimal
    live_cost_usd: Decimal


class PriceList:
    """Prices by model, newest and longest-prompt first."""

    def __init__(self, prices: tuple[Price, ...]) -> None:
        self._by_model: dict[str, list[Price]] = {}
        for price in sorted(prices, key=lambda p: (p.since, p.over), reverse=True):
            self._by_model.setdefault(price.model, []).append(price)

    def with_given(self, given: bytes | str) -> "PriceList":
        """Return a list in which prices written as JSON stand in the place of all that ours has of their models."""
        found = _given.decode(given)
        ours = chain.from_iterable(prices for model, prices in self._by_model.items() if model not in found)
        theirs = (one.of(model) for model, one_or_many in found.items() for one in _many(one_or_many))
        return PriceList((*ours, *theirs))

    def find(self, model: str, on: date, prompt_tokens: int = 0) -> Price | None:
        """Return the price of a model on a day for a prompt of a length, or None where it is not known."""
        for price in self._by_model.get(model) or self._by_model.get(_undated(model), []):
            if price.since <= on and (prompt_tokens > price.over or not price.over):
                return price
        return None

    def cost(self, model: str, usage: Usage, on: date) -> Cost | None:
        """Price one message of a batch; None for an unknown model, never a guess."""
        price = self.find(model, on, usage.prompt_tokens)
        if price is None:
            return None
        live = price.picodollars(usage)
        searches = usage.web_search_requests * _LIVE_MICRODOLLARS_PER_SEARCH * 10**6
        return Cost((live // 2 + searches) * _PICO, (live + searches) * _PICO)


def dollars(amount: float | Decimal) -> str:
    """Write an amount for people: cents, or two digits that mean something below a cent."""
    exact = Decimal(amount)
    return f"${exact:,.2f}" if not exact or abs(exact) >= _CENT else f"${Decimal(f'{exact:.2g}'):f}"


def alike(*amounts: float) -> list[str]:
    """Write amounts that are to be compared, all of them with the digits that the smallest needs."""
    exact = [Decimal(str(amount)) for amount in amounts]
    digits = max([2, *(1 - amount.adjusted() for amount in exact if amount)])
    while digits > 2 and all(round(amount, digits - 1) == round(amount, digits) for amount in exact):  # noqa: PLR2004
        digits -= 1
    return [f"${amount:,.{digits}f}" for amount in exact]


_given = msgspec.json.Decoder(dict[str, GivenPrice | list[GivenPrice]])


def _many(one_or_many: GivenPrice | list[GivenPrice]) -> list[GivenPrice]:
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]


@lru_cache(maxsize=256)
def _undated(model: str) -> str:
    return _DATE_SUFFIX.sub("", model)


def _per_token(dollars_per_million: str) -> int:
    return int(Decimal(dollars_per_million) * 10**6)


def _family(
    models: tuple[str, ...], *, costs: tuple[str, str, str], since: date = date.min, geo: bool = True
) -> list[Price]:
    input_, output, cache_read = costs
    return [Price(m, input_, output, cache_read, since, geo_multiplier=geo) for m in models]


PRICES = PriceList(
    (
        *_family(("claude-fable-5-2", "claude-mythos-5-2"), costs=("8", "40", "0.20")),
        *_family(("claude-fable-5-1", "claude-mythos-5-1"), costs=("10", "50", "0.25")),
        *_family(("claude-fable-5", "claude-mythos-5"), costs=("10", "50", "1")),
        *_family(("claude-opus-5-5",), costs=("4", "20", "0.20")),
        *_family(("claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6"), costs=("5", "25", "0.5")),
        *_family(("claude-opus-4-5",), costs=("5", "25", "0.5"), geo=False),
        *_family(("claude-sonnet-5-5",), costs=("2", "10", "0.20")),
        *_family(("claude-sonnet-5-5",), costs=("2", "10", "0.10"), since=date(2026, 10, 7)),
        *_family(("claude-sonnet-5",), costs=("2", "10", "0.2")),
        *_family(("claude-sonnet-4-6",), costs=("3", "15", "0.3")),
        *_family(("claude-sonnet-4-5",), costs=("3", "15", "0.3"), geo=False),
        *_family(("claude-haiku-5-5",), costs=("0.10", "0.50", "0.01")),
        Price("claude-haiku-5-5", "0.50", "2.50", "0.05", over=100_000),
        *_family(("claude-haiku-4-5",), costs=("1", "5", "0.1"), geo=False),
    )
)
