import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch.errors import InvalidRequests
from airflow_provider_claude_batch.request import Defaults, Request, read

PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
NOTHING = Defaults({})
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


def raw(custom_id="a", **params):
    return {"custom_id": custom_id, "params": {**PARAMS, **params}}


def offence_of(item, defaults=NOTHING):
    with pytest.raises(InvalidRequests) as caught:
        list(read([item], defaults))
    return str(caught.value)


def canonical(**params):
    return Request("a", {**PARAMS, **params}).canonical()


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
    (request,) = read([item], defaults)
    assert (request.model, request.max_tokens, request.params["system"]) == ("claude-haiku-4-5", 8, "s")
    assert "betas" not in request.params
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
        ({"params": PARAMS}, "custom_id must be"),
        ({"custom_id": "", "params": PARAMS}, "custom_id must be"),
        ({"custom_id": 7, "params": PARAMS}, "custom_id must be"),
        ({"custom_id": ["a"], "params": PARAMS}, "custom_id must be"),
        ({"custom_id": "a" * 49, "params": PARAMS}, "takes up to 48"),
        ({"custom_id": "\ud83d", "params": PARAMS}, "takes up to 48"),
        ({"custom_id": "a"}, "params must be"),
        (raw(model=""), "model is missing"),
        (raw(model=None), "model is missing"),
        (raw(max_tokens=0), "at least 1"),
        (raw(max_tokens=True), "at least 1"),
        (raw(max_tokens=8.0), "at least 1"),
        (raw(messages=[]), "messages must be"),
        (raw(messages="hi"), "messages must be"),
        (raw(betas=["b"]), "put them into defaults"),
        (raw(stream=True), "do not take stream"),
        (raw(speed="fast", fallbacks=["m"]), "do not take speed, fallbacks"),
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
    assert "nesting" in offence_of(raw(metadata=deep))


def test_ten_offenders_are_named_and_all_are_counted():
    items = [raw("same")] * 13 + [raw("fine")]
    with pytest.raises(InvalidRequests) as caught:
        list(read(items, NOTHING))
    assert caught.value.total == 12
    assert len(caught.value.offences) == 10
    assert "request 1 ('same'): custom_id stands twice" in str(caught.value)
    assert str(caught.value).endswith("and 2 more.")


def test_a_prompt_is_never_part_of_an_error():
    assert "secret" not in offence_of(raw(messages="secret", system="secret"))


def test_what_this_package_never_heard_of_passes_through():
    (request,) = read([raw(stream=False, thinking={"type": "adaptive"}, from_the_future={"x": [1]})], NOTHING)
    assert request.params["from_the_future"] == {"x": [1]}


@quick
@given(json, st.randoms(use_true_random=False))
def test_the_canonical_form_is_stable_over_key_order_and_number_form(value, rng: random.Random):
    expected = canonical(metadata=value)
    assert canonical(metadata=shuffled(value, rng)) == expected
    assert canonical(metadata=with_floats(value)) == expected
    assert Request("b", shuffled({**PARAMS, "metadata": value}, rng)).canonical() == expected


@quick
@given(json, json)
def test_different_params_have_different_canonical_forms(one, other):
    if canonical(metadata=one) == canonical(metadata=other):
        assert one == other or repr(with_floats(one)) == repr(with_floats(other)) or _is_caching_only(one, other)


def _is_caching_only(one, other):
    return "cache_control" in repr(one) + repr(other)


def test_caching_does_not_change_what_is_asked():
    plain = [{"type": "text", "text": "style guide"}]
    cached = [{**plain[0], "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    assert canonical(system=cached) == canonical(system=plain)
    assert canonical(system=plain, cache_control=None) == canonical(system=plain)
    assert canonical(system=plain, cache_control={"type": "ephemeral"}) == canonical(system=plain)


def test_an_argument_that_is_only_named_like_caching_counts():
    assert canonical(tools=[{"properties": {"cache_control": {"type": "string"}}}]) != canonical(
        tools=[{"properties": {}}]
    )


def test_betas_count_and_their_order_does_not():
    request = Request("a", PARAMS)
    assert request.canonical(["x", "y"]) == request.canonical(["y", "x"]) != request.canonical(["x"])
