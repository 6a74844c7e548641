"""What the API said of one Message Batch, in the API's own words."""

from datetime import datetime

import msgspec


class Counts(msgspec.Struct, frozen=True):
    """How many requests of a batch stand where; all in `processing` until the whole batch has ended."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        return self.processing + self.succeeded + self.errored + self.canceled + self.expired


class Batch(msgspec.Struct, frozen=True):
    """One Message Batch; what the API may add to it later is passed over."""

    id: str
    processing_status: str
    request_counts: Counts
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    archived_at: datetime | None = None
    cancel_initiated_at: datetime | None = None
    results_url: str | None = None

    @property
    def ended(self) -> bool:
        return self.processing_status == "ended"


class Page(msgspec.Struct, frozen=True):
    """One page of the list of batches, newest first."""

    data: list[Batch]
    has_more: bool = False
    last_id: str | None = None


_decoder = msgspec.json.Decoder(Batch)
_pages = msgspec.json.Decoder(Page)


def decode(data: bytes) -> Batch:
    """Read the API's JSON of one batch."""
    return _decoder.decode(data)


def decode_page(data: bytes) -> Page:
    """Read the API's JSON of one page of the list."""
    return _pages.decode(data)
