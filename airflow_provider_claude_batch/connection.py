"""Connections: from an Airflow connection id to a client of the API, or to a writer of a warehouse."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.common.compat.sdk import AirflowException, BaseHook, conf, mask_secret

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.masking import remember
from airflow_provider_claude_batch.price import PRICES, PriceList
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers import Writer, find_writer
from airflow_provider_claude_batch.writers.table import Table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from airflow_provider_claude_batch.client import AsyncClient, Client

DEFAULT_CONN_ID = "anthropic_default"
_PLATFORMS = ("anthropic", "aws")
_EXTRAS = {
    "gcpbigquery": "bigquery",
    "google_cloud_platform": "bigquery",
    **{name: name for name in ("duckdb", "iceberg", "postgres", "snowflake")},
}


def open_client(conn_id: str) -> "Client":
    """Build a client with the credentials of a connection."""
    from airflow_provider_claude_batch.client import Client, building

    hook = _hook(conn_id)
    with building(conn_id):
        return Client(hook.get_conn(), conn_id)


async def open_async_client(conn_id: str, thread: ThreadPoolExecutor | None = None) -> "AsyncClient":
    """Build a client for an event loop; the SDK is imported and the connection read beside the loop.

    Each caller has its own thread: a secrets backend that hangs for one connection holds up no other.
    """
    from asgiref.sync import sync_to_async

    beside = thread or ThreadPoolExecutor(1)
    try:
        # Not asyncio.to_thread: on Airflow 3.1, asking for a connection in such a thread kills the whole triggerer.
        from_hook = await sync_to_async(_async_factory, thread_sensitive=False, executor=beside)(conn_id)
    finally:
        if thread is None:
            beside.shutdown(wait=False)
    return await from_hook()


def open_warehouse(conn_id: str, table: str, columns: "Sequence[Column]" = COLUMNS) -> Writer:
    """Return the writer of a table for a connection."""
    connection = find_connection(conn_id, "warehouse_conn_id")
    name = Table.parse(table)
    try:
        make, hook = find_writer(connection.conn_type), connection.get_hook()
    except (AirflowException, AttributeError, ImportError) as error:  # Airflow stumbles over types without a hook
        raise _not_installed(connection.conn_type, error) from None
    try:
        return make(hook, name, columns)
    except ImportError as error:
        raise _not_installed(connection.conn_type, error) from None
    except AirflowException as error:
        raise Misconfigured(f"Connection {conn_id!r} cannot work as it is: {str(error).rstrip('.')}.") from None


def deployment() -> str:
    """Name this Airflow among others that share an Anthropic workspace."""
    return str(conf.get("claude_batch", "deployment", fallback="") or conf.get("api", "base_url", fallback=""))


def prices() -> PriceList:
    """Return our price list, with what Airflow's configuration says in the place of ours."""
    given = str(conf.get("claude_batch", "prices", fallback="") or "").strip()
    if not given:
        return PRICES
    try:
        return PRICES.with_given(given if given.startswith("{") else Path(given).read_bytes())
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise Misconfigured(
            f"The prices in Airflow's configuration ([claude_batch] prices) cannot be read: {error}. Write JSON, such "
            'as {"claude-next-1": {"input": 3, "output": 15}}, or the path of a file that holds it.'
        ) from None


def _async_factory(conn_id: str) -> "Callable[[], Awaitable[AsyncClient]]":
    with _garbage_left_alone():
        from airflow_provider_claude_batch.client import AsyncClient, building

        hook = _hook(conn_id)

    async def make() -> AsyncClient:
        with building(conn_id):
            return AsyncClient(await hook.get_async_conn(), conn_id)

    return make


@contextmanager
def _garbage_left_alone() -> "Iterator[None]":
    """Keep the collector off what an import makes: walking it holds up the loop, and copies what processes share."""
    if not gc.isenabled() or "anthropic" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _not_installed(conn_type: str, error: Exception) -> Misconfigured:
    if extra := _EXTRAS.get(conn_type):
        return Misconfigured(
            f"What connections of type {conn_type!r} need is not installed ({error}): "
            f"pip install 'airflow-provider-claude-batch[{extra}]'."
        )
    if isinstance(error, AttributeError):
        return Misconfigured(f"There is no writer for connections of type {conn_type!r}: name one of a database.")
    return Misconfigured(
        f"There is no writer for connections of type {conn_type!r}, or what a database of that type needs is not "
        f"installed ({error})."
    )


def _hook(conn_id: str) -> Any:
    from airflow.providers.anthropic.hooks.anthropic import AnthropicHook

    if (conn_type := find_connection(conn_id, "conn_id").conn_type) != "anthropic":
        raise Misconfigured(f"Connection {conn_id!r} is of type {conn_type!r}: the API needs one of type anthropic.")
    hook = AnthropicHook(conn_id)
    if hook.platform not in _PLATFORMS:
        raise Misconfigured(
            f"Connection {conn_id!r} is for {hook.platform}, which has no Message Batches: use anthropic or aws."
        )
    return hook


def find_connection(conn_id: str, argument: str) -> Any:
    """Return a connection of Airflow, whose secrets no text shows from now on: neither ours, nor Airflow's logs."""
    from airflow_provider_claude_batch.credentials import secrets_of

    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowException:
        raise Misconfigured(
            f"There is no connection {conn_id!r}, or it cannot be read: create it, or name another in {argument}."
        ) from None
    if new := remember(secrets_of(connection)):
        mask_secret([*new])
    return connection
