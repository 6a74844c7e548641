"""What the emulator's prompt cache reads and writes, and when."""

import json
import sqlite3
from contextlib import closing

import httpx2
import pytest
from emulator import HEADERS, Emulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BATCHES = "/v1/messages/batches"
BATCH_SECONDS, CANCEL_SECONDS = 100, 10
EMULATOR = (
    *("--batch-seconds", str(BATCH_SECONDS), "--cancel-seconds", str(CANCEL_SECONDS)),
    *("--now", "2026-11-21T12:00:00Z"),
)
MODEL = "claude-haiku-5-5"
MINIMA = {
    "claude-fable-5": 512,
    "claude-haiku-5-5": 512,
    "claude-opus-5-5": 512,
    "claude-sonnet-5-5": 1024,
    "claude-opus-4-8": 1024,
    "claude-opus-4-7": 2048,
    "claude-opus-4-6": 4096,
    "claude-haiku-4-5": 4096,
}
TTL_ORDER = (
    "cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. "
    "Note that blocks are processed in the following order: `tools`, `system`, `messages`."
)
pytestmark = pytest.mark.usefixtures("stopped_clock")


def block(tokens, ttl=None, letter="x"):
    """A block of so many tokens; with a ttl it is a breakpoint."""
    marked = {"cache_control": {"type": "ephemeral", "ttl": ttl}} if ttl else {}
    return {"type": "text", "text": letter * tokens * 4, **marked}


def params(*system, user="Hi", **more):
    turns = [{"role": "user", "content": user}]
    return {"model": MODEL, "max_tokens": 100, "system": list(system), "messages": turns, **more}


def batch_of(http, *all_params):
    requests = [{"custom_id": f"r{at}", "params": one} for at, one in enumerate(all_params)]
    answer = http.post(BATCHES, json={"requests": requests})
    answer.raise_for_status()
    return answer.json()["id"]


def results(http, batch_id):
    answer = http.get(f"{BATCHES}/{batch_id}/results")
    answer.raise_for_status()
    return [json.loads(line)["result"] for line in answer.content.splitlines()]


def usages(http, batch_id):
    """The usages of the rows that succeeded, in the order in which they finished."""
    return [result["message"]["usage"] for result in results(http, batch_id) if result["type"] == "succeeded"]


def run(http, emulator, *all_params):
    """Let a batch run to its end and return what its rows wrote and read."""
    batch_id = batch_of(http, *all_params)
    emulator.advance(BATCH_SECONDS)
    return [told(usage) for usage in usages(http, batch_id)]


def live(http, asked, **headers):
    answer = http.post("/v1/messages", json=asked, headers=headers)
    answer.raise_for_status()
    return told(answer.json()["usage"])


def told(usage):
    """The tokens written and read, after a look at whether the counters agree."""
    created = usage["cache_creation"]
    written = created["ephemeral_5m_input_tokens"] + created["ephemeral_1h_input_tokens"]
    assert usage["cache_creation_input_tokens"] == written
    return written, usage["cache_read_input_tokens"]


def test_the_first_row_to_finish_writes_and_the_rest_read(http, emulator):
    asked = [params(block(600, "1h"), user=f"Question {at}") for at in range(30)]
    assert run(http, emulator, *asked) == [(600, 0), *[(0, 600)] * 29]


def test_a_warmed_up_cache_is_read_by_every_row_of_the_next_batch(http, emulator):
    assert run(http, emulator, params(block(600, "1h"))) == [(600, 0)]
    assert run(http, emulator, *[params(block(600, "1h"), user=f"Q {at}") for at in range(9)]) == [(0, 600)] * 9


def test_a_batch_that_takes_no_time_warms_up_the_next_one_of_the_same_moment():
    with (
        Emulator("--batch-seconds", "0") as emulator,
        httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=60) as http,
    ):
        emulator.clock(freeze=True)
        first, second = (batch_of(http, *[params(block(600, "5m"))] * count) for count in (1, 5))
        assert [told(usage) for usage in usages(http, second)] == [(0, 600)] * 5
        assert [told(usage) for usage in usages(http, first)] == [(600, 0)]


