"""Sources: where the requests of a submission come from: a list, a file anywhere, a query, or a queue."""

import errno
import gzip
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any
from urllib.parse import unquote

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_claude_batch.batch_queue import BatchQueue, Drain
from airflow_provider_claude_batch.connection import find_connection
from airflow_provider_claude_batch.errors import ClaudeBatchError, Misconfigured, SourceUnavailable
from airflow_provider_claude_batch.json_lines import BLOCK, read_gzip_lines, read_lines
from airflow_provider_claude_batch.query import Columns, SqlRequests, rows_at_once
from airflow_provider_claude_batch.receipt import Source
from airflow_provider_claude_batch.request import MAX_BYTES

__all__ = ["SqlRequests", "open_source", "source_of"]

_TAKES = "requests= takes a list of dicts, a path or URI of a .jsonl, .jsonl.gz or .parquet file, or SqlRequests"
_REMOTE_BLOCK = 8 << 20
_LONGEST_SQL = 2_000
_FINAL_ERRNOS = {errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EPERM, errno.ENOSYS}
_LOOKS_LIKE_A_NAME = re.compile(r"[^\s\[{(]\S{0,299}")
_PASSWORD = re.compile(r":(?!\d*$)")  # in an authority, what follows a colon is a port, or else a password


class Reread(Iterable[Any]):
    """Requests that are read anew whenever somebody goes through them."""

    def __init__(self, read: Callable[[], Iterator[Any]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Any]:
        return self._read()


def open_source(value: Any) -> Iterator[Any]:
    """Stream requests: dicts, or of JSON lines the bytes of each line that is not blank.

    A Parquet file has the columns ``custom_id`` and either ``params`` (JSON text, or a struct, where null means absent)
    or ``prompt`` (text); further columns are ignored, like those of a query.
    """
    if isinstance(value, Iterator):
        return value
    if value is None or isinstance(value, list | tuple):
        try:
            return iter(_flat(value))
        except RecursionError:
            raise Misconfigured(f"{_TAKES}, and was given lists that are nested too deeply.") from None
    if isinstance(value, SqlRequests):
        return value.read()
    if isinstance(value, str | PurePath | ObjectStoragePath):
        return _open_file(value)
    if isinstance(value, BatchQueue | Drain):
        raise Misconfigured("A queue is given to the operator itself, with its drain(): requests=queue.drain().")
    raise Misconfigured(f"{_TAKES}, and was given a {type(value).__name__}.")


def source_of(value: Any) -> Source | None:
    """Name a source for the receipt, without credentials; a list is none that can be read again."""
    if isinstance(value, SqlRequests):
        is_whole = value.parameters is None and len(value.sql) <= _LONGEST_SQL
        return Source(conn_id=value.conn_id, sql=value.sql if is_whole else None, custom_id=value.columns.custom_id)
    if isinstance(value, str | PurePath | ObjectStoragePath):
        return Source(uri=_absolute(_name(value)))
    if isinstance(value, Drain):
        return Source(conn_id=value.conn_id, queue=value.table)
    return None


def _flat(value: Any) -> list[Any]:
    """Take a list of requests, or a mapped upstream's list of such lists."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise Misconfigured(f"{_TAKES}, and was given a {type(value).__name__} among lists.")
    if not any(isinstance(item, list | tuple) for item in value):
        return [] if all(item is None for item in value) else list(value)
    return [request for part in value for request in _flat(part)]


def _open_file(value: Any) -> Iterator[Any]:
    name = _name(value)
    read = next((reader for ending, reader in _READERS.items() if name.lower().endswith(ending)), None)
    if read is None:
        raise Misconfigured(f"{_TAKES}, and was given {_shown(name)}.")
    return _read(value, name, read)


def _read(value: Any, name: str, read: Callable[[Any, str], Iterator[Any]]) -> Iterator[Any]:
    with _explained(name), _open(value, name) as file:
        yield from read(file, name)


def _parquet_rows(file: Any, name: str) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file, buffer_size=BLOCK, pre_buffer=False) as parquet:
        schema = parquet.schema_arrow
        columns = _parquet_columns(schema.names, name)
        custom_id, content = (schema.field(index) for index in columns.find(schema.names, name))
        largest = _largest_average(parquet.metadata, content.name)
        if largest > MAX_BYTES:
            raise Misconfigured(
                f"{name} has {largest:,} bytes of {content.name} in one row, more than a batch holds: split them."
            )
        for batch in parquet.iter_batches(rows_at_once(largest), columns=[custom_id.name, content.name]):
            values = (cell.as_py() for cell in batch.column(content.name))  # one at a time: they may be large
            for one, value in zip(batch.column(custom_id.name).to_pylist(), values, strict=True):
                yield columns.to_request(one, _without_absent(value, content.type))


def _largest_average(metadata: Any, column: str) -> int:
    """Return how many bytes a row of a column has, in the row group where it has most: a cell may still have more."""
    largest = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = map(group.column, range(group.num_columns))
        size = sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.partition(".")[0] == column)
        largest = max(largest, size // max(1, group.num_rows))
    return largest


_READERS: dict[str, Callable[[Any, str], Iterator[Any]]] = {
    ".jsonl": read_lines,
    ".jsonl.gz": read_gzip_lines,
    ".parquet": _parquet_rows,
}


def _parquet_columns(names: list[str], name: str) -> Columns:
    found = [one for one in ("params", "prompt") if one in {column.lower() for column in names}]
    if len(found) > 1:
        raise Misconfigured(f"{name} has a column params and a column prompt: leave one of the two.")
    content = found[0] if found else "params"
    return Columns("custom_id", content, is_prompt=content == "prompt")


def _without_absent(value: Any, kind: Any) -> Any:
    """Drop the nulls of structs, whose rows all have the same fields, and make dicts of maps."""
    from pyarrow import types

    if value is None:
        return None
    if types.is_struct(kind):
        return {f.name: _without_absent(value[f.name], f.type) for f in kind if value[f.name] is not None}
    if types.is_map(kind):
        return {key: _without_absent(item, kind.item_type) for key, item in value}
    if types.is_nested(kind) and isinstance(value, list):
        return [_without_absent(item, kind.value_type) for item in value]
    return value


@contextmanager
def _open(value: Any, name: str) -> Iterator[IO[bytes]]:
    path = _path(value, name)
    if not isinstance(path, ObjectStoragePath):  # without a layer between, which is several times faster
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(
            mode
        ):  # opening a pipe waits for a writer
            raise Misconfigured(f"{name} is a pipe, a socket or a device: write the requests to a file, and name that.")
        with path.open("rb", buffering=0) as file:
            yield file
    else:
        _refuse_unreachable(path, name)
        if path.fs.info(path.path)["type"] == "directory":  # which S3 would open as an empty file
            raise IsADirectoryError
        with path.fs.open(path.path, "rb", block_size=_REMOTE_BLOCK) as file:
            yield file


def _path(value: Any, name: str) -> Path | ObjectStoragePath:
    if "://" not in str(value):
        return Path(str(value))
    if _has_password(str(value)):
        raise Misconfigured(f"Credentials do not belong in a URI: write the id of a connection before the @ of {name}.")
    try:
        path = ObjectStoragePath(value)
    except ValueError:
        raise _no_filesystem(name) from None
    return Path(path.path) if path.protocol in {"file", "local"} else path


def _refuse_unreachable(path: ObjectStoragePath, name: str) -> None:
    """Check what a filesystem would put up with: some read as nobody where the connection is missing."""
    from airflow.sdk.io import has_fs

    if not has_fs(path.protocol):
        raise _no_filesystem(name)
    if path.conn_id:
        find_connection(path.conn_id, "requests")


def _no_filesystem(name: str) -> Misconfigured:
    scheme = name.partition("://")[0]
    package = "'airflow-provider-claude-batch[s3]'" if scheme.startswith("s3") else "the Airflow provider that has it"
    return Misconfigured(f"Airflow has no filesystem here for {scheme}:// of {name}: pip install {package}.")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Make one error of ours of whatever a filesystem, a decompressor or a Parquet reader raises."""
    try:
        yield
    except ClaudeBatchError:
        raise
    except Exception as error:  # noqa: BLE001 - each filesystem has errors of its own, and no common root
        raise _explanation(error, name) from None


def _explanation(error: Exception, name: str) -> ClaudeBatchError:  # noqa: PLR0911 - one line for each
    match error:
        case FileNotFoundError():
            return Misconfigured(f"There is no file {name}: check the path, and that workers see it.")
        case IsADirectoryError():
            return Misconfigured(f"{name} is a folder: name one file in it.")
        case PermissionError():
            return Misconfigured(f"Reading {name} is not allowed: check the rights of the file, or of the connection.")
        case ImportError():
            return _not_installed(error, name)
        case RecursionError():
            return Misconfigured(f"{name} is nested too deeply to be read: write its params as JSON text.")
        case TimeoutError() | ConnectionError():
            return _unavailable(error, name)
        case OSError(errno=code) if code in _FINAL_ERRNOS:
            return Misconfigured(f"{name} cannot be read: {os.strerror(code)}.")
    if _is_damage(error, name):
        return Misconfigured(f"{name} is damaged or cut off ({type(error).__name__}): write it again.")
    return _unavailable(error, name)


def _is_damage(error: Exception, name: str) -> bool:
    """Tell what is wrong inside of a file; Arrow raises a bare OSError for a part of it."""
    if isinstance(error, gzip.BadGzipFile | zlib.error | EOFError | UnicodeDecodeError):
        return True
    is_bare = isinstance(error, OSError) and error.errno is None and name.lower().endswith(".parquet")
    return is_bare or type(error).__module__.startswith("pyarrow")


def _not_installed(error: ImportError, name: str) -> Misconfigured:
    extra = "parquet" if (error.name or "").startswith("pyarrow") else "s3" if name.startswith("s3") else ""
    package = f"pip install 'airflow-provider-claude-batch[{extra}]'" if extra else "install it"
    return Misconfigured(f"{error.name or 'A library'} is missing here, which reading {name} needs: {package}.")


def _unavailable(error: Exception, name: str) -> SourceUnavailable:
    kind = type(error).__name__
    return SourceUnavailable(
        f"{name} cannot be read for now ({kind}): try again, and check its connection if that does not help."
    )


def _name(value: Any) -> str:
    """Name a file as it can be opened again, but without a password or a signature."""
    uri = str(value)
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    if _has_password(uri):
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{rest.partition('?')[0]}"


def _absolute(name: str) -> str:
    return name if "://" in name else str(Path(name).absolute())


def _has_password(uri: str) -> bool:
    """Tell user:password@ from connection_id@, which is Airflow's; a secret may hold an unquoted slash."""
    rest = uri.partition("://")[2]
    return "@" in rest and bool(_PASSWORD.search(unquote(rest.partition("/")[0])))


def _shown(name: str) -> str:
    """Quote what can be a name; anything else may be the requests themselves."""
    return repr(name) if _LOOKS_LIKE_A_NAME.fullmatch(name) else f"a text of {len(name):,} characters that is none"
