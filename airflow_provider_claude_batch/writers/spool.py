"""Rows on disk, in chunks, until a database takes them: it is busy with them for as short as can be."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import GenericAlias
from typing import Any

import msgspec

from airflow_provider_claude_batch.row import Column, Kind, Row

_CHUNK_ROWS = 1_000
_CHUNK_BYTES = 4_000_000
_LENGTH = 8
_CELLS: dict[Kind, type] = {
    "text": str,
    "bigint": int,
    "double": float,
    "boolean": bool,
    "date": date,
    "timestamp": datetime,
    "decimal": Decimal,
    "money": Decimal,
    "json": str,
}


def write_spool(rows: Iterable[Row], path: Path) -> None:
    """Write the cells of rows, one after the other."""
    encode = msgspec.msgpack.Encoder().encode
    with path.open("wb") as file:
        for row in rows:
            cells = encode(row.cells())
            file.write(len(cells).to_bytes(_LENGTH))
            file.write(cells)


def read_spool(path: Path, columns: Sequence[Column]) -> Iterator[list[tuple[Any, ...]]]:
    """Read the cells back in chunks: a few long answers fill one as well as many short ones."""
    row_type = GenericAlias(tuple, tuple(_CELLS[column.kind] | None for column in columns))
    decode = msgspec.msgpack.Decoder(row_type).decode
    chunk: list[tuple[Any, ...]] = []
    size = 0
    with path.open("rb") as file:
        while length := int.from_bytes(file.read(_LENGTH)):
            chunk.append(decode(file.read(length)))
            size += length
            if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk
