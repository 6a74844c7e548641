"""Shards: the parts of one submission that are one batch each, spooled to disk and streamed from there."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import msgspec

from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.request import MAX_BYTES, Request, encode
from airflow_provider_claude_batch.wire_id import WireId

MAX_REQUESTS = 100_000
_CHUNK = 1 << 20
_HEAD, _TAIL = b'{"requests":[', b"]}"


class _Entry(NamedTuple):
    custom_id: str
    request_hash: str

    def envelope(self, mark: str) -> bytes:
        return b'{"custom_id":"%b","params":' % str(WireId(self.custom_id, mark, self.request_hash)).encode()


class Shard:
    """One batch to be: its requests' params lie line after line in the spool, from `offset` on."""

    def __init__(self, index: int, spool: IO[bytes], betas: tuple[str, ...]) -> None:
        self.index = index
        self.betas = betas
        self.bytes = len(_HEAD) + len(_TAIL)
        self._spool = spool
        self._offset = spool.tell()
        self._entries: list[_Entry] = []
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def digest(self) -> str:
        """Stand for every id and all content of the shard, in order."""
        return self._digest.hexdigest()

    def size_with(self, request: Request, params: bytes) -> int:
        """Count the bytes of the body if the request joined."""
        return self.bytes + self._size(request.custom_id, params)

    def add(self, request: Request, params: bytes) -> None:
        """Take a request in."""
        self.bytes = self.size_with(request, params)
        canonical = hashlib.sha256(request.canonical(self.betas))
        self._digest.update(msgspec.json.encode([request.custom_id, canonical.hexdigest()]))
        self._entries.append(_Entry(request.custom_id, wire_id.request_hash_of(canonical.digest())))
        self._spool.write(params + b"\n")

    def body(self, mark: str) -> Iterator[bytes]:
        """Stream the finished JSON body: exactly `bytes` long, whatever the mark."""
        self._spool.seek(self._offset)
        pending = bytearray(_HEAD)
        for number, entry in enumerate(self._entries):
            pending += b"," if number else b""
            pending += entry.envelope(mark)
            pending += self._spool.readline()[:-1]
            pending += b"}"
            if len(pending) >= _CHUNK:
                yield bytes(pending)
                pending.clear()
        yield bytes(pending + _TAIL)

    def _size(self, custom_id: str, params: bytes) -> int:
        comma = 1 if self._entries else 0
        return (
            comma
            + len(_Entry(custom_id, "0" * wire_id.HASH_CHARS).envelope("0" * wire_id.MARK_CHARS))
            + len(params)
            + 1
        )


def cut(
    requests: Iterable[Request], spool: IO[bytes], betas: tuple[str, ...], shard_size: int | None = None
) -> list[Shard]:
    """Cut requests into shards, full ones first: the same shards for the same requests, on every try."""
    if shard_size is not None and shard_size < 1:
        raise Misconfigured(f"shard_size must be at least 1, and is {shard_size}.")
    limit = min(shard_size or MAX_REQUESTS, MAX_REQUESTS)
    shards: list[Shard] = []
    for request in requests:
        params = encode(request.params)
        if not shards or len(shards[-1]) == limit or shards[-1].size_with(request, params) > MAX_BYTES:
            shards.append(Shard(len(shards), spool, betas))
        shards[-1].add(request, params)
    return shards
