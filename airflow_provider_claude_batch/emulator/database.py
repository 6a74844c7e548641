"""The SQLite file that holds all state of an emulator."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

SCHEMA = """
CREATE TABLE IF NOT EXISTS memory (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, workspace TEXT NOT NULL,
    ordinal INTEGER NOT NULL, position INTEGER, deleted INTEGER NOT NULL DEFAULT 0, created_at REAL,
    duration REAL, ends_at REAL, cancel_initiated_at REAL, requests INTEGER, cutoff INTEGER, leftover TEXT,
    succeeded INTEGER, errored INTEGER, canceled INTEGER, expired INTEGER);
CREATE INDEX IF NOT EXISTS batches_by_position ON batches (workspace, position);
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, custom_id TEXT NOT NULL,
    status TEXT NOT NULL, outcome TEXT NOT NULL, message TEXT, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS requests_by_place ON requests (batch, place, status);
CREATE TABLE IF NOT EXISTS marked (
    batch INTEGER NOT NULL, place INTEGER NOT NULL, workspace TEXT NOT NULL, finishes_at REAL, prefixes BLOB,
    read INTEGER, written_5m INTEGER, written_1h INTEGER, PRIMARY KEY (batch, place)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS marked_to_come ON marked (workspace, finishes_at)
    WHERE finishes_at IS NOT NULL AND read IS NULL;
CREATE TABLE IF NOT EXISTS cache (
    prefix BLOB PRIMARY KEY, ttl TEXT NOT NULL, written_at REAL NOT NULL, used_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS faults (id INTEGER PRIMARY KEY, fault BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS journal (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, real_at REAL NOT NULL, method TEXT, path TEXT, query TEXT,
    operation TEXT, workspace TEXT, status INTEGER, request_id TEXT, batch_id TEXT, requests INTEGER,
    body_bytes INTEGER, retry_count INTEGER, user_agent TEXT);
DELETE FROM requests WHERE batch IN (SELECT number FROM batches WHERE position IS NULL OR deleted);
DELETE FROM marked WHERE batch IN (SELECT number FROM batches WHERE position IS NULL OR deleted);
DELETE FROM batches WHERE position IS NULL;
"""
VERSION = 2
TABLES = ("batches", "requests", "marked", "cache", "faults", "journal")


class Database:
    """One connection per thread for reading, one writer at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._local = threading.local()
        self._writing = threading.Lock()
        try:
            os.close(_open_private(path))  # SQLite gives the files beside it the same rights
            self.reader()
            self._hold = _lock(path)
            self._refuse_other_versions(path)
            _make_private(path)
            self.reader().executescript(f"{SCHEMA} PRAGMA user_version = {VERSION};")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} cannot hold the state: {error}") from None

    def _refuse_other_versions(self, path: Path) -> None:
        version = self.reader().execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise ValueError(f"{path} is the state of another version of the emulator: choose another --state")

    def reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = sqlite3.connect(self._path, isolation_level=None, timeout=60)
            connection.row_factory = sqlite3.Row
            connection.executescript(
                # Small caches: forty worker threads with the default of 2 MB each would be most of our memory.
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA cache_size=-512; PRAGMA wal_autocheckpoint=500"
            )
        return connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the one write transaction: all of it is kept, or nothing."""
        connection = self.reader()
        with self._writing:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def remember(self, name: str, value: object) -> None:
        with self.writing() as connection:
            connection.execute("REPLACE INTO memory VALUES (?, ?)", (name, msgspec.json.encode(value)))

    def recall(self, name: str) -> Any:
        row = self.reader().execute("SELECT value FROM memory WHERE name = ?", (name,)).fetchone()
        return None if row is None else msgspec.json.decode(row["value"])

    def clear(self) -> None:
        with self.writing() as connection:
            for table in TABLES:
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own constants


def _lock(path: Path) -> IO[bytes]:
    """Keep other emulators from this state; the lock ends with the process, however that ends."""
    file = os.fdopen(_open_private(path.with_name(f"{path.name}-lock")), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another emulator runs on {path}") from None
    return file


def _open_private(path: Path) -> int:
    """Open a file that only its owner may read, from its first moment on: prompts and answers are kept there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _make_private(path: Path) -> None:
    """Take the rights of others away where an older emulator gave them."""
    for file in (path, *(path.with_name(f"{path.name}-{kind}") for kind in ("wal", "shm", "lock"))):
        with suppress(FileNotFoundError, PermissionError):
            file.chmod(0o600)
