"""BigQuery: rows are loaded into a table beside the target, and merged into it by one statement."""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import requests
from google.api_core.exceptions import BadRequest, ClientError, Forbidden, GoogleAPIError, NotFound
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import bigquery

from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.parquet import write_files
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.table import (
    OLD_VIEWS_STAY,
    VIEWS,
    Dialect,
    Part,
    Statements,
    Table,
    is_in_the_way,
)

_LONGEST_TEXT = 16_000_000  # an answer stands in three columns, and a row that is loaded may have 50 MB
_CALL_SECONDS = 120.0
_LOAD_SECONDS = 3_600.0
_PATIENCE = 600.0
_STAGED_FOR = timedelta(days=1)
_REPLACEMENTS = 3
_TRIES = 10
_TYPES: dict[Kind, str] = {
    "text": "STRING",
    "bigint": "INT64",
    "double": "FLOAT64",
    "boolean": "BOOL",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "decimal": "NUMERIC",
    "money": "BIGNUMERIC",  # a NUMERIC has nine digits after the point
    "json": "STRING",  # a JSON would keep neither the order of keys nor the digits of a number
}
_TOLD = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "RECORD": "STRUCT"}
_DIALECT = Dialect(_TYPES, mark="SELECT * FROM UNNEST(@batch_ids)", quotes="`", unless="IF NOT EXISTS ")
_IN_BATCHES = "{} IN UNNEST(@batch_ids)"
_NAME_BYTES = 1_024
_CATEGORIES = ("L", "M", "N", "Pc", "Pd", "Zs")
_ALSO_IN_COLUMNS = "&%=+:'<>#|"
_ALSO_IN_PROJECTS = ".:"
_TROUBLE = (GoogleAPIError, GoogleAuthError, requests.RequestException)
_BUSY = re.compile(r"concurrent update|Too many DML statements outstanding")
_PASSING_CODES = {408, 429}
_PASSING_REASONS = {
    *("backendError", "internalError", "quotaExceeded", "rateLimitExceeded", "resourceInUse", "resourcesExceeded"),
    *("jobBackendError", "jobInternalError", "jobRateLimitExceeded", "stopped", "tableUnavailable", "timeout"),
}

log = logging.getLogger(__name__)


