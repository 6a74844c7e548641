"""Iceberg: rows become data files that nobody sees, and one commit puts them in the place of the old ones."""

import logging
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from heapq import nsmallest
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy.exc
from pyiceberg import exceptions, types
from pyiceberg.expressions import And, EqualTo, In, IsNull, LessThan, NotEqualTo, NotNull, Or
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.schema import Schema
from pyiceberg.table import Table as IcebergTable

from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.chunk import chunks
from airflow_provider_claude_batch.writers.sample import FIELDS, LONGEST_TEXT, Sample, refuse_lacking
from airflow_provider_claude_batch.writers.table import Part, Table

_CHUNK_ROWS = 10_000
_CHUNK_CHARS = 16_000_000
_FILE_BYTES = 64_000_000  # of Arrow; a data file is shorter
_OWN_FILE_BYTES = 4_000_000
_TRIES = 10
_BATCHES = 200  # of more, PyIceberg no longer asks a manifest which files may hold them
_PROPERTIES = {
    "format-version": "2",
    # With its bounds whole, a file of one batch is dropped by what the manifest says of it, without reading it.
    "write.metadata.metrics.column.batch_id": "full",
}
_TYPES: dict[Kind, types.IcebergType] = {
    "text": types.StringType(),
    "bigint": types.LongType(),
    "double": types.DoubleType(),
    "boolean": types.BooleanType(),
    "date": types.DateType(),
    "timestamp": types.TimestamptzType(),
    "decimal": types.DecimalType(38, 9),
    "money": types.DecimalType(18, 12),
    "json": types.StringType(),
}
_STAGED: dict[Kind, pa.DataType] = {
    "text": pa.large_string(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "decimal": pa.decimal128(38, 9),
    "money": pa.decimal128(18, 12),
    "json": pa.large_string(),
}
_ANSWER = (
    *("custom_id", "request_hash", "dag_id", "submit_task", "map_index", "element"),
    *("submission", "submitted_at", "attempt", "loaded_at"),
)
_CONFLICTS = (exceptions.CommitFailedException, exceptions.ValidationException, exceptions.WaitingForLockException)
_PASSING = (
    *_CONFLICTS,
    exceptions.CommitStateUnknownException,
    exceptions.ServerError,
    exceptions.ServiceUnavailableError,
    exceptions.AuthorizationExpiredError,
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.OperationalError,
    OSError,
)
_LASTING = (
    exceptions.RESTError,
    exceptions.NamespaceAlreadyExistsError,
    exceptions.NoSuchNamespaceError,
    exceptions.NoSuchPropertyException,
    exceptions.NoSuchTableError,
    exceptions.NotInstalledError,
    exceptions.SignError,
    exceptions.ValidationError,
    sqlalchemy.exc.SQLAlchemyError,
    pa.ArrowException,
    ImportError,
    NotImplementedError,
    ValueError,
)
_IN_THE_WAY = re.compile(r"already exists|locked|deadlock|serializ")

log = logging.getLogger(__name__)


class IcebergWriter:
    """Write rows into one table of an Iceberg catalog."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        self._hook = hook
        self._table = table
        self._columns = tuple(columns)
        parts = table.parts if len(table.parts) > 1 else (Part("default"), *table.parts)
        self._identifier = tuple(str(part) if part.is_exact else part.lower() for part in parts)

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Replace the rows of the batches in one commit; a crash leaves the old rows or the new."""
        with TemporaryDirectory(prefix="claude_batch_") as folder:
            staged = Path(folder, "rows.arrow")
            _stage(rows, self._columns, staged)
            with self._told():
                self._swap(batch_ids, staged)

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        with self._told():
            table = self._load()
            name = self._names(table)
            wanted = And(
                EqualTo(name["retryable"], True), NotNull(name["custom_id"]), In(name["batch_id"], list(batch_ids))
            )
            fields = (name["custom_id"], name["problem"], name["output_tokens"], name["status"])
            found = sorted(_read(table, wanted, fields), key=lambda row: row[0])
        yield from found

    def answered(self, before: datetime) -> Iterator[Answer]:
        """Read which requests had a usable answer at a moment, by id and hash."""
        newest: dict[Any, tuple[Any, Answer]] = {}
        with self._told():
            if self.exists():
                table = self._load()
                name = self._names(table)
                usable = And(EqualTo(name["status"], "succeeded"), IsNull(name["problem"]), NotNull(name["custom_id"]))
                wanted = And(usable, LessThan(name["loaded_at"], before.isoformat()))
                there = [one for one in _ANSWER if name[one] in table.schema().column_names]
                for cells in _read(table, wanted, tuple(name[one] for one in there)):
                    request, rank, answer = _ranked(**dict(zip(there, cells, strict=True)))
                    newest[request] = max((rank, answer), newest.get(request, (rank, answer)), key=itemgetter(0))
        yield from (answer for _, answer in newest.values() if answer[1] is not None)

    def exists(self) -> bool:
        """Say whether the table is there."""
        with self._told():
            return bool(self._hook.catalog.table_exists(self._identifier))

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]:
        """Read some rows of the batches for people to look at."""
        with self._told():
            if not self._hook.catalog.table_exists(self._identifier):
                return []
            table = self._load()
            name = self._names(table)
            refuse_lacking(
                (ours for ours, theirs in name.items() if theirs not in table.schema().column_names), self._table
            )
            wanted: Any = In(name["batch_id"], list(batch_ids))
            if failed:
                wanted = And(wanted, Or(NotEqualTo(name["status"], "succeeded"), NotNull(name["problem"])))
            return _sample(table, wanted, name, limit)

    def _swap(self, batch_ids: Sequence[str], staged: Path) -> None:
        """Commit; where another commit came in between, look again at what there is, and commit again."""
        layout, files = None, []
        for attempt in range(_TRIES):
            try:
                table = self._define()
                if layout != _layout(table):
                    layout, files = _layout(table), list(self._write(table, staged))
                self._commit(table, batch_ids, files)
            except (*_CONFLICTS, sqlalchemy.exc.DBAPIError) as error:
                if attempt == _TRIES - 1 or not _is_conflict(error):
                    raise
                log.info("Another load came in between (%s); trying again.", type(error).__name__)
                time.sleep(min(2.0**attempt / 10, 10.0) * (0.5 + random.random()))  # noqa: S311
            else:
                return

    def _commit(self, table: IcebergTable, batch_ids: Sequence[str], files: Sequence[Any]) -> None:
        # Left to itself, pyiceberg would commit again without looking for rows of ours that came in between.
        table.metadata.properties["commit.retry.num-retries"] = "0"
        name = self._names(table)["batch_id"]
        old = {found for (found,) in _read(table, In(name, list(batch_ids)), (name,))}
        change = table.transaction()
        for ids in _slices(sorted(old)):
            change.delete(In(name, ids))
        if files:
            with change.update_snapshot().fast_append() as added:
                for file in files:
                    added.append_data_file(file)
        change.commit_transaction()

    def _write(self, table: IcebergTable, staged: Path) -> Iterator[Any]:
        """Write data files, partitioned as the table is; until they are committed, nobody sees them."""
        names = self._names(table)
        for chunk in _files(staged):
            renamed = chunk.rename_columns([names[name] for name in chunk.column_names])
            yield from _dataframe_to_data_files(table_metadata=table.metadata, df=renamed, io=table.io)

    def _define(self) -> IcebergTable:
        """Return the table, with today's columns."""
        try:
            table = self._load()
        except exceptions.NoSuchTableError:
            table = self._create()
        found = {field.name: field.field_type for field in table.schema().fields}
        for column in self._columns:
            there, wanted = found.get(self._names(table)[column.name]), _TYPES[column.kind]
            if there not in {None, wanted}:
                raise Misconfigured(
                    f"Column {column.name} of {self._table} is {there}, and rows need {wanted}: choose another table, "
                    "or change the column."
                )
        missing = [column for column in self._columns if self._names(table)[column.name] not in found]
        if missing:
            with table.update_schema() as update:
                for column in missing:
                    update.add_column((column.name,), _TYPES[column.kind])
        return table

    def _create(self) -> IcebergTable:
        fields = [types.NestedField(n, c.name, _TYPES[c.kind], required=False) for n, c in enumerate(self._columns, 1)]
        self._hook.catalog.create_namespace_if_not_exists(self._identifier[:-1])
        return self._hook.catalog.create_table_if_not_exists(self._identifier, Schema(*fields), properties=_PROPERTIES)

    def _load(self) -> IcebergTable:
        return self._hook.catalog.load_table(self._identifier)

    def _names(self, table: IcebergTable) -> dict[str, str]:
        """Return how the table names our columns: the engines that read it take capitals for small letters."""
        found = {name.lower(): name for name in table.schema().column_names}
        return {column.name: found.get(column.name.lower(), column.name) for column in self._columns}

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (*_PASSING, *_LASTING) as error:
            cls = WarehouseUnavailable if _may_pass(error) else Misconfigured
            raise cls(f"Iceberg could not use connection {self._hook.conn_id!r}: {_sentence(error)}.") from None


