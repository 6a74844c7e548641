"""Every failure on demand, as the SDK meets it; and the journal that tells what arrived."""

import json
import threading
import time

import anthropic
import httpx2
import pytest

BATCHES = "/v1/messages/batches"
PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
EMULATOR = ("--batch-seconds", "100")
pytestmark = pytest.mark.usefixtures("stopped_clock")


def create(sdk, count=1):
    return sdk.messages.batches.create(requests=[{"custom_id": f"r{at}", "params": PARAMS} for at in range(count)])


@pytest.fixture(name="ended")
def _ended(sdk, emulator):
    batch = create(sdk, 20)
    emulator.advance(100)
    return batch


def download(http, batch):
    return http.get(f"{BATCHES}/{batch.id}/results").content


STATUSES = [
    (400, "invalid_request_error", anthropic.BadRequestError),
    (401, "authentication_error", anthropic.AuthenticationError),
    (402, "billing_error", anthropic.APIStatusError),
    (403, "permission_error", anthropic.PermissionDeniedError),
    (404, "not_found_error", anthropic.NotFoundError),
    (409, "conflict_error", anthropic.ConflictError),
    (429, "rate_limit_error", anthropic.RateLimitError),
    (500, "api_error", anthropic.InternalServerError),
    (504, "timeout_error", anthropic.InternalServerError),
    (529, "overloaded_error", anthropic.InternalServerError),
]


@pytest.mark.parametrize(("status", "kind", "error"), STATUSES)
def test_a_status_strikes_before_the_call_has_any_effect(sdk, emulator, status, kind, error):
    emulator.fault("status", status=status, operation="create")
    with pytest.raises(error) as raised:
        create(sdk)
    assert (raised.value.status_code, raised.value.body["error"]["type"]) == (status, kind)
    assert list(sdk.messages.batches.list()) == []
    assert create(sdk)
    assert emulator.summary()["create"] == {str(status): 1, "200": 1}


def test_a_bad_gateway_answers_in_html(sdk, emulator):
    emulator.fault("status", status=502)
    with pytest.raises(anthropic.InternalServerError) as raised:
        sdk.messages.batches.list()
    assert raised.value.response.headers["content-type"].startswith("text/html")
    assert "502 Bad Gateway" in raised.value.response.text


@pytest.mark.parametrize("retry_after", [None, 7])
def test_a_rate_limit_may_say_when_to_come_back(sdk, emulator, retry_after):
    emulator.fault("status", status=429, retry_after=retry_after)
    with pytest.raises(anthropic.RateLimitError) as raised:
        create(sdk)
    assert raised.value.response.headers.get("retry-after") == (retry_after and str(retry_after))


def test_a_spend_limit_is_told_by_its_code_and_a_full_queue_by_its_text(sdk, emulator):
    details = {"error_code": "enforced_spend_limit_reached"}
    emulator.faults({"fault": "status", "status": 429, "details": details}, {"fault": "queue_full"})
    with pytest.raises(anthropic.RateLimitError) as spend:
        create(sdk)
    with pytest.raises(anthropic.RateLimitError, match="enqueued batch requests") as queue:
        create(sdk)
    assert spend.value.body["error"]["details"] == details
    assert "details" not in queue.value.body["error"]


@pytest.mark.parametrize(("should_retry", "calls"), [(None, 2), (False, 1)])
def test_an_answer_can_forbid_the_sdk_to_retry(sdk, emulator, should_retry, calls):
    emulator.fault("status", status=529, should_retry=should_retry, times=-1)
    with pytest.raises(anthropic.InternalServerError):
        sdk.with_options(max_retries=1).messages.batches.list()
    assert len(emulator.journal()) == calls


def test_any_text_can_be_given(sdk, emulator):
    text = "You have reached your specified API usage limits."
    emulator.fault("status", status=400, message=text, type="invalid_request_error")
    with pytest.raises(anthropic.BadRequestError, match=text):
        create(sdk)


def test_a_fault_waits_out_its_skips_then_strikes_its_times(sdk, emulator):
    emulator.fault("status", status=500, operation=["retrieve", "list"], after=2, times=2)
    outcomes = []
    for _ in range(6):
        try:
            sdk.messages.batches.list()
            outcomes.append(200)
        except anthropic.InternalServerError:
            outcomes.append(500)
    assert outcomes == [200, 200, 500, 500, 200, 200]


def test_a_fault_can_name_one_batch_and_can_be_called_off(sdk, emulator):
    first, second = create(sdk), create(sdk)
    emulator.fault("status", status=500, batch=first.id, times=-1)
    assert sdk.messages.batches.retrieve(second.id)
    for _ in range(3):
        with pytest.raises(anthropic.InternalServerError):
            sdk.messages.batches.retrieve(first.id)
    emulator.clear_faults()
    assert emulator.faults() == []
    assert sdk.messages.batches.retrieve(first.id)


