"""The record of every call received: never a key, a prompt or an answer."""

from typing import Any

from msgspec import Struct, structs

from airflow_provider_claude_batch.emulator.clock import moment
from airflow_provider_claude_batch.emulator.database import Database

FILTERS = ("operation", "status", "workspace", "batch_id", "method", "request_id")


class Entry(Struct, frozen=True):
    """One call and how it was answered: a status, or `dropped`, `hung`, `left` or `failed`."""

    at: float
    real_at: float
    method: str
    path: str
    query: str
    operation: str
    workspace: str | None
    status: str
    request_id: str
    batch_id: str | None
    requests: int | None
    body_bytes: int
    retry_count: int | None
    user_agent: str | None


COLUMNS = Entry.__struct_fields__
INSERT = f"INSERT INTO journal ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - our own


class Journal:
    """Keeps each entry before its call is answered, so that not even a kill loses it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, entry: Entry) -> None:
        with self._database.writing() as connection:
            connection.execute(INSERT, structs.astuple(entry))

    def read(self, filters: dict[str, str], limit: int, after_id: int) -> list[dict[str, Any]]:
        """Read entries in the order of the calls' ends."""
        names = [name for name in FILTERS if name in filters]
        where = "".join(f" AND {name} = ?" for name in names)
        rows = self._database.reader().execute(
            f"SELECT * FROM journal WHERE id > ?{where} ORDER BY id LIMIT ?",  # noqa: S608 - names are our own
            (after_id, *(filters[name] for name in names), limit),
        )
        return [{**dict(row), "at": moment(row["at"]), "real_at": moment(row["real_at"])} for row in rows]

    def summary(self) -> dict[str, dict[str, int]]:
        """Count the calls by operation and status."""
        rows = self._database.reader().execute(
            "SELECT operation, status, COUNT(*) FROM journal GROUP BY operation, status ORDER BY operation, status"
        )
        summary: dict[str, dict[str, int]] = {}
        for operation, status, count in rows:
            summary.setdefault(operation, {})[str(status)] = count
        return summary
