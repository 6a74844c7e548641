from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch.batch import Batch, Counts
from airflow_provider_claude_batch.errors import ApiRefused, ApiUnavailable, BatchGone, Misconfigured
from airflow_provider_claude_batch.watch import Ending, FirstEnded, Wait, Watch, Why

START = datetime(2026, 11, 21, 23, tzinfo=UTC)
GONE = BatchGone("The API does not know it.")
DOWN = ApiUnavailable("The API answered 503.")
NO_KEY = Misconfigured("The connection has no API key.")


def batch(batch_id="a", status="in_progress", created=START):
    return Batch(batch_id, status, Counts(), created, created + timedelta(hours=24))


def at(**after):
    return START + timedelta(**after)


def watch_of(*ids, **kwargs):
    return Watch(ids or ("a",), **kwargs)


def test_no_batches_have_all_ended():
    assert Watch(()).judge({}, START) == Ending(Why.ENDED)


def test_the_wait_is_over_when_the_last_batch_has_ended():
    watch = watch_of("a", "b")
    assert isinstance(watch.judge({"a": batch("a", "ended"), "b": batch("b")}, START), Wait)
    assert watch.waiting == ("b",)
    assert isinstance(watch.judge({"b": batch("b", "canceling")}, START), Wait)
    assert watch.judge({"b": batch("b", "ended")}, START) == Ending(Why.ENDED)
    assert [found.ended for found in watch.batches.values()] == [True, True]


# poke_interval, the batch's age, seconds until the next look
@pytest.mark.parametrize(
    ("interval", "age", "seconds"),
    [
        (60, timedelta(), 60),
        (60, timedelta(minutes=59), 60),
        (60, timedelta(hours=1), 60),
        (60, timedelta(hours=2), 120),
        (60, timedelta(hours=5), 300),
        (60, timedelta(hours=20), 300),
        (60, timedelta(minutes=-10), 60),
        (1, timedelta(), 5),
        (0, timedelta(), 5),
        (5, timedelta(hours=2), 10),
        (5, timedelta(hours=20), 100),
        (900, timedelta(), 900),
        (900, timedelta(hours=20), 900),
    ],
)
def test_the_api_is_asked_less_often_as_a_batch_ages(interval, age, seconds):
    assert watch_of(interval=interval).judge({"a": batch()}, START + age) == Wait(seconds)


def test_the_oldest_batch_that_still_runs_sets_the_pace():
    watch = watch_of("a", "b")
    looks = {"a": batch("a"), "b": batch("b", created=at(hours=2))}
    assert watch.judge(looks, at(hours=4)) == Wait(240)
    looks = {"a": batch("a", "ended"), "b": batch("b", created=at(hours=2))}
    assert watch.judge(looks, at(hours=4)) == Wait(120, news="1 of 2 batches have ended.")


# minutes since the first look, and what was seen then
@pytest.mark.parametrize(
    ("looks", "why"),
    [
        ([(0, GONE), (29.9, GONE)], None),
        ([(0, GONE), (30, GONE)], Why.REFUSED),
        ([(0, GONE), (15, batch()), (30, GONE), (59, GONE)], None),
        ([(0, GONE), (15, batch()), (30, GONE), (60, GONE)], Why.REFUSED),
        ([(0, DOWN), (600, DOWN)], None),
        ([(0, DOWN), (29, DOWN), (31, GONE)], None),
        ([(0, DOWN), (31, GONE), (61, GONE)], Why.REFUSED),
        ([(0, GONE), (10, DOWN), (31, GONE)], None),
        ([(0, GONE), (31, batch(status="ended"))], Why.ENDED),
        ([(0, ApiRefused("no key")), (30, GONE)], Why.REFUSED),
        ([(0, NO_KEY), (29.9, NO_KEY)], None),
        ([(0, NO_KEY), (15, batch()), (30, NO_KEY)], None),
        ([(0, NO_KEY), (30, GONE)], Why.REFUSED),
    ],
)
def test_a_no_is_believed_when_it_lasts_for_thirty_minutes(looks, why):
    watch = watch_of()
    for minutes, look in looks:
        verdict = watch.judge({"a": look}, at(minutes=minutes))
    assert verdict.why is why if why else isinstance(verdict, Wait)
    if why is Why.REFUSED:
        assert verdict.message == str(GONE)


def test_a_connection_that_cannot_work_is_believed_like_a_no():
    watch = watch_of()
    watch.judge({"a": NO_KEY}, START)
    assert watch.judge({"a": NO_KEY}, at(minutes=30)) == Ending(Why.REFUSED, str(NO_KEY))


def test_one_batch_that_is_gone_ends_the_wait_for_the_others():
    watch = watch_of("a", "b")
    watch.judge({"a": batch("a"), "b": GONE}, START)
    assert watch.judge({"a": batch("a"), "b": GONE}, at(minutes=30)).why is Why.REFUSED


