from datetime import date
from decimal import Decimal

import msgspec
import pytest

from airflow_provider_claude_batch.price import PRICES, Price, PriceList, alike, dollars
from airflow_provider_claude_batch.result import CacheCreation, ServerToolUse, Usage

TODAY = date(2026, 11, 21)
MILLION = 1_000_000


def cost(model, usage, on=TODAY, times=1):
    found = PRICES.cost(model, usage, on)
    return found.cost_usd * times, found.live_cost_usd * times


def written(minutes_5=0, hour_1=0):
    return Usage(cache_creation=CacheCreation(minutes_5, hour_1))


# model, batch price per million tokens: input, output, cache write of 5 minutes and of 1 hour, cache read
TABLE = [
    ("claude-fable-5-2", "4", "20", "5", "8", "0.10"),
    ("claude-mythos-5-2", "4", "20", "5", "8", "0.10"),
    ("claude-fable-5-1", "5", "25", "6.25", "10", "0.125"),
    ("claude-mythos-5-1", "5", "25", "6.25", "10", "0.125"),
    ("claude-fable-5", "5", "25", "6.25", "10", "0.5"),
    ("claude-mythos-5", "5", "25", "6.25", "10", "0.5"),
    ("claude-opus-5-5", "2", "10", "2.5", "4", "0.10"),
    ("claude-opus-5", "2.5", "12.5", "3.125", "5", "0.25"),
    ("claude-opus-4-8", "2.5", "12.5", "3.125", "5", "0.25"),
    ("claude-opus-4-7", "2.5", "12.5", "3.125", "5", "0.25"),
    ("claude-opus-4-6", "2.5", "12.5", "3.125", "5", "0.25"),
    ("claude-opus-4-5", "2.5", "12.5", "3.125", "5", "0.25"),
    ("claude-sonnet-5-5", "1", "5", "1.25", "2", "0.05"),
    ("claude-sonnet-5", "1", "5", "1.25", "2", "0.1"),
    ("claude-sonnet-4-6", "1.5", "7.5", "1.875", "3", "0.15"),
    ("claude-sonnet-4-5", "1.5", "7.5", "1.875", "3", "0.15"),
    ("claude-haiku-4-5", "0.5", "2.5", "0.625", "1", "0.05"),
    ("claude-haiku-4-5-20251001", "0.5", "2.5", "0.625", "1", "0.05"),
    ("claude-opus-4-5-20251101", "2.5", "12.5", "3.125", "5", "0.25"),
    ("claude-sonnet-4-5-20250929", "1.5", "7.5", "1.875", "3", "0.15"),
]


@pytest.mark.parametrize(("model", "input_", "output", "minutes_5", "hour_1", "read"), TABLE)
def test_every_batch_price_is_the_published_one(model, input_, output, minutes_5, hour_1, read):
    usages = {
        input_: Usage(input_tokens=MILLION),
        output: Usage(output_tokens=MILLION),
        minutes_5: written(minutes_5=MILLION),
        hour_1: written(hour_1=MILLION),
        read: Usage(cache_read_input_tokens=MILLION),
    }
    for expected, usage in usages.items():
        assert cost(model, usage) == (Decimal(expected), 2 * Decimal(expected))


# Haiku 5.5 is priced by the length of each prompt: dollars for 100,000 tokens up to it, and for 200,000 beyond
@pytest.mark.parametrize(
    ("usage", "batch"),
    [
        (Usage(input_tokens=100_000), "0.005"),
        (Usage(output_tokens=100_000), "0.025"),
        (written(minutes_5=100_000), "0.00625"),
        (written(hour_1=100_000), "0.01"),
        (Usage(cache_read_input_tokens=100_000), "0.0005"),
        (Usage(input_tokens=200_000), "0.05"),
        (Usage(input_tokens=200_000, output_tokens=200_000), "0.30"),
        (written(minutes_5=200_000), "0.0625"),
        (written(hour_1=200_000), "0.1"),
        (Usage(cache_read_input_tokens=200_000), "0.005"),
        (Usage(input_tokens=100_001), "0.02500025"),
        (Usage(input_tokens=1, cache_read_input_tokens=100_000), "0.00250025"),
    ],
)
def test_haiku_5_5_is_priced_by_the_whole_prompt_of_each_request(usage, batch):
    assert cost("claude-haiku-5-5", usage) == (Decimal(batch), 2 * Decimal(batch))


def test_two_short_prompts_are_not_one_long_one():
    one = cost("claude-haiku-5-5", Usage(input_tokens=60_000), times=2)[0]
    assert one == Decimal("0.006") < cost("claude-haiku-5-5", Usage(input_tokens=120_000))[0]


