"""Tables: a name that is a name, and the SQL about our rows, as each warehouse spells it."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple, Self

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Column, Kind
from airflow_provider_claude_batch.writers.sample import FIELDS, LONGEST_TEXT, refuse_lacking

_PART = r'(?:[^\W\d]\w*|"(?:[^"\x00]|"")+")'
_CATALOG = _PART.replace(r"\w*", r"[\w-]*", 1)  # a project of Google's has dashes in its name
_NAME = re.compile(rf"(?:(?:({_CATALOG})\.)?({_PART})\.)?({_PART})")
_RUN = ("dag_id", "run_id", "submit_task", "map_index", "custom_id")
_TASK = ("dag_id", "submit_task", "custom_id")  # and the element of a mapped task
_NTH = "claude_batch_nth"
VIEWS = ("_latest", "_current", "_errors")
OLD_VIEWS_STAY = "The views beside %s do not show all that it has, and cannot be made again: %s."
_FOLDED = str.maketrans(ascii_uppercase, ascii_lowercase)


class Part(str):
    """One part of a name; in double quotes it is meant letter by letter."""

    __slots__ = ("is_exact",)
    is_exact: bool

    def __new__(cls, name: str, *, is_exact: bool = False) -> Self:
        part = super().__new__(cls, name)
        part.is_exact = is_exact
        return part


class Table(NamedTuple):
    """A table by its parts: catalog and schema, where given, and name."""

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, name: str) -> "Table":
        """Read `table`, `schema.table` or `catalog.schema.table`; odd names stand in double quotes."""
        found = _NAME.fullmatch(name)
        if not found:
            raise Misconfigured(
                f"{name[:80]!r} is not a table name: write table or schema.table, and odd parts in double quotes."
            )
        return cls(tuple(unquote(part) for part in found.groups() if part))

    def __str__(self) -> str:
        return ".".join(quote(part) if part.is_exact else part for part in self.parts)

    @property
    def name(self) -> Part:
        return self.parts[-1]

    def sibling(self, suffix: str) -> "Table":
        """Name a table or view beside this one."""
        return Table((*self.parts[:-1], Part(self.name + suffix, is_exact=self.name.is_exact)))


class Dialect(NamedTuple):
    """How a warehouse spells types and names: what its folding does to a name without quotes, ours does too."""

    types: Mapping[Kind, str]
    mark: str = "?"
    quotes: str = '"'
    zone: str = "+00"  # what says UTC in a moment's text
    fold: Callable[[str], str] = str
    unless: str = ""  # what leaves alone a table or a column that is there already

    def spell(self, name: Table | str) -> str:
        """Quote a table, or one part of a name."""
        if isinstance(name, Table):
            return ".".join(map(self.spell, name.parts))
        return f"{self.quotes}{self.exact(name).replace(self.quotes, 2 * self.quotes)}{self.quotes}"

    def exact(self, name: str) -> str:
        """Return one part of a name as the warehouse keeps it."""
        return name if getattr(name, "is_exact", False) else self.fold(name)


class Statements:
    """The SQL about one table of our rows."""

    def __init__(self, table: Table, columns: Sequence[Column], dialect: Dialect) -> None:
        self.columns = tuple(columns)
        self._table = table
        self._dialect = dialect
        self.table = dialect.spell(table)
        self.names = ", ".join(self._name(column.name) for column in self.columns)
        self.definition = ", ".join(self._define(column) for column in self.columns)

    def create(self) -> str:
        """Create the table."""
        return f"CREATE TABLE {self._dialect.unless}{self.table} ({self.definition})"

    def missing(self, found: Mapping[str, str]) -> list[Column]:
        """Return the columns that a table with these columns lacks; refuse one of a type that is not ours."""
        for column in self.columns:
            wanted = self._dialect.types[column.kind]
            if found.get(column.name.lower(), wanted) != wanted:
                raise Misconfigured(
                    f"Column {column.name} of {self.table} is {found[column.name.lower()]}, and rows need {wanted}: "
                    "choose another table, or change the column."
                )
        return [column for column in self.columns if column.name.lower() not in found]

    def add(self, column: Column) -> str:
        """Add a column to the table."""
        return f"ALTER TABLE {self.table} ADD COLUMN {self._dialect.unless}{self._define(column)}"

    def views(self, columns: Iterable[str]) -> dict[str, str]:
        """Select what the views show: the latest of each run, the current over all runs, and what failed."""
        latest, current, errors = (self._dialect.spell(self._table.sibling(suffix)) for suffix in VIEWS)
        usable, names = f"{self._usable} DESC", ", ".join(map(self._name, columns))
        newest, last = self._newest(self._name), [f"{self._name(name)} DESC" for name in ("attempt", "loaded_at")]
        request = [*map(self._name, _TASK), self._element(self._name)]
        return {
            latest: self._first_of(map(self._name, _RUN), [*newest, usable, *last], names),
            current: self._first_of(request, [usable, *newest, *last], names),
            errors: f"SELECT {names} FROM {latest} WHERE NOT {self._usable}",
        }

    def insert_from(self, staged: str) -> str:
        """Add all rows of another table with our columns."""
        return f"INSERT INTO {self.table} ({self.names}) SELECT {self.names} FROM {staged}"

    def delete(self, batches: int) -> str:
        """Delete the rows of so many batches."""
        return f"DELETE FROM {self.table} WHERE {self._in_batches(batches)}"

    def select_retryable(self, batches: int) -> str:
        """Read what may be tried again of so many batches."""
        wanted = ", ".join(map(self._name, ("custom_id", "problem", "output_tokens", "status")))
        condition = f"{self._name('retryable')} AND {self._name('custom_id')} IS NOT NULL"
        return (
            f"SELECT {wanted} FROM {self.table} WHERE {condition} AND {self._in_batches(batches)} "
            f"ORDER BY {self._name('custom_id')}"
        )

    def select_answered(self, before: datetime, found: Iterable[str]) -> str:
        """Read which requests had a usable answer at a moment: the one that `current` shows, by id and hash.

        A table of an older version lacks some of what tells requests apart: without it, all of them are alike.
        """
        there, kinds = {*found}, {column.name: self._dialect.types[column.kind] for column in COLUMNS}

        def known(name: str) -> str:
            is_there = self._dialect.fold(name) in there
            return self._name(name) if is_there else f"CAST(NULL AS {kinds[name]})"

        pair = ", ".join(map(self._name, ("custom_id", "request_hash")))
        loaded = f"{self._name('loaded_at')} < '{before.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}{self._dialect.zone}'"
        request = [*map(known, _TASK), self._element(known)]
        order = [*self._newest(known), *(f"{known(name)} DESC" for name in ("attempt", "loaded_at"))]
        current = self._first_of(request, order, pair, f"{self._usable} AND {loaded}")
        return f"{current} AND {self._name('request_hash')} IS NOT NULL"

    def select_sample(self, batches: int, lacking: Iterable[Column], *, failed: bool, limit: int) -> str:
        """Read some rows of so many batches: they are chosen first, so that the texts of all others stay unread."""
        refuse_lacking((column.name for column in lacking), self.table)
        condition = self._in_batches(batches) + (f" AND NOT {self._usable}" if failed else "")
        custom_id, batch_id = self._name("custom_id"), self._name("batch_id")
        order = f"ORDER BY {custom_id} IS NULL, {custom_id}, {batch_id}"
        names = {name: self._name(name) for name in FIELDS}
        chosen = f"SELECT {', '.join(names.values())}, {batch_id} FROM {self.table} WHERE {condition} {order}"
        names["text"] = f"SUBSTR({names['text']}, 1, {LONGEST_TEXT})"
        return f"SELECT {', '.join(names.values())} FROM ({chosen} LIMIT {limit:d}) AS chosen {order}"

    @property
    def _usable(self) -> str:
        return f"({self._name('status')} = 'succeeded' AND {self._name('problem')} IS NULL)"

    def _name(self, name: str) -> str:
        return self._dialect.spell(name)

    def _define(self, column: Column) -> str:
        return f"{self._name(column.name)} {self._dialect.types[column.kind]}"

    def _in_batches(self, batches: int) -> str:
        return f"{self._name('batch_id')} IN ({', '.join([self._dialect.mark] * batches)})" if batches else "1 = 0"

    def _element(self, name: Callable[[str], str]) -> str:
        """Tell the elements of a mapped task apart; rows of older versions have only their map index."""
        index, text = name("map_index"), self._dialect.types["text"]
        return f"COALESCE({name('element')}, CASE WHEN {index} >= 0 THEN CAST({index} AS {text}) ELSE '' END)"

    def _newest(self, name: Callable[[str], str]) -> list[str]:
        """Put the newest submission first: its name sorts by time, but the id of a batch of another sender does not."""
        elsewhere = f"CASE WHEN {name('submit_task')} IS NULL THEN {name('submitted_at')} END DESC"
        return [elsewhere, f"{name('submission')} DESC"]

    def _first_of(self, key: Iterable[str], order: Iterable[str], names: str, condition: str = "") -> str:
        ranked = f"ROW_NUMBER() OVER (PARTITION BY {', '.join(key)} ORDER BY {', '.join(order)}) AS {_NTH}"
        known = " AND ".join(filter(None, [f"{self._name('custom_id')} IS NOT NULL", condition]))
        return f"SELECT {names} FROM (SELECT *, {ranked} FROM {self.table} WHERE {known}) AS ranked WHERE {_NTH} = 1"


def is_in_the_way(view: object, table: object) -> Misconfigured:
    """Say that a table of the user's has the name of a view of ours: nothing is written, and it is left alone."""
    return Misconfigured(
        f"{view} is a table, and a load keeps a view of that name beside {table}: rename it, or load into another one."
    )


def refuse_odd_path(database: str, conn_id: str) -> None:
    """A file is created where it is missing, its folder is not: that would hide a path that is mistyped."""
    if Path(database).is_dir():
        raise Misconfigured(f"{database}, the host of connection {conn_id!r}, is a folder: name a file in it.")
    folder = Path(database).parent
    if not folder.is_dir():
        raise Misconfigured(
            f"The folder {folder} of connection {conn_id!r} does not exist here: create it, or correct the host."
        )


def fold_ascii(name: str) -> str:
    """Fold a name as databases do for which only the letters of ASCII have capitals."""
    return name.translate(_FOLDED)


def quote(name: str) -> str:
    """Quote one part of a name."""
    return '"' + name.replace('"', '""') + '"'


def unquote(part: str) -> Part:
    """Read one part of a name as SQL reads it."""
    is_exact = part.startswith('"')
    return Part(part[1:-1].replace('""', '"') if is_exact else part, is_exact=is_exact)