@pytest.mark.parametrize(("ttl", "seconds"), [("5m", 300), ("1h", 3600), (None, 300)])
def test_an_entry_lives_its_ttl_by_the_clock(http, emulator, ttl, seconds):
    asked = params(block(600, "5m"))
    asked["system"][0]["cache_control"] = {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}
    assert live(http, asked) == (600, 0)
    emulator.advance(seconds - 1)
    assert live(http, asked) == (0, 600)
    emulator.advance(seconds)
    assert live(http, asked) == (600, 0)


def test_a_read_begins_the_ttl_anew(http, emulator):
    asked = params(block(600, "5m"))
    written = [live(http, asked)[0]]
    for _ in range(4):
        emulator.advance(299)
        written.append(live(http, asked)[0])
    assert written == [600, 0, 0, 0, 0]


@pytest.mark.parametrize(("age", "met"), [(199, (0, 600)), (200, (600, 0))])
def test_a_row_meets_the_cache_at_the_moment_at_which_it_finishes(http, emulator, age, met):
    assert live(http, params(block(600, "5m"))) == (600, 0)
    emulator.advance(age)
    assert run(http, emulator, params(block(600, "5m"))) == [met]


def test_each_counter_has_its_ttl(http):
    usage = http.post("/v1/messages", json=params(block(600, "1h"), block(100, "5m"))).json()["usage"]
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 600}
    assert usage["input_tokens"] == 1


@pytest.mark.parametrize(("model", "minimum"), MINIMA.items())
def test_a_prefix_shorter_than_the_models_minimum_is_silently_not_cached(http, model, minimum):
    for _ in range(2):
        assert live(http, params(block(minimum - 1, "5m"), model=model)) == (0, 0)
    assert live(http, params(block(minimum, "5m"), model=model)) == (minimum, 0)
    assert live(http, params(block(minimum, "5m"), model=model)) == (0, minimum)


def test_a_short_first_breakpoint_leaves_all_to_the_second(http):
    asked = params(block(100, "1h"), block(500, "5m"))
    usage = http.post("/v1/messages", json=asked).json()["usage"]
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 0}


def test_the_longest_cached_prefix_is_read_and_the_rest_up_to_the_last_breakpoint_written(http):
    shared, mine, yours = block(600, "5m"), block(200, "5m", "a"), block(300, "5m", "b")
    assert live(http, params(shared, mine)) == (800, 0)
    assert live(http, params(shared, yours)) == (300, 600)
    assert live(http, params(shared, mine)) == (0, 800)
    assert live(http, params(shared, yours, block(50, "5m"))) == (50, 900)


def test_a_conversation_that_grows_reads_what_its_last_turn_wrote(http):
    turns = [{"role": "user", "content": [block(600, "5m")]}]
    asked = {"model": MODEL, "max_tokens": 9, "messages": turns}
    assert live(http, asked) == (600, 0)
    del turns[0]["content"][0]["cache_control"]
    turns += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": [block(40, "5m")]}]
    assert live(http, asked) == (41, 600)


@pytest.mark.parametrize(("between", "met"), [(18, (19, 600)), (19, (620, 0))])
def test_an_entry_is_found_up_to_twenty_blocks_before_the_breakpoint(http, between, met):
    assert live(http, params(block(600, "5m"))) == (600, 0)
    assert live(http, params(block(600), *[block(1)] * between, block(1, "5m"))) == met


def test_breakpoints_stand_in_tools_system_and_messages_in_this_order(http):
    tool = {"name": "look", "description": "d" * 2400, "input_schema": {"type": "object"}}
    marked = {**tool, "cache_control": {"type": "ephemeral"}}
    asked = params(block(100, "5m"), user=[block(50, "5m")], tools=[marked])
    tool_tokens, _ = live(http, params(user="Hi", tools=[marked]))
    assert live(http, asked) == (150, tool_tokens)
    assert live(http, params(block(100, "5m"), user="Hi", tools=[tool])) == (0, tool_tokens + 100)
    assert live(http, params(block(100, "5m"), user="Hi")) == (0, 0)


def test_a_cache_control_at_the_top_stands_on_the_last_block(http):
    automatic = params(block(600), user="Hi there, you", cache_control={"type": "ephemeral", "ttl": "1h"})
    assert live(http, automatic) == (604, 0)
    assert live(http, params(block(600), user=[{"type": "text", "text": "Hi there, you"}])) == (0, 0)
    assert live(http, automatic) == (0, 604)


