"""Estimates: about what a submission may cost, from a sample that the API counts for free."""

import heapq
from collections.abc import Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING

from airflow_provider_claude_batch.errors import ApiRefused
from airflow_provider_claude_batch.price import Price, PriceList
from airflow_provider_claude_batch.receipt import Estimate
from airflow_provider_claude_batch.request import Request
from airflow_provider_claude_batch.result import Usage

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

SAMPLE_SIZE = 5


class _Model:
    """What went by of one model: totals, and the few requests whose digests are the largest, as a fair sample."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.max_tokens = 0
        self._sample: list[tuple[bytes, int, Request]] = []

    def add(self, request: Request) -> None:
        self.requests += 1
        self.bytes += len(request.json)
        self.max_tokens += request.max_tokens
        if len(self._sample) < SAMPLE_SIZE:
            heapq.heappush(self._sample, (request.digest, self.requests, request))
        elif request.digest > self._sample[0][0]:
            heapq.heapreplace(self._sample, (request.digest, self.requests, request))

    @property
    def sample(self) -> list[Request]:
        return [request for _, _, request in self._sample]


class Survey:
    """Watch requests go by, then have a sample of each model counted."""

    def __init__(self, keep: int = 0) -> None:
        self.first: list[Request] = []
        self._keep = keep
        self._models: dict[str, _Model] = {}

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._models)

    def observe(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Pass requests on, remembering what an estimate needs."""
        models = self._models
        for request in requests:
            model = models.get(request.model)
            if model is None:
                model = models[request.model] = _Model()
            model.add(request)
            if len(self.first) < self._keep:
                self.first.append(request)
            yield request

    def estimate(self, client: "Client", betas: tuple[str, ...], prices: PriceList, on: date) -> Estimate:
        """Ask for the tokens of the sample: a wrong model, key or shape is one clear error here."""
        parts = []
        for name, model in self._models.items():
            counts = [(request, _count(request, client, betas)) for request in model.sample]
            parts.append(_scaled(model, counts, [prices.find(name, on, count) for _, count in counts]))
        known = [part.usd for part in parts if part.usd is not None]
        return Estimate(
            round(sum(known), 6) if len(known) == len(parts) else None,
            sum(part.input_tokens for part in parts),
            sum(part.max_output_tokens for part in parts),
            f"{sum(len(model.sample) for model in self._models.values())} requests counted, scaled by bytes; "
            "output taken as max_tokens",
        )


def _count(request: Request, client: "Client", betas: tuple[str, ...]) -> int:
    try:
        return client.count_tokens(request.params, betas)
    except ApiRefused as refused:
        raise ApiRefused(f"Request {request.custom_id!r}, counted before anything is sent: {refused}") from None


def _scaled(model: _Model, counts: list[tuple[Request, int]], prices: list[Price | None]) -> Estimate:
    """Scale the sample up, each request of it at its own price: prices depend on a prompt's length, and on where."""
    tokens = sum(count for _, count in counts)
    by_bytes = model.bytes / sum(len(request.json) for request, _ in counts)
    by_output = model.max_tokens / sum(request.max_tokens for request, _ in counts)
    usd = 0.0
    for (request, count), price in zip(counts, prices, strict=True):
        if price is None:
            return Estimate(None, round(tokens * by_bytes), model.max_tokens, "")
        geo = request.params.get("inference_geo")
        usd += price.picodollars(Usage(input_tokens=count, inference_geo=geo)) / 2e12 * by_bytes
        usd += price.picodollars(Usage(output_tokens=request.max_tokens, inference_geo=geo)) / 2e12 * by_output
    return Estimate(usd, round(tokens * by_bytes), model.max_tokens, "")
