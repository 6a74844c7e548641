"""Roll calls: how every batch that somebody waits for is asked for with as few calls as can be."""

from collections.abc import Callable, Collection, Generator, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from airflow_provider_claude_batch.batch import Batch, Page
from airflow_provider_claude_batch.errors import ClaudeBatchError, NotPermitted
from airflow_provider_claude_batch.watch import Look

_LONGEST_LIFE = timedelta(hours=26)


class AskForPage(msgspec.Struct, frozen=True):
    """Ask for the batches that were made before another one, newest first."""

    after_id: str | None = None


class AskForBatch(msgspec.Struct, frozen=True):
    """Ask for one batch."""

    id: str


Ask = AskForPage | AskForBatch
Answer = Page | Batch | ClaudeBatchError
RollCall = Generator[Ask, Answer, dict[str, Look]]


class Roll:
    """Remember what makes the next roll call cheap: when batches were made, and how many pages it took."""

    def __init__(self) -> None:
        self.asked = 0
        self._may_list = True
        self._pages = 1

    def call(self, ids: Collection[str], known: Mapping[str, datetime], now: datetime) -> RollCall:
        """Yield what to ask, take the answers, and return how each batch was seen."""
        self.asked, self._may_list = 0, True
        found: dict[str, Look] = {}
        if len(ids) > self._pages:
            found = yield from self._list(frozenset(ids), _horizon(ids, known, now))
        answer: Answer | None = None
        for batch_id in ids:
            if batch_id not in found:
                if self._may_list or not isinstance(answer, NotPermitted):  # both refused: it is said of the key
                    self.asked += 1
                    answer = yield AskForBatch(batch_id)
                assert not isinstance(answer, Page | None)
                found[batch_id] = answer
        return found

    def drive(
        self, ids: Collection[str], known: Mapping[str, datetime], ask: Callable[[Ask], Answer]
    ) -> dict[str, Look]:
        """Hold a roll call on a worker: `ask` waits for each answer."""
        call = self.call(ids, known, datetime.now(UTC))
        answer = None
        while True:
            try:
                answer = ask(next(call) if answer is None else call.send(answer))
            except StopIteration as over:
                looks: dict[str, Look] = over.value
                return looks

    def _list(self, ids: frozenset[str], horizon: datetime) -> RollCall:
        """Go from page to page until all are found, or are older than the page; an error is the answer for all.

        A key that may not list may ask for each batch all the same.
        """
        found: dict[str, Look] = {}
        after_id, pages = None, 0
        while len(found) < len(ids):
            self.asked += 1
            page = yield AskForPage(after_id)
            if isinstance(page, NotPermitted):
                self._may_list = False
                return found
            if isinstance(page, ClaudeBatchError):
                return {batch_id: found.get(batch_id, page) for batch_id in ids}
            assert isinstance(page, Page)
            pages += 1
            found.update((batch.id, batch) for batch in page.data if batch.id in ids)
            after_id = page.last_id
            if not page.has_more or after_id is None or not page.data or page.data[-1].created_at < horizon:
                break
        self._pages = max(1, pages)
        return found


def _horizon(ids: Collection[str], known: Mapping[str, datetime], now: datetime) -> datetime:
    """Say which batches are too old to be one of these: what still runs was made within a day."""
    youngest_unknown = now - _LONGEST_LIFE
    return min((known.get(batch_id, youngest_unknown) for batch_id in ids), default=youngest_unknown)
