"""The batched requests that bear a cache_control: when each meets the cache, and what came of it."""

import sqlite3
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from airflow_provider_claude_batch.emulator.prefix import Prefix

INSERT = "INSERT INTO marked (batch, place, workspace, prefixes) VALUES (?, ?, ?, ?)"
FINISHES = "SELECT ? + ? * ROW_NUMBER() OVER (ORDER BY place) / ?, batch, place FROM requests WHERE batch = ?"
DUE = (
    "SELECT batch, place, finishes_at, prefixes FROM marked WHERE workspace = ? AND finishes_at <= ? AND read IS NULL"
    " ORDER BY finishes_at, batch, place LIMIT ?"
)
SETTLE = "UPDATE marked SET read = ?, written_5m = ?, written_1h = ?, prefixes = NULL WHERE batch = ? AND place = ?"
DECODER = msgspec.msgpack.Decoder(list[Prefix])


class Marked(Struct, frozen=True):
    """One request on its way to the cache, which it meets when its row finishes."""

    batch: int
    place: int
    finishes_at: float
    prefixes: list[Prefix]


def insert(
    connection: sqlite3.Connection, batch: int, workspace: str, rows: Iterable[tuple[int, list[Prefix]]]
) -> None:
    """Keep the prefixes of those rows, each with its place, that have any."""
    values = [(batch, place, workspace, msgspec.msgpack.encode(prefixes)) for place, prefixes in rows if prefixes]
    connection.executemany(INSERT, values)


def schedule(connection: sqlite3.Connection, batch: int, requests: int, now: float, duration: float) -> None:
    """Say when each row finishes, at the even pace of the batch, of which the unmarked rows have their share."""
    if connection.execute("SELECT 1 FROM marked WHERE batch = ?", (batch,)).fetchone():
        moments = connection.execute(FINISHES, (now, duration, requests, batch))
        connection.executemany("UPDATE marked SET finishes_at = ? WHERE batch = ? AND place = ?", moments)


def cut_off(connection: sqlite3.Connection, batch: int, cutoff: int, ends_at: float) -> None:
    """Let the rows beyond the cutoff never run, and all others no later than the end."""
    connection.execute("DELETE FROM marked WHERE batch = ? AND place > ?", (batch, cutoff))
    connection.execute(
        "UPDATE marked SET finishes_at = ? WHERE batch = ? AND finishes_at > ?", (ends_at, batch, ends_at)
    )


def forget(connection: sqlite3.Connection, batch: int) -> None:
    """Forget the rows of a batch."""
    connection.execute("DELETE FROM marked WHERE batch = ?", (batch,))


def due(connection: sqlite3.Connection, workspace: str, now: float, limit: int) -> list[Marked]:
    """List the first rows that are finished by now and have yet to meet the cache."""
    rows = connection.execute(DUE, (workspace, now, limit)).fetchall()
    return [Marked(batch, place, at, DECODER.decode(prefixes)) for batch, place, at, prefixes in rows]


def settle(connection: sqlite3.Connection, met: Iterable[tuple[Marked, tuple[int, int, int]]]) -> None:
    """Keep what came of each: the tokens read, and those written for 5 minutes and for an hour."""
    connection.executemany(SETTLE, [(*tokens, row.batch, row.place) for row, tokens in met])