def test_a_status_after_accept_leaves_a_stored_batch(sdk, emulator):
    emulator.fault("status_after_accept", status=500)
    with pytest.raises(anthropic.InternalServerError):
        create(sdk)
    assert len(list(sdk.messages.batches.list())) == 1


@pytest.mark.parametrize(("kind", "stored"), [("drop_before", 0), ("drop_after_accept", 1)])
def test_a_dropped_connection_never_answers(sdk, emulator, kind, stored):
    emulator.fault(kind, operation="create")
    with pytest.raises(anthropic.APIConnectionError) as raised:
        create(sdk)
    assert isinstance(raised.value.__cause__, httpx2.TransportError)
    assert len(list(sdk.messages.batches.list())) == stored
    (entry,) = emulator.journal(operation="create")
    assert entry["status"] == "dropped"
    assert (entry["batch_id"] is not None) == bool(stored)


def test_a_connection_drops_behind_a_proxy_too(http, emulator):
    emulator.fault("drop_before")
    with pytest.raises(httpx2.RemoteProtocolError):
        http.get(BATCHES, headers={"x-forwarded-for": "192.0.2.1"})


def test_the_sdks_own_retry_after_a_drop_pays_twice(emulator):
    emulator.fault("drop_after_accept")
    with anthropic.Anthropic(api_key="test-key", base_url=emulator.base_url, max_retries=2) as sdk:
        create(sdk)
        assert len(list(sdk.messages.batches.list())) == 2
    assert [entry["retry_count"] for entry in emulator.journal(operation="create")] == [0, 1]


@pytest.mark.parametrize(("kind", "stored"), [("hang", 0), ("hang_after_accept", 1)])
def test_a_hanging_call_is_answered_never(sdk, emulator, kind, stored):
    emulator.fault(kind, operation="create")
    with pytest.raises(anthropic.APITimeoutError):
        create(sdk.with_options(timeout=3))  # in which the call has surely arrived
    assert len(list(sdk.messages.batches.list())) == stored
    assert [entry["status"] for entry in emulator.journal(operation="create")] == ["hung"]


def test_a_hanging_call_can_be_answered_late(sdk, emulator):
    emulator.fault("hang", seconds=0.3)
    started = time.monotonic()
    assert create(sdk)
    assert time.monotonic() - started > 0.29


def test_a_late_answer_tells_what_is_then(sdk, emulator):
    batch = create(sdk)
    emulator.fault("hang", seconds=4)  # in which the clock has surely moved
    moving = threading.Timer(0.1, emulator.advance, [100])
    moving.start()
    assert sdk.messages.batches.retrieve(batch.id).processing_status == "ended"
    moving.join()


def test_a_slow_answer_is_an_answer(sdk, emulator):
    emulator.fault("slow", seconds=0.3)
    started = time.monotonic()
    assert list(sdk.messages.batches.list()) == []
    assert time.monotonic() - started > 0.29


def test_an_existing_batch_can_be_missing_for_a_moment(sdk, emulator, ended):
    emulator.fault("not_found", times=3)
    calls = sdk.messages.batches
    for call in (calls.retrieve, calls.cancel, calls.results):
        with pytest.raises(anthropic.NotFoundError, match=f"{ended.id} not found"):
            call(ended.id)
    assert calls.retrieve(ended.id).id == ended.id


def read_until(error, http, batch, **options):
    received = bytearray()

    def read(answer):
        for chunk in answer.iter_raw():
            received.extend(chunk)

    with http.stream("GET", f"{BATCHES}/{batch.id}/results", **options) as answer, pytest.raises(error):
        read(answer)
    return bytes(received)


def test_results_can_be_cut_after_rows_in_the_midst_of_a_line(http, emulator, ended):
    whole = download(http, ended)
    emulator.fault("cut_results", rows=3)
    received = read_until(httpx2.RemoteProtocolError, http, ended)
    assert received.count(b"\n") == 3
    assert not received.endswith(b"\n")
    assert whole.startswith(received)
    assert download(http, ended) == whole


def test_results_can_be_cut_after_bytes(http, emulator, ended):
    whole = download(http, ended)
    emulator.fault("cut_results", bytes=700)
    assert read_until(httpx2.RemoteProtocolError, http, ended) == whole[:700]


def test_a_slow_reader_gets_every_byte_before_the_cut(sdk, http, emulator):
    emulator.faults({"fault": "row", "outcome": "truncated", "times": -1}, {"fault": "cut_results", "bytes": 9_000_000})
    large = {**PARAMS, "max_tokens": 60_000}
    batch = sdk.messages.batches.create(requests=[{"custom_id": f"r{at}", "params": large} for at in range(50)])
    emulator.advance(100)
    with http.stream("GET", f"{BATCHES}/{batch.id}/results") as answer:
        time.sleep(0.3)
        received = 0
        with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012 - what came before the cut counts
            for chunk in answer.iter_raw():
                received += len(chunk)
    assert received == 9_000_000


