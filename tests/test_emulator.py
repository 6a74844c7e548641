"""The life of a batch in the emulator, seen through the SDK."""

import json
from email.utils import parsedate_to_datetime
from pathlib import Path

import anthropic
import jsonschema
import pytest
from anthropic.types import Message
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from emulator import Emulator

SCHEMA = Path(__file__).parents[2] / "shared" / "data" / "openapi_batches.json"
BATCHES = "/v1/messages/batches"
DAY = 86_400
BATCH_SECONDS, CANCEL_SECONDS = 100, 10
OUTCOMES = (
    *("truncated", "pause_turn", "refusal", "expired", "canceled", "overloaded_error", "api_error", "timeout_error"),
    *("rate_limit_error", "billing_error", "invalid_request_error", "permission_error", "not_found_error"),
)
EMULATOR = (
    "--batch-seconds",
    str(BATCH_SECONDS),
    "--cancel-seconds",
    str(CANCEL_SECONDS),
    "--now",
    "2026-11-21T12:00:00Z",
)
pytestmark = pytest.mark.usefixtures("stopped_clock")


def request(custom_id="a", **params):
    messages = [{"role": "user", "content": f"Tell me of {custom_id}."}]
    return {
        "custom_id": custom_id,
        "params": {"model": "claude-haiku-4-5", "max_tokens": 500, "messages": messages, **params},
    }


def requests(count):
    return [request(f"row-{at}") for at in range(count)]


def rows(sdk, batch_id):
    return {row.custom_id: row.result for row in sdk.messages.batches.results(batch_id)}


def strictly(kind, data):
    """Parse as the SDK's type and insist on every value; its own client constructs without checking."""
    parsed = kind.model_validate_json(data if isinstance(data, bytes | str) else json.dumps(data), strict=True)
    assert not parsed.model_extra
    return parsed


def check_schema(name, data):
    if not SCHEMA.exists():
        pytest.skip("the published schema is not at hand")
    document = json.loads(SCHEMA.read_text())
    for schema in document["components"]["schemas"].values():
        # The document requires what has a default; the wire leaves it out.
        properties = schema.get("properties", {})
        schema["required"] = [key for key in schema.get("required", ()) if "default" not in properties.get(key, {})]
    jsonschema.validate(data, {"$ref": f"#/components/schemas/{name}", **document}, jsonschema.Draft202012Validator)


def test_a_fresh_batch_is_in_progress_with_everything_processing(sdk):
    batch = sdk.messages.batches.create(requests=requests(3))
    assert batch.processing_status == "in_progress"
    assert batch.request_counts.to_dict() == {
        "processing": 3, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0
    }  # fmt: skip
    assert (batch.expires_at - batch.created_at).total_seconds() == DAY
    assert batch.results_url is batch.ended_at is batch.archived_at is batch.cancel_initiated_at is None


def test_the_wire_has_the_key_order_and_timestamps_of_the_api(http, emulator):
    emulator.clock(now="2026-11-21T12:00:00Z")
    text = http.post(BATCHES, json={"requests": requests(1)}).text
    assert list(json.loads(text)) == [
        "id", "type", "processing_status", "request_counts", "ended_at", "created_at", "expires_at", "archived_at",
        "cancel_initiated_at", "results_url",
    ]  # fmt: skip
    assert '"created_at":"2026-11-21T12:00:00.000000+00:00"' in text
    assert json.loads(text)["id"].startswith("msgbatch_01")


def test_a_batch_ends_when_the_clock_says_so(sdk, emulator):
    batch = sdk.messages.batches.create(requests=requests(3))
    emulator.advance(BATCH_SECONDS - 1)
    assert sdk.messages.batches.retrieve(batch.id).processing_status == "in_progress"
    emulator.advance(1)
    ended = sdk.messages.batches.retrieve(batch.id)
    assert ended.processing_status == "ended"
    assert ended.request_counts.succeeded == 3
    assert (ended.ended_at - ended.created_at).total_seconds() == BATCH_SECONDS
    assert ended.results_url == f"{emulator.base_url}{BATCHES}/{batch.id}/results"


def test_every_object_parses_strictly_and_fits_the_published_schema(http, emulator):
    emulator.faults(*({"fault": "row", "outcome": outcome, "match": f"^{outcome}$"} for outcome in OUTCOMES))
    odd = [*map(request, OUTCOMES), request("bad", model="claude-nope")]
    created = http.post(BATCHES, json={"requests": [*requests(40), *odd]})
    emulator.advance(BATCH_SECONDS)
    retrieved = http.get(f"{BATCHES}/{created.json()['id']}")
    page = http.get(BATCHES)
    for batch in (created.json(), retrieved.json(), page.json()["data"][0]):
        strictly(MessageBatch, batch)
        check_schema("MessageBatch", batch)
    check_schema("ListResponse_MessageBatch_", page.json())
    lines = [json.loads(line) for line in http.get(f"{BATCHES}/{created.json()['id']}/results").content.splitlines()]
    assert len(lines) == 40 + len(odd)
    for line in lines:
        strictly(MessageBatchIndividualResponse, line)
        check_schema("MessageBatchIndividualResponse", line)


