"""JSON lines: a file with one request on each line, read with bounded memory, whatever is in it."""

import gzip
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.request import MAX_BYTES
from airflow_provider_claude_batch.unreadable import custom_id_at_the_beginning, too_large

BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"


def read_lines(file: Any, name: str) -> Iterator[Any]:
    """Yield each line that is not blank; a file that is one JSON array is refused."""
    with io.BufferedReader(file, BLOCK) as lines:  # which splits on \n alone, and fast
        if lines.peek(len(_BOM)).startswith(_BOM):
            lines.read(len(_BOM))
        may_be_array = lines.peek(BLOCK).lstrip().startswith(b"[")
        whole = _whole_lines(lines)
        if may_be_array:
            first, second = next(whole), next(whole, None)
            if second is None or not _is_json(first):
                raise Misconfigured(
                    f"{name} is one JSON array, not JSON lines: write each request on a line of its own."
                )
            yield first
            yield second
        yield from whole


def _whole_lines(lines: io.BufferedReader) -> Iterator[Any]:
    """Yield the lines that are not blank; of one that no batch could hold, only how long it is."""
    for line in iter(partial(lines.readline, BLOCK), b""):
        is_cut = len(line) == BLOCK and not line.endswith(b"\n")
        whole = _long_line(line, lines) if is_cut else line
        if not isinstance(whole, bytes):
            yield whole
        elif not whole.isspace():
            yield whole.rstrip(b"\r\n")


def _long_line(beginning: bytes, lines: io.BufferedReader) -> Any:
    """Read on to the end of a line, and keep it only as long as it may be one request."""
    line, size, piece = bytearray(beginning), len(beginning), beginning
    while not piece.endswith(b"\n") and (piece := lines.readline(BLOCK)):
        size += len(piece)
        if size <= MAX_BYTES:
            line += piece
        else:
            line.clear()
    if size <= MAX_BYTES:
        return bytes(line)
    return {"custom_id": custom_id_at_the_beginning(beginning), "params": too_large(size)}


def _is_json(line: Any) -> bool:
    if not isinstance(line, bytes):
        return False
    try:
        msgspec.json.decode(line)
    except RecursionError:
        return True
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def read_gzip_lines(file: Any, name: str) -> Iterator[Any]:
    """Unpack the lines while they are read."""
    with io.BufferedReader(file, BLOCK) as packed, gzip.GzipFile(fileobj=packed) as plain:
        if not packed.peek(1):
            raise EOFError  # which gzip says of every other file that is cut off
        yield from read_lines(plain, name)
