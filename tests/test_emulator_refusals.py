"""What the emulator refuses, at once or in a row, and in whose words."""

import json

import anthropic
import httpx2
import pytest
from emulator import HEADERS, Emulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODEL = "claude-haiku-4-5"
BATCHES = "/v1/messages/batches"
EXTENDED = {"anthropic-beta": "some-beta, output-300k-2026-03-24"}
GOOD = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
GOOD_ROW = {"custom_id": "a", "params": GOOD}
PATTERN = "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"
EXTRA = "Extra inputs are not permitted"
EMULATOR = ("--max-body", "1000000")
pytestmark = pytest.mark.usefixtures("stopped_clock")


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([GOOD_ROW, GOOD_ROW], "custom_id's must be unique within a batch. Duplicate custom_id found: a"),
        ([GOOD_ROW, {"params": GOOD}], "1.custom_id: Field required"),
        ([{"custom_id": "x" * 65, "params": GOOD}], "0.custom_id: String should have at most 64 characters"),
        ([{"custom_id": "", "params": GOOD}], "0.custom_id: String should have at least 1 character"),
        ([{"custom_id": "a b", "params": GOOD}], f"0.custom_id: {PATTERN}"),
        ([{"custom_id": "a\n", "params": GOOD}], f"0.custom_id: {PATTERN}"),
        ([{"custom_id": 7, "params": GOOD}], "0.custom_id: Input should be a valid string"),
        ([{"custom_id": "a"}], "0.params: Field required"),
        ([{"custom_id": "a", "params": []}], "0.params: Input should be a valid dictionary"),
        ([{**GOOD_ROW, "metadata": {}}], f"0.metadata: {EXTRA}"),
        (["a"], "0: Input should be a valid dictionary"),
        ([{"custom_id": "a b", "params": GOOD}, {"params": GOOD}], f"0.custom_id: {PATTERN}"),
    ],
)
def test_the_first_offending_request_refuses_the_whole_batch(http, requests, message):
    answer = http.post(BATCHES, json={"requests": requests})
    separator = " " if message.startswith("custom_id's") else ""
    expected = f"requests:{separator}{message}" if separator else f"requests.{message}"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, expected)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert http.get(BATCHES).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"requests": []}, "requests: List should have at least 1 item after validation, not 0"),
        ({}, "requests: Field required"),
        ({"requests": {}}, "requests: Input should be a valid list"),
        ({"requests": [GOOD_ROW], "name": "n"}, f"name: {EXTRA}"),
        ({"name": "n", "requests": [GOOD_ROW]}, f"name: {EXTRA}"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_a_body_of_another_shape_is_refused(http, body, message):
    answer = http.post(BATCHES, json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "nonsense",
        '{"requests": [',
        '{"requests": [{"custom_id": "a", "params": {}}',
        '{"requests": [{"custom_id": "a", "params": {"x": NaN}}]}',
        '{"requests": [{"custom_id": "a", "params": {}},]}',
        '{"requests": []} x',
        '{"requests": [{"custom_id": "a b", "params": {}}, oops]}',
        '{"requests": [{"custom_id": "a", "params": {"x": "\\ud800"}}]}',
        '{"requests": [{"custom_id": "a", "params": {"x": ' + "9" * 5000 + "}}]}",
        '{"requests": [' + "[" * 100_000 + "]" * 100_000 + "]}",
        b'{"requests": [{"custom_id": "a", "params": {"x": "\xff"}}]}',
        '{"requests": [{"custom_id": "a", "params": {"x": "' + "y" * 500_000,
    ],
)
def test_what_is_not_json_is_refused_whatever_else_is_wrong(http, body):
    answer = http.post(BATCHES, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("The request body is not valid JSON: ")


def test_a_body_in_any_layout_and_key_order_is_read(http, emulator):
    wide = {"params": {**GOOD, "system": "é🎉" * 100_000}, "custom_id": "wide"}
    body = json.dumps({"requests": [GOOD_ROW, wide, {**GOOD_ROW, "custom_id": "c"}]}, indent=3, ensure_ascii=False)
    batch_id = http.post(BATCHES, content=body.encode()).json()["id"]
    assert emulator.submitted(batch_id) == json.loads(body)["requests"]


def test_more_than_100000_requests_are_refused():
    row = b'{"custom_id":"%d","params":{}}'
    with Emulator() as emulator:
        for count, status in ((100_000, 200), (100_001, 400)):
            body = b'{"requests":[%s]}' % b",".join(row % at for at in range(count))
            answer = httpx2.post(f"{emulator.base_url}{BATCHES}", headers=HEADERS, content=body, timeout=60)
            assert answer.status_code == status
    rule = "List should have at most 100000 items after validation, not 100001"
    assert answer.json()["error"]["message"] == f"requests: {rule}"


def test_a_body_over_the_limit_is_refused_at_the_edge_without_an_envelope(http):
    def sized(size):
        body = json.dumps({"requests": [GOOD_ROW]}).encode()
        return body + b" " * (size - len(body))

    assert http.post(BATCHES, content=sized(1_000_000)).status_code == 200
    answer = http.post(BATCHES, content=sized(1_000_001))
    assert answer.status_code == 413
    assert answer.json() == {"error": {"type": "request_too_large", "message": "Request exceeds the maximum size"}}


def row_errors(http, emulator, *all_params, **headers):
    requests = [{"custom_id": str(at), "params": params} for at, params in enumerate(all_params)]
    batch_id = http.post(BATCHES, json={"requests": requests}, headers=headers).json()["id"]
    emulator.advance(10)
    lines = [json.loads(line) for line in http.get(f"{BATCHES}/{batch_id}/results").content.splitlines()]
    results = {line["custom_id"]: line["result"] for line in lines}
    return [results[str(at)].get("error") for at in range(len(all_params))]


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


ROW_ERRORS = [
    (without("model"), "invalid_request_error", "model: Field required"),
    (without("messages"), "invalid_request_error", "messages: Field required"),
    (without("max_tokens"), "invalid_request_error", "max_tokens: Field required"),
    ({**GOOD, "model": "claude-nope"}, "not_found_error", "model: claude-nope"),
    ({**GOOD, "max_tokens": 0}, "invalid_request_error", "max_tokens: must be greater than or equal to 1"),
    ({**GOOD, "max_tokens": "9"}, "invalid_request_error", "max_tokens: Input should be a valid integer"),
    (
        {**GOOD, "max_tokens": 64_001},
        "invalid_request_error",
        f"max_tokens: 64001 > 64000, which is the maximum allowed number of output tokens for {MODEL}",
    ),
    ({**GOOD, "betas": ["x"]}, "invalid_request_error", f"betas: {EXTRA}"),
    ({**GOOD, "messages": []}, "invalid_request_error", "messages: at least one message is required"),
    ({**GOOD, "temperature": 1}, "invalid_request_error", f"temperature: {EXTRA}"),
    ({**GOOD, "top_p": 0.5}, "invalid_request_error", f"top_p: {EXTRA}"),
    ({**GOOD, "top_k": 5}, "invalid_request_error", f"top_k: {EXTRA}"),
    (
        {**GOOD, "messages": [{"role": "robot", "content": "x"}]},
        "invalid_request_error",
        "messages.0.role: Input should be 'user' or 'assistant'",
    ),
    (
        {**GOOD, "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "citations": [{}]}]}]},
        "invalid_request_error",
        f"messages.0.content.0.text.citations: {EXTRA}",
    ),
]
BATCH_ONLY_ERRORS = [
    ({**GOOD, "stream": True}, "`stream=True` is not supported in the Message Batches API"),
    ({**GOOD, "speed": "fast"}, "`speed` is not supported in the Message Batches API"),
]


def test_wrong_params_error_their_own_row_and_leave_the_others(http, emulator):
    errors = row_errors(http, emulator, *(params for params, _, _ in ROW_ERRORS), GOOD)
    assert errors.pop() is None
    for error, (_, kind, message) in zip(errors, ROW_ERRORS, strict=True):
        assert error == {
            "type": "error",
            "error": {"details": {"error_visibility": "user_facing"}, "type": kind, "message": message},
            "request_id": None,
        }


@pytest.mark.parametrize(("params", "kind", "message"), ROW_ERRORS)
def test_wrong_params_are_refused_live_with_the_same_words(http, params, kind, message):
    answer = http.post("/v1/messages", json=params)
    assert answer.status_code == (404 if kind == "not_found_error" else 400)
    assert (answer.json()["error"]["type"], answer.json()["error"]["message"]) == (kind, message)


def test_what_batches_do_not_offer_errors_a_row(http, emulator):
    errors = row_errors(http, emulator, *(params for params, _ in BATCH_ONLY_ERRORS))
    assert [error["error"]["message"] for error in errors] == [message for _, message in BATCH_ONLY_ERRORS]


def test_a_dead_link_errors_its_row(http, emulator):
    source = {"type": "url", "url": "https://files.invalid/a.pdf"}
    content = [{"type": "document", "source": source}, {"type": "text", "text": "Sum it up."}]
    alive = [{**content[0], "source": {**source, "url": "https://example.com/a.pdf"}}]
    asked = ({**GOOD, "messages": [{"role": "user", "content": blocks}]} for blocks in (content, alive))
    dead, fine = row_errors(http, emulator, *asked)
    assert dead["error"]["message"] == "Unable to download the file. Please verify the URL and try again."
    assert fine is None


def test_the_extended_output_beta_raises_the_cap_of_some_models_in_batches_only(http, emulator):
    big = {**GOOD, "model": "claude-haiku-5-5", "max_tokens": 300_000}
    over = {**big, "max_tokens": 300_001}
    not_listed = {**big, "model": "claude-fable-5-2"}
    fine, too_much, refused = row_errors(http, emulator, big, over, not_listed, **EXTENDED)
    assert fine is None
    assert "300001 > 300000" in too_much["error"]["message"]
    assert "300000 > 128000" in refused["error"]["message"]
    assert row_errors(http, emulator, big)[0] is not None
    assert http.post("/v1/messages", json=big, headers=EXTENDED).status_code == 400


def test_the_older_version_still_takes_the_removed_params(http, emulator):
    sampled = {**GOOD, "temperature": 0.5, "top_k": 5}
    assert row_errors(http, emulator, sampled, **{"anthropic-version": "2023-06-01"}) == [None]


@pytest.mark.parametrize("switch", ["create", "allow"])
def test_removed_params_can_refuse_the_batch_or_nothing(switch):
    with Emulator("--removed-params", switch) as emulator:
        body = {"requests": [GOOD_ROW, {"custom_id": "b", "params": {**GOOD, "top_p": 1}}]}
        with httpx2.Client(base_url=emulator.base_url, headers=HEADERS, timeout=60) as http:
            answer = http.post(BATCHES, json=body)
            if switch == "create":
                assert answer.status_code == 400
                assert answer.json()["error"]["message"] == f"requests.1.params.top_p: {EXTRA}"
            else:
                emulator.advance(10)
                assert http.get(f"{BATCHES}/{answer.json()['id']}").json()["request_counts"]["succeeded"] == 2


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalar = st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats(allow_nan=False, allow_infinity=False) | text
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
block = st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "document"])}, optional={
    "text": value, "source": st.fixed_dictionaries({"type": st.just("url"), "url": value | st.just("http://[")})
})  # fmt: skip
turn = st.fixed_dictionaries({"role": st.just("user") | value, "content": text | st.lists(block, max_size=2) | value})
names = ("system", "tools", "stop_sequences", "thinking", "inference_geo", "metadata", "service_tier", "output_config")
params_like = st.fixed_dictionaries(
    {
        "model": st.just(MODEL) | value,
        "max_tokens": st.just(50) | value,
        "messages": st.lists(turn, max_size=2) | value,
    },
    optional=dict.fromkeys(names, value),
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(many=st.lists(params_like, min_size=20, max_size=40))
def test_no_params_whatsoever_break_the_emulator(process, many):
    process.clock(freeze=True)
    with httpx2.Client(base_url=process.base_url, headers=HEADERS, timeout=60) as http:
        requests = [{"custom_id": str(at), "params": params} for at, params in enumerate(many)]
        batch_id = http.post(BATCHES, json={"requests": requests}).json()["id"]
        process.advance(10)
        lines = http.get(f"{BATCHES}/{batch_id}/results").content.splitlines()
        rows = [json.loads(line) for line in lines if line]
        assert {row["custom_id"] for row in rows} == {str(at) for at in range(len(many))}
        for row in rows[:6]:
            live = http.post("/v1/messages", json=many[int(row["custom_id"])])
            assert (live.status_code == 200) == (row["result"]["type"] == "succeeded")


def test_count_tokens_refuses_a_wrong_model_and_what_is_no_prompt(http):
    prompt = without("max_tokens")
    assert http.post("/v1/messages/count_tokens", json=prompt).json() == {"input_tokens": 1}
    for body, status, message in (
        ({**prompt, "model": "claude-nope"}, 404, "model: claude-nope"),
        (GOOD, 400, f"max_tokens: {EXTRA}"),
        ({**prompt, "temperature": 1}, 400, f"temperature: {EXTRA}"),
        ({"model": MODEL}, 400, "messages: Field required"),
    ):
        answer = http.post("/v1/messages/count_tokens", json=body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)


def test_models_are_listed_in_pages_and_by_name(emulator):
    with anthropic.Anthropic(api_key="k", base_url=emulator.base_url, max_retries=0) as client:
        models = list(client.models.list(limit=5))
        assert len(models) == len({model.id for model in models}) > 15
        assert sorted((model.created_at for model in models), reverse=True) == [model.created_at for model in models]
        assert client.models.retrieve(MODEL).max_tokens == 64_000
        before = client.models.list(limit=3, before_id=models[6].id)
        assert [model.id for model in before.data] == [model.id for model in models[3:6]]
        with pytest.raises(anthropic.NotFoundError, match="model: claude-nope"):
            client.models.retrieve("claude-nope")


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"x-api-key": "k"}, 400, "anthropic-version: header is required"),
        ({"x-api-key": "k", "anthropic-version": "2020-01-01"}, 400, None),
        ({"anthropic-version": "2026-10-21"}, 401, "x-api-key header is required"),
        ({"anthropic-version": "2026-10-21", "authorization": "Basic eDp5"}, 401, "x-api-key header is required"),
        ({"anthropic-version": "2026-10-21", "authorization": "Bearer k"}, 200, None),
        ({"anthropic-version": "2023-06-01", "x-api-key": "k"}, 200, None),
    ],
)
def test_a_call_needs_a_key_in_either_header_and_a_version(emulator, headers, status, message):
    answer = httpx2.get(f"{emulator.base_url}{BATCHES}", headers=headers, timeout=60)
    assert answer.status_code == status
    assert message is None or answer.json()["error"]["message"] == message