class BigQueryWriter:
    """Write rows into one table of a BigQuery dataset."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        self._conn_id = hook.gcp_conn_id
        extra = hook.get_connection(self._conn_id).extra_dejson
        self._labels = _parsed(extra.get("labels"))
        with _explained(self._conn_id):
            self._client = self._connect(hook)
        query = _parsed(extra.get("api_resource_configs")).get("query", {})
        self._table = self._complete(table, query.get("defaultDataset", {}))
        for column in columns:
            _check_name(column.name, _ALSO_IN_COLUMNS)
        self._sql = Statements(self._table, columns, _DIALECT)

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Replace the rows of the batches; a crash leaves the old rows or the new."""
        with _explained(self._conn_id):
            self._define()
            with self._stage() as staging:
                staged = self._load(rows, staging)
                self._replace(batch_ids, staging, staged)

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        yield from self._read(self._sql.select_retryable(1), batch_ids)

    def answered(self, before: datetime) -> Iterator[Answer]:
        """Read which requests had a usable answer at a moment, by id and hash."""
        with _explained(self._conn_id):
            there = [*map(str.lower, self._columns(self._table))]
        yield from self._read(self._sql.select_answered(before, there)) if there else ()

    def exists(self) -> bool:
        """Say whether the table is there."""
        with _explained(self._conn_id):
            return bool(self._columns(self._table))

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]:
        """Read some rows of the batches for people to look at."""
        with _explained(self._conn_id):
            found = self._columns(self._table)
        if not found:
            return []
        sql = self._sql.select_sample(1, self._missing(found), failed=failed, limit=limit)
        return list(map(Sample.of, self._read(sql, batch_ids)))

    def _connect(self, hook: Any) -> bigquery.Client:
        """Make a client as the hook of BigQuery does: a connection to Google Cloud as a whole has another hook."""
        try:
            credentials, project = hook.get_credentials_and_project_id()
            return bigquery.Client(project or None, credentials)
        except (OSError, TypeError, ValueError) as error:
            raise Misconfigured(f"Connection {self._conn_id!r} cannot work as it is: {_line(error)}.") from None

    def _complete(self, table: Table, default: dict[str, Any]) -> Table:
        """Name the project and the dataset too: a view names both, and jobs may run in another project."""
        project, dataset = self._client.project, default.get("datasetId")
        if len(table.parts) == 1:
            project = default.get("projectId") or project
        if len(table.parts) == 1 and not dataset:
            raise Misconfigured(
                f"{table} names no dataset: write dataset.{table}, or give connection {self._conn_id!r} a "
                "defaultDataset in the query part of its api_resource_configs."
            )
        parts = (Part(project), Part(dataset or ""))[: 3 - len(table.parts)] + table.parts
        for part, also in zip(parts, (_ALSO_IN_PROJECTS, "", ""), strict=True):
            _check_name(part, also)
        return Table(parts)

    def _define(self) -> None:
        """Bring table and views to today's columns, where they are not there yet."""
        found = self._columns(self._table)
        has_all = bool(found) and not self._missing(found)
        shown = {self._is_shown(self._table.sibling(suffix), found) for suffix in VIEWS}
        if has_all and shown == {True}:
            return
        if not found:
            self._create()
            found = self._columns(self._table)
        for column in self._missing(found):
            self._run(self._sql.add(column))
        try:
            self._create_views()
        except (BadRequest, Forbidden) as error:
            if not has_all or None in shown:
                raise
            log.warning(OLD_VIEWS_STAY, self._sql.table, _line(error))

    def _is_shown(self, view: Table, columns: dict[str, str]) -> bool | None:
        """Say whether a view shows what the table has; None where it is not there. A table in its place is refused."""
        try:
            found = self._client.get_table(_reference(view), timeout=_CALL_SECONDS)
        except NotFound:
            return None
        if "VIEW" not in found.table_type:
            raise is_in_the_way(view, self._table)
        return {field.name.lower() for field in found.schema} == {*map(str.lower, columns)}

    def _create_views(self) -> None:
        """Create the views, and again where another load adds columns meanwhile, or replaces them by older ones."""
        shown, tries = None, 0
        while shown != (found := self._columns(self._table)):
            views = self._sql.views(found).items()
            latest, *others = (f"CREATE OR REPLACE VIEW {view} AS {select}" for view, select in views)
            self._run(latest)
            try:
                self._run("; ".join(others))
                shown = found
            except BadRequest:
                tries += 1
                if tries == _TRIES:
                    raise

    def _create(self) -> None:
        """Create the table, in an order that finds the rows of a batch without reading all others."""
        schema = self._schema([column.name for column in self._sql.columns])
        table = bigquery.Table(self._dataset.table(self._table.name), schema=schema)
        table.clustering_fields = ["batch_id"]
        self._client.create_table(table, exists_ok=True, timeout=_CALL_SECONDS)

    def _schema(self, names: Iterable[str]) -> list[bigquery.SchemaField]:
        kinds = (column.kind for column in self._sql.columns)
        return [bigquery.SchemaField(name, _TYPES[kind]) for name, kind in zip(names, kinds, strict=True)]

    def _missing(self, found: dict[str, str]) -> list[Column]:
        return self._sql.missing({name.lower(): kind for name, kind in found.items()})

    def _columns(self, table: Table) -> dict[str, str]:
        try:
            found = self._client.get_table(_reference(table), timeout=_CALL_SECONDS)
        except NotFound:
            return {}
        return {field.name: _type_of(field) for field in found.schema}

    @cached_property
    def _dataset(self) -> bigquery.Dataset:
        """Find the dataset: jobs run where it is."""
        project, dataset, _ = self._table.parts
        try:
            return self._client.get_dataset(bigquery.DatasetReference(project, dataset), timeout=_CALL_SECONDS)
        except NotFound:
            raise Misconfigured(
                f"There is no dataset {dataset} in project {project}: create it first, for that decides where in the "
                "world its data are kept."
            ) from None

    @cached_property
    def _staged_names(self) -> list[str]:
        """Name the columns of a file by their numbers: it cannot have all the names that a table can."""
        return [f"c{number}" for number, _ in enumerate(self._sql.columns)]

    @contextmanager
    def _stage(self) -> Iterator[Table]:
        """Make a table for the rows to come; what dies before it drops it leaves that to BigQuery, a day later."""
        staging = Table((*self._table.parts[:-1], Part(f"claude_batch_staging_{uuid4().hex}")))
        table = bigquery.Table(self._dataset.table(staging.name), schema=self._schema(self._staged_names))
        table.expires = datetime.now(UTC) + _STAGED_FOR
        self._client.create_table(table, timeout=_CALL_SECONDS)
        try:
            yield staging
        finally:
            with suppress(*_TROUBLE):
                self._client.delete_table(_reference(staging), not_found_ok=True, timeout=_CALL_SECONDS)

    def _load(self, rows: Iterable[Row], staging: Table) -> int:
        """Load the rows by jobs, which cost nothing, while streaming does; return how many they are."""
        jobs, staged = [], 0
        with TemporaryDirectory(prefix="claude_batch_") as folder:
            for path, written in write_files(rows, self._sql.columns, Path(folder), longest=_LONGEST_TEXT, zone="UTC"):
                with _explained(self._conn_id, is_of_data=True):
                    jobs.append(self._upload(path, staging))
                path.unlink()
                staged += written
        for job in jobs:
            self._await(job)
        return staged

    def _await(self, job: bigquery.LoadJob) -> None:
        try:
            with _explained(self._conn_id, is_of_data=True):
                job.result(timeout=_LOAD_SECONDS)
        except TimeoutError:
            raise WarehouseUnavailable(
                f"BigQuery has not loaded a file in {_LOAD_SECONDS / 60:.0f} minutes (job {job.job_id})."
            ) from None

    def _upload(self, path: Path, staging: Table) -> bigquery.LoadJob:
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            create_disposition=bigquery.CreateDisposition.CREATE_NEVER,
            decimal_target_types=[bigquery.DecimalTargetType.NUMERIC, bigquery.DecimalTargetType.BIGNUMERIC],
            labels=self._labels,
        )
        with path.open("rb") as file:
            return self._client.load_table_from_file(
                file, _reference(staging), job_config=config, location=self._dataset.location, timeout=_CALL_SECONDS
            )

    def _replace(self, batch_ids: Sequence[str], staging: Table, staged: int) -> None:
        """Swap old rows for new, and once more where another load of the same new batches did so at that moment.

        BigQuery keeps statements apart that delete the same rows; of two that find none, both insert theirs.
        """
        count = f"SELECT count(*) FROM {self._sql.table} WHERE {_IN_BATCHES.format('batch_id')}"
        for _ in range(_REPLACEMENTS):
            self._run(self._replacement(staging), batch_ids)
            if next(self._read(count, batch_ids)) == (staged,):
                return
        raise WarehouseUnavailable(
            f"Other loads replace the same batches in {self._sql.table} all the while: load them again later."
        )

    def _replacement(self, staging: Table) -> str:
        cells = ", ".join(f"staged.{name}" for name in self._staged_names)
        return (
            f"MERGE INTO {self._sql.table} AS target USING {_DIALECT.spell(staging)} AS staged ON FALSE "
            f"WHEN NOT MATCHED BY SOURCE AND {_IN_BATCHES.format('target.batch_id')} THEN DELETE "
            f"WHEN NOT MATCHED BY TARGET THEN INSERT ({self._sql.names}) VALUES ({cells})"
        )

    def _run(self, sql: str, batch_ids: Sequence[str] | None = None) -> None:
        """Run a statement that changes something, and again while others change the same table."""
        in_turn = Retry(predicate=_is_busy, initial=1.0, maximum=30.0, timeout=_PATIENCE)
        in_turn(self._query)(sql, batch_ids)

    def _read(self, sql: str, batch_ids: Sequence[str] | None = None) -> Iterator[Any]:
        with _explained(self._conn_id):
            for row in self._query(sql, batch_ids):
                yield row.values()

    def _query(self, sql: str, batch_ids: Sequence[str] | None) -> Any:
        config = bigquery.QueryJobConfig(labels=self._labels)
        if batch_ids is not None:
            config.query_parameters = [bigquery.ArrayQueryParameter("batch_ids", "STRING", list(batch_ids))]
        return self._client.query(sql, config, location=self._dataset.location, timeout=_CALL_SECONDS).result()


