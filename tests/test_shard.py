import json
from tempfile import TemporaryFile

import msgspec
import pytest
from asked import NOTHING, raw, request
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch import shard as shards
from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.request import Reading
from airflow_provider_claude_batch.shard import cut, hash_ids

MARK = "abcdefg"
quick = settings(max_examples=75, deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.lists(texts.filter(lambda text: 0 < len(text.encode()) <= 36), unique=True, max_size=12)
params = st.dictionaries(texts, st.integers() | texts | st.lists(texts, max_size=3), max_size=4)


def requests_of(custom_ids, content):
    return [request(custom_id, metadata=content, n=n) for n, custom_id in enumerate(custom_ids)]


def body_of(shard, mark=MARK):
    return b"".join(shard.body(mark))


def sent(shard):
    found = json.loads(body_of(shard))
    assert found.keys() == {"requests"}
    return [(wire_id.parse(item["custom_id"]).custom_id, item["params"]) for item in found["requests"]]


@quick
@given(ids, params, st.integers(1, 5) | st.none())
def test_shards_laid_end_to_end_are_the_input(custom_ids, content, shard_size):
    requests = requests_of(custom_ids, content)
    with TemporaryFile() as spool:
        found = cut(requests, spool, shard_size)
        assert [item for shard in found for item in sent(shard)] == [(r.custom_id, r.params) for r in requests]
        assert all(shard.requests == shard_size for shard in found[:-1])
        assert [shard.index for shard in found] == list(range(len(found)))


@quick
@given(ids, params, st.integers(1, 5))
def test_the_streamed_body_is_the_plain_json_and_as_long_as_announced(custom_ids, content, shard_size):
    with TemporaryFile() as spool:
        for shard in reversed(cut(requests_of(custom_ids, content), spool, shard_size)):
            body = body_of(shard)
            plain = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False)
            assert body == plain.encode()
            assert len(body) == shard.bytes == len(body_of(shard, "-------"))


@quick
@given(ids.filter(bool), params)
def test_the_same_requests_make_the_same_shards_on_every_try(custom_ids, content):
    requests = requests_of(custom_ids, content)
    with TemporaryFile() as one, TemporaryFile() as other:
        first, second = cut(requests, one, 3), cut(requests, other, 3)
        assert [shard.digest for shard in first] == [shard.digest for shard in second]
        assert [body_of(shard) for shard in first] == [body_of(shard) for shard in second]


@pytest.mark.parametrize(
    "changed",
    [
        [request("a", x=1), request("b", x=3)],
        [request("b", x=2), request("a", x=1)],
        [request("a", x=1), request("c", x=2)],
        [request("a", x=1)],
    ],
)
def test_a_digest_stands_for_every_id_all_content_and_the_order(changed):
    with TemporaryFile() as spool:
        (one,) = cut([request("a", x=1), request("b", x=2)], spool)
        (other,) = cut(changed, spool)
        (with_beta,) = cut([request("a", ("beta",), x=1), request("b", ("beta",), x=2)], spool)
        assert len({one.digest, other.digest, with_beta.digest}) == 3


@quick
@given(ids, st.integers(1, 5))
def test_the_hash_of_ids_is_that_of_the_ids_alone_in_their_order(custom_ids, shard_size):
    with TemporaryFile() as one, TemporaryFile() as other:
        for shard, reworded in zip(
            cut(requests_of(custom_ids, {}), one, shard_size),
            cut(requests_of(custom_ids, {"x": 1}), other, shard_size),
            strict=True,
        ):
            sent_ids = [custom_id for custom_id, _ in sent(shard)]
            assert shard.ids_hash == reworded.ids_hash == hash_ids(sent_ids)
            assert shard.ids_hash not in {hash_ids(sent_ids[1:]), hash_ids([*sent_ids[1:], "another"])}


def test_the_hash_on_the_wire_speaks_of_the_content_and_not_of_its_spelling():
    with TemporaryFile() as spool:
        (shard,) = cut([request("a", x=1, y=2.0), request("b", y=2, x=1.0), request("c")], spool)
        hashes = [wire_id.parse(item["custom_id"]).request_hash for item in json.loads(body_of(shard))["requests"]]
        assert hashes[0] == hashes[1] != hashes[2]


def test_a_body_over_the_limit_of_bytes_becomes_two(monkeypatch):
    monkeypatch.setattr(shards, "MAX_BYTES", 1_000)
    with TemporaryFile() as spool:
        found = cut([request(str(n), x="y" * 300) for n in range(7)], spool)
        assert [shard.requests for shard in found] == [2, 2, 2, 1]
        assert all(len(body_of(shard)) == shard.bytes <= 1_000 for shard in found)


def test_a_body_of_exactly_the_limit_is_one(monkeypatch):
    requests = [request(str(n), x="y" * 300) for n in range(3)]
    with TemporaryFile() as spool:
        (whole,) = cut(requests, spool)
        monkeypatch.setattr(shards, "MAX_BYTES", whole.bytes)
        assert len(cut(requests, spool)) == 1
        monkeypatch.setattr(shards, "MAX_BYTES", whole.bytes - 1)
        assert len(cut(requests, spool)) == 2


def test_350000_requests_are_four_batches_without_being_asked():
    template = msgspec.json.encode(raw("ID"))
    lines = (template.replace(b"ID", b"%d" % n) for n in range(350_000))
    with TemporaryFile() as spool:
        found = cut(Reading(lines, NOTHING), spool, 1_000_000)
        assert [shard.requests for shard in found] == [100_000, 100_000, 100_000, 50_000]


@pytest.mark.parametrize("shard_size", [0, -1])
def test_a_shard_size_that_is_none_is_refused(shard_size):
    with TemporaryFile() as spool, pytest.raises(Misconfigured, match="at least 1"):
        cut([request("a")], spool, shard_size)


def test_nothing_to_send_is_no_shard():
    with TemporaryFile() as spool:
        assert cut([], spool) == []


def test_a_long_body_comes_in_pieces():
    with TemporaryFile() as spool:
        (shard,) = cut([request(str(n), x="y" * 100_000) for n in range(50)], spool)
        pieces = list(shard.body(MARK))
        assert sum(map(len, pieces)) == shard.bytes
        assert max(map(len, pieces)) < 1_200_000


def test_no_mark_is_lost_where_one_piece_ends_and_the_next_begins(monkeypatch):
    monkeypatch.setattr(shards, "_CHUNK", 11)
    with TemporaryFile() as spool:
        (shard,) = cut([request(str(n), x="y" * n) for n in range(60)], spool)
        body = body_of(shard)
        assert len(body) == shard.bytes
        assert {wire_id.parse(item["custom_id"]).mark for item in json.loads(body)["requests"]} == {MARK}


def test_to_prime_a_cache_the_first_shard_is_of_one_request():
    with TemporaryFile() as spool:
        found = cut([request(str(n)) for n in range(8)], spool, 3, prime=True)
        assert [shard.requests for shard in found] == [1, 3, 3, 1]