def test_trouble_is_told_once_and_again_when_it_comes_back():
    watch = watch_of("a", "b")
    told = [watch.judge({"a": look, "b": look}, at(minutes=n)) for n, look in enumerate([DOWN, DOWN])]
    watch.judge({"a": batch("a"), "b": batch("b")}, at(minutes=2))
    told.append(watch.judge({"a": DOWN, "b": GONE}, at(minutes=3)))
    assert [verdict.trouble for verdict in told] == [str(DOWN), None, f"{DOWN} {GONE}"]


# poke_interval, seconds since the trouble began, seconds until the next look
@pytest.mark.parametrize(
    ("interval", "since", "seconds"),
    [(5, 0, 5), (5, 9, 5), (5, 10, 60), (60, 0, 60), (60, 119, 60), (60, 120, 60), (300, 0, 300), (300, 9_000, 300)],
)
def test_after_errors_it_waits_a_minute_and_never_longer_than_its_interval(interval, since, seconds):
    watch = watch_of(interval=interval)
    watch.judge({"a": DOWN}, START)
    assert watch.judge({"a": DOWN}, at(seconds=since)).seconds == seconds


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, 60),
        (0.0, 60),
        (10.0, 60),
        (120.0, 120),
        (1e9, 3600),
        (float("inf"), 3600),
        (float("nan"), 60),
        (-5.0, 60),
    ],
)
def test_what_the_api_asks_for_is_respected_for_an_hour_at_most(asked, seconds):
    looks = {"a": ApiUnavailable("busy", retry_after=asked), "b": DOWN, "c": batch("c")}
    assert watch_of("a", "b", "c").judge(looks, START).seconds == seconds
    assert FirstEnded(("a", "b", "c"), at(hours=5)).judge(looks, START).seconds == (10 if seconds == 60 else seconds)


@pytest.mark.parametrize(
    ("deadline", "now", "seconds"),
    [
        (None, at(hours=25, seconds=-7), 7),
        (None, at(hours=24), 300),
        (at(minutes=10), at(minutes=9, seconds=50), 10),
        (at(hours=40), at(hours=30), 300),
    ],
)
def test_no_wait_outlasts_the_deadline(deadline, now, seconds):
    assert watch_of(deadline=deadline).judge({"a": batch()}, now) == Wait(seconds)


@pytest.mark.parametrize(
    ("deadline", "now"),
    [(None, at(hours=25)), (at(minutes=10), at(minutes=10)), (at(minutes=-1), START)],
)
def test_the_deadline_ends_the_wait(deadline, now):
    ending = watch_of("a", "b", deadline=deadline).judge({"a": batch("a", "ended"), "b": batch("b")}, now)
    assert ending.why is Why.TIMEOUT
    assert ending.message.startswith("1 of the batches had not ended by 2026-11-2")


def test_the_deadline_is_told_in_utc():
    tokyo = at(hours=1).astimezone(timezone(timedelta(hours=9)))
    assert "by 2026-11-22 00:00:00 UTC: a." in watch_of(deadline=tokyo).judge({"a": batch()}, at(hours=1)).message


@pytest.mark.parametrize(("ids", "first"), [("a", "a."), ("abc", "a, b, c."), ("abcde", "a, b, c and 2 more.")])
def test_what_is_late_is_named_with_what_was_wrong_last(ids, first):
    looks = {batch_id: DOWN if batch_id == ids[-1] else batch(batch_id) for batch_id in ids}
    assert watch_of(*ids, deadline=START).judge(looks, START).message == (
        f"{len(ids)} of the batches had not ended by 2026-11-21 23:00:00 UTC: {first} Nothing was cancelled: clear "
        "this task to go on waiting. The last trouble was: The API answered 503."
    )


def test_without_trouble_none_is_told():
    message = watch_of(deadline=START).judge({"a": batch()}, START).message
    assert message.endswith("clear this task to go on waiting.")


def test_a_batch_that_was_never_seen_counts_from_the_first_look_also_beside_one_that_was():
    watch = watch_of("a", "b")
    watch.judge({"a": batch("a", created=at(hours=-5)), "b": DOWN}, START)
    assert watch.due(at(hours=3)) == at(hours=25)
    watch.judge({"a": batch("a", created=at(hours=-5)), "b": batch("b", created=at(hours=-2))}, at(hours=3))
    assert watch.due(at(hours=3)) == at(hours=23)
    assert watch_of(deadline=at(hours=1)).due(START) == at(hours=1)


