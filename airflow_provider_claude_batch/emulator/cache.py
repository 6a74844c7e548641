"""The prompt cache: which prefixes are warm at a moment, and what that makes of a request's input tokens."""

import sqlite3

from msgspec import Struct, structs

from airflow_provider_claude_batch.emulator.database import Database
from airflow_provider_claude_batch.emulator.marked import due, settle
from airflow_provider_claude_batch.emulator.prefix import Prefix

SECONDS = {"5m": 300.0, "1h": 3600.0}
# The time for which other writers wait while a large batch is worked off.
PAGE = 500


class CacheTokens(Struct, frozen=True):
    """How many input tokens of one request were read from the cache and written to it."""

    read: int = 0
    written_5m: int = 0
    written_1h: int = 0

    @property
    def written(self) -> int:
        return self.written_5m + self.written_1h


NOT_CACHED = CacheTokens()


class Entry(Struct):
    """A prefix that was written: readable from then on, for its ttl after its last use."""

    ttl: str
    written_at: float
    used_at: float

    def alive(self, now: float) -> bool:
        return self.written_at <= now < self.used_at + SECONDS[self.ttl]


class Entries:
    """The entries that one transaction meets: fetched when first asked for, kept at its end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._met: dict[bytes, Entry | None] = {}

    def find(self, key: bytes) -> Entry | None:
        if key not in self._met:
            row = self._connection.execute(
                "SELECT ttl, written_at, used_at FROM cache WHERE prefix = ?", (key,)
            ).fetchone()
            self._met[key] = Entry(*row) if row else None
        return self._met[key]

    def write(self, key: bytes, entry: Entry) -> None:
        self._met[key] = entry

    def keep(self) -> None:
        rows = [(key, entry.ttl, entry.written_at, entry.used_at) for key, entry in self._met.items() if entry]
        self._connection.executemany("REPLACE INTO cache VALUES (?, ?, ?, ?)", rows)


class Cache:
    """The caches of all workspaces; the prefixes' keys keep them apart."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, workspace: str, prefixes: list[Prefix], now: float) -> CacheTokens:
        """Let a request that is answered at once meet the cache."""
        if not prefixes:
            return NOT_CACHED
        self.catch_up(workspace, now)
        with self._database.writing() as connection:
            entries = Entries(connection)
            met = meet(prefixes, entries, now)
            entries.keep()
        return met

    def catch_up(self, workspace: str, now: float) -> None:
        """Let the batched requests that are finished by now meet the cache, in the order in which they finished."""
        while self._catch_up_a_page(workspace, now):
            pass

    def _catch_up_a_page(self, workspace: str, now: float) -> bool:
        with self._database.writing() as connection:
            rows, entries = due(connection, workspace, now, PAGE), Entries(connection)
            settle(connection, [(row, structs.astuple(meet(row.prefixes, entries, row.finishes_at))) for row in rows])
            entries.keep()
        return bool(rows)


def meet(prefixes: list[Prefix], entries: Entries, now: float) -> CacheTokens:
    """Read the longest prefix that is alive, and write each breakpoint beyond it."""
    beyond, read, written = 0, 0, dict.fromkeys(SECONDS, 0)
    for at, prefix in enumerate(prefixes, 1):
        if (entry := entries.find(prefix.key)) and entry.alive(now):
            entry.used_at, beyond, read = max(now, entry.used_at), at, prefix.tokens
    reach = read
    for prefix in prefixes[beyond:]:
        if prefix.ttl:
            entries.write(prefix.key, Entry(prefix.ttl, now, now))
            written[prefix.ttl] += prefix.tokens - reach
            reach = prefix.tokens
    return CacheTokens(read, written["5m"], written["1h"])