@pytest.mark.parametrize(
    ("model", "requests", "input_", "output", "live", "batch"),
    [
        ("claude-sonnet-4-6", 10_000, 20_000, 5_000, "1350.00", "675.00"),
        ("claude-sonnet-4-6", 50_000, 3_000, 500, "825.00", "412.50"),
        ("claude-opus-4-7", 5_000, 20_000, 5_000, "1125.00", "562.50"),
        ("claude-opus-4-7", 1, 20_000, 5_000, "0.225", "0.1125"),
        ("claude-opus-4-7", 5_000 * 52, 20_000, 5_000, "58500.00", "29250.00"),
        ("claude-sonnet-4-6", 5_000, 20_000, 5_000, "675.00", "337.50"),
        ("claude-haiku-4-5", 5_000, 20_000, 5_000, "225.00", "112.50"),
    ],
)
def test_the_published_bills_come_out_to_the_cent(model, requests, input_, output, live, batch):
    usage = Usage(input_tokens=input_, output_tokens=output)
    assert cost(model, usage, times=requests) == (Decimal(batch), Decimal(live))


# a month on Sonnet 4.6, in millions of tokens
MONTH = {
    "live chat": (600, 200, "4800"),
    "content": (75, 45, "900"),
    "document summaries": (100, 15, "525"),
    "classification": (150, 25, "825"),
    "reports": (20, 10, "210"),
}


def monthly(what):
    input_, output, _ = MONTH[what]
    return cost("claude-sonnet-4-6", Usage(input_tokens=input_ * 1_000, output_tokens=output * 1_000), times=1_000)


@pytest.mark.parametrize("what", MONTH)
def test_a_month_costs_what_the_guide_says_and_half_of_it_by_batch(what):
    assert monthly(what) == (Decimal(MONTH[what][2]) / 2, Decimal(MONTH[what][2]))


@pytest.mark.parametrize(
    ("moved", "saved"),
    [
        (["content", "classification", "reports"], "967.50"),
        (["content", "classification", "reports", "document summaries"], "1230.00"),
    ],
)
def test_a_month_saves_what_its_parts_save(moved, saved):
    assert sum(live - batch for batch, live in map(monthly, moved)) == Decimal(saved)


def test_both_services_together_save_what_they_save_alone():
    digests = cost("claude-sonnet-4-6", Usage(input_tokens=20_000, output_tokens=5_000), times=10_000)
    scores = cost("claude-sonnet-4-6", Usage(input_tokens=3_000, output_tokens=500), times=50_000)
    assert digests[1] - digests[0] + scores[1] - scores[0] == Decimal("1087.50")


def test_a_cached_system_prompt_is_one_write_and_reads_at_a_tenth_all_halved():
    write = cost("claude-sonnet-4-6", written(minutes_5=10_000))
    reads = cost("claude-sonnet-4-6", Usage(cache_read_input_tokens=10_000), times=499)
    uncached = cost("claude-sonnet-4-6", Usage(input_tokens=10_000), times=500)
    assert uncached == (Decimal("7.50"), Decimal("15.00"))
    assert write[0] + reads[0] == Decimal("0.01875") + Decimal("0.7485")
    assert write[1] + reads[1] == Decimal("0.0375") + Decimal("1.497")


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        ("claude-sonnet-4-6", "1.65"),
        ("claude-haiku-5-5", "0.275"),
        ("claude-fable-5-2", "4.4"),
        ("claude-haiku-4-5", "0.5"),
        ("claude-sonnet-4-5", "1.5"),
        ("claude-opus-4-5-20251101", "2.5"),
    ],
)
def test_staying_in_the_us_costs_a_tenth_more_from_4_6_on(model, batch):
    usage = Usage(input_tokens=MILLION, inference_geo="us")
    assert cost(model, usage) == (Decimal(batch), 2 * Decimal(batch))
    assert cost(model, Usage(input_tokens=MILLION, inference_geo="global"))[0] <= Decimal(batch)


def test_the_us_multiplier_is_on_every_class_of_tokens():
    plain = Usage(1_000, 1_000, cache_creation=CacheCreation(1_000, 1_000), cache_read_input_tokens=1_000)
    us = Usage(
        1_000, 1_000, cache_creation=CacheCreation(1_000, 1_000), cache_read_input_tokens=1_000, inference_geo="us"
    )
    assert cost("claude-sonnet-4-6", us)[0] == cost("claude-sonnet-4-6", plain)[0] * Decimal("1.1")


def test_web_searches_are_neither_discounted_nor_multiplied():
    usage = Usage(server_tool_use=ServerToolUse(1_000), inference_geo="us")
    assert cost("claude-sonnet-4-6", usage) == (Decimal(10), Decimal(10))


@pytest.mark.parametrize(
    ("on", "read"), [(date(2026, 9, 28), "0.10"), (date(2026, 10, 6), "0.10"), (date(2026, 10, 7), "0.05")]
)
def test_sonnet_5_5_reads_its_cache_for_less_since_october_7(on, read):
    assert cost("claude-sonnet-5-5", Usage(cache_read_input_tokens=MILLION), on)[0] == Decimal(read)
    assert cost("claude-sonnet-5-5", Usage(input_tokens=MILLION), on)[0] == Decimal(1)