def _reference(table: Table) -> bigquery.TableReference:
    project, dataset, name = table.parts
    return bigquery.TableReference(bigquery.DatasetReference(project, dataset), name)


def _parsed(given: Any) -> dict[str, Any]:
    """Read what a connection holds as an object, or as the text that its form makes of it."""
    with suppress(ValueError):
        given = json.loads(given) if isinstance(given, str) else given
    return given if isinstance(given, dict) else {}


def _check_name(name: str, also: str = "") -> None:
    """Refuse what BigQuery has no name for: it would take a dot or a backtick for the end of one."""
    allowed = (char in also or unicodedata.category(char).startswith(_CATEGORIES) for char in name)
    if not all(allowed) or len(name.encode()) > _NAME_BYTES:
        raise Misconfigured(
            f"BigQuery takes no name like {name[:80]!r}: use letters, digits, underscores, dashes and spaces."
        )


def _type_of(field: bigquery.SchemaField) -> str:
    """Spell a type as SQL does; what bounds it makes another type of it."""
    bounds = [field.max_length] if field.max_length else [bound for bound in (field.precision, field.scale) if bound]
    kind = _TOLD.get(field.field_type, field.field_type) + (f"({', '.join(map(str, bounds))})" if bounds else "")
    return f"ARRAY<{kind}>" if field.mode == "REPEATED" else kind


