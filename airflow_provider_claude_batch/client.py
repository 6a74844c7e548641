"""The Message Batches API over HTTP: the only place that touches the SDK."""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Literal, Self, TypeVar

import anthropic
import httpx2
import msgspec
from anthropic.types.message_count_tokens_params import MessageCountTokensParams

from airflow_provider_claude_batch import batch as batches
from airflow_provider_claude_batch import credentials, redirect
from airflow_provider_claude_batch.batch import Batch, Page
from airflow_provider_claude_batch.errors import (
    ApiRefused,
    ApiUnavailable,
    BatchGone,
    ClaudeBatchError,
    FateUnknown,
    Misconfigured,
    NotPermitted,
    QueueFull,
)
from airflow_provider_claude_batch.result import Message, is_cut
from airflow_provider_claude_batch.roll_call import Answer, Ask, AskForPage

T = TypeVar("T")

_BATCHES = "/v1/messages/batches"
_CREATE_TIMEOUT = httpx2.Timeout(600.0, connect=10.0, write=60.0)
_CALL_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_RECENT, PAGE = 100, 1_000
_ONCE: Any = {"timeout": _CALL_TIMEOUT, "max_retries": 0}
_SPEND_CODES = {"enforced_spend_limit_reached", "contract_spend_limit_reached", "ramp_limit_exceeded"}
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_DOUBTFUL = {408, 409}
_JUMP = timedelta(seconds=5)
# Seconds by a clock that nobody sets; on Linux it also counts what the machine slept.
_seconds = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
_STAY: Any = {"follow_redirects": False}  # the SDK would send requests, and headers of ours, to any other host


# At DEBUG the SDK logs whole requests, prompts included, and at INFO its HTTP library a line for every call.
logging.getLogger("anthropic").setLevel(logging.INFO)
logging.getLogger("httpx2").setLevel(logging.WARNING)


class _TokenCount(msgspec.Struct):
    input_tokens: int


_token_counts = msgspec.json.Decoder(_TokenCount)
_messages = msgspec.json.Decoder(Message)


class _UploadStopped(Exception):
    """The upload ran into its deadline, so the API cannot have taken the batch."""


class _Upload:
    """A body that stops where it is late, and can be read again where a gateway has moved the path."""

    def __init__(self, body: Iterable[bytes], is_late: Callable[[], bool]) -> None:
        self._body, self._is_late = body, is_late

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            if self._is_late():
                raise _UploadStopped
            yield chunk