def _ranked(
    *,
    custom_id: str,
    request_hash: str | None,
    dag_id: str | None = None,
    submit_task: str | None = None,
    map_index: int | None = None,
    element: str | None = None,
    submission: str | None = None,
    submitted_at: datetime | None = None,
    attempt: int | None = None,
    loaded_at: datetime | None = None,
) -> tuple[Any, Any, Answer]:
    """Tell which request a row is of, and how new it is; what an older table lacks is alike in all of its rows."""
    if element is None:
        element = "" if map_index is None or map_index < 0 else str(map_index)
    elsewhere = submitted_at if submit_task is None else None
    rank = [(cell is not None, cell) for cell in (elsewhere, submission, attempt, loaded_at)]
    return (dag_id, submit_task, element, custom_id), rank, (custom_id, request_hash)  # type: ignore[return-value]


def _sample(table: IcebergTable, wanted: Any, name: Mapping[str, str], limit: int) -> list[Sample]:
    """Choose rows by their ids first, so that the texts of all others are not held."""
    custom_id, batch_id, *fields = (name[one] for one in ("custom_id", "batch_id", *FIELDS))
    first = nsmallest(limit, _read(table, wanted, (custom_id, batch_id)), key=_by_id)
    ids = In(custom_id, {row[0] for row in first} - {None})
    chosen = Or(ids, IsNull(custom_id)) if first and first[-1][0] is None else ids
    found = _read(table, And(wanted, chosen), (*fields, batch_id), name["text"])
    return [Sample.of(row[:-1]) for row in nsmallest(limit, found, key=lambda row: _by_id((row[0], row[-1])))]


