import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from airflow_provider_claude_batch.result import CacheCreation, ServerToolUse, Usage, decode, text_of

MESSAGE = {
    "model": "claude-haiku-5-5",
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "stop_details": None,
    "usage": {
        "input_tokens": 11,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3},
        "output_tokens": 36,
        "service_tier": "batch",
        "inference_geo": "global",
        "from_the_future": {"x": 1},
    },
}


def line_of(custom_id="a", **message):
    return json.dumps({"custom_id": custom_id, "result": {"type": "succeeded", "message": {**MESSAGE, **message}}})


def with_usage(**usage):
    return line_of(usage={**MESSAGE["usage"], **usage}).encode()


def test_a_succeeded_line_is_read_as_the_api_documents_it():
    message = decode(line_of().encode()).result.message
    assert (message.model, message.id, message.stop_reason) == ("claude-haiku-5-5", "msg_01", "end_turn")
    assert json.loads(bytes(message.content)) == MESSAGE["content"]
    assert message.usage == Usage(11, 36, 5, 7, CacheCreation(2, 3), None, "batch", "global")
    assert message.usage.prompt_tokens == 11 + 2 + 3 + 7


@pytest.mark.parametrize("kind", ["canceled", "expired", "a_word_still_to_come"])
def test_a_line_without_a_message_is_its_word(kind):
    found = decode(json.dumps({"custom_id": "a", "result": {"type": kind}}).encode())
    assert (found.custom_id, found.result.type, found.result.message) == ("a", kind, None)


def test_an_error_is_unwrapped():
    line = b"""{"custom_id":"b","result":{"type":"errored","error":{"type":"error","error":{"details":
        {"error_visibility":"user_facing"},"type":"not_found_error","message":"model: claude-nope"},
        "request_id":null}}}"""
    error = decode(line).result.error.error
    assert (error.type, error.message) == ("not_found_error", "model: claude-nope")


@pytest.mark.parametrize("token", ["\u2028", "\u0085", "\x00", "🎫", '"', "\\"])
def test_odd_characters_arrive_as_they_were_sent(token):
    message = decode(line_of(content=[{"type": "text", "text": token}]).encode()).result.message
    assert text_of(message.content) == token


def test_why_it_stopped_arrives_as_it_was_sent():
    details = {"type": "refusal", "category": "cyber", "explanation": None}
    assert json.loads(bytes(decode(line_of(stop_details=details).encode()).result.message.stop_details)) == details


def test_half_of_a_surrogate_pair_does_not_lose_the_answer():
    line = line_of(content=[{"type": "text", "text": "fine \ud83d"}]).encode()
    assert rb"\ud83d" in line
    assert text_of(decode(line).result.message.content) == "fine ?"


@pytest.mark.parametrize("kind", ["text", "thinking"])
def test_a_broken_byte_does_not_lose_the_answer(kind):
    line = line_of(content=[{"type": kind, kind: "fine @"}]).encode().replace(b"@", b"\xff")
    assert "fine \ufffd" in bytes(decode(line).result.message.content).decode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"nope",
        b"\xff\xfe",
        b'{"custom_id":"a"}',
        b'{"custom_id":7,"result":{"type":"canceled"}}',
        b'{"custom_id":"a","result":{"type":"succeeded"}}',
        b'{"custom_id":"a","result":{"type":"canceled"}',
        b'{"custom_id":"a","result":{"type":"canceled"}}{}',
        b"[" * 5_000,
        b'{"custom_id":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b',"result":{"type":"canceled"}}',
        with_usage(input_tokens=-1),
        with_usage(output_tokens=2**70),
        with_usage(cache_read_input_tokens=10**12),
    ],
    ids=range(16),
)
def test_what_is_not_a_result_is_none(line):
    assert decode(line) is None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))
def test_no_bytes_make_it_raise(line):
    assert decode(line) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.binary(max_size=3))
def test_no_damage_to_a_line_makes_it_raise(place, damage):
    whole = line_of().encode()
    place %= len(whole)
    decode(whole[:place] + damage + whole[place + 1 :])
    assert decode(whole[:place]) is None


def test_text_blocks_are_joined_and_others_passed_over():
    blocks = [b'{"type":"text","text":"a"}', b'{"type":"thinking","thinking":"x"}', b'{"type":"new","text":null}']
    assert text_of(Raw(b"[" + b",".join([*blocks, *blocks]) + b"]")) == "aa"
    assert text_of(Raw(b"[]")) == ""


def test_usage_takes_nulls_for_what_did_not_happen():
    usage = Usage(cache_creation_input_tokens=9, server_tool_use=ServerToolUse(None))
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens, usage.cache_read_tokens) == (9, 0, 0)
    assert (
        usage.web_search_requests,
        Usage().web_search_requests,
        Usage(server_tool_use=ServerToolUse(3)).web_search_requests,
    ) == (0, 0, 3)