class Client:
    """Talk to the API with the credentials of one connection."""

    def __init__(self, sdk: anthropic.Anthropic, conn_id: str) -> None:
        self._sdk = credentials.checked(sdk, conn_id)
        self._conn_id = conn_id
        self._zero: datetime | None = None
        self._wall_zero = _wall_zero()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sdk.close()

    def now(self) -> datetime:
        """Tell the time by the API's own clock: what it said last, and the seconds since then.

        If the clock of this machine has jumped meanwhile, the machine may have slept: the API is asked again.
        """
        if self._zero is None or abs(_wall_zero() - self._wall_zero) > _JUMP:
            self.newest()
            self._wall_zero = _wall_zero()
        if self._zero is None:
            self._zero = self._wall_zero  # the API's answers bear no date
        return self._zero + timedelta(seconds=_seconds())

    def create(self, body: Iterable[bytes], length: int, betas: Iterable[str] = (), *, until: datetime) -> Batch:
        """Submit a batch once; an answer that never came is FateUnknown, never another try.

        The upload itself stops at a moment that was written down before: later, nothing of it can arrive any more.
        """
        headers = {"content-type": "application/json", "content-length": str(length), **_beta_header(betas)}
        options = {"headers": headers, "max_retries": 0, "timeout": _CREATE_TIMEOUT}
        content = self._stopping(body, until)
        return self._call(batches.decode, "post", _BATCHES, options, create=True, content=content)

    def retrieve(self, batch_id: str) -> Batch:
        """Ask how one batch stands, with the SDK's retries."""
        return self._call(batches.decode, "get", f"{_BATCHES}/{batch_id}", {"timeout": _CALL_TIMEOUT}, batch_id)

    def look(self, batch_id: str) -> Batch:
        """Ask once: who waits anyway asks again by itself."""
        return self._call(batches.decode, "get", f"{_BATCHES}/{batch_id}", _ONCE, batch_id)

    def page(self, after_id: str | None = None) -> Page:
        """List up to a thousand batches, newest first."""
        return self._call(batches.decode_page, "get", _BATCHES, _page_options(after_id))

    def answer(self, ask: Ask) -> Answer:
        """Answer what a roll call asks; an error is an answer too."""
        try:
            return self.page(ask.after_id) if isinstance(ask, AskForPage) else self.look(ask.id)
        except ClaudeBatchError as error:
            return error

    def recent(self) -> Iterator[Batch]:
        """List the workspace's batches, newest first, as far as they are asked for."""
        after: dict[str, str] = {}
        while True:
            options = {"timeout": _CALL_TIMEOUT, "params": {"limit": _RECENT, **after}}
            page = self._call(batches.decode_page, "get", _BATCHES, options)
            yield from page.data
            if not page.has_more or page.last_id is None:
                return
            after = {"after_id": page.last_id}

    def newest(self) -> Batch | None:
        """Return the first batch of the list, and read the API's clock."""
        page = self._call(batches.decode_page, "get", _BATCHES, {"timeout": _CALL_TIMEOUT, "params": {"limit": 1}})
        return page.data[0] if page.data else None

    def cancel(self, batch_id: str) -> Batch:
        """Ask the API to stop a batch; what was finished by then stays, and is paid."""
        path = f"{_BATCHES}/{batch_id}/cancel"
        return self._call(batches.decode, "post", path, {"timeout": _CALL_TIMEOUT}, batch_id)

    def results(self, batch_id: str, results_url: str | None = None) -> Generator[bytes, None, None]:
        """Stream the lines of a batch's results, in the order in which the API sends them."""
        with _translated(self._conn_id, batch_id):
            path = self._path(results_url) if results_url else f"{_BATCHES}/{batch_id}/results"
            options = {"timeout": _CALL_TIMEOUT, "headers": {"accept": "application/x-jsonl"}}
            response = self._send("get", path, options, stream=True, stream_cls=anthropic.Stream[Any])
            with closing(response):
                yield from _lines(response.iter_bytes())

    def count_tokens(self, params: Mapping[str, Any], betas: Iterable[str] = ()) -> int:
        """Count the input tokens of one request, free of charge; the API checks its model and shape on the way."""
        countable = MessageCountTokensParams.__annotations__.keys() & params.keys()
        options = {"headers": _beta_header(betas), "timeout": _CALL_TIMEOUT}
        body = {key: params[key] for key in countable}
        return self._call(_token_counts.decode, "post", "/v1/messages/count_tokens", options, body=body).input_tokens

    def message(self, params: Mapping[str, Any], betas: Iterable[str] = ()) -> Message:
        """Have one request answered live, once, at the full price."""
        options = {"headers": _beta_header(betas), "max_retries": 0, "timeout": _CREATE_TIMEOUT}
        return self._call(_messages.decode, "post", "/v1/messages", options, body=dict(params))

    def _call(
        self,
        decode: Callable[[bytes], T],
        method: Literal["get", "post"],
        path: str,
        options: Any,
        batch_id: str | None = None,
        *,
        create: bool = False,
        **content: Any,
    ) -> T:
        with _translated(self._conn_id, batch_id, create=create):
            try:
                response = self._send(method, path, options, **content)
            except anthropic.APIStatusError as error:
                self._read_clock(error.response)
                raise
            self._read_clock(response)
            return decode(response.content)

    def _send(self, method: Literal["get", "post"], path: str, options: Any, **content: Any) -> Any:
        """Call, and follow a gateway that has moved the path on its own host."""
        for _ in range(redirect.MOST):
            try:
                return getattr(self._sdk, method)(path, cast_to=httpx2.Response, options=options | _STAY, **content)
            except anthropic.APIStatusError as error:
                path, options = _moved(error, self._conn_id), {**options, "params": {}}
        raise redirect.refuse_circle(self._conn_id)

    def _path(self, url: str) -> str:
        """Take the path of an address alone, as our own host knows it: the key goes nowhere else."""
        told, base = httpx2.URL(url), self._sdk.base_url
        path = told.raw_path.partition(b"?")[0]
        rest = path.removeprefix(base.raw_path)  # of a gateway, which may have put its own path in front, or not
        is_behind = told.host == base.host or rest.startswith(b"v1/")
        return "/" + (rest if is_behind else path).lstrip(b"/").decode()

    def _stopping(self, body: Iterable[bytes], until: datetime) -> Iterable[bytes]:
        return _Upload(body, lambda: self.now() > until)

    def _read_clock(self, response: httpx2.Response) -> None:
        """Note the API's time at our second zero; it tells whole seconds, so of close readings the later is truer."""
        with suppress(KeyError, ValueError):
            zero = parsedate_to_datetime(response.headers["date"]) - timedelta(seconds=_seconds())
            is_about_the_same = self._zero is not None and abs(zero - self._zero) < timedelta(seconds=1)
            self._zero = max(zero, self._zero) if self._zero is not None and is_about_the_same else zero
            self._wall_zero = _wall_zero()