def test_the_cache_control_at_the_top_passes_over_a_block_that_cannot_bear_it(http):
    asked = params(block(600), user=[{"type": "text", "text": ""}], cache_control={"type": "ephemeral"})
    assert live(http, asked) == (600, 0)
    assert live(http, params(block(600, "5m"))) == (0, 600)


def test_neither_the_order_of_keys_nor_another_cache_control_makes_another_prefix(http):
    assert live(http, params(block(600, "5m"))) == (600, 0)
    assert live(http, params(dict(reversed(block(600, "1h").items())))) == (0, 600)
    assert live(http, params(block(600), block(1, "5m"))) == (1, 600)
    assert live(http, params(block(600, "5m", "y"))) == (600, 0)


def test_whose_turn_it_is_makes_another_prefix(http):
    for role in ("user", "assistant"):
        turns = [{"role": role, "content": [block(600, "5m")]}]
        assert live(http, {"model": MODEL, "max_tokens": 9, "messages": turns}) == (600, 0)


def test_models_and_workspaces_have_caches_of_their_own(http, emulator):
    asked = params(block(600, "1h"))
    assert live(http, asked) == (600, 0)
    assert live(http, {**asked, "model": "claude-opus-5"}) == (600, 0)
    assert live(http, asked, **{"x-api-key": "another-key"}) == (600, 0)
    assert run(http, emulator, asked, {**asked, "model": "claude-fable-5"}).count((0, 600)) == 1


def test_an_alias_and_its_snapshot_are_one_model(http):
    assert live(http, params(block(5000, "5m"), model="claude-haiku-4-5")) == (5000, 0)
    assert live(http, params(block(5000, "5m"), model="claude-haiku-4-5-20251001")) == (0, 5000)


def test_a_live_message_warms_the_cache_of_batches(http, emulator):
    assert live(http, params(block(600, "5m"))) == (600, 0)
    assert run(http, emulator, params(block(600, "5m"))) == [(0, 600)]


def test_a_live_message_reads_what_a_running_batch_has_finished_by_then_and_no_more(http, emulator):
    asked = [params(block(600, "5m", letter)) for letter in "abcdefghij"]
    batch_id = batch_of(http, *asked)
    assert live(http, params(block(600, "5m", "z"))) == (600, 0)
    emulator.advance(BATCH_SECONDS * 0.35)
    assert sorted(live(http, one) for one in asked) == [*[(0, 600)] * 3, *[(600, 0)] * 7]
    emulator.advance(BATCH_SECONDS)
    # What was asked live meanwhile had warmed the cache for the rows still to come.
    assert [told(usage) for usage in usages(http, batch_id)] == [*[(600, 0)] * 3, *[(0, 600)] * 7]


def test_two_batches_at_once_meet_the_cache_in_the_order_of_the_clock(http, emulator):
    emulator.fault("slow_batch", seconds=BATCH_SECONDS * 3)
    slow = batch_of(http, *[params(block(600, "5m"), user=f"Q {at}") for at in range(2)])
    quick = batch_of(http, *[params(block(600, "5m"), user=f"Q {at}") for at in range(4)])
    emulator.advance(BATCH_SECONDS * 3)
    assert [told(usage) for usage in usages(http, slow)] == [(0, 600)] * 2
    assert [told(usage) for usage in usages(http, quick)] == [(600, 0), *[(0, 600)] * 3]


@pytest.mark.parametrize("outcome", ["overloaded_error", "invalid_request_error", "expired", "canceled"])
def test_a_row_that_does_not_succeed_neither_writes_nor_reads(http, emulator, outcome):
    emulator.fault("row", outcome=outcome)
    assert run(http, emulator, params(block(600, "5m"))) == []
    assert live(http, params(block(600, "5m"))) == (600, 0)
    emulator.advance(299)
    emulator.fault("row", outcome=outcome)
    batch_of(http, params(block(600, "5m")))
    emulator.advance(BATCH_SECONDS)
    assert live(http, params(block(600, "5m"))) == (600, 0)


