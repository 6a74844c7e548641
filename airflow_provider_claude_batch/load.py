"""Loading: results become rows, one for each request, in one transaction."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec

from airflow_provider_claude_batch import row as rows
from airflow_provider_claude_batch.batch import Batch
from airflow_provider_claude_batch.columns import Columns
from airflow_provider_claude_batch.errors import (
    ApiUnavailable,
    BatchGone,
    ClaudeBatchError,
    IncompleteResults,
    Misconfigured,
    TooManyErrors,
)
from airflow_provider_claude_batch.price import PriceList
from airflow_provider_claude_batch.receipt import Part, Receipt
from airflow_provider_claude_batch.row import Origin, Row
from airflow_provider_claude_batch.spending import told
from airflow_provider_claude_batch.tally import Tally
from airflow_provider_claude_batch.words import counted
from airflow_provider_claude_batch.writers import Writer

if TYPE_CHECKING:
    from airflow_provider_claude_batch.client import Client

Roster = Callable[[Receipt, Part], list[str]]

_PAUSES = tuple(2.0**n / 4 for n in range(8))  # a minute in all: at times the API does not know what it has
_FEW = 3
_HEAD = 16  # the lines that are looked at together to tell whether a batch is ours

log = logging.getLogger(__name__)


class Loader:
    """Load the batches of receipts into one table."""

    def __init__(
        self,
        client: "Client",
        prices: PriceList,
        *,
        columns: Columns | None = None,
        roster: Roster | None = None,
        loaded_at: datetime | None = None,
    ) -> None:
        self._client = client
        self._prices = prices
        self._columns = columns
        self._roster = roster
        self._loaded_at = loaded_at or datetime.now(UTC)
        self._batches: dict[str, Batch] = {}

    def load(self, receipts: Sequence[Receipt], writer: Writer) -> list[tuple[Receipt, Tally]]:
        """Replace the rows of all batches at once, and return what they add up to, receipt by receipt."""
        leads = _leads(receipts)
        receipts = list(_without_repetition(receipts))
        self._batches = {part.id: self._ended(part) for receipt in receipts for part in receipt.batches}
        receipts = [receipt.seen(self._batches) for receipt in receipts]
        tallies = [Tally() for _ in receipts]
        if self._batches or any(receipt.invalid for receipt in receipts):
            writer.replace(list(dict.fromkeys([*self._batches, *leads])), self._all_rows(receipts, tallies, leads))
        return [(tally.fill(receipt), tally) for receipt, tally in zip(receipts, tallies, strict=True)]

    def _ended(self, part: Part) -> Batch:
        batch = self._retrieve(part)
        if not batch.ended:
            raise ApiUnavailable(
                f"Batch {part.id} is still {batch.processing_status}: load what a sensor has waited for."
            )
        if batch.archived_at:
            raise Misconfigured(
                f"The results of batch {part.id} are gone since {batch.archived_at:%Y-%m-%d}: the API keeps them "
                "for 29 days."
            )
        return batch

    def _retrieve(self, part: Part) -> Batch:
        """Wait where the API does not know what it has taken; a bare id may be a slip of a pen."""
        for pause in _PAUSES if part.total else _PAUSES[:_FEW]:
            try:
                return self._client.retrieve(part.id)
            except (ApiUnavailable, BatchGone) as error:
                log.warning("Asking again in %g s. %s", pause, error)
                time.sleep(pause)
        return self._client.retrieve(part.id)

    def _all_rows(self, receipts: list[Receipt], tallies: list[Tally], leads: dict[str, int]) -> Iterator[Row]:
        for index, (receipt, tally) in enumerate(zip(receipts, tallies, strict=True)):
            yield from self._rows(receipt, tally)
            if leads.get(receipt.pseudo_batch) == index:
                yield from tally.observe(self._skipped_rows(receipt))

    def _rows(self, receipt: Receipt, tally: Tally) -> Iterator[Row]:
        for part in receipt.batches:
            before = tally.requests
            yield from tally.observe(self._batch_rows(receipt, part))
            tally.miss(part.total - (tally.requests - before))

    def _skipped_rows(self, receipt: Receipt) -> Iterator[Row]:
        """Give a row to each request that was never sent: their batch is the submission itself."""
        for why, names in (receipt.invalid or {}).items():
            for name in names:
                row = self._blank(receipt, Part(receipt.pseudo_batch))
                row.custom_id, row.status = name, "errored"
                row.error_type, row.error_message = "invalid_request_error", why
                yield row

    def _batch_rows(self, receipt: Receipt, part: Part) -> Iterator[Row]:
        """Give each request one row: a second line of the same request, or one of nobody's, is counted and left out.

        Rows come last of requests that no line speaks of, as far as their names can be found out.
        """
        seen: set[str] = set()
        duplicates = foreign = 0
        for row, is_ours in self._read(receipt, part):
            if not is_ours:
                foreign += 1
            elif row.custom_id in seen:
                duplicates += 1
            else:
                seen.update(() if row.custom_id is None else (row.custom_id,))
                yield row
        if duplicates or foreign:
            log.warning("Batch %s: %d second lines and %d foreign lines left out.", part.id, duplicates, foreign)
        for custom_id in self._missing(receipt, part, seen):
            row = self._blank(receipt, part)
            row.custom_id, row.status = custom_id, "missing"
            row.retryable = rows.is_retryable(row)
            yield row

    def _missing(self, receipt: Receipt, part: Part, seen: set[str]) -> list[str]:
        """Name the requests of a batch that have no row, where they can be found out."""
        if self._roster is None or len(seen) >= part.total:
            return []
        try:
            ids = self._roster(receipt, part)
        except ClaudeBatchError as error:
            log.warning("Batch %s: %d requests have no result. %s", part.id, part.total - len(seen), error)
            return []
        return [custom_id for custom_id in ids if custom_id not in seen]

    def _read(self, receipt: Receipt, part: Part) -> Iterator[tuple[Row, bool]]:
        lines = self._lines(part)
        head = [] if part.mark else list(islice(lines, _HEAD))
        mark = part.mark or rows.mark_of_lines(head)
        origin = Origin(self._blank(receipt, part), mark, part.created_at or self._loaded_at, self._columns)
        for line in chain(head, lines):
            row = rows.of_line(line, origin, self._prices)
            is_ours = part.mark is None or row.custom_id is None or row.request_hash is not None
            yield row, is_ours

    def _lines(self, part: Part) -> Iterator[bytes]:
        """Stream the lines; a stream that breaks is taken up again, and lines that were there are passed over."""
        before: set[int] = set()
        has_ended = False
        for pause in (*_PAUSES, None):
            seen: set[int] = set()
            try:
                for line in self._client.results(part.id, self._batches[part.id].results_url):
                    seen.add(hash(line))
                    if hash(line) not in before:
                        yield line
                if has_ended or pause is None or len(seen) >= part.total:
                    return
                has_ended, said = True, "Fewer lines came than there are requests."
            except (ApiUnavailable, BatchGone) as error:
                if pause is None:
                    raise
                said = str(error)
            before |= seen
            log.warning("Batch %s: %d lines of results, then no more; asking again. %s", part.id, len(before), said)
            time.sleep(pause)

    def _blank(self, receipt: Receipt, part: Part) -> Row:
        return Row(
            dag_id=receipt.dag_id,
            run_id=receipt.run_id,
            submit_task=receipt.submit_task,
            map_index=receipt.map_index,
            element=receipt.element,
            logical_date=receipt.logical_date,
            submission=receipt.submission,
            attempt=receipt.attempt,
            batch_id=part.id,
            submitted_at=receipt.submitted_at or part.created_at or self._loaded_at,
            ended_at=part.ended_at,
            loaded_at=self._loaded_at,
            typed=(None,) * (len(self._columns.columns) if self._columns else 0),
        )


def _leads(receipts: Sequence[Receipt]) -> dict[str, int]:
    """Say which receipt the rows of the requests go with that a submission skipped: its first, if it begins there."""
    leads: dict[str, int] = {}
    for index, receipt in enumerate(receipts):
        if receipt.is_beginning:
            leads.setdefault(receipt.pseudo_batch, index)
    return leads


def _without_repetition(receipts: Sequence[Receipt]) -> Iterator[Receipt]:
    """A batch that is named twice is loaded once, with the receipt that names it first."""
    named: set[str] = set()
    for receipt in receipts:
        parts = {part.id: part for part in receipt.batches if part.id not in named}
        is_repetition = not parts and receipt.pseudo_batch in named
        named |= {*parts, receipt.pseudo_batch}
        only = msgspec.structs.replace(receipt, batches=tuple(parts.values()))
        yield msgspec.structs.replace(only, invalid=None, reused=None) if is_repetition else only


def report(receipt: Receipt, tally: Tally) -> None:
    """Say in the log what was loaded, what failed most, and what it cost."""
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(tally.counts.items())) or "nothing"
    log.info("Loaded %s into %s: %s.", counted(tally.rows, "row"), receipt.table, counts)
    for problem, count in tally.problems.most_common():
        log.warning("Not usable among the succeeded: %s, %s.", counted(count, "answer"), problem)
    for error, count in receipt.errors or ():
        log.warning("%s: %s", counted(count, "time"), error)
    log.info("Cost: %s.", told(receipt))
    if models := tally.unpriced_models:
        log.warning(
            "%s rows have no cost, for no price is known of %s: [claude_batch] prices, in Airflow's configuration, "
            "takes one.",
            f"{receipt.unpriced:,}",
            ", ".join(models),
        )


def judge(tally: Tally, max_error_rate: float | None) -> None:
    """Fail, now that everything is written, where requests are missing or too many failed."""
    if tally.lost:
        raise IncompleteResults(f"{tally.lost:,} requests are in no line of the results; all others are written.")
    if max_error_rate is not None and tally.error_rate > max_error_rate:
        raise TooManyErrors(tally.failed, tally.requests, max_error_rate)


def placed(receipt: Receipt, place: Receipt) -> Receipt:
    """Say where rows belong that were submitted elsewhere, by a bare id."""
    if receipt.dag_id is not None:
        return receipt
    of_place = ("dag_id", "run_id", "logical_date", "map_index", "element")
    return msgspec.structs.replace(receipt, **{name: getattr(place, name) for name in of_place})