def test_only_the_given_keys_are_accepted_and_some_share_a_workspace():
    with Emulator("--key", "one=shared", "--key", "the-second-key=shared", "--key", "three") as emulator:

        def client(key):
            return anthropic.Anthropic(api_key=key, base_url=emulator.base_url, max_retries=0)

        batch = client("one").messages.batches.create(requests=[GOOD_ROW])
        assert client("the-second-key").messages.batches.retrieve(batch.id) == batch
        with pytest.raises(anthropic.NotFoundError):
            client("three").messages.batches.retrieve(batch.id)
        with pytest.raises(anthropic.AuthenticationError, match=r"API key is invalid\."):
            client("four").messages.batches.retrieve(batch.id)
        assert emulator.journal(batch_id=batch.id)
        kept = b"".join(path.read_bytes() for path in emulator.state.parent.iterdir())
        assert batch.id.encode() in kept
        assert b"the-second-key" not in kept


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nowhere"), ("DELETE", "/v1/messages"), ("PUT", BATCHES), ("PATCH", BATCHES), ("OPTIONS", BATCHES)],
)
def test_a_path_that_is_none_is_not_found_in_the_envelope(http, method, path):
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert answer.headers["request-id"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/emulator/typo"), ("GET", "/emulator/reset")])
def test_a_control_that_is_none_says_where_they_are_listed(emulator, method, path):
    answer = httpx2.request(method, f"{emulator.base_url}{path}")
    assert answer.status_code == 404
    assert "docs/emulator.md" in answer.json()["error"]