def test_rows_that_a_cancel_kept_from_running_wrote_nothing(http, emulator):
    asked = [params(block(600, "1h", letter)) for letter in "abcdefghij"]
    batch_id = batch_of(http, *asked)
    emulator.advance(BATCH_SECONDS * 0.4)
    http.post(f"{BATCHES}/{batch_id}/cancel")
    emulator.advance(BATCH_SECONDS)
    assert sorted(live(http, one) for one in asked) == [*[(0, 600)] * 4, *[(600, 0)] * 6]
    assert [told(usage) for usage in usages(http, batch_id)] == [(600, 0)] * 4


def test_a_cancel_that_comes_too_late_lets_every_row_meet_the_cache_by_the_end(http, emulator):
    emulator.fault("late_cancel")
    batch_id = batch_of(http, *[params(block(600, "5m"))] * 5)
    http.post(f"{BATCHES}/{batch_id}/cancel")
    emulator.advance(CANCEL_SECONDS)
    assert [told(usage) for usage in usages(http, batch_id)] == [(600, 0), *[(0, 600)] * 4]


def test_rows_that_expire_write_nothing(http, emulator):
    emulator.fault("slow_batch", seconds=4 * 86_400)
    batch_id = batch_of(http, *[params(block(600, "1h"), user=f"Q {at}") for at in range(8)])
    emulator.advance(86_400)
    # Two of eight finish in the first day, at 12 hours and at its end: each finds the cache cold.
    assert [told(usage) for usage in usages(http, batch_id)] == [(600, 0)] * 2


def test_a_batch_that_outlasts_the_ttl_writes_again(http, emulator):
    emulator.fault("slow_batch", seconds=3000)
    batch_id = batch_of(http, *[params(block(600, "5m"), user=f"Q {at}") for at in range(5)])
    emulator.advance(3000)
    assert [told(usage) for usage in usages(http, batch_id)] == [(600, 0)] * 5


def test_what_a_deleted_batch_wrote_stays_warm(http, emulator):
    batch_id = batch_of(http, params(block(600, "1h")))
    emulator.advance(BATCH_SECONDS)
    http.delete(f"{BATCHES}/{batch_id}").raise_for_status()
    assert live(http, params(block(600, "1h"))) == (0, 600)


def test_a_refused_and_a_deleted_batch_leave_no_prefixes_behind(http, emulator):
    row = {"custom_id": "twice", "params": params(block(600, "1h"))}
    assert http.post(BATCHES, json={"requests": [row, row]}).status_code == 400
    batch_id = batch_of(http, params(block(600, "1h")))
    assert stored_prefixes(emulator) == 1
    emulator.advance(BATCH_SECONDS)
    http.delete(f"{BATCHES}/{batch_id}").raise_for_status()
    assert stored_prefixes(emulator) == 0


def stored_prefixes(emulator):
    with closing(sqlite3.connect(emulator.state)) as connection:
        return connection.execute("SELECT COUNT(*) FROM marked").fetchone()[0]


def test_a_refusal_and_a_cut_answer_count_as_run(http, emulator):
    emulator.faults(*({"fault": "row", "outcome": outcome} for outcome in ("refusal", "truncated")))
    assert run(http, emulator, *[params(block(600, "5m"))] * 2) == [(600, 0), (0, 600)]


def test_a_download_repeats_its_numbers_whatever_came_between(http, emulator):
    batch_id = batch_of(http, *[params(block(600, "5m"), user=f"Q {at}") for at in range(20)])
    emulator.advance(BATCH_SECONDS)
    first = results(http, batch_id)
    live(http, params(block(600, "5m")))
    emulator.advance(3600)
    run(http, emulator, params(block(600, "5m")))
    assert results(http, batch_id) == first


@pytest.mark.parametrize("downloads", [0, 1])
def test_numbers_and_warmth_outlast_a_restart_before_and_after_a_first_download(downloads):
    with (
        Emulator(*EMULATOR) as emulator,
        httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=60) as http,
    ):
        emulator.clock(freeze=True)
        batch_id = batch_of(http, *[params(block(600, "1h"), user=f"Q {at}") for at in range(20)])
        emulator.advance(BATCH_SECONDS)
        seen = [results(http, batch_id) for _ in range(downloads)]
        emulator.restart()
        assert [told(usage) for usage in usages(http, batch_id)] == [(600, 0), *[(0, 600)] * 19]
        assert live(http, params(block(600, "1h"))) == (0, 600)
        assert seen == [results(http, batch_id)] * downloads


