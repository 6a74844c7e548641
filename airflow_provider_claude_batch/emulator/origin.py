"""Keeps web pages out: a browser on this machine would let any of them call the emulator."""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_provider_claude_batch.emulator.errors import ApiError

ANY = "*"
_REQUEST_ID = "req_refused"


class OwnHostsOnly:
    """Refuse calls whose `Host` or `Origin` is neither of this machine nor allowed by an option.

    A foreign `Host` is a page that rebound its own name to this machine, a foreign `Origin` one that calls across
    sites.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 instead of the application."""
        if scope["type"] == "http" and (foreign := self._foreign(scope)):
            said = f"{foreign} may not call the emulator; start it with --allow-host to let calls from elsewhere in"
            await ApiError(403, said).response(_REQUEST_ID)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _foreign(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        arrived_at = (scope.get("server") or ("",))[0]  # an address in place of a name cannot be rebound
        if host is not None and not self._is_own(f"//{host}", arrived_at):
            return f"Host {host!r}"
        if origin is not None and not self._is_own(origin, arrived_at):
            return f"Origin {origin!r}"
        return None

    def _is_own(self, address: str, arrived_at: str) -> bool:
        if ANY in self._allowed:
            return True
        try:
            name = (urlsplit(address).hostname or "").rstrip(".")
        except ValueError:
            return False
        return name == "localhost" or name in self._allowed or name == arrived_at or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
