"""Pages of the API's lists: newest first, continued by ids."""

from collections.abc import Mapping

from msgspec import Struct

from airflow_provider_claude_batch.emulator.errors import invalid

DEFAULT_LIMIT, MAX_LIMIT = 20, 1000


class PageQuery(Struct, frozen=True):
    """Which part of a list is asked for: after_id goes to older entries, before_id to newer ones."""

    limit: int
    before_id: str | None
    after_id: str | None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "PageQuery":
        return cls(_limit(query.get("limit")), query.get("before_id") or None, query.get("after_id") or None)

    @property
    def backwards(self) -> bool:
        """Say whether the page is the one that ends just before before_id."""
        return self.before_id is not None and self.after_id is None


def page(entries: list[dict[str, object]], *, has_more: bool) -> dict[str, object]:
    """Wrap entries as one page."""
    first, last = (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
    return {"data": entries, "has_more": has_more, "first_id": first, "last_id": last}


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    try:
        limit = int(text)
    except ValueError:
        raise invalid("limit: Input should be a valid integer, unable to parse string as an integer") from None
    if limit < 1:
        raise invalid("limit: Input should be greater than or equal to 1")
    if limit > MAX_LIMIT:
        raise invalid(f"limit: Input should be less than or equal to {MAX_LIMIT}")
    return limit