@pytest.mark.parametrize(
    ("look", "could"),
    [
        (batch(status="canceling"), "1 of these could be cancelled, and none has ended since: {}"),
        (batch(), "None of these could be cancelled: {}"),
        (DOWN, "None of these could be cancelled: {} The last trouble was: The API answered 503."),
    ],
)
def test_a_cancel_that_leads_nowhere_ends_the_wait_an_hour_later(look, could):
    watch = watch_of(deadline=at(hours=1), cancel_at_deadline=True)
    watch.judge({"a": batch()}, START)
    assert watch.judge({"a": look}, at(hours=1)).seconds == 0
    assert watch.cancelling
    assert watch.judge({"a": look}, at(hours=1, minutes=59)).seconds == 60
    said = could.format("clear this task to go on waiting.")
    ending = watch.judge({"a": look}, at(hours=2))
    assert ending == Ending(Why.TIMEOUT, f"1 of the batches had not ended by 2026-11-22 00:00:00 UTC: a. {said}")


def test_a_cancel_is_told_when_the_api_has_taken_it_and_not_before():
    watch = watch_of("a", "b", deadline=at(hours=1), cancel_at_deadline=True)
    both = {"a": batch("a"), "b": batch("b")}
    told = [watch.judge(both, START), watch.judge(both, at(hours=1)), watch.judge({"a": DOWN, "b": DOWN}, at(hours=1))]
    assert not any("cancelling" in str(verdict) or "being cancelled" in str(verdict) for verdict in told)
    assert "2 of the batches had not ended by 2026-11-22 00:00:00 UTC: a, b." in told[1].news
    assert [told[1].trouble, told[2].trouble] == [None, str(DOWN)]
    one, two = ({"a": batch("a", "canceling"), "b": batch("b", now)} for now in ("in_progress", "canceling"))
    news = [watch.judge(looks, at(hours=1, minutes=5)).news for looks in (one, one, two)]
    assert news == ["1 of 2 batches are being cancelled.", None, "2 of 2 batches are being cancelled."]
    ended = watch.judge({"a": batch("a", "ended"), "b": batch("b", "canceling")}, at(hours=1, minutes=6))
    assert ended.news == "1 of 2 batches have ended."


@pytest.mark.parametrize(("late", "longer"), [(0, 1), (10, 1), (23.5, 0.5), (24, 0), (100, 0)])
def test_who_comes_after_the_deadline_cancels_and_no_restart_makes_the_wait_endless(late, longer):
    watch = watch_of(deadline=START, cancel_at_deadline=True)
    now = at(hours=late)
    assert watch.judge({"a": DOWN}, now).seconds == 0
    assert watch.cancelling
    if longer:
        assert isinstance(watch.judge({"a": DOWN}, now + timedelta(hours=longer, seconds=-1)), Wait)
    assert watch.judge({"a": DOWN}, now + timedelta(hours=longer)).why is Why.TIMEOUT


def test_the_latest_expiry_counts_also_when_that_batch_has_ended():
    watch = watch_of("a", "b")
    looks = {"a": batch("a"), "b": batch("b", "ended", created=at(hours=3))}
    assert isinstance(watch.judge(looks, at(hours=27)), Wait)
    assert watch.judge({"a": batch("a")}, at(hours=28)).why is Why.TIMEOUT


def test_a_batch_that_was_never_seen_is_not_waited_for_for_ever():
    watch = watch_of()
    assert isinstance(watch.judge({"a": DOWN}, START), Wait)
    assert isinstance(watch.judge({"a": DOWN}, at(hours=24, minutes=59)), Wait)
    assert watch.judge({"a": DOWN}, at(hours=25)).why is Why.TIMEOUT


def test_an_end_seen_at_the_deadline_is_an_end():
    assert watch_of(deadline=START).judge({"a": batch(status="ended")}, START).why is Why.ENDED


looks = st.sampled_from(
    [
        GONE,
        DOWN,
        NO_KEY,
        ApiUnavailable("busy", retry_after=40.0),
        batch(),
        batch(status="canceling"),
        batch(status="ended"),
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1_000), st.lists(looks, min_size=1, max_size=60), st.booleans())
def test_every_wait_ends_in_time_and_no_look_comes_too_soon(interval, seen, cancel):
    watch, now = watch_of(interval=interval, cancel_at_deadline=cancel), START
    for look in seen * 400:
        was_cancelling = watch.cancelling
        verdict = watch.judge({"a": look}, now)
        if isinstance(verdict, Ending):
            break
        left = (at(hours=26 if watch.cancelling else 25) - now).total_seconds()
        soonest = 0.0 if watch.cancelling and not was_cancelling else min(5.0, left)
        assert soonest <= verdict.seconds <= max(interval, 300.0)
        now += timedelta(seconds=verdict.seconds)
    else:
        assert now < at(hours=26 if cancel else 25)
    assert now <= at(hours=26 if cancel else 25)


