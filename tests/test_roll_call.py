"""Asking for all that is waited for, with as few calls as can be."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch.batch import Batch, Counts, Page
from airflow_provider_claude_batch.errors import ApiUnavailable, BatchGone, NotPermitted
from airflow_provider_claude_batch.roll_call import AskForBatch, AskForPage, Roll

NOW = datetime.now(UTC)
DOWN = ApiUnavailable("The API answered 503.")
NO = NotPermitted("The API refused (403).")


def batch(number: int, minutes_ago: float) -> Batch:
    created = NOW - timedelta(minutes=minutes_ago)
    return Batch(f"b{number}", "in_progress", Counts(1), created, created + timedelta(hours=24))


class Api:
    """A workspace whose batches are listed page by page; calls are counted."""

    def __init__(self, batches: list[Batch], page: int = 3, unlisted: tuple[Batch, ...] = ()) -> None:
        self.listed = sorted(batches, key=lambda one: one.created_at, reverse=True)
        self.known = {one.id: one for one in (*batches, *unlisted)}
        self.page, self.asked = page, []
        self.down_after: int | None = None
        self.refuses: tuple[type, ...] = ()

    def __call__(self, ask: Any) -> Any:
        self.asked.append(ask)
        if self.down_after is not None and len(self.asked) > self.down_after:
            return DOWN
        if isinstance(ask, self.refuses):
            return NO
        if not isinstance(ask, AskForPage):
            return self.known.get(ask.id, BatchGone(f"The API does not know batch {ask.id}."))
        ids = [one.id for one in self.listed]
        start = ids.index(ask.after_id) + 1 if ask.after_id else 0
        data = self.listed[start : start + self.page]
        return Page(data, start + self.page < len(ids), data[-1].id if data else None)

    @property
    def pages(self) -> int:
        return sum(isinstance(ask, AskForPage) for ask in self.asked)


def test_one_batch_is_asked_for_by_itself() -> None:
    api = Api([batch(n, n) for n in range(9)])
    assert Roll().drive(["b7"], {}, api) == {"b7": api.known["b7"]}
    assert api.pages == 0


def test_many_batches_are_listed_only_as_far_as_they_go() -> None:
    api = Api([batch(n, n) for n in range(9)])
    assert Roll().drive(["b0", "b4"], {}, api).keys() == {"b0", "b4"}
    assert len(api.asked) == api.pages == 2


def test_a_batch_that_is_in_no_list_is_asked_for_by_itself() -> None:
    hidden = batch(99, 5)
    api = Api([batch(n, n) for n in range(9)], unlisted=(hidden,))
    looks = Roll().drive(["b0", "b1", "b99", "b100"], {}, api)
    assert looks["b99"] == hidden
    assert isinstance(looks["b100"], BatchGone)


def test_nobody_looks_for_a_running_batch_among_those_of_last_week() -> None:
    week = [batch(n, 60 * 24 * 7 + n) for n in range(100)]
    api = Api([batch(1000, 5), batch(1001, 6), *week])
    Roll().drive(["b1000", "b1001", "b-gone"], {}, api)
    assert api.pages == 1
    assert len(api.asked) == 2


def test_where_listing_took_more_pages_than_there_are_batches_left_these_are_asked_for() -> None:
    api, roll = Api([batch(n, n) for n in range(12)]), Roll()
    roll.drive(["b9", "b10", "b11"], {}, api)
    assert api.pages == 4
    api.asked.clear()
    roll.drive(["b10", "b11"], {}, api)
    assert (api.pages, len(api.asked)) == (0, 2)


def test_what_is_known_to_be_young_ends_the_list_early() -> None:
    api = Api([batch(n, 10 * n) for n in range(100)])
    known = {"b0": NOW, "b1": NOW - timedelta(minutes=10), "b-gone": NOW - timedelta(minutes=5)}
    Roll().drive(list(known), known, api)
    assert api.pages == 1


@pytest.mark.parametrize("after", [0, 1])
def test_an_error_is_the_answer_for_all_that_were_not_found(after: int) -> None:
    api = Api([batch(n, n) for n in range(9)])
    api.down_after = after
    looks = Roll().drive(["b0", "b8"], {}, api)
    assert looks["b8"] is DOWN
    assert (looks["b0"] is DOWN) is (after == 0)
    assert len(api.asked) == after + 1


def test_a_key_that_may_not_list_asks_for_each_batch() -> None:
    api, roll = Api([batch(n, n) for n in range(9)]), Roll()
    api.refuses = (AskForPage,)
    looks = roll.drive(["b0", "b8", "b99"], {}, api)
    assert (looks["b0"], looks["b8"]) == (api.known["b0"], api.known["b8"])
    assert isinstance(looks["b99"], BatchGone)
    assert (api.pages, len(api.asked), roll.asked) == (1, 4, 4)


def test_a_key_that_may_neither_list_nor_get_is_refused_twice_and_no_more() -> None:
    api = Api([batch(n, n) for n in range(9)])
    api.refuses = (AskForPage, AskForBatch)
    assert Roll().drive([f"b{n}" for n in range(9)], {}, api) == {f"b{n}": NO for n in range(9)}
    assert len(api.asked) == 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 60 * 24 * 20), max_size=40),
    st.sets(st.integers(0, 45), max_size=15),
    st.integers(1, 7),
    st.booleans(),
)
def test_every_batch_gets_its_answer_and_no_page_is_asked_for_twice(
    ages: list[float], wanted: set[int], page: int, informed: bool
) -> None:
    api, roll = Api([batch(n, age) for n, age in enumerate(ages)], page), Roll()
    ids = [f"b{n}" for n in sorted(wanted)]
    known = {one.id: one.created_at for one in api.listed if informed}
    for _ in range(2):
        looks = roll.drive(ids, known, api)
        assert looks.keys() == set(ids)
        assert all(looks[i] == api.known[i] if i in api.known else isinstance(looks[i], BatchGone) for i in ids)
        assert len(set(api.asked)) == len(api.asked)
        api.asked.clear()


@pytest.mark.parametrize("pages", [1, 2])
def test_a_403_for_one_batch_says_nothing_of_the_others(pages: int) -> None:
    foreign, ended = "msgbatch_foreign", batch(1, 5)

    def ask(asked: Any) -> Any:
        if isinstance(asked, AskForPage):
            return Page(data=[], has_more=False)
        return NO if asked.id == foreign else ended

    roll = Roll()
    roll._pages = pages
    assert roll.drive([foreign, "msgbatch_ok"], {}, ask)["msgbatch_ok"] is ended