@pytest.mark.parametrize(
    "model", ["claude-nope", "", "claude-haiku-4", "claude-haiku-4-5-2025", "claude-haiku-4-5-20251001-x"]
)
def test_an_unknown_model_has_no_price_and_not_a_guess(model):
    assert PRICES.cost(model, Usage(1, 1), TODAY) is None


def test_a_model_has_no_price_before_its_first_day():
    prices = PriceList((Price("new", "1", "2", "0.1", since=date(2027, 1, 1)),))
    assert prices.cost("new", Usage(1, 1), TODAY) is None
    assert prices.find("new", date(2027, 1, 1)) is not None


GIVEN = """{
    "claude-next-1": {"input": 3, "output": 15},
    "claude-next-2": {"input": 0.1, "output": 0.7, "cache_read": 0.003, "geo_multiplier": false},
    "claude-next-3": [
        {"input": 1, "output": 2},
        {"input": 2, "output": 4, "over": 100000},
        {"input": 0.5, "output": 1, "since": "2026-11-01"}
    ],
    "claude-sonnet-5-5": {"input": 7, "output": 9}
}"""


@pytest.mark.parametrize(
    ("model", "usage", "on", "live"),
    [
        ("claude-next-1", Usage(MILLION, MILLION), TODAY, "18"),
        ("claude-next-1-20261201", Usage(MILLION), TODAY, "3"),
        ("claude-next-1", Usage(cache_read_input_tokens=MILLION), TODAY, "0.3"),
        ("claude-next-1", written(MILLION, MILLION), TODAY, "9.75"),
        ("claude-next-1", Usage(MILLION, inference_geo="us"), TODAY, "3.3"),
        ("claude-next-2", Usage(MILLION, MILLION, cache_read_input_tokens=MILLION, inference_geo="us"), TODAY, "0.803"),
        ("claude-next-3", Usage(MILLION), TODAY, "0.5"),
        ("claude-next-3", Usage(MILLION), date(2026, 10, 31), "2"),
        ("claude-next-3", Usage(1_000), date(2026, 10, 31), "0.001"),
        ("claude-sonnet-5-5", Usage(MILLION), TODAY, "7"),
        ("claude-sonnet-5-5", Usage(cache_read_input_tokens=MILLION), TODAY, "0.7"),
        ("claude-haiku-5-5", Usage(200_000), TODAY, "0.1"),
        ("claude-haiku-5-5", Usage(100_000), TODAY, "0.01"),
    ],
)
def test_given_prices_stand_in_the_place_of_ours(model, usage, on, live):
    found = PRICES.with_given(GIVEN).cost(model, usage, on)
    assert (found.live_cost_usd, found.cost_usd) == (Decimal(live), Decimal(live) / 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`, got `array`"),
        ('{"m": 3}', "Expected `object | array`"),
        ('{"m": {"input": 3}}', "missing required field `output`"),
        ('{"m": {"input": 3, "output": 15, "cache": 1}}', "unknown field `cache`"),
        ('{"m": {"input": -3, "output": 15}}', ">= 0.0"),
        ('{"m": {"input": 3, "output": 1e9}}', "<= 1000.0"),
        ('{"m": {"input": "3", "output": 15}}', "Expected `float`, got `str`"),
        ('{"m": {"input": 3, "output": 15, "since": "soon"}}', "RFC3339"),
    ],
)
def test_a_price_that_is_none_is_not_taken(given, said):
    with pytest.raises(msgspec.DecodeError, match=said):
        PRICES.with_given(given)


def test_writes_without_a_lifetime_are_those_of_five_minutes():
    usage = Usage(cache_creation_input_tokens=MILLION)
    assert cost("claude-sonnet-4-6", usage) == cost("claude-sonnet-4-6", written(minutes_5=MILLION))


def test_one_token_is_priced_exactly():
    assert cost("claude-haiku-5-5", Usage(cache_read_input_tokens=1))[0] == Decimal("0.000000005")


@pytest.mark.parametrize(
    ("amount", "written"),
    [(0, "$0.00"), (0.01, "$0.01"), (1234.5, "$1,234.50"), (0.000245, "$0.00024"), (Decimal("0.0047"), "$0.0047")],
)
def test_small_amounts_keep_two_digits_that_mean_something(amount, written):
    assert dollars(amount) == written


@pytest.mark.parametrize(
    ("amounts", "written"),
    [
        ((0.0074, 0.0148, 0.0074), ["$0.0074", "$0.0148", "$0.0074"]),
        ((0.033, 0.066, 0.033), ["$0.033", "$0.066", "$0.033"]),
        ((0.02, 0.04, 0.02), ["$0.02", "$0.04", "$0.02"]),
        ((1234.5, 2469.0, 1234.5), ["$1,234.50", "$2,469.00", "$1,234.50"]),
        ((0.0, 0.0, 0.0), ["$0.00", "$0.00", "$0.00"]),
    ],
)
def test_amounts_that_are_compared_have_the_same_digits(amounts, written):
    assert alike(*amounts) == written
