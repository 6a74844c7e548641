import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch.wire_id import Unfit, WireId, check, mark_of, parse, request_hash_of

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
MARK, HASH = "m-rk_42", "hA-h_1"

quick = settings(max_examples=100, deadline=None)
plain = st.text(ALPHABET, min_size=1, max_size=48)
hexes = st.binary(min_size=25, max_size=32).map(bytes.hex)
whole = st.characters(exclude_categories=["Cs"])
others = st.text(whole, min_size=1, max_size=36).filter(lambda text: len(text.encode()) <= 36)
proofs = st.tuples(st.text(ALPHABET, min_size=7, max_size=7), st.text(ALPHABET, min_size=6, max_size=6))


@quick
@given(plain | hexes | others, proofs)
def test_every_id_that_fits_comes_back(custom_id, proof):
    wire = WireId(custom_id, *proof)
    assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", str(wire))
    assert parse(str(wire)) == wire


@quick
@given(plain | hexes | others, plain | hexes | others, proofs)
def test_two_ids_never_become_one(one, other, proof):
    assert (str(WireId(one, *proof)) == str(WireId(other, *proof))) is (one == other)


@quick
@given(st.text(ALPHABET, min_size=1, max_size=64))
def test_an_id_of_somebody_else_is_not_taken_for_ours(custom_id):
    wire = parse(custom_id)
    assert wire is None or wire.mark != MARK


@quick
@given(st.text(max_size=80))
def test_what_is_taken_for_ours_is_spelled_as_we_would_spell_it(text):
    wire = parse(text)
    assert wire is None or str(wire) == text


@quick
@given(st.sampled_from("pux"), st.text(ALPHABET, max_size=48))
def test_each_id_has_one_spelling_only(form, body):
    text = f"{body}-{form}{MARK}{HASH}" + check(f"{body}-{form}", HASH)
    wire = parse(text)
    assert wire is None or str(wire) == text


@pytest.mark.parametrize(
    "custom_id",
    ["a", "-", "a" * 48, "-pux-" * 9, "0f" * 32, "é" * 18, "🎫" * 9, "ticket 7", "a\x00b", 'say "hi"', "\u2028" * 12],
)
def test_ids_at_the_edges_fit(custom_id):
    assert parse(str(WireId(custom_id, MARK, HASH))) == WireId(custom_id, MARK, HASH)


@pytest.mark.parametrize(
    "custom_id", ["a" * 49, "0F" * 32, "0f" * 33, "a" * 48 + "0", "é" * 19, "half \ud83d", "x y" * 13]
)
def test_ids_that_do_not_fit_are_refused(custom_id):
    with pytest.raises(Unfit, match="64 lowercase hex digits"):
        str(WireId(custom_id, MARK, HASH))


def test_one_changed_character_is_noticed_nearly_always():
    wire = str(WireId("ticket-7", MARK, HASH))
    changed = [wire[:i] + other + wire[i + 1 :] for i in range(len(wire)) for other in ALPHABET if other != wire[i]]
    unnoticed = [text for text in changed if (found := parse(text)) and found.mark == MARK]
    assert len(unnoticed) / len(changed) < 0.03


def test_hashes_are_short_and_of_the_wire_alphabet():
    for data in (b"", b"\x00", b"x" * 1000):
        assert re.fullmatch("[a-zA-Z0-9_-]{7}", mark_of(data))
        assert re.fullmatch("[a-zA-Z0-9_-]{6}", request_hash_of(hashlib.sha256(data).digest()))