def test_results_are_one_line_for_each_request_in_another_order_that_repeats(http, emulator):
    batch_id = http.post(BATCHES, json={"requests": requests(50)}).json()["id"]
    emulator.advance(BATCH_SECONDS)
    first, again = (http.get(f"{BATCHES}/{batch_id}/results") for _ in range(2))
    assert first.headers["content-type"] == "application/x-jsonl"
    assert first.headers["content-disposition"] == f'attachment; filename="{batch_id}_results.jsonl"'
    assert first.content == again.content
    ids = [json.loads(line)["custom_id"] for line in first.content.split(b"\n") if line]
    assert sorted(ids) == sorted(f"row-{at}" for at in range(50))
    assert ids != [f"row-{at}" for at in range(50)]


def test_results_before_the_end_are_not_found(http):
    batch_id = http.post(BATCHES, json={"requests": requests(1)}).json()["id"]
    answer = http.get(f"{BATCHES}/{batch_id}/results")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "type": "not_found_error", "message": f"Message Batch {batch_id} has no available results."
    }  # fmt: skip
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/results")])
def test_an_unknown_batch_is_not_found(http, method, path):
    answer = http.request(method, f"{BATCHES}/msgbatch_01nope{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "Message Batch msgbatch_01nope not found."


def test_a_running_batch_suggests_when_to_look_again_and_an_ended_one_does_not(http, emulator):
    batch_id = http.post(BATCHES, json={"requests": requests(1)}).json()["id"]
    assert http.get(f"{BATCHES}/{batch_id}").headers["retry-after"] == "10"
    emulator.advance(BATCH_SECONDS)
    assert "retry-after" not in http.get(f"{BATCHES}/{batch_id}").headers


def test_every_answer_carries_the_headers_of_the_api_and_the_emulated_date(http, emulator):
    emulator.clock(now="2027-01-02T03:04:05Z")
    for answer in (http.get(BATCHES), http.get(f"{BATCHES}/msgbatch_nope"), http.get("/v1/nowhere")):
        assert answer.headers["request-id"].startswith("req_")
        assert parsedate_to_datetime(answer.headers["date"]).isoformat() == "2027-01-02T03:04:05+00:00"
        assert answer.headers["anthropic-organization-id"]
        assert answer.headers["anthropic-workspace-id"].startswith("wrkspc_")
        assert int(answer.headers["anthropic-ratelimit-requests-limit"]) == 20_000
    assert answer.json()["request_id"] == answer.headers["request-id"]


def test_a_cancelled_batch_keeps_what_was_finished_and_cancels_the_rest(sdk, emulator):
    batch = sdk.messages.batches.create(requests=requests(40))
    emulator.advance(BATCH_SECONDS / 4)
    canceling = sdk.messages.batches.cancel(batch.id)
    assert canceling.processing_status == "canceling"
    assert canceling.cancel_initiated_at is not None
    assert canceling.request_counts.processing == 40
    emulator.advance(CANCEL_SECONDS)
    ended = sdk.messages.batches.retrieve(batch.id)
    assert (ended.processing_status, ended.request_counts.succeeded, ended.request_counts.canceled) == ("ended", 10, 30)
    kinds = [result.type for result in rows(sdk, batch.id).values()]
    assert (kinds.count("succeeded"), kinds.count("canceled")) == (10, 30)


def test_a_cancel_can_come_too_late_for_every_row(sdk, emulator):
    emulator.fault("late_cancel")
    batch = sdk.messages.batches.create(requests=requests(5))
    assert sdk.messages.batches.cancel(batch.id).processing_status == "canceling"
    emulator.advance(CANCEL_SECONDS)
    ended = sdk.messages.batches.retrieve(batch.id)
    assert (ended.processing_status, ended.request_counts.succeeded, ended.request_counts.canceled) == ("ended", 5, 0)
    assert {result.type for result in rows(sdk, batch.id).values()} == {"succeeded"}


def test_a_clock_set_back_tells_nothing_of_before_a_batch_was_made(sdk, emulator):
    batch = sdk.messages.batches.create(requests=requests(5))
    emulator.advance(-3600)
    assert sdk.messages.batches.list().data == [sdk.messages.batches.retrieve(batch.id)] == [batch]
    canceling = sdk.messages.batches.cancel(batch.id)
    assert canceling.cancel_initiated_at == batch.created_at
    emulator.advance(3600 + CANCEL_SECONDS)
    assert sdk.messages.batches.retrieve(batch.id).request_counts.canceled == 5


def test_cancelling_again_or_after_the_end_changes_nothing(sdk, emulator):
    batch = sdk.messages.batches.create(requests=requests(2))
    first = sdk.messages.batches.cancel(batch.id)
    emulator.advance(1)
    assert sdk.messages.batches.cancel(batch.id) == first
    emulator.advance(CANCEL_SECONDS)
    ended = sdk.messages.batches.retrieve(batch.id)
    assert sdk.messages.batches.cancel(batch.id) == ended


def test_what_is_left_after_a_day_expires(sdk, emulator):
    emulator.fault("slow_batch", seconds=4 * DAY)
    batch = sdk.messages.batches.create(requests=requests(40))
    emulator.advance(DAY - 1)
    assert sdk.messages.batches.retrieve(batch.id).processing_status == "in_progress"
    emulator.advance(1)
    ended = sdk.messages.batches.retrieve(batch.id)
    assert ended.ended_at == ended.expires_at
    assert (ended.request_counts.succeeded, ended.request_counts.expired) == (10, 30)
    kinds = [result.type for result in rows(sdk, batch.id).values()]
    assert (kinds.count("succeeded"), kinds.count("expired")) == (10, 30)


def test_results_are_gone_29_days_after_creation_and_the_batch_is_not(sdk, emulator):
    batch = sdk.messages.batches.create(requests=requests(1))
    emulator.advance(29 * DAY - 1)
    assert len(rows(sdk, batch.id)) == 1
    emulator.advance(1)
    archived = sdk.messages.batches.retrieve(batch.id)
    assert (archived.archived_at - archived.created_at).days == 29
    with pytest.raises(anthropic.NotFoundError, match="has no available results"):
        rows(sdk, batch.id)


def test_a_running_batch_cannot_be_deleted_and_an_ended_one_is_gone(sdk, emulator):
    batch = sdk.messages.batches.create(requests=requests(1))
    with pytest.raises(anthropic.BadRequestError, match="Consider canceling the batch instead"):
        sdk.messages.batches.delete(batch.id)
    emulator.advance(BATCH_SECONDS)
    deleted = sdk.messages.batches.delete(batch.id)
    assert (deleted.id, deleted.type) == (batch.id, "message_batch_deleted")
    assert list(sdk.messages.batches.list()) == []
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.batches.retrieve(batch.id)


def test_workspaces_do_not_see_each_other_and_both_headers_name_the_same_one(sdk, http, emulator):
    batch = sdk.messages.batches.create(requests=requests(1))
    assert http.get(f"{BATCHES}/{batch.id}").status_code == 200
    stranger = anthropic.Anthropic(api_key="another-key", base_url=emulator.base_url, max_retries=0)
    assert list(stranger.messages.batches.list()) == []
    with pytest.raises(anthropic.NotFoundError):
        stranger.messages.batches.retrieve(batch.id)


def test_the_beta_twin_and_both_versions_reach_the_same_batches(sdk, http):
    batch = sdk.beta.messages.batches.create(requests=requests(1), betas=["output-300k-2026-03-24"])
    old = http.get(f"{BATCHES}/{batch.id}?beta=true", headers={"anthropic-version": "2023-06-01"})
    assert old.json()["id"] == batch.id


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "limit: Input should be greater than or equal to 1"),
        ("limit=1001", "limit: Input should be less than or equal to 1000"),
        ("limit=x", "limit: Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_a_wrong_limit_is_refused(http, query, message):
    answer = http.get(f"{BATCHES}?{query}")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_live_counts_move_and_end_where_the_batch_does():
    with Emulator("--live-counts", "--batch-seconds", "100") as emulator:
        emulator.clock(freeze=True)
        with anthropic.Anthropic(api_key="k", base_url=emulator.base_url) as sdk:
            batch = sdk.messages.batches.create(requests=requests(10))
            seen = []
            for _ in range(5):
                counts = sdk.messages.batches.retrieve(batch.id).request_counts
                assert counts.processing + counts.succeeded == 10
                seen.append(counts.succeeded)
                emulator.advance(25)
    assert seen == [0, 2, 5, 7, 10]


def test_a_range_of_seconds_draws_another_duration_for_each_batch():
    with Emulator("--batch-seconds", "20-60", "--cancel-ended", "error") as emulator:
        emulator.clock(freeze=True)
        with anthropic.Anthropic(api_key="k", base_url=emulator.base_url) as sdk:
            for _ in range(8):
                sdk.messages.batches.create(requests=requests(1))
            emulator.advance(60)
            batches = list(sdk.messages.batches.list())
            durations = {(batch.ended_at - batch.created_at).total_seconds() for batch in batches}
            assert len(durations) == 8
            assert all(20 <= duration <= 60 for duration in durations)
            with pytest.raises(anthropic.BadRequestError, match="already ended"):
                sdk.messages.batches.cancel(batches[0].id)


def test_a_live_message_parses_strictly_and_is_of_the_standard_tier(http):
    answer = http.post("/v1/messages", json=request()["params"])
    assert strictly(Message, answer.content).usage.service_tier == "standard"
