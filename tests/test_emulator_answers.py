"""What the emulated model answers, and what it counts."""

import json

import httpx2
import pytest
from emulator import HEADERS, Emulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODEL = "claude-haiku-4-5"
pytestmark = pytest.mark.usefixtures("stopped_clock")


def params(text, **more):
    return {"model": MODEL, "max_tokens": 2000, "messages": [{"role": "user", "content": text}], **more}


def answers(sdk, emulator, *all_params):
    """Send these params as one batch and return its messages in the same order."""
    requests = [{"custom_id": str(at), "params": one} for at, one in enumerate(all_params)]
    batch = sdk.messages.batches.create(requests=requests)
    emulator.advance(100)
    messages = {row.custom_id: row.result.message for row in sdk.messages.batches.results(batch.id)}
    return [messages[str(at)] for at in range(len(all_params))]


def text_of(message):
    return message.content[0].text


def test_the_same_request_has_the_same_answer_in_any_batch_and_live(sdk, emulator):
    asked = params("Where does the rain come from?", system="Be brief.")
    first, *others = answers(sdk, emulator, asked, dict(reversed(asked.items())))
    again = answers(sdk, emulator, asked)
    live = sdk.messages.create(**asked)
    assert {text_of(message) for message in (first, *others, *again, live)} == {text_of(first)}
    assert first.usage.service_tier == "batch"
    assert live.usage.service_tier == "standard"
    assert first.id not in {message.id for message in (*others, *again, live)}


def test_answers_differ_in_text_and_length(sdk, emulator):
    texts = [text_of(message) for message in answers(sdk, emulator, *(params(f"Question {at}?") for at in range(99)))]
    assert len(set(texts)) > 90
    assert max(map(len, texts)) > 4 * min(map(len, texts))


