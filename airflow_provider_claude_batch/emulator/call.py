"""One call from its first byte to its answer: body, key, version, faults, headers, journal."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import IO, NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from airflow_provider_claude_batch.emulator.chance import new_id
from airflow_provider_claude_batch.emulator.clock import moment
from airflow_provider_claude_batch.emulator.errors import ApiError, HungUp, Stopping, invalid, no_such_batch
from airflow_provider_claude_batch.emulator.faults import Fault
from airflow_provider_claude_batch.emulator.journal import Entry
from airflow_provider_claude_batch.emulator.rules import CLASSIC, REVISED
from airflow_provider_claude_batch.emulator.stream import left, wait
from airflow_provider_claude_batch.emulator.world import World

ORGANIZATION = "5f7e1c2a-0000-4000-8000-656d756c6174"
REQUESTS_LIMIT = 20_000
SMALL_BODY = 32_000_000
IN_MEMORY = 1 << 20
BEFORE = frozenset({"status", "drop_before", "hang", "not_found", "queue_full"})
AFTER = frozenset({"status_after_accept", "drop_after_accept", "hang_after_accept"})


class Call:
    """What is known of a call while it is answered."""

    def __init__(self, world: World, request: Request, operation: str) -> None:
        self.world, self.request, self.operation = world, request, operation
        self.batch_id: str | None = request.path_params.get("batch_id")
        self.request_id = new_id("req_")
        self.now = world.clock.now()
        self.workspace: str | None = None
        self.requests: int | None = None
        self.body: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed when answered
        self.body_bytes = 0
        self.recorded = False

    @property
    def betas(self) -> frozenset[str]:
        named = ",".join(self.request.headers.getlist("anthropic-beta"))
        return frozenset(beta.strip() for beta in named.split(",") if beta.strip())

    @property
    def version(self) -> str:
        return self.request.headers.get("anthropic-version", "")

    @property
    def key(self) -> str | None:
        headers = self.request.headers
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else None)

    async def receive(self, limit: int) -> None:
        """Spool the body to its end; too large a one is drained, so that the client gets to read the answer."""
        async for chunk in self.request.stream():
            self.body_bytes += len(chunk)
            if self.body_bytes <= limit:
                self.body.write(chunk)
        if self.body_bytes > limit:
            raise ApiError(413)
        self.body.seek(0)

    async def record(self, status: str) -> None:
        """Write the call into the journal, once."""
        if not self.recorded:
            self.recorded = True
            await run_in_threadpool(self.world.journal.record, self._entry(status))

    def _entry(self, status: str) -> Entry:
        headers, url = self.request.headers, self.request.url
        retries = headers.get("x-stainless-retry-count", "")
        sent = (self.requests, self.body_bytes, int(retries) if retries.isdigit() else None, headers.get("user-agent"))
        where = (self.request.method, url.path, url.query, self.operation, self.workspace)
        now = self.world.clock.now()
        return Entry(now, time.time(), *where, status, self.request_id, self.batch_id, *sent)


Endpoint = Callable[[Call], Response]


async def serve(world: World, request: Request, operation: str, endpoint: Endpoint) -> Response:
    """Answer a call, whatever becomes of it, and record it."""
    call = Call(world, request, operation)
    response, status = Response(), "failed"
    try:
        response = await _answer(call, endpoint)
        status = str(response.status_code)
    except ApiError as error:
        response, status = error.response(call.request_id), str(error.status)
    except HungUp as gone:
        status = gone.how
    except (ClientDisconnect, Stopping):
        status = "left"
    finally:
        call.body.close()
        await call.record(status)
    _stamp(call, response)
    return response


async def _answer(call: Call, endpoint: Endpoint) -> Response:
    await call.receive(call.world.settings.max_body if call.operation == "create" else SMALL_BODY)
    call.workspace = call.world.workspace(call.key)
    _check_version(call)
    await _strike_before(call)
    call.now = call.world.clock.now()
    response = await run_in_threadpool(endpoint, call)
    await _strike_after(call)
    return response


def _check_version(call: Call) -> None:
    if not call.version:
        raise invalid("anthropic-version: header is required")
    if call.version not in {CLASSIC, REVISED}:
        raise invalid(f'anthropic-version: "{call.version}" is not a valid version')


async def take(call: Call, kinds: frozenset[str]) -> Fault | None:
    """Take the fault that strikes this call now; counting it down is kept, so off the event loop."""
    if not call.world.faults.armed:
        return None
    return await run_in_threadpool(call.world.faults.take, kinds, call.operation, call.batch_id)


async def _strike_before(call: Call) -> None:
    if slow := await take(call, frozenset({"slow"})):
        await asyncio.sleep(1.0 if slow.seconds is None else slow.seconds)
    fault = await take(call, BEFORE)
    if fault is None:
        return
    if fault.fault == "not_found":
        raise no_such_batch(call.batch_id or "")
    await _strike(call, fault)


async def _strike_after(call: Call) -> None:
    if fault := await take(call, AFTER):
        await _strike(call, fault)


async def _strike(call: Call, fault: Fault) -> None:
    if fault.fault.startswith("drop"):
        await _drop(call)
    if fault.fault in {"status", "status_after_accept", "queue_full"}:
        raise fault.error()
    if fault.seconds is None:
        await call.record("hung")
    if not await wait(asyncio.ensure_future(left(call.request.receive)), fault.seconds):
        raise HungUp("hung")


async def _drop(call: Call) -> NoReturn:
    call.world.hang_up(call.request.scope, True)
    await left(call.request.receive)
    raise HungUp("dropped")


def _stamp(call: Call, response: Response) -> None:
    now = call.world.clock.now()
    response.headers["date"] = formatdate(now, usegmt=True)
    response.headers["request-id"] = call.request_id
    response.headers["anthropic-organization-id"] = ORGANIZATION
    if call.workspace:
        response.headers["anthropic-workspace-id"] = call.workspace
    response.headers["anthropic-ratelimit-requests-limit"] = str(REQUESTS_LIMIT)
    response.headers["anthropic-ratelimit-requests-remaining"] = str(REQUESTS_LIMIT - 1)
    response.headers["anthropic-ratelimit-requests-reset"] = moment(now + 60).replace("+00:00", "Z")
