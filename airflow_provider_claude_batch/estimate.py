"""Estimates: about what a submission may cost, from a sample that the API counts for free."""

import heapq
from collections.abc import Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING

from airflow_provider_claude_batch.price import PriceList
from airflow_provider_claude_batch.receipt import Estimate
from airflow_provider_claude_batch.request import Request, encode
from airflow_provider_claude_batch.result import Usage
from airflow_provider_claude_batch.wire_id import request_hash_of

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

SAMPLE_SIZE = 5


class _Model:
    """What went by of one model: totals, and the few requests whose hashes are the largest, as a fair sample."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.max_tokens = 0
        self._sample: list[tuple[str, int, Request]] = []

    def add(self, request: Request, params: bytes) -> None:
        self.requests += 1
        self.bytes += len(params)
        self.max_tokens += request.max_tokens
        item = (request_hash_of(params), self.requests, request)
        if len(self._sample) < SAMPLE_SIZE:
            heapq.heappush(self._sample, item)
        else:
            heapq.heappushpop(self._sample, item)

    @property
    def sample(self) -> list[Request]:
        return [request for _, _, request in self._sample]


class Survey:
    """Watch requests go by, then have a sample of each model counted."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._models)

    def observe(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Pass requests on, remembering what an estimate needs."""
        for request in requests:
            self._models.setdefault(request.model, _Model()).add(request, encode(request.params))
            yield request

    def estimate(self, client: "Client", betas: tuple[str, ...], prices: PriceList, on: date) -> Estimate:
        """Ask for the tokens of the sample: a wrong model, key or shape is one clear error here."""
        input_tokens = output_tokens = counted = 0
        usd: float | None = 0.0
        for name, model in self._models.items():
            tokens = _scaled_tokens(model, client, betas)
            counted += len(model.sample)
            input_tokens, output_tokens = input_tokens + tokens, output_tokens + model.max_tokens
            price = prices.find(name, on, tokens // model.requests)
            usage = Usage(input_tokens=tokens, output_tokens=model.max_tokens)
            usd = None if usd is None or price is None else usd + price.picodollars(usage) / 2 * 1e-12
        basis = f"{counted} requests counted, scaled by bytes; output taken as max_tokens"
        return Estimate(None if usd is None else round(usd, 6), input_tokens, output_tokens, basis)


def _scaled_tokens(model: _Model, client: "Client", betas: tuple[str, ...]) -> int:
    tokens = sum(client.count_tokens(request.params, betas) for request in model.sample)
    sampled_bytes = sum(len(encode(request.params)) for request in model.sample)
    return round(tokens * model.bytes / sampled_bytes)
