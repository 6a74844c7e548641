"""Commonest: errors counted by what they say, with a few of the requests that had them."""

import re
from collections.abc import Iterable, Sequence

import msgspec

_COMMONEST = 5
_EXAMPLES = 3
_DISTINCT = 1_000
_VARIES = re.compile(r"\b[a-z]+_(?=\w*\d)\w{8,}|\b(?=[0-9a-f-]*\d)[0-9a-f-]{12,}\b|\d[\d,.]*\d\d")


class _Seen(msgspec.Struct):
    times: int = 0
    examples: list[str] = []

    def add(self, times: int, custom_ids: Iterable[str | None]) -> None:
        self.times += times
        if len(self.examples) < _EXAMPLES:
            for custom_id in custom_ids:
                if custom_id is not None and custom_id not in self.examples:
                    self.examples.append(custom_id)
            del self.examples[_EXAMPLES:]


class Commonest:
    """Count errors, and name the commonest; however many differ, few are held."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, error: str, times: int, custom_ids: Iterable[str | None]) -> None:
        """Count an error; of too many that differ, those that are alike become one, and the rarest are forgotten."""
        seen = self._seen.get(error)
        if seen is None:
            seen = self._seen[error] = _Seen()
        seen.add(times, custom_ids)
        if len(self._seen) > _DISTINCT:
            self._seen = _most(_alike(self._seen), _DISTINCT // 2)

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """Name the commonest, with their counts."""
        return tuple((error, seen.times) for error, seen in self._commonest().items())

    @property
    def examples(self) -> dict[str, tuple[str, ...]]:
        """Name some requests that had each of the commonest."""
        return {error: tuple(seen.examples) for error, seen in self._commonest().items()}

    def _commonest(self) -> dict[str, _Seen]:
        return _most(_alike(self._seen), _COMMONEST)


def _alike(errors: dict[str, _Seen]) -> dict[str, _Seen]:
    """Take errors for one that differ in ids and long numbers only: who reads them wants to know what happened."""
    groups: dict[str, list[str]] = {}
    for error in errors:
        groups.setdefault(_VARIES.sub("…", error), []).append(error)
    return {
        pattern if len(alike) > 1 else alike[0]: _together([errors[error] for error in alike])
        for pattern, alike in groups.items()
    }


def _together(seen: Sequence[_Seen]) -> _Seen:
    if len(seen) == 1:
        return seen[0]
    whole = _Seen()
    for one in seen:
        whole.add(one.times, one.examples)
    return whole


def _most(errors: dict[str, _Seen], limit: int) -> dict[str, _Seen]:
    return dict(sorted(errors.items(), key=lambda item: item[1].times, reverse=True)[:limit])
