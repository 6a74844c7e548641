"""Samples: rows as people look at them, read back from the warehouse."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from airflow_provider_claude_batch.errors import Misconfigured

LONGEST_TEXT = 2_000


class Sample(msgspec.Struct, frozen=True):
    """One request and what became of it, with the beginning of its answer."""

    custom_id: str | None
    status: str
    problem: str | None
    model: str | None
    text: str | None
    error_type: str | None
    error_message: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None

    @classmethod
    def of(cls, cells: Sequence[Any]) -> "Sample":
        """Take what a warehouse gave for each of the fields; money may be a text or a number."""
        *others, cost = cells
        return cls(*(*others, cost if cost is None else float(cost)))


FIELDS = Sample.__struct_fields__


def refuse_lacking(lacking: Iterable[str], table: object) -> None:
    """Refuse a table that cannot be one of ours."""
    names = {*lacking}
    if wanted := [name for name in (*FIELDS, "batch_id") if name in names]:
        raise Misconfigured(f"{table} lacks {', '.join(wanted)}: load into it again, or name another table.")
