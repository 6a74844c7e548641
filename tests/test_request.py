import random

import msgspec
import pytest
from asked import NOTHING, PARAMS, raw, request
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch.emulator.rules import KNOWN, NOT_IN_BATCHES, REMOVED
from airflow_provider_claude_batch.errors import InvalidRequests, Misconfigured
from airflow_provider_claude_batch.request import MAX_SKIPPED, Defaults, Reading

quick = settings(max_examples=75, deadline=None)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | finite | st.text(st.characters(exclude_categories=["Cs"]))
json = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def offence_of(item, defaults=NOTHING):
    with pytest.raises(InvalidRequests) as caught:
        list(Reading([item], defaults))
    return str(caught.value)


def digest(**params):
    return request(**params).digest


def shuffled(value, rng):
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def with_floats(value):
    if isinstance(value, dict):
        return {key: with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else value


def test_defaults_go_under_the_params_of_each_request():
    defaults = Defaults.of({"model": "claude-opus-5", "max_tokens": 8, "system": "s", "betas": ["b-1"]})
    item = {"custom_id": "a", "params": {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "x"}]}}
    (one,) = Reading([item], defaults)
    assert (one.model, one.max_tokens, one.params["system"]) == ("claude-haiku-4-5", 8, "s")
    assert "betas" not in one.params
    assert item["params"].keys() == {"model", "messages"}


@pytest.mark.parametrize(("betas", "expected"), [("b", ("b",)), (["a", "b"], ("a", "b")), (None, ()), ([], ())])
def test_betas_of_the_defaults_are_a_header_of_their_own(betas, expected):
    assert Defaults.of({"betas": betas}) == Defaults({}, expected)
    assert Defaults.of(None) == NOTHING


@pytest.mark.parametrize(
    ("item", "offence"),
    [
        ("text", "not str"),
        ({**raw(), "priority": 1}, "found priority"),
        ({"params": PARAMS}, "custom_id is missing"),
        ({"custom_id": "", "params": PARAMS}, "custom_id must be"),
        ({"custom_id": 7, "params": PARAMS}, "custom_id must be"),
        ({"custom_id": ["a"], "params": PARAMS}, "custom_id must be"),
        ({"custom_id": "a" * 49, "params": PARAMS}, "takes up to 48"),
        ({"custom_id": "\ud83d", "params": PARAMS}, "takes up to 48"),
        ({"custom_id": "a"}, "params must be"),
        (raw(model=""), "model is missing"),
        (raw(model=None), "model is missing"),
        (raw(max_tokens=None), "max_tokens is missing"),
        (raw(max_tokens=0), "at least 1"),
        (raw(max_tokens=True), "at least 1"),
        (raw(max_tokens=8.0), "at least 1"),
        (raw(messages=[]), "messages must be"),
        (raw(messages="hi"), "messages must be"),
        (raw(sytem="Be brief."), "sytem is no parameter of the API: system is"),
        (raw(tool=[]), "tool is no parameter of the API: tools is"),
        (raw(betas=["b"]), "put them into defaults"),
        (raw(stream=True), "do not take stream"),
        (raw(speed="fast", fallbacks=["m"]), "do not take speed, fallbacks"),
        (raw(temperature=1.0), "does not take temperature any more"),
        (b"{", "not JSON that can be read"),
        (msgspec.json.encode(raw(n=5)).replace(b":5", b":1e999"), "numbers finite"),
        (b'"\\ud800"', "not JSON that can be read"),
        (b"[" * 100_000, "nested more than 200 levels deep"),
        (b"7", "not int"),
        (raw(metadata=object()), "cannot be written as JSON"),
        (raw(metadata={"half": "\ud83d"}), "cannot be written as JSON"),
        (raw(metadata={"nan": float("nan")}), "cannot be written as JSON"),
        (raw(metadata=[float("inf")]), "cannot be written as JSON"),
        (raw(metadata={1: "a", "1": "b"}), "cannot be written as JSON"),
        (raw(system="x" * 250_000_000), "more than a batch holds"),
    ],
)
def test_what_a_batch_would_refuse_is_refused_before_anything_is_sent(item, offence):
    assert offence in offence_of(item)


def test_params_nested_too_deeply_are_an_offence_and_not_a_crash():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested more than 200 levels deep" in offence_of(raw(metadata=deep))


def test_ten_offenders_are_named_and_all_are_counted():
    items = [raw("same")] * 13 + [raw("fine")]
    with pytest.raises(InvalidRequests) as caught:
        list(Reading(items, NOTHING))
    assert caught.value.total == 12
    assert len(caught.value.offences) == 10
    assert "request 1 ('same'): custom_id stands twice" in str(caught.value)
    assert str(caught.value).endswith("and 2 more.")


def test_a_prompt_is_never_part_of_an_error():
    assert "secret" not in offence_of(raw(messages="secret", system="secret"))


