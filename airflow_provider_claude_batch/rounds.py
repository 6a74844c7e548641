"""Rounds: what a submission and its retries add up to, request by request."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from airflow_provider_claude_batch import spending
from airflow_provider_claude_batch.commonest import Commonest
from airflow_provider_claude_batch.receipt import ModelTotal, Receipt, UsageTotal, newest
from airflow_provider_claude_batch.spending import known_sum
from airflow_provider_claude_batch.tally import accounted_for, hit_rate


def add_up(rounds: Sequence[Sequence[Receipt]]) -> Receipt:
    """Return one receipt for all rounds: a request that was sent again counts as it ended, and costs what all did."""
    rounds = _of_this_life(rounds)
    every = [receipt for receipts in rounds for receipt in receipts]
    counts, problems, retryable = _outcomes(rounds)
    usage, commonest = _usage(every), _commonest(every)
    unpriced = sum(receipt.unpriced or 0 for receipt in every)
    cost, live, saved = (_money(every, f"{name}_usd", unpriced) for name in ("cost", "live_cost", "saved"))
    first = rounds[0][0]
    return msgspec.structs.replace(
        first,
        batches=tuple(part for receipt in every for part in receipt.batches),
        attempt=max(receipt.attempt for receipt in every),
        requests=sum(receipt.requests for receipt in rounds[0]),
        models=tuple(dict.fromkeys(model for receipt in every for model in receipt.models)),
        reused=sum(receipt.reused or 0 for receipt in every) or None,
        invalid=next((receipt.invalid for receipt in every if receipt.invalid), None),
        estimate_usd=known_sum(receipt.estimate_usd for receipt in every),
        preflight_usd=known_sum(receipt.preflight_usd for receipt in every),
        preflight_unpriced=sum(receipt.preflight_unpriced or 0 for receipt in every) or None,
        abandoned=spending.abandoned(every) or None,
        rounds=len(rounds),
        rows=sum(receipt.rows or 0 for receipt in every),
        counts=dict(+counts),
        problems=dict(+problems),
        retryable=retryable.total(),
        retryable_by=dict(+retryable),
        retry_ids=None,
        truncated_ids=None,
        usage=usage,
        cost_usd=cost,
        live_cost_usd=live,
        saved_usd=saved,
        unpriced=unpriced,
        by_model=_by_model(every),
        cache_hit_rate=hit_rate(usage),
        errors=commonest.counts,
        error_examples=commonest.examples,
        canceled_at_deadline=any(receipt.canceled_at_deadline for receipt in every) or None,
        of=None,
        left_out=None,
        not_loaded=tuple(batch_id for receipt in every for batch_id in receipt.not_loaded or ()) or None,
    )


def not_loaded(submitted: Sequence[Receipt], loaded: Sequence[Receipt], *, is_first: bool) -> list[Receipt]:
    """Return receipts of what is paid and was not loaded: in the first round, its requests are missing.

    What was sent again still counts as it had ended before.
    """
    known = {batch_id for receipt in loaded for batch_id in receipt.batch_ids}
    left = []
    for receipt in submitted:
        parts = [part for part in receipt.batches if part.id not in known]
        if parts or not (loaded or receipt.batches):
            rest = receipt.of_some(parts)
            counts = {"missing": rest.requests} if parts and is_first else {}
            left.append(msgspec.structs.replace(rest, counts=counts, not_loaded=rest.batch_ids))
    return left


def _of_this_life(rounds: Sequence[Sequence[Receipt]]) -> list[list[Receipt]]:
    """Leave out what a run that was cleared has said before: Airflow keeps the XComs of tasks that are skipped now."""
    current = [newest(rounds[0])]
    submissions = {receipt.submission for receipt in current[0]}
    for receipts in rounds[1:]:
        known = [receipt for receipt in receipts if receipt.submission in submissions]
        if not known or not any(receipt.retryable for receipt in current[-1]):
            break
        current.append(known)
    return current


def _outcomes(rounds: Sequence[Sequence[Receipt]]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count how each request ended: what was sent again counts no more as it had ended before."""
    counts: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    retryable: Counter[str] = Counter()
    for receipts in rounds:
        now = _merged(receipt.counts for receipt in receipts)
        left_out = sum({receipt.place: receipt.left_out or 0 for receipt in receipts}.values())
        for why, number in _resent(retryable - Counter(canceled=left_out), accounted_for(now)).items():
            retryable[why] -= number
            counts["succeeded" if why in problems else why] -= number
            if why in problems:
                problems[why] -= number
        counts.update(now)
        problems.update(_merged(receipt.problems for receipt in receipts))
        retryable.update(_merged(receipt.retryable_by for receipt in receipts))
    return counts, problems, retryable


def _resent(retryable: Counter[str], sent: int) -> dict[str, int]:
    """Tell which were sent again: of the truncated, those for which there is room beside all others."""
    resent = {}
    for why in sorted(retryable, key=lambda why: why == "truncated"):
        resent[why] = min(retryable[why], sent)
        sent -= resent[why]
    return resent


def _merged(counts: Iterable[dict[str, int] | None]) -> Counter[str]:
    merged: Counter[str] = Counter()
    for one in counts:
        merged.update(one or {})
    return merged


def _usage(receipts: Iterable[Receipt]) -> UsageTotal:
    used = [receipt.usage for receipt in receipts if receipt.usage]
    return UsageTotal(**{name: sum(getattr(one, name) for one in used) for name in UsageTotal.__struct_fields__})


def _money(receipts: Iterable[Receipt], name: str, unpriced: int) -> float | None:
    """Add up dollars; beside answers without a price, nothing at all is no sum."""
    known = known_sum(getattr(receipt, name) for receipt in receipts)
    return known or None if unpriced else known


def _by_model(receipts: Iterable[Receipt]) -> dict[str, ModelTotal] | None:
    known = [receipt.by_model for receipt in receipts if receipt.by_model is not None]
    return spending.add_up(known) if known else None


def _commonest(receipts: Iterable[Receipt]) -> Commonest:
    commonest = Commonest()
    for receipt in receipts:
        examples = receipt.error_examples or {}
        for error, times in receipt.errors or ():
            commonest.add(error, times, examples.get(error, ()))
    return commonest
