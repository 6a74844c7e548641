"""Lineage: the table of a load as OpenLineage names it."""

from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_claude_batch.connection import find_connection
from airflow_provider_claude_batch.writers.table import Table

_FILES = ("duckdb", "sqlite")
_DEFAULT_SCHEMAS = {"postgres": "public"}
_BIGQUERY = ("gcpbigquery", "google_cloud_platform")


def outputs(conn_id: str, table: str) -> Any:
    """Return what OpenLineage wants to know of a task that wrote a table."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    namespace, name = dataset_of(find_connection(conn_id, "warehouse_conn_id"), Table.parse(table))
    return OperatorLineage(outputs=[Dataset(namespace=namespace, name=name)])


def dataset_of(connection: Any, table: Table) -> tuple[str, str]:
    """Name a table by the conventions of OpenLineage: where it is, and what it is called there."""
    kind, host = connection.conn_type, _without_secrets(connection.host or "")
    if kind in _FILES:
        return f"{kind}://{host.partition('?')[0]}", ".".join(table.parts)
    if kind in _BIGQUERY:
        return "bigquery", _qualified(table, connection.extra_dejson.get("project"))
    if kind == "iceberg":
        return host or kind, _qualified(table)
    info = _database_info(connection)
    if info is None:
        port = f":{connection.port}" if connection.port else ""
        return f"{kind}://{host}{port}", _qualified(table, schema=connection.schema)
    schema = connection.schema if info.scheme == "snowflake" else _DEFAULT_SCHEMAS.get(info.scheme)
    return f"{info.scheme}://{_without_secrets(info.authority or '')}", _qualified(table, info.database, schema)


def _without_secrets(host: str) -> str:
    """Leave out of a URL who logs in, and with what: a namespace is shown to everybody."""
    if "://" not in host:
        return host
    url = urlsplit(host)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _database_info(connection: Any) -> Any:
    """Ask the hook, which knows how its database is named; not every hook does."""
    with suppress(AirflowException, AttributeError, ImportError, NotImplementedError):
        return connection.get_hook().get_openlineage_database_info(connection)
    return None


def _qualified(table: Table, catalog: str | None = None, schema: str | None = None) -> str:
    """Put before a name what the connection says and the name leaves out."""
    left_out = (catalog, schema)[: 3 - len(table.parts)]
    return ".".join([*filter(None, left_out), *table.parts])
