"""How the API says no: the envelope of section 3 of its documentation, and the edge's two exceptions to it."""

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

TYPES = {
    400: ("invalid_request_error", "Invalid request"),
    401: ("authentication_error", "API key is invalid."),
    402: ("billing_error", "There is a problem with your billing or payment information."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "Not found"),
    409: ("conflict_error", "The request conflicts with the current state of the resource."),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit. Please try again later."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}
BAD_GATEWAY = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    "<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
)


class ApiError(Exception):
    """An answer that is an error; what is not given is what the API usually says with this status."""

    def __init__(
        self,
        status: int,
        message: str | None = None,
        kind: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        usual_kind, usual_message = TYPES.get(
            status, TYPES[500] if status >= HTTPStatus.INTERNAL_SERVER_ERROR else TYPES[400]
        )
        self.status, self.kind, self.message = status, kind or usual_kind, message or usual_message
        self.details = details
        self.headers = ({"x-should-retry": "false"} if status == HTTPStatus.NOT_FOUND else {}) | (headers or {})
        super().__init__(f"{status} {self.kind}: {self.message}")

    def response(self, request_id: str) -> Response:
        if self.status == HTTPStatus.BAD_GATEWAY:
            return Response(BAD_GATEWAY, 502, self.headers, media_type="text/html")
        error: dict[str, Any] = {"type": self.kind, "message": self.message}
        if self.details:
            error["details"] = self.details
        envelope = {"type": "error", "error": error, "request_id": request_id}
        # The edge, not the API, refuses what is too large: no type and no request id around the error.
        body = {"error": error} if self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else envelope
        return Response(msgspec.json.encode(body), self.status, self.headers, media_type="application/json")


class HungUp(Exception):
    """The connection is gone or about to go; `how` is what the journal says of it."""

    def __init__(self, how: str) -> None:
        self.how = how
        super().__init__(how)


class Stopping(Exception):
    """Work in a thread is given up because the emulator stops."""


def no_such_batch(batch_id: str) -> ApiError:
    """Refuse an id that the workspace does not have."""
    return ApiError(404, f"Message Batch {batch_id} not found.")


def no_results(batch_id: str) -> ApiError:
    """Refuse results that are not there yet, or no longer."""
    return ApiError(404, f"Message Batch {batch_id} has no available results.")


def invalid(message: str) -> ApiError:
    """Refuse a request for what is in it."""
    return ApiError(400, message)
