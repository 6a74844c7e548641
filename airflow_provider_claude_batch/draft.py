"""Drafts: what would be sent, as its source was read at one moment, spooled and counted."""

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import IO, Any, NamedTuple, Self

from airflow_provider_claude_batch.estimate import Survey
from airflow_provider_claude_batch.order import Order
from airflow_provider_claude_batch.price import dollars
from airflow_provider_claude_batch.receipt import Estimate
from airflow_provider_claude_batch.request import Reading
from airflow_provider_claude_batch.shard import Shard, cut
from airflow_provider_claude_batch.words import counted

log = logging.getLogger(__name__)


class Draft(NamedTuple):
    """The shards of a submission that is not open yet; of what had an answer by then, nothing is in them."""

    shards: list[Shard]
    survey: Survey
    reading: Reading
    as_of: datetime

    @classmethod
    def read(cls, raw: Iterable[Any], spool: IO[bytes], order: Order, as_of: datetime) -> Self:
        """Read the source and spool what is to be sent of it, in the place of whatever was spooled before."""
        spool.seek(0)
        spool.truncate()
        survey = Survey(keep=order.preflight)
        reading = Reading(
            raw,
            order.defaults,
            on_invalid=order.on_invalid,
            prime=order.prime_cache,
            answered=() if order.answered is None else order.answered(as_of),
        )
        shards = cut(survey.observe(reading), spool, order.shard_size, prime=order.prime_cache)
        return cls(shards, survey, reading, as_of)

    @property
    def invalid(self) -> dict[str, tuple[str, ...]] | None:
        """Name what is left out, by the reason."""
        return {why: tuple(names) for why, names in self.reading.invalid.items()} or None

    def announce(self, estimate: Estimate) -> None:
        """Say in the log what is about to be sent, and what it may cost."""
        self.tell_skipped()
        self.tell_reused()
        log.info(
            "Submitting %s (%s bytes) as %s for %s.",
            counted(sum(shard.requests for shard in self.shards), "request"),
            f"{sum(shard.bytes for shard in self.shards):,}",
            counted(len(self.shards), "batch"),
            ", ".join(self.survey.models),
        )
        unknown = "an unknown amount, for a model's price is not known"
        log.info(
            "It may cost %s: about %s input tokens, at most %s output tokens (%s).",
            unknown if estimate.usd is None else f"about {dollars(estimate.usd)}",
            f"{estimate.input_tokens:,}",
            f"{estimate.max_output_tokens:,}",
            estimate.basis,
        )

    def tell_skipped(self) -> None:
        """Name in the log what cannot be sent."""
        for why, names in self.reading.invalid.items():
            said = counted(len(names), "request")
            log.warning("Skipped %s that cannot be sent, such as %r: %s.", said, names[0], why)

    def tell_reused(self) -> None:
        """Say in the log how much has an answer already."""
        if self.reading.reused:
            log.info("Not sent, for an answer is there already: %s.", counted(self.reading.reused, "request"))