@contextmanager
def _explained(conn_id: str, *, is_of_data: bool = False) -> Iterator[None]:
    try:
        yield
    except _TROUBLE as error:
        raise _explain(error, conn_id, is_of_data=is_of_data) from None


def _explain(error: Exception, conn_id: str, *, is_of_data: bool) -> ClaudeBatchError:
    """Say what is wrong, but never with a value in it: what BigQuery says of a file may quote an answer."""
    said = "" if is_of_data else f": {_line(error)}"
    cls = WarehouseUnavailable if _may_pass(error) else Misconfigured
    what = " ".join(filter(None, (type(error).__name__, _reason(error))))
    return cls(f"BigQuery could not use connection {conn_id!r}{said} ({what}).")


def _may_pass(error: Exception) -> bool:
    """Tell a limit, a conflict or a lost connection from what would come again."""
    if isinstance(error, GoogleAuthError):
        return isinstance(error, TransportError) or bool(error.retryable)
    if isinstance(error, ClientError):
        return error.code in _PASSING_CODES or _reason(error) in _PASSING_REASONS or _is_busy(error)
    return True


def _is_busy(error: Exception) -> bool:
    return bool(_BUSY.search(str(error)))


def _reason(error: Exception) -> str:
    errors = getattr(error, "errors", None) or [{}]
    return str(errors[0].get("reason", "")) if isinstance(errors[0], dict) else ""


def _line(error: Any) -> str:
    error = getattr(error, "cause", None) or error
    said = error.args[0] if isinstance(error, GoogleAuthError) and error.args else getattr(error, "message", str(error))
    return " ".join(mask(str(said)).split())[:300].rstrip(".: ")
