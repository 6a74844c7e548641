"""Who may call the emulator: programs and people on this machine, and no web page that a browser here has open."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx2
import pytest
from emulator import HEADERS, Emulator

PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
CREATE = json.dumps({"requests": [{"custom_id": "a", "params": PARAMS}]})
EVERYTHING = [
    ("GET", "/v1/messages/batches"),
    ("POST", "/v1/messages/batches"),
    ("POST", "/v1/messages"),
    ("GET", "/v1/models"),
    ("GET", "/emulator/health"),
    ("GET", "/emulator/journal"),
    ("GET", "/emulator/batches/msgbatch_1/requests"),
    ("POST", "/emulator/reset"),
    ("POST", "/emulator/faults"),
    ("POST", "/emulator/clock"),
    ("DELETE", "/emulator/faults"),
    ("OPTIONS", "/emulator/reset"),
    ("GET", "/nowhere"),
]
FOREIGN = [
    "evil.example",
    "evil.example:8765",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "192.0.2.1",
    "[",
    "",
]
OWN = ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:8765", "localhost.", "[::1]:8765", "127.1.2.3"]


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
@pytest.mark.parametrize("host", FOREIGN)
def test_a_page_that_rebound_its_name_is_refused(method: str, path: str, host: str, http: Any) -> None:
    answer = http.request(method, path, headers={"host": host, "content-type": "application/json"})
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].startswith(f"Host {host!r} may not call the emulator")


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
@pytest.mark.parametrize("origin", [*(f"https://{host}" for host in FOREIGN), "null", "file://", "evil.example"])
def test_a_page_of_another_site_is_refused(method: str, path: str, origin: str, http: Any) -> None:
    answer = http.request(method, path, headers={"origin": origin, "content-type": "application/json"})
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].startswith(f"Origin {origin!r} may not call the emulator")


def test_what_is_refused_has_no_effect(http: Any, emulator: Emulator) -> None:
    http.post("/v1/messages/batches", content=CREATE).raise_for_status()
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        http.post("/emulator/reset", headers=headers)
        http.post("/v1/messages/batches", content=CREATE, headers=headers)
    assert [call["status"] for call in emulator.journal()] == [200]
    assert len(http.get("/v1/messages/batches").json()["data"]) == 1


@pytest.mark.parametrize("host", OWN)
def test_this_machine_may_call_by_any_of_its_names(host: str, http: Any) -> None:
    for headers in ({"host": host}, {"origin": f"http://{host}"}, {"host": host, "origin": f"https://{host}"}):
        assert http.get("/emulator/health", headers=headers).status_code == 200
        assert http.get("/v1/messages/batches", headers=headers).status_code == 200


def test_the_sdk_may_call_by_name(emulator: Emulator) -> None:
    url = emulator.base_url.replace("127.0.0.1", "localhost")
    with anthropic.Anthropic(api_key="test-key", base_url=url, max_retries=0) as sdk:
        batch = sdk.messages.batches.create(requests=[{"custom_id": "a", "params": PARAMS}])
        assert sdk.messages.batches.retrieve(batch.id).results_url is None
    assert batch.processing_status == "in_progress"


def test_a_call_of_http_1_0_needs_no_host(emulator: Emulator) -> None:
    port = urlsplit(emulator.base_url).port
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /emulator/health HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_it_listens_on_an_address_of_ipv6_too() -> None:
    with Emulator("--host", "::1") as emulator:
        assert emulator.base_url.startswith("http://[::1]:")
        assert emulator.health()["status"] == "ok"


# In a container


@pytest.mark.parametrize("named", [["emulator"], ["EMULATOR", "other"], ["*"]])
def test_a_name_that_is_allowed_may_be_used(named: list[str]) -> None:
    options = [word for name in named for word in ("--allow-host", name)]
    with Emulator("--host", "0.0.0.0", *options) as emulator:
        port = urlsplit(emulator.base_url).port
        for host, status in ((f"emulator:{port}", 200), ("evil.example", 200 if named == ["*"] else 403)):
            for headers in ({"host": host}, {"origin": f"http://{host}"}):
                url = f"http://127.0.0.1:{port}/v1/messages/batches"
                assert httpx2.get(url, headers=HEADERS | headers).status_code == status
        assert emulator.health()["status"] == "ok"  # by the address that it printed


# Bodies of control calls


@pytest.mark.parametrize("path", ["/emulator/reset", "/emulator/clock", "/emulator/faults"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_can_send_is_no_control(path: str, kind: str, http: Any, emulator: Emulator) -> None:
    emulator.fault("status", status=529, operation="cancel")
    before = emulator.clock(freeze=True), emulator.faults()
    body = b'{"fault": "drop_before"}' if path.endswith("faults") else b'{"advance": 5}'
    for content in (body, b""):
        answer = http.post(path, content=content, headers={"content-type": kind})
        assert (answer.status_code, "application/json" in answer.json()["error"]) == (415, True)
    assert http.post("/emulator/faults", content=body).status_code == 415
    assert (emulator.clock(), emulator.faults()) == before


def test_a_call_without_a_body_needs_no_type(http: Any) -> None:
    assert http.post("/emulator/reset").status_code == 200
    assert http.delete("/emulator/faults").status_code == 200


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_says_that_it_is_json(kind: str, http: Any) -> None:
    answer = http.post("/emulator/clock", content=b'{"freeze": true}', headers={"content-type": kind})
    assert answer.json()["frozen"] is True