class AsyncClient:
    """What a poller asks, without blocking its event loop."""

    def __init__(self, sdk: anthropic.AsyncAnthropic, conn_id: str) -> None:
        self._sdk = credentials.checked(sdk, conn_id)
        self._conn_id = conn_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._sdk.close()

    async def page(self, after_id: str | None = None) -> Page:
        """List up to a thousand batches, newest first."""
        with _translated(self._conn_id):
            response = await self._send("get", _BATCHES, _page_options(after_id))
            return batches.decode_page(response.content)

    async def look(self, batch_id: str) -> Batch:
        """Ask once: who waits anyway asks again by itself."""
        with _translated(self._conn_id, batch_id):
            response = await self._send("get", f"{_BATCHES}/{batch_id}", _ONCE)
            return batches.decode(response.content)

    async def answer(self, ask: Ask) -> Answer:
        """Answer what a roll call asks; an error is an answer too."""
        try:
            return await self.page(ask.after_id) if isinstance(ask, AskForPage) else await self.look(ask.id)
        except ClaudeBatchError as error:
            return error

    async def cancel(self, batch_id: str) -> Batch:
        """Ask the API to stop a batch; what was finished by then stays, and is paid."""
        with _translated(self._conn_id, batch_id):
            response = await self._send("post", f"{_BATCHES}/{batch_id}/cancel", _ONCE)
            return batches.decode(response.content)

    async def _send(self, method: Literal["get", "post"], path: str, options: Any) -> httpx2.Response:
        """Call, and follow a gateway that has moved the path on its own host."""
        for _ in range(redirect.MOST):
            try:
                call = getattr(self._sdk, method)
                response: httpx2.Response = await call(path, cast_to=httpx2.Response, options=options | _STAY)
            except anthropic.APIStatusError as error:
                path, options = _moved(error, self._conn_id), {**options, "params": {}}
            else:
                return response
        raise redirect.refuse_circle(self._conn_id)


def _moved(error: anthropic.APIStatusError, conn_id: str) -> str:
    """Return where a gateway has moved what was called; anything but a redirect is an error as before."""
    if not error.response.is_redirect:
        raise error
    called = error.response.request
    location = error.response.headers.get("location", "")
    is_post = called.method == "POST"
    return redirect.find_target(error.status_code, location, str(called.url), conn_id, is_post=is_post)


def _wall_zero() -> datetime:
    """Reckon when our seconds began by the clock of this machine: it changes only if that clock jumps."""
    return datetime.now(UTC) - timedelta(seconds=_seconds())


def _page_options(after_id: str | None) -> Any:
    return {**_ONCE, "params": {"limit": PAGE, **({"after_id": after_id} if after_id else {})}}


def _beta_header(betas: Iterable[str]) -> dict[str, str]:
    names = ",".join(betas)
    return {"anthropic-beta": names} if names else {}


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split on line feeds alone: the texts inside may hold other line separators."""
    begun: list[bytes] = []
    for chunk in chunks:
        first, *lines = chunk.split(b"\n")
        begun.append(first)
        if lines:
            lines[:0], begun = [b"".join(begun)], [lines.pop()]
            yield from filter(None, lines)
    rest = b"".join(begun)
    if rest.strip():
        if is_cut(rest):
            raise ApiUnavailable("The results ended in the middle of a line.")
        yield rest


def output_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Ask for answers that fit a schema, written as the API takes it: what it cannot keep to becomes a description."""
    try:
        return {"type": "json_schema", "schema": anthropic.transform_schema(schema)}
    except (AssertionError, TypeError, ValueError) as error:
        raise Misconfigured(f"columns= has a schema that the API does not take: {error}") from None