def test_a_higher_max_tokens_lengthens_the_same_answer(sdk, emulator):
    whole, cut = answers(sdk, emulator, params("Go on, number 7."), params("Go on, number 7.", max_tokens=3))
    assert text_of(whole).startswith(text_of(cut))
    assert (cut.stop_reason, cut.usage.output_tokens, len(text_of(cut))) == ("max_tokens", 3, 12)
    assert whole.stop_reason == "end_turn"
    assert whole.usage.output_tokens == -(-len(text_of(whole)) // 4)


def test_a_stop_sequence_ends_the_answer_before_itself(sdk, emulator):
    (whole,) = answers(sdk, emulator, params("Tell me more."))
    word = text_of(whole).split()[1]
    (stopped,) = answers(sdk, emulator, params("Tell me more.", stop_sequences=["never said", word]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert text_of(stopped) == text_of(whole).partition(word)[0]


def test_awkward_characters_reach_the_reader_unharmed(sdk, emulator):
    many = [params(f"Awkward {at}") for at in range(600)]
    texts = "".join(text_of(message) for message in answers(sdk, emulator, *many))
    awkward = ("\u2028", "\x85", "\x00", "🎉", '"double"', "\\n", "\nsecond", "שלום", "<script>", '{"label"', "{{ var")
    for fragment in awkward:
        assert fragment in texts, fragment


def test_awkward_answers_are_a_minority(sdk, emulator):
    texts = [text_of(message) for message in answers(sdk, emulator, *(params(f"Plain {at}") for at in range(300)))]
    assert 20 < sum(not text.isascii() or "\x00" in text or "\n" in text for text in texts) < 100


def test_a_batch_row_holds_unusual_separators_raw_and_nul_escaped(sdk, emulator):
    requests = [{"custom_id": str(at), "params": params(f"Awkward {at}")} for at in range(300)]
    batch = sdk.messages.batches.create(requests=requests)
    emulator.advance(100)
    content = httpx2.get(
        f"{emulator.base_url}/v1/messages/batches/{batch.id}/results", headers=HEADERS, timeout=60
    ).content
    assert content.count(b"\n") == 300
    assert "\u2028".encode() in content
    assert "\x85".encode() in content
    assert b"\\u0000" in content
    assert b"\x00" not in content


@pytest.mark.parametrize(
    ("system", "user", "label"),
    [
        ("Label the ticket: billing, technical or other.", "I was charged twice on one invoice!", "billing"),
        ("Label the ticket: billing, technical or other.", "The app crashes with an error at login.", "technical"),
        ("Answer with one of the following: `urgent`, `normal`, `low`.", "The server is down, help asap", "urgent"),
        ("", "Classify this review as positive, negative, or neutral.\n\nI love it, great!", "positive"),
        ('Categories: ["sport", "politics", "weather"]', "The weather will be fine.", "weather"),
    ],
)
def test_offered_labels_are_answered_with_the_one_that_fits(sdk, system, user, label):
    assert text_of(sdk.messages.create(**params(user, system=system))) == label


def test_a_text_that_fits_no_label_still_gets_one_and_not_always_the_same(sdk, emulator):
    asked = [params(f"Xyz {at}", system="Label the ticket: billing, technical or other.") for at in range(30)]
    assert {text_of(message) for message in answers(sdk, emulator, *asked)} == {"billing", "technical", "other"}


@pytest.mark.parametrize(
    "user", ["My items: apples, pears and plums.", "Hi: thanks, I am here, you know.", "I: a or b."]
)
def test_a_mere_list_is_no_offer_of_labels(sdk, user):
    answer = text_of(sdk.messages.create(**params(user, system="Be kind.")))
    assert answer not in user


@pytest.mark.parametrize("separator", [" , ", "' , '", "`, `", " or "])
def test_a_long_list_that_is_no_offer_is_answered_at_once(sdk, separator):
    system = f"Answer as: {separator.join(['word'] * 3000)} @"
    assert text_of(sdk.messages.create(**params("Hi", system=system)))


prompts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(system=prompts, user=prompts, tool=prompts)
def test_count_tokens_says_what_usage_says(sdk, system, user, tool):
    tools = [{"name": "look", "description": tool, "input_schema": {"type": "object"}}]
    asked = params([{"type": "text", "text": user}], system=system, tools=tools)
    counted = sdk.messages.count_tokens(**{name: asked[name] for name in asked if name != "max_tokens"})
    usage = sdk.messages.create(**asked).usage
    assert counted.input_tokens == usage.input_tokens
    assert abs(usage.input_tokens * 4 - len(system) - len(user) - len(tool)) < 20


def test_usage_has_the_shape_of_the_wire(emulator):
    body = params("Hello", inference_geo="us")
    usage = httpx2.post(f"{emulator.base_url}/v1/messages", headers=HEADERS, json=body, timeout=60).json()["usage"]
    assert usage == {
        "input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage["output_tokens"],
        "service_tier": "standard",
        "inference_geo": "us",
    }


def test_images_cost_a_flat_number_of_tokens_whatever_their_bytes(sdk):
    def image(data):
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}

    small, large = (
        sdk.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": [image("A" * size)]}])
        for size in (4, 40_000)
    )
    assert small.input_tokens == large.input_tokens == 1600


RATES = {"overloaded_error": 0.2, "refusal": 0.1, "truncated": 0.1, "expired": 0.1, "pause_turn": 0.1}


def outcome(line):
    result = line["result"]
    if result["type"] == "errored":
        return result["error"]["error"]["type"]
    if result["type"] != "succeeded":
        return result["type"]
    return {"max_tokens": "truncated"}.get(result["message"]["stop_reason"], result["message"]["stop_reason"])


def test_rates_draw_outcomes_anew_for_each_batch_and_never_for_a_download():
    with Emulator(*(f"--rate={name}={share}" for name, share in RATES.items())) as emulator:
        emulator.clock(freeze=True)
        drawn = []
        with httpx2.Client(base_url=f"{emulator.base_url}/v1/messages", headers=HEADERS, timeout=60) as http:
            for _ in range(2):
                requests = [{"custom_id": f"r{at}", "params": params("Hi", max_tokens=100)} for at in range(500)]
                batch_id = http.post("/batches", json={"requests": requests}).json()["id"]
                emulator.advance(10)
                first, again = (http.get(f"/batches/{batch_id}/results").content for _ in range(2))
                assert first == again
                lines = [json.loads(line) for line in first.splitlines()]
                drawn.append({line["custom_id"]: outcome(line) for line in lines})
                counts = http.get(f"/batches/{batch_id}").json()["request_counts"]
                assert counts["errored"] == sum(kind == "overloaded_error" for kind in drawn[-1].values())
                assert counts["expired"] == sum(kind == "expired" for kind in drawn[-1].values())
    for draws in drawn:
        for name, share in RATES.items():
            assert abs(list(draws.values()).count(name) / 500 - share) < 0.06
    assert sum(drawn[0][custom_id] != drawn[1][custom_id] for custom_id in drawn[0]) > 100


@pytest.mark.parametrize(
    ("outcome", "stop_reason"),
    [
        ("truncated", "max_tokens"),
        ("pause_turn", "pause_turn"),
        ("model_context_window_exceeded", "model_context_window_exceeded"),
    ],
)
def test_a_row_can_succeed_without_being_usable(sdk, emulator, outcome, stop_reason):
    emulator.fault("row", outcome=outcome)
    (message,) = answers(sdk, emulator, params("Hello there", max_tokens=300))
    assert message.stop_reason == stop_reason
    assert text_of(message)
    assert (message.usage.output_tokens == 300) == (outcome == "truncated")


def test_a_refusal_succeeds_with_nothing_in_it(sdk, emulator):
    emulator.fault("row", outcome="refusal")
    (message,) = answers(sdk, emulator, params("Hello there"))
    assert (message.stop_reason, message.content, message.usage.output_tokens) == ("refusal", [], 0)
    assert message.stop_details.type == "refusal"
    assert message.stop_details.category == "cyber"


@pytest.mark.parametrize(
    "kind", ["overloaded_error", "api_error", "timeout_error", "rate_limit_error", "billing_error"]
)
def test_a_row_that_failed_while_running_names_its_worker_request(sdk, emulator, kind):
    emulator.fault("row", outcome=kind)
    batch = sdk.messages.batches.create(requests=[{"custom_id": "a", "params": params("Hi")}])
    emulator.advance(10)
    (row,) = sdk.messages.batches.results(batch.id)
    assert row.result.type == "errored"
    assert row.result.error.error.type == kind
    assert row.result.error.request_id.startswith("workerreq_")


def test_a_row_fault_strikes_as_often_as_it_says_the_rows_that_it_matches(sdk, emulator):
    emulator.faults(
        {"fault": "row", "outcome": "overloaded_error", "match": "^bad-", "times": 2},
        {"fault": "row", "outcome": "refusal", "match": "poison", "times": -1},
    )
    asked = [("bad-1", "x"), ("good", "x"), ("bad-2", "x"), ("bad-3", "x"), ("p", "some poison"), ("q", "poisonous")]
    requests = [{"custom_id": custom_id, "params": params(text)} for custom_id, text in asked]
    batch = sdk.messages.batches.create(requests=requests)
    emulator.advance(10)
    results = {row.custom_id: row.result for row in sdk.messages.batches.results(batch.id)}
    assert {name for name, result in results.items() if result.type == "errored"} == {"bad-1", "bad-2"}
    succeeded = {name: result.message.stop_reason for name, result in results.items() if result.type == "succeeded"}
    assert succeeded == {"good": "end_turn", "bad-3": "end_turn", "p": "refusal", "q": "refusal"}
    assert [fault["remaining"] for fault in emulator.faults()] == [0, -1]