def test_what_this_package_never_heard_of_passes_through():
    (one,) = Reading([raw(stream=False, thinking={"type": "adaptive"}, from_the_future={"x": [1]})], NOTHING)
    assert one.params["from_the_future"] == {"x": [1]}


@quick
@given(json, st.randoms(use_true_random=False))
def test_a_digest_is_stable_over_key_order_and_number_form(value, rng: random.Random):
    expected = digest(metadata=value)
    assert digest(metadata=shuffled(value, rng)) == expected
    assert digest(metadata=with_floats(value)) == expected
    line = msgspec.json.encode(shuffled(raw("b", metadata=value), rng))
    (from_a_file,) = Reading([line], NOTHING)
    assert from_a_file.digest == expected


@quick
@given(json, json)
def test_different_params_have_different_digests(one, other):
    if digest(metadata=one) == digest(metadata=other):
        assert one == other or repr(with_floats(one)) == repr(with_floats(other)) or _is_caching_only(one, other)


def _is_caching_only(one, other):
    return "cache_control" in repr(one) + repr(other)


def test_caching_does_not_change_what_is_asked():
    plain = [{"type": "text", "text": "style guide"}]
    cached = [{**plain[0], "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    assert digest(system=cached) == digest(system=plain)
    assert digest(system=plain, cache_control=None) == digest(system=plain)
    assert digest(system=plain, cache_control={"type": "ephemeral"}) == digest(system=plain)


def test_an_argument_that_is_only_named_like_caching_counts():
    assert digest(tools=[{"properties": {"cache_control": {"type": "string"}}}]) != digest(tools=[{"properties": {}}])


def test_betas_count_and_their_order_does_not():
    one, other, third = (request(betas=betas).digest for betas in (("x", "y"), ("y", "x"), ("x",)))
    assert one == other != third


def test_a_line_of_a_file_is_the_request_that_it_spells():
    line = b'{"params": {"max_tokens": 8, "model": "m", "messages": ["x"], "top": 1.0}, "custom_id": "a"}'
    (one,) = Reading([line], NOTHING)
    assert (one.custom_id, one.model, one.max_tokens) == ("a", "m", 8)
    assert msgspec.json.decode(one.json) == {"max_tokens": 8, "model": "m", "messages": ["x"], "top": 1.0}


def test_floats_and_caching_in_the_defaults_do_not_change_what_is_asked_in_a_file():
    line = msgspec.json.encode({"custom_id": "a", "params": PARAMS})
    cached = {"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}
    (plain,) = Reading([line], Defaults({"top": 1, "system": [{"type": "text", "text": "s"}]}))
    (same,) = Reading([line], Defaults({"top": 1.0, "system": [cached]}))
    assert plain.digest == same.digest
    assert b"cache_control" in same.json


def test_what_cannot_be_sent_is_skipped_where_that_is_asked_for():
    items = [raw("a"), raw("b", stream=True), raw("a"), b"{", raw("c"), raw("d", stream=True), {"custom_id": "\ud800"}]
    reading = Reading(items, NOTHING, on_invalid="skip")
    assert [one.custom_id for one in reading] == ["a", "c"]
    assert reading.invalid == {
        "batches do not take stream": ["b", "d"],
        "custom_id stands twice": ["a"],
        "the line is not JSON that can be read": ["request 3"],
        "params must be a dict": ["?"],
    }


def test_more_than_can_be_named_are_not_skipped():
    items = [raw("fine"), *(raw("same") for _ in range(MAX_SKIPPED + 2))]
    with pytest.raises(InvalidRequests) as caught:
        list(Reading(items, NOTHING, on_invalid="skip"))
    assert caught.value.total == MAX_SKIPPED + 1


def test_nothing_but_what_cannot_be_sent_is_no_submission():
    with pytest.raises(InvalidRequests):
        list(Reading([raw(stream=True)], NOTHING, on_invalid="skip"))


def test_to_prime_a_cache_the_shared_system_prompt_asks_to_be_kept_for_an_hour():
    defaults = Defaults({"system": "style guide"})
    own = {"type": "text", "text": "own"}
    primed = list(Reading([raw("a"), raw("b", system=[own])], defaults, prime=True))
    kept = {"type": "text", "text": "style guide", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert [msgspec.json.decode(one.json)["system"] for one in primed] == [[kept], [own]]
    assert [one.digest for one in primed] == [
        one.digest for one in Reading([raw("a"), raw("b", system=[own])], defaults)
    ]


@pytest.mark.parametrize("system", [None, "", [], 5, ["text"]])
def test_without_a_shared_system_prompt_there_is_nothing_to_prime(system):
    with pytest.raises(Misconfigured, match="needs a system prompt"):
        Reading([], Defaults({"system": system}), prime=True)


@pytest.mark.parametrize("name", sorted(KNOWN - {*NOT_IN_BATCHES, *REMOVED, *PARAMS}))
def test_no_parameter_of_the_api_is_taken_for_a_slip_of_another(name):
    assert len(list(Reading([raw(**{name: False})], NOTHING))) == 1