@contextmanager
def building(conn_id: str) -> Iterator[None]:
    """Have the SDK's client made; what it misses in the connection is one sentence."""
    try:
        yield
    except (anthropic.AnthropicError, httpx2.InvalidURL, AttributeError, TypeError, ValueError) as error:
        raise Misconfigured(f"Connection {conn_id!r} does not make a client of the API: {error}") from None


@contextmanager
def _translated(conn_id: str, batch_id: str | None = None, *, create: bool = False) -> Iterator[None]:
    """Turn the SDK's errors into ours."""
    try:
        yield
    except anthropic.APIStatusError as error:
        credentials.remember_tokens(error.request.headers)
        raise _status_error(error, conn_id, batch_id, create=create) from None
    except (anthropic.APIConnectionError, httpx2.RequestError) as error:
        credentials.remember_tokens(error.request.headers)
        raise _connection_error(error, conn_id, create=create) from None
    except TypeError as error:
        if "authentication" not in str(error):
            raise
        raise credentials.no_key(conn_id) from None
    except (msgspec.DecodeError, UnicodeDecodeError, anthropic.AnthropicError, httpx2.InvalidURL) as error:
        cls = FateUnknown if create else ApiUnavailable
        raise cls(f"The API's answer could not be read ({type(error).__name__}).") from None


def _connection_error(
    error: anthropic.APIConnectionError | httpx2.RequestError, conn_id: str, *, create: bool
) -> ClaudeBatchError:
    cause, request = error.__cause__ or error, error.request
    if isinstance(cause, _UploadStopped):
        return ApiUnavailable("The upload was too slow, and was stopped before the API could take the batch.")
    if isinstance(cause, ClaudeBatchError):
        return cause  # met while the body was read, so it never arrived whole
    if isinstance(cause, httpx2.UnsupportedProtocol):
        return Misconfigured(f"The host of connection {conn_id!r} is no address: write it with http:// or https://.")
    if isinstance(cause, httpx2.LocalProtocolError) and "header" in str(cause):
        return Misconfigured(f"A header of connection {conn_id!r} cannot be sent: correct its password and extra.")
    reason = f"{type(cause).__name__}: {str(cause).rstrip('.')}" if str(cause) else type(cause).__name__
    if create and not isinstance(cause, _NEVER_SENT):
        return FateUnknown(f"The batch was sent, and the answer never came ({reason}).")
    where = f" at {request.url.scheme}://{request.url.netloc.decode()}"
    return ApiUnavailable(f"The API{where} (connection {conn_id!r}) cannot be reached: {reason}.")


def _status_error(
    error: anthropic.APIStatusError, conn_id: str, batch_id: str | None, *, create: bool
) -> ClaudeBatchError:
    status, said = error.status_code, _said(error)
    if create and (status >= 500 or status in _DOUBTFUL):
        return FateUnknown(f"The batch was sent, and the API answered {status}: {said}.")
    if status == 404 and batch_id:
        return BatchGone(f"The API does not know batch {batch_id}, or has no results of it: {said}.")
    if status == 429 and not _is_about_money(error):
        return QueueFull(f"The API answered 429: {said}.", retry_after=_retry_after(error))
    if not _is_about_money(error) and (status >= 500 or status in _DOUBTFUL):
        return ApiUnavailable(f"The API answered {status}: {said}.", retry_after=_retry_after(error))
    return (NotPermitted if status == 403 else ApiRefused)(_refusal(error, conn_id))


def _refusal(error: anthropic.APIStatusError, conn_id: str) -> str:
    status, said = error.status_code, _said(error)
    if _is_about_money(error):
        return f"The API refused to spend more: {said}. Raise the limit or settle the bill, then clear this task."
    if status == 401:
        return f"The API does not accept the key of connection {conn_id!r}: {said}. Put a valid key into its password."
    if status == 404 and said.startswith("model:"):
        model = said.removeprefix("model:").strip()
        return f"There is no model {model!r} for connection {conn_id!r}: correct the model in defaults or params."
    return f"The API refused ({status}): {said}."


def _said(error: anthropic.APIStatusError) -> str:
    return (error.api_message or "and gave no reason").rstrip(".")


def _is_about_money(error: anthropic.APIStatusError) -> bool:
    said = error.api_message or ""
    return error.status_code == 402 or error.error_code in _SPEND_CODES or "API usage limits" in said


def _retry_after(error: anthropic.APIStatusError) -> float | None:
    try:
        return float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
