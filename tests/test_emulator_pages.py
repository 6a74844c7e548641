"""The list of batches, page by page."""

import anthropic
import httpx2
import pytest
from emulator import HEADERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BATCHES = "/v1/messages/batches"
REQUEST = {
    "custom_id": "a",
    "params": {"model": "claude-haiku-4-5", "max_tokens": 500, "messages": [{"role": "user", "content": "Hi"}]},
}


@pytest.fixture(name="listed", scope="module")
def _listed(process):
    """Twenty-five ids, newest first; the third oldest is deleted."""
    process.reset()
    process.clock(freeze=True)
    with httpx2.Client(base_url=process.base_url, headers=HEADERS | {"x-api-key": "list-key"}, timeout=60) as http:
        ids = [http.post(BATCHES, json={"requests": [REQUEST]}).json()["id"] for _ in range(26)]
        process.advance(60)
        http.delete(f"{BATCHES}/{ids.pop(2)}")
        yield http, ids[::-1]


ends = st.none() | st.integers(0, 24)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(limit=st.none() | st.integers(1, 30), after=ends, before=ends)
def test_any_page_is_a_slice_of_the_list(listed, limit, after, before):
    http, ids = listed
    query = {"limit": limit, "after_id": None if after is None else ids[after]}
    query["before_id"] = None if before is None else ids[before]
    page = http.get(BATCHES, params={name: value for name, value in query.items() if value is not None}).json()
    between = ids[0 if after is None else after + 1 : before]
    size = limit or 20
    expected = between[-size:] if before is not None and after is None else between[:size]
    assert [batch["id"] for batch in page["data"]] == expected
    assert page["has_more"] == (len(between) > size)
    assert (page["first_id"], page["last_id"]) == ((expected[0], expected[-1]) if expected else (None, None))


def test_the_sdk_pages_through_everything_in_both_directions(listed, process):
    _, ids = listed
    with anthropic.Anthropic(api_key="list-key", base_url=process.base_url) as sdk:
        assert [batch.id for batch in sdk.messages.batches.list(limit=4)] == ids
        back = [batch.id for batch in sdk.messages.batches.list(limit=4, before_id=ids[-1])]
        assert sorted(back) == sorted(ids[:-1])
