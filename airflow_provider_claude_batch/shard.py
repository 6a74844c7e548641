"""Shards: the parts of one submission that are one batch each, spooled to disk and streamed from there."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import IO

from airflow_provider_claude_batch import wire_id
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.request import MAX_BYTES, Request

MAX_REQUESTS = 100_000
SPOOL_BUFFER = 1 << 20
_CHUNK = 1 << 20
_HEAD, _TAIL = b'{"requests":[', b"]}"
# The mark is made of the whole shard, so it is known only after the last request; these bytes are in no UTF-8 text.
_MARK_TO_COME = b"\xff" * wire_id.MARK_CHARS


class Body:
    """The finished JSON body of a shard, which can be read from its beginning more than once."""

    def __init__(self, spool: IO[bytes], offset: int, size: int, mark: str) -> None:
        self._spool, self._offset, self._size, self._mark = spool, offset, size, mark.encode()

    def __iter__(self) -> Iterator[bytes]:
        self._spool.seek(self._offset)
        left = self._size
        while left:
            chunk = self._spool.read(min(_CHUNK, left))
            while chunk.endswith(b"\xff") and len(chunk) < left:
                chunk += self._spool.read(min(len(_MARK_TO_COME), left - len(chunk)))
            left -= len(chunk)
            yield chunk.replace(_MARK_TO_COME, self._mark)


class Shard:
    """One batch to be: the finished JSON body lies in the spool, from `offset` on, with room for the mark."""

    def __init__(self, index: int, spool: IO[bytes]) -> None:
        self.index = index
        self.bytes = len(_HEAD) + len(_TAIL)
        self.requests = 0
        self._spool = spool
        self._offset = spool.tell()
        self._digest = hashlib.sha256()
        self._ids = _new_ids_hash()
        spool.write(_HEAD)

    @property
    def digest(self) -> str:
        """Stand for every id and all content of the shard, in order."""
        return self._digest.hexdigest()

    @property
    def ids_hash(self) -> str:
        """Stand for every id of the shard, in order."""
        return self._ids.hexdigest()

    def has_room(self, entry: bytes) -> bool:
        """Say whether one more request fits into the body."""
        return self.bytes + len(entry) + 1 <= MAX_BYTES

    def add(self, request: Request, entry: bytes) -> None:
        """Take a request in."""
        if self.requests:
            self._spool.write(b",")
            self.bytes += 1
        self._spool.write(entry)
        packed = b"%b\n" % request.packed.encode()
        self._digest.update(packed + request.digest)
        self._ids.update(packed)
        self.bytes += len(entry)
        self.requests += 1

    def close(self) -> None:
        """Finish the body."""
        self._spool.write(_TAIL)

    def body(self, mark: str) -> Body:
        """Stream the finished JSON body: exactly `bytes` long, whatever the mark."""
        return Body(self._spool, self._offset, self.bytes, mark)


def cut(
    requests: Iterable[Request], spool: IO[bytes], shard_size: int | None = None, *, prime: bool = False
) -> list[Shard]:
    """Cut requests into shards, full ones first: the same shards for the same requests, on every try.

    To prime a cache, the first shard is of one request.
    """
    if shard_size is not None and shard_size < 1:
        raise Misconfigured(f"shard_size must be at least 1, and is {shard_size}.")
    full = min(shard_size or MAX_REQUESTS, MAX_REQUESTS)
    limit = 1 if prime else full
    shards: list[Shard] = []
    for request in requests:
        entry = _entry(request)
        if not shards or shards[-1].requests == limit or not shards[-1].has_room(entry):
            limit = full if shards else limit
            _close_last(shards)
            shards.append(Shard(len(shards), spool))
        shards[-1].add(request, entry)
    _close_last(shards)
    return shards


def hash_ids(custom_ids: Iterable[str]) -> str:
    """Hash ids as a shard does that consists of them."""
    found = _new_ids_hash()
    for custom_id in custom_ids:
        found.update(b"%b\n" % wire_id.pack(custom_id).encode())
    return found.hexdigest()


def _new_ids_hash() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=6)


def _close_last(shards: list[Shard]) -> None:
    if shards:
        shards[-1].close()


def _entry(request: Request) -> bytes:
    short = request.request_hash
    tail = short + wire_id.check(request.packed, short)
    head = b'{"custom_id":"%b%b%b"' % (request.packed.encode(), _MARK_TO_COME, tail.encode())
    return b'%b,"params":%b}' % (head, request.json)
