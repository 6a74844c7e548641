"""Credentials: what is secret in a connection, and whether it can be sent at all."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.masking import remember

S = TypeVar("S")

_SECRET = re.compile(
    r"secret|token|passw|passphrase|pwd|key|auth(?!enticator)|credential|header|cookie|signature|dsn|connection_string",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"(file|path|url|uri|type|name)$", re.IGNORECASE)
_IN_QUERY = re.compile(r"[?&;]([^=&;]+)=([^&;#]+)")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~\w-]+", re.ASCII)
_PUBLIC_HEADERS = re.compile(r"accept|content-|user-agent|anthropic-|x-stainless-", re.IGNORECASE)
_HELD_BY_THE_SDK = ("api_key", "auth_token", "aws_secret_key", "aws_session_token")
_TOKEN_HEADERS = ("authorization", "proxy-authorization", "cookie", "x-api-key", "x-amz-security-token")


def secrets_of(connection: Any) -> set[str]:
    """Return everything in a connection of Airflow that nobody but its owner may read."""
    given = [connection.password or "", *_in_url(connection.host or "")]
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError:
        extra = {"secret": connection.extra}
    return {secret for secret in [*given, *_in_extra(extra)] if secret}


def checked(sdk: S, conn_id: str) -> S:
    """Strip the SDK's credentials, and refuse what no header can hold: HTTP would quote it in an error."""
    for name in ("api_key", "auth_token"):
        if given := getattr(sdk, name, None):
            setattr(sdk, name, given.strip())
            if not given.strip():
                raise no_key(conn_id)
            if not _can_be_sent(given.strip()):
                raise Misconfigured(
                    f"The API key of connection {conn_id!r} cannot be sent: it holds a line break, or a character that "
                    "is not ASCII. Copy the key into its password again."
                )
    headers: Mapping[str, Any] = getattr(sdk, "default_headers", {})
    for name, value in headers.items():
        if isinstance(value, str) and not (_HEADER_NAME.fullmatch(name) and _can_be_sent(value)):
            raise Misconfigured(
                f"The header {name!r} of connection {conn_id!r} cannot be sent: it begins or ends with a space, or "
                "holds a line break, or a character that is not ASCII. Correct it in the connection's extra."
            )
    held = [getattr(sdk, name, None) for name in _HELD_BY_THE_SDK]
    others = [value for name, value in headers.items() if not _PUBLIC_HEADERS.match(name)]
    remember(secret for secret in [*held, *others] if isinstance(secret, str) and secret)
    return sdk


def remember_tokens(headers: Mapping[str, str]) -> None:
    """Mask what stands in no connection: tokens that the SDK fetches by itself, and passwords made into a header."""
    remember(value for name in _TOKEN_HEADERS if (value := headers.get(name)))


def no_key(conn_id: str) -> Misconfigured:
    """Say that a connection has no credentials."""
    return Misconfigured(f"Connection {conn_id!r} has no API key: put one into its password.")


def _can_be_sent(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


def _in_extra(value: Any, name: str = "", *, in_headers: bool = False) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _in_extra(item, str(key), in_headers=in_headers or "header" in name.lower())
    elif isinstance(value, list):
        for item in value:
            yield from _in_extra(item, name, in_headers=in_headers)
    elif value is not None and not isinstance(value, bool):
        if in_headers or _is_secret(name):
            yield str(value)
        yield from _in_url(str(value))
        if str(value).lstrip().startswith("{"):  # such as the file of a service account's key, as a text
            yield from _in_extra(_decoded(str(value)))


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _in_url(text: str) -> Iterator[str]:
    """Find a password before the host, which may hold reserved characters unquoted, and tokens in the query."""
    place = text.partition("://")[2]
    if "@" in place:
        user, _, password = place.rpartition("@")[0].partition(":")
        secret = password or user
        yield from (secret, unquote(secret), f"{unquote(user)}:{unquote(password)}", *re.split("[:/?#@]", secret))
    yield from (unquote(value) for name, value in _IN_QUERY.findall(text) if _is_secret(name))
