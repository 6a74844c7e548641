"""Parquet: rows as files of a bounded size, for a warehouse that loads files."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, parquet

from airflow_provider_claude_batch.row import Column, Kind, Row
from airflow_provider_claude_batch.writers.chunk import chunks

_CHUNK_ROWS = 10_000
_CHUNK_CHARS = 16_000_000
_FILE_BYTES = 64_000_000
_TEXT = pa.large_string()
_TYPES: dict[Kind, pa.DataType] = {
    "text": _TEXT,
    "bigint": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "decimal": pa.decimal128(38, 9),
    "money": pa.decimal128(18, 12),
    "json": _TEXT,
}

log = logging.getLogger(__name__)


class File(NamedTuple):
    """A file, and how many rows it holds."""

    path: Path
    rows: int


def write_files(
    rows: Iterable[Row], columns: Sequence[Column], folder: Path, *, longest: int, zone: str | None = None
) -> Iterator[File]:
    """Write rows into one file after the other, columns named c0, c1 and so on; longer texts are cut."""
    types = {**_TYPES, "timestamp": pa.timestamp("us", zone)}
    schema = pa.schema([(f"c{n}", types[column.kind]) for n, column in enumerate(columns)])
    batches = (_record_batch(chunk, schema, longest) for chunk in chunks(rows, _CHUNK_ROWS, _CHUNK_CHARS))
    for number in count():
        first = next(batches, None)
        if first is None:
            return
        yield _write(folder / f"rows_{number}.parquet", schema, chain([first], batches))


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> File:
    written = 0
    with pa.OSFile(str(path), "wb") as sink, parquet.ParquetWriter(sink, schema) as file:
        for batch in batches:
            file.write_batch(batch)
            written += batch.num_rows
            if sink.tell() >= _FILE_BYTES:
                break
    return File(path, written)


def _record_batch(rows: list[Row], schema: pa.Schema, longest: int) -> pa.RecordBatch:
    columns = zip(*(row.cells() for row in rows), strict=True)
    arrays = [_array(cells, field.type, longest) for cells, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(cells: tuple[Any, ...], kind: pa.DataType, longest: int) -> pa.Array:
    array = pa.array(cells, kind)
    if kind == _TEXT and (compute.max(compute.binary_length(array)).as_py() or 0) > longest:
        return pa.array([cell and _cut(cell, longest) for cell in cells], kind)
    return array


def _cut(text: str, longest: int) -> str:
    """Cut what is too long, and say so at its end."""
    encoded = text.encode()
    if len(encoded) <= longest:
        return text
    log.warning("A text of %s bytes was cut off: the warehouse holds %s.", f"{len(encoded):,}", f"{longest:,}")
    mark = f" [cut off: {len(encoded):,} bytes, and the warehouse holds {longest:,}]"
    return encoded[: longest - len(mark)].decode(errors="ignore") + mark