def test_a_reset_forgets_what_is_warm(http, emulator):
    live(http, params(block(600, "1h")))
    batch_of(http, params(block(700, "1h")))
    emulator.reset()
    emulator.clock(freeze=True)
    assert live(http, params(block(600, "1h"))) == (600, 0)
    emulator.advance(BATCH_SECONDS + 60)
    assert live(http, params(block(700, "1h"))) == (700, 0)


def test_a_clock_set_back_shows_no_entry_of_the_future(http, emulator):
    assert live(http, params(block(600, "1h"))) == (600, 0)
    emulator.advance(-60)
    assert live(http, params(block(600, "1h"))) == (600, 0)


def test_caching_changes_neither_the_answer_nor_the_count(http):
    plain, marked = params(block(600)), params(block(600, "1h"))
    answers = [http.post("/v1/messages", json=asked).json()["content"] for asked in (plain, marked, marked)]
    assert answers == [answers[0]] * 3
    assert count(http, plain) == count(http, marked) == 601


REFUSED = [
    (params(*[block(1, "5m")] * 5), "A maximum of 4 blocks with cache_control may be provided. Found 5."),
    (
        params(*[block(1, "5m")] * 4, cache_control={"type": "ephemeral"}),
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    (
        params(block(1, "5m"), user=[block(1), block(1, "1h")]),
        f"messages.0.content.1.{TTL_ORDER}",
    ),
    (
        params(block(1), {**block(1), "cache_control": {"type": "ephemeral"}}, block(1, "1h")),
        f"system.2.{TTL_ORDER}",
    ),
    (params(block(1, "2h")), "system.0.cache_control.ttl: Input should be '5m' or '1h'"),
    (
        params({**block(1), "cache_control": {"type": "persistent"}}),
        "system.0.cache_control.type: Input should be 'ephemeral'",
    ),
    (params({**block(1), "cache_control": True}), "system.0.cache_control: Input should be a valid dictionary"),
    (
        params({**block(1), "cache_control": {"type": "ephemeral", "days": 1}}),
        "system.0.cache_control.days: Extra inputs are not permitted",
    ),
    (
        params(user=[block(1, "5m")], cache_control={"type": "ephemeral", "ttl": "1h"}),
        "cache_control.ttl: the last block has a cache_control with another ttl",
    ),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED)
def test_wrong_breakpoints_are_refused_live_and_in_a_row(http, emulator, asked, message):
    answer = http.post("/v1/messages", json=asked)
    error = {"type": "invalid_request_error", "message": message}
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    batch_id = batch_of(http, asked)
    emulator.advance(BATCH_SECONDS)
    (result,) = results(http, batch_id)
    assert (result["type"], result["error"]["error"]["message"]) == ("errored", message)


@pytest.mark.parametrize("control", [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "5m"}])
def test_four_breakpoints_are_taken_and_one_at_the_top_that_says_the_same_is_none(http, control):
    asked = params(*[block(200, "5m")] * 3, user=[block(200, "5m")], cache_control=control)
    assert live(http, asked) == (800, 0)


def test_a_null_is_no_breakpoint(http):
    asked = params({**block(600), "cache_control": None}, block(1, "5m"), cache_control=None)
    assert live(http, asked) == (601, 0)
    assert live(http, params(block(600), block(1, "5m"))) == (0, 601)


sizes = st.lists(st.tuples(st.integers(0, 700), st.sampled_from([None, "5m"])), min_size=1, max_size=4)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(prompts=st.lists(sizes, min_size=1, max_size=5))
def test_what_is_read_written_and_neither_is_the_whole_prompt(http, emulator, prompts):
    all_params = [params(*(block(*size) for size in prompt)) for prompt in prompts]
    counted = [count(http, one) for one in all_params]
    batch_id = batch_of(http, *all_params)
    emulator.advance(BATCH_SECONDS)
    in_batch = usages(http, batch_id)
    live_ones = [http.post("/v1/messages", json=one).json()["usage"] for one in all_params]
    assert [total(usage) for usage in live_ones] == counted
    assert sorted(total(usage) for usage in in_batch) == sorted(counted)
    assert all(usage["cache_creation_input_tokens"] == 0 for usage in live_ones)


def count(http, asked):
    body = {name: value for name, value in asked.items() if name != "max_tokens"}
    return http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]


def total(usage):
    return usage["input_tokens"] + sum(told(usage))