def test_results_can_stall_until_the_client_leaves(http, emulator, ended):
    emulator.fault("stall_results", rows=2)
    assert read_until(httpx2.ReadTimeout, http, ended, timeout=3).count(b"\n") == 2


@pytest.mark.parametrize("where", [{"bytes": 100}, {"rows": 3}])
def test_results_can_stall_and_go_on(http, emulator, ended, where):
    whole = download(http, ended)
    emulator.fault("stall_results", seconds=0.3, **where)
    started = time.monotonic()
    assert download(http, ended) == whole
    assert time.monotonic() - started > 0.29


def lines_of(content):
    return [line for line in content.split(b"\n") if line]


@pytest.mark.parametrize(("kind", "more"), [("duplicate_lines", 2), ("missing_lines", -2), ("foreign_lines", 2)])
def test_results_can_have_lines_too_many_or_too_few(http, emulator, ended, kind, more):
    whole = lines_of(download(http, ended))
    emulator.fault(kind, count=2)
    lines = lines_of(download(http, ended))
    assert len(lines) == len(whole) + more
    ids = [json.loads(line)["custom_id"] for line in lines]
    assert sum(custom_id.startswith("foreign-") for custom_id in ids) == (2 if kind == "foreign_lines" else 0)
    assert len(set(ids)) == {"duplicate_lines": 20, "missing_lines": 18, "foreign_lines": 22}[kind]


def test_results_can_hold_garbage_and_blank_lines(http, emulator, ended):
    whole = download(http, ended)
    emulator.faults({"fault": "garbage_lines"}, {"fault": "blank_lines", "count": 3})
    lines = download(http, ended).split(b"\n")
    assert len(lines) == len(whole.split(b"\n")) + 4
    assert lines.count(b"") == 4
    garbage = [line for line in lines if line and not line.startswith(b'{"custom_id"')]
    assert len(garbage) == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(garbage[0])


def test_line_ends_can_be_of_another_kind(http, emulator, ended):
    whole = download(http, ended)
    assert whole.endswith(b"\n")
    emulator.fault("no_final_newline")
    assert download(http, ended) == whole[:-1]
    emulator.fault("crlf")
    assert download(http, ended) == whole.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "earthquake"},
        {"fault": "status", "state": 500},
        {"fault": "status", "status": 42},
        {"fault": "status", "status": 204},
        {"fault": "missing_lines", "count": -1},
        {"fault": "row", "outcome": "lost"},
        {"fault": "row", "outcome": "refusal", "match": "("},
        {"fault": "slow_batch"},
        {"fault": "status", "operation": "fly"},
    ],
)
def test_a_fault_that_is_none_is_refused(emulator, fault):
    with pytest.raises(ValueError, match="400"):
        emulator.faults(fault)
    assert emulator.faults() == []


def test_the_journal_tells_of_every_call_and_of_no_secret(sdk, http, emulator):
    batch = create(sdk, 3)
    http.get(f"{BATCHES}?limit=5", headers={"authorization": "Bearer other-key"})
    http.get(BATCHES, headers={"x-api-key": ""})
    created, listed, refused = emulator.journal()
    assert created["operation"] == "create"
    assert (created["status"], created["batch_id"], created["requests"]) == (200, batch.id, 3)
    assert created["request_id"] == batch._request_id
    assert created["body_bytes"] > 100
    assert created["user_agent"] == f"Anthropic/Python {anthropic.__version__}"
    assert (listed["method"], listed["path"], listed["query"]) == ("GET", BATCHES, "limit=5")
    assert (refused["status"], refused["workspace"]) == (401, None)
    assert "test-key" not in json.dumps(emulator.journal())
    assert emulator.journal(operation="list", limit=1) == [listed]
    assert emulator.journal(after_id=listed["id"]) == [refused]
    assert emulator.journal(status=401) == [refused]
    assert emulator.summary() == {"create": {"200": 1}, "list": {"200": 1, "401": 1}}
    with pytest.raises(ValueError, match="unknown filters: colour"):
        emulator.journal(colour="red")


def test_what_was_submitted_can_be_read_back(sdk, emulator):
    requests = [{"custom_id": f"r{at}", "params": {**PARAMS, "system": f"é\u2028🎉 {at}"}} for at in range(450)]
    batch = sdk.messages.batches.create(requests=requests)
    assert emulator.submitted(batch.id) == requests
    with pytest.raises(ValueError, match="404"):
        emulator.submitted("msgbatch_nope")