def _by_id(row: tuple[Any, ...]) -> tuple[Any, ...]:
    custom_id, batch_id = row
    return custom_id is None, custom_id or "", batch_id


def _read(table: IcebergTable, wanted: Any, fields: tuple[str, ...], cut: str = "") -> Iterator[tuple[Any, ...]]:
    """Read rows; of one column, if so wanted, the beginnings only."""
    for batch in table.scan(row_filter=wanted, selected_fields=fields).to_arrow_batch_reader():
        columns = {field: batch.column(field) for field in fields}
        if cut:
            columns[cut] = pc.utf8_slice_codeunits(columns[cut], 0, LONGEST_TEXT)
        yield from zip(*(column.to_pylist() for column in columns.values()), strict=True)


def _layout(table: IcebergTable) -> tuple[Any, ...]:
    """Tell what data files depend on."""
    return table.metadata.table_uuid, table.metadata.current_schema_id, table.metadata.default_spec_id


def _stage(rows: Iterable[Row], columns: Sequence[Column], path: Path) -> None:
    schema = pa.schema([(column.name, _STAGED[column.kind]) for column in columns])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for chunk in chunks(rows, _CHUNK_ROWS, _CHUNK_CHARS, by_batch=True):
            cells = zip(*(row.cells() for row in chunk), strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(cells, schema, strict=True)]
            stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _files(staged: Path) -> Iterator[pa.Table]:
    """Put chunks together to what makes one data file: a batch has files of its own, but for small ones."""
    held: list[pa.RecordBatch] = []
    size = 0
    with pa.OSFile(str(staged)) as source:
        for chunk in pa.ipc.open_stream(source):
            is_other = held and held[-1]["batch_id"][0] != chunk["batch_id"][0]
            if size >= _FILE_BYTES or (is_other and max(size, chunk.nbytes) >= _OWN_FILE_BYTES):
                yield pa.Table.from_batches(held)
                held, size = [], 0
            held.append(chunk)
            size += chunk.nbytes
    if held:
        yield pa.Table.from_batches(held)


def _slices(batch_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (batch_ids[start : start + _BATCHES] for start in range(0, len(batch_ids), _BATCHES))


def _is_conflict(error: BaseException) -> bool:
    """Tell whether another load was faster; in a catalog in SQL, both may create its tables or the namespace."""
    is_in_the_way = isinstance(error, sqlalchemy.exc.IntegrityError) or bool(_IN_THE_WAY.search(_sentence(error)))
    return isinstance(error, _CONFLICTS) or is_in_the_way


def _may_pass(error: BaseException) -> bool:
    is_final = isinstance(error, FileNotFoundError | PermissionError) or "denied" in str(error).lower()
    return isinstance(error, _PASSING) and not is_final


def _sentence(error: BaseException) -> str:
    told = mask(str(getattr(error, "orig", None) or error)).strip()
    return told.partition("\n")[0][:300].rstrip(".") or type(error).__name__
