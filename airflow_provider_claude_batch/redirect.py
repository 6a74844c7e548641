"""Redirects: where a gateway sends a call on to, and whether the key and the requests may follow."""

from urllib.parse import SplitResult, urljoin, urlsplit

from airflow_provider_claude_batch.errors import ApiRefused, Misconfigured

MOST = 5
_SAME_CALL = {307, 308}  # all others let a client turn a POST into a GET, and may come after it was carried out
_PORTS = {"http": 80, "https": 443}


def find_target(status: int, location: str, url: str, conn_id: str, *, is_post: bool) -> str:
    """Return the address to call instead; where that is not on the same host, a final error."""
    answer = f"The host of connection {conn_id!r} answers with a redirect ({status})"
    if is_post and status not in _SAME_CALL:
        raise Misconfigured(
            f"{answer}, which does not say whether the call was carried out: correct the host in the connection. The "
            "next try of a submission looks for a batch that may have been accepted."
        )
    try:
        target = urljoin(url, location)
        place = urlsplit(target)
        origin = _origin(place)
    except ValueError:
        location, origin = "", None
    if not location:
        raise ApiRefused(f"{answer} that leads nowhere: correct the host in the connection.")
    if origin != _origin(urlsplit(url)):
        raise ApiRefused(
            f"{answer} to {_shown(place)}, and the key is never sent to another address: correct the host in the "
            "connection."
        )
    return target


def refuse_circle(conn_id: str) -> ApiRefused:
    """Say that one redirect led to the next."""
    return ApiRefused(
        f"The host of connection {conn_id!r} redirects in a circle ({MOST} times for one call): correct the host in "
        "the connection."
    )


def _origin(place: SplitResult) -> tuple[str, str | None, int | None]:
    return place.scheme, place.hostname, place.port or _PORTS.get(place.scheme)


def _shown(place: SplitResult) -> str:
    """Name a host, without a password and whatever else its address may hold."""
    host = f"[{place.hostname}]" if ":" in (place.hostname or "") else place.hostname
    return f"{place.scheme}://{host}" + (f":{place.port}" if place.port else "")
