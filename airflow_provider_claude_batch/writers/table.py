"""Tables: a name that is a name, and the SQL about our rows that is the same in every warehouse."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Kind

_PART = r'(?:[^\W\d]\w*|"(?:[^"\x00]|"")+")'
_NAME = re.compile(rf"{_PART}(?:\.{_PART}){{0,2}}")
_USABLE = "(status = 'succeeded' AND problem IS NULL)"
_RUN = "dag_id, run_id, submit_task, map_index, custom_id"
_TASK = "dag_id, submit_task, custom_id"


class Table(NamedTuple):
    """A table by its parts: catalog and schema, where given, and name."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, name: str) -> "Table":
        """Read `table`, `schema.table` or `catalog.schema.table`; odd names stand in double quotes."""
        if not _NAME.fullmatch(name):
            raise Misconfigured(
                f"{name[:80]!r} is not a table name: write table or schema.table, and odd parts in double quotes."
            )
        return cls(tuple(_unquote(part) for part in re.findall(_PART, name)))

    def __str__(self) -> str:
        return ".".join(quote(part) for part in self.parts)

    @property
    def name(self) -> str:
        return self.parts[-1]

    def sibling(self, suffix: str) -> "Table":
        """Name a table or view beside this one."""
        return Table((*self.parts[:-1], self.name + suffix))

    def views(self, columns: Iterable[str]) -> dict["Table", str]:
        """Select what the views show: the latest of each run, the current over all runs, and what failed."""
        columns = tuple(columns)
        latest = self.sibling("_latest")
        return {
            latest: self._first_of(_RUN, f"submission DESC, {_USABLE} DESC, attempt DESC, loaded_at DESC", columns),
            self.sibling("_current"): self._first_of(
                _TASK, f"{_USABLE} DESC, submission DESC, attempt DESC, loaded_at DESC", columns
            ),
            self.sibling("_errors"): f"SELECT * FROM {latest} WHERE NOT {_USABLE}",
        }

    def refuse_other_types(self, found: Mapping[str, str], types: Mapping[Kind, str]) -> None:
        """Refuse a table where one of our columns has a type that is not ours."""
        for column in COLUMNS:
            wanted = types[column.kind]
            if found.get(column.name, wanted) != wanted:
                raise Misconfigured(
                    f"Column {column.name} of {self} is {found[column.name]}, and rows need {wanted}: "
                    "choose another table, or change the column."
                )

    def delete(self, batches: int) -> str:
        """Delete the rows of so many batches."""
        return f"DELETE FROM {self} WHERE batch_id IN ({', '.join('?' * batches)})"

    def select_retryable(self, batches: int) -> str:
        """Read what may be tried again of so many batches."""
        return (
            f"SELECT custom_id, problem, output_tokens FROM {self} "
            f"WHERE retryable AND custom_id IS NOT NULL AND batch_id IN ({', '.join('?' * batches)}) ORDER BY custom_id"
        )

    def select_answered(self) -> str:
        """Read which requests have a usable answer."""
        return f"SELECT DISTINCT custom_id, request_hash FROM {self} WHERE {_USABLE} AND request_hash IS NOT NULL"

    def _first_of(self, key: str, order: str, columns: Iterable[str]) -> str:
        names = ", ".join(map(quote, columns))
        ranked = f"ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY {order}) AS nth"
        return (
            f"SELECT {names} FROM (SELECT *, {ranked} FROM {self} WHERE custom_id IS NOT NULL) AS ranked WHERE nth = 1"
        )


def refuse_missing_folder(database: str, conn_id: str) -> None:
    """A file is created where it is missing, its folder is not: that would hide a path that is mistyped."""
    folder = Path(database).parent
    if not folder.is_dir():
        raise Misconfigured(
            f"The folder {folder} of connection {conn_id!r} does not exist here: create it, or correct the host."
        )


def quote(name: str) -> str:
    """Quote one part of a name."""
    return '"' + name.replace('"', '""') + '"'


def _unquote(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