LOOKS = {
    "running": batch,
    "canceling": lambda batch_id: batch(batch_id, "canceling"),
    "ended": lambda batch_id: batch(batch_id, "ended"),
    "gone": lambda _: GONE,
    "refused": lambda _: ApiRefused("The API does not accept the key."),
    "down": lambda _: DOWN,
    "no key": lambda _: NO_KEY,
}
REFUSALS = {"gone", "refused", "no key"}


def verdict_by_the_book(one, other, minutes, deadline, *, cancel):
    """The table of decisions, once more and in other words: what is known of two batches, and for how long."""
    if {one, other} == {"ended"}:
        return "ended"
    if REFUSALS & {one, other} and minutes >= 30:
        return "refused"
    if minutes >= deadline:
        return "cancel" if cancel else "timeout"
    return "wait"


MINUTES = [0, 1, 29, 30, 44, 45, 60 * 12, 25 * 60 - 1, 25 * 60, 26 * 60]
DEADLINES = [0.5, 10, 45, 25 * 60]


@pytest.mark.parametrize("other", LOOKS)
@pytest.mark.parametrize("one", LOOKS)
def test_the_whole_table_of_decisions(one, other):
    for minutes, deadline, cancel in product(MINUTES, DEADLINES, [False, True]):
        watch = watch_of("a", "b", deadline=at(minutes=deadline), cancel_at_deadline=cancel)
        looks = {"a": LOOKS[one]("a"), "b": LOOKS[other]("b")}
        if isinstance(watch.judge(looks, START), Ending):
            assert {one, other} == {"ended"}
            continue
        now = at(minutes=minutes)
        found = watch.judge({batch_id: looks[batch_id] for batch_id in watch.waiting}, now)
        expected = verdict_by_the_book(one, other, minutes, deadline, cancel=cancel)
        assert watch.cancelling is (expected == "cancel"), (minutes, deadline, cancel)
        if isinstance(found, Ending):
            assert found.why == expected, (minutes, deadline, cancel)
        else:
            assert expected in {"wait", "cancel"}, (minutes, deadline, cancel)
            assert 0 <= found.seconds <= max(0, (at(minutes=deadline) - now).total_seconds())


def test_a_batch_that_is_named_twice_is_one_batch():
    watch = watch_of("b", "a", "b")
    assert watch.batch_ids == ("b", "a")
    assert watch.judge({"a": batch("a"), "b": batch("b")}, START).news is None
    assert watch.judge({"a": batch("a"), "b": batch("b", "ended")}, START).news == "1 of 2 batches have ended."


def test_what_has_ended_is_news_once():
    watch = watch_of("a", "b", "c")
    running = {batch_id: batch(batch_id) for batch_id in "abc"}
    assert watch.judge(running, START).news is None
    assert watch.judge({**running, "b": batch("b", "ended")}, at(minutes=1)).news == "1 of 3 batches have ended."
    assert watch.judge({"a": batch("a"), "c": batch("c")}, at(minutes=2)).news is None


@pytest.mark.parametrize(
    ("looks", "after", "ended"),
    [
        ({"a": batch("a"), "b": batch("b", "ended")}, 1, True),
        ({"a": batch("a"), "b": batch("b")}, 1, False),
        ({"a": DOWN, "b": GONE}, 1, False),
        ({"a": DOWN, "b": GONE}, 60, True),
        ({}, 61, True),
    ],
)
def test_the_first_that_ends_or_a_moment_ends_a_pause(looks, after, ended):
    pause = FirstEnded(("a", "b"), at(minutes=60))
    found = pause.judge(looks, at(minutes=after))
    assert isinstance(found, Ending) is ended
    if not ended:
        assert found.seconds == 10


def test_a_pause_looks_less_often_as_it_grows_long_and_never_after_its_moment():
    pause = FirstEnded(("a",), at(seconds=200))
    assert [pause.judge({"a": DOWN}, at(seconds=s)).seconds for s in (0, 10, 30, 70, 130, 190)] == [
        10,
        20,
        40,
        60,
        60,
        10,
    ]


def test_a_cancel_that_is_refused_is_told_as_lateness_and_not_as_a_refusal() -> None:
    watch = Watch(("a",), deadline=START + timedelta(hours=1), cancel_at_deadline=True)
    watch.judge({"a": batch("a")}, START)
    watch.judge({"a": batch("a")}, START + timedelta(hours=1))
    for minutes in range(1, 60):
        refused = watch.judge({"a": ApiRefused("No.")}, at(hours=1, minutes=minutes))
        assert isinstance(refused, Wait), minutes
    ending = watch.judge({"a": ApiRefused("No.")}, at(hours=2))
    assert isinstance(ending, Ending)
    assert ending.why is Why.TIMEOUT
    assert "None of these could be cancelled" in ending.message
