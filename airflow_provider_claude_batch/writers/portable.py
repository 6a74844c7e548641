"""The table of our rows in SQLAlchemy's words: names, types and views for any database that it has a dialect for."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mssql, mysql, oracle
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement
from sqlalchemy.sql import quoted_name

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.row import COLUMNS, Column
from airflow_provider_claude_batch.writers.sample import FIELDS, LONGEST_TEXT, refuse_lacking
from airflow_provider_claude_batch.writers.table import Part, Table

_NAME_CHARS = 400
_IS_2 = hasattr(sa, "Double")  # Airflow 3.1 is installed with SQLAlchemy 1.4, which has neither Double nor Uuid
_TYPES: dict[str, Any] = {
    "name": sa.Text(),
    "text": sa.Text(),
    "bigint": sa.BigInteger(),
    "double": sa.Double() if _IS_2 else sa.Float(53),
    "boolean": sa.Boolean(),
    "date": sa.Date(),
    "timestamp": sa.DateTime(),
    "decimal": sa.Numeric(38, 9),
    "money": sa.Numeric(18, 12),
    "json": sa.Text(),
}
# A name is a text, but where texts of any length cannot be compared or indexed, or where case would not count.
_MYSQL = {
    "name": mysql.VARCHAR(_NAME_CHARS, collation="utf8mb4_bin"),
    "text": mysql.LONGTEXT(),
    "timestamp": mysql.DATETIME(fsp=6),
    "json": mysql.LONGTEXT(),
}
_TYPES_OF: dict[str, dict[str, Any]] = {
    "mariadb": _MYSQL,
    "mysql": _MYSQL,
    "mssql": {
        "name": mssql.NVARCHAR(_NAME_CHARS, collation="Latin1_General_BIN2"),
        "text": mssql.NVARCHAR(),
        "timestamp": mssql.DATETIME2(6),  # type: ignore[no-untyped-call]
        "json": mssql.NVARCHAR(),
    },
    "oracle": {"name": oracle.VARCHAR2(_NAME_CHARS), "timestamp": oracle.TIMESTAMP()},
    "sqlite": {"decimal": sa.Text(), "money": sa.Text()},
}
_NAMES = {column.name for column in COLUMNS if column.kind == "text"} - {"text", "error_message"}
_KEEPS_CASE = {"mariadb", "mssql", "mysql", "sqlite"}
_HOLDS_NUL = {"mariadb", "mssql", "mysql", "oracle", "sqlite"}
_FAMILIES = (sa.Boolean, sa.Float, sa.Integer, sa.Numeric, sa.DateTime, sa.Date, sa.Time, sa.JSON, sa.String) + (
    (sa.Uuid,) if _IS_2 else ()
)
_ALSO_FITS = {
    (sa.Boolean, sa.Integer),
    (sa.Boolean, sa.Numeric),
    (sa.Integer, sa.Numeric),
    (sa.Float, sa.Numeric),
    (sa.Date, sa.DateTime),
}
_RUN = ("dag_id", "run_id", "submit_task", "map_index", "custom_id")
_TASK = ("dag_id", "submit_task", "custom_id")  # and the element of a mapped task
_INDEX_CHARS = 20
_NTH = "claude_batch_nth"

Found = Mapping[str, Mapping[str, Any]]


class AddColumn(DDLElement):
    """Add a column to a table."""

    inherit_cache = False

    def __init__(self, column: "sa.Column[Any]") -> None:
        self.column = column


class CreateView(DDLElement):
    """Create a view."""

    inherit_cache = False

    def __init__(self, view: sa.Table, select: "sa.Select[Any]") -> None:
        self.view, self.select = view, select


class DropView(DDLElement):
    """Drop a view."""

    inherit_cache = False

    def __init__(self, view: sa.Table) -> None:
        self.view = view


@compiles(AddColumn)
def _add_column(element: AddColumn, compiler: Any, **_: Any) -> str:
    add = "ADD" if compiler.dialect.name in {"mssql", "oracle"} else "ADD COLUMN"
    table = compiler.preparer.format_table(element.column.table)
    return f"ALTER TABLE {table} {add} {compiler.get_column_specification(element.column)}"


@compiles(CreateView)
def _create_view(element: CreateView, compiler: Any, **_: Any) -> str:
    select = compiler.sql_compiler.process(element.select, literal_binds=True)
    return f"CREATE VIEW {compiler.preparer.format_table(element.view)} AS {select}"


@compiles(DropView)
def _drop_view(element: DropView, compiler: Any, **_: Any) -> str:
    return f"DROP VIEW {compiler.preparer.format_table(element.view)}"


class Definition:
    """What one table of our rows is in one dialect: its columns, its views, and the values that it takes."""

    def __init__(self, table: Table, columns: Sequence[Column], dialect: "sa.Dialect") -> None:
        self._table = table
        self._dialect = dialect
        types = _TYPES | _TYPES_OF.get(dialect.name, {})
        self._types = {column.name: types["name" if column.name in _NAMES else column.kind] for column in columns}
        self._convert = {column.name: self._converter(column) for column in columns}
        self.name = self._spell(table.name)
        self.schema = self._spell_schema(table.parts[:-1])

    def named(self, columns: Sequence[Any]) -> Found:
        """Name the columns of a table as we do; capitals count only where two names differ in nothing else."""
        exact = {column["name"] for column in columns}
        ours = {name.lower(): name for name in self._types if name not in exact}
        return {ours.get(column["name"].lower(), column["name"]): column for column in columns}

    def missing(self, found: Found) -> list[str]:
        """Return which columns are lacking; refuse one of a type that takes no values of ours."""
        for name, wanted in self._types.items():
            if name in found and not _fits(wanted, found[name]["type"]):
                raise Misconfigured(
                    f"Column {name} of {self._table} is {self._say(found[name]['type'])}, and rows need "
                    f"{self._say(wanted)}: choose another table, or change the column."
                )
        return [name for name in self._types if name not in found]

    def table(self, found: Found) -> sa.Table:
        """Describe the table: the columns that it has, then those that it lacks; keys are our names."""
        there = [
            sa.Column(column["name"], self._types.get(name, column["type"]), key=name) for name, column in found.items()
        ]
        lacking = [sa.Column(name, kind) for name, kind in self._types.items() if name not in found]
        return self._describe(self.name, [*there, *lacking])

    def views(self, table: sa.Table) -> "dict[sa.Table, sa.Select[Any]]":
        """Select what the views show: the latest of each run, the current over all runs, and what failed."""
        usable = sa.case((is_usable(table), 1), else_=0).desc()
        newest, last = _newest(table), [table.c.attempt.desc(), table.c.loaded_at.desc()]
        latest, current, errors = (self._view(table, suffix) for suffix in ("_latest", "_current", "_errors"))
        run = [table.c[name] for name in _RUN]
        return {
            latest: _first_of(table, run, [*newest, usable, *last]),
            current: _first_of(table, _request(table), [usable, *newest, *last]),
            errors: sa.select(*latest.c).where(sa.not_(is_usable(latest))),
        }

    def select_sample(self, found: Found, batch_ids: Sequence[str], *, failed: bool, limit: int) -> "sa.Select[Any]":
        """Read some rows of the batches: they are chosen first, so that the texts of all others stay unread."""
        refuse_lacking(self.missing(found), self._table)
        table = self.table(found)
        rows = sa.select(*(table.c[name] for name in (*FIELDS, "batch_id"))).where(table.c.batch_id.in_(batch_ids))
        rows = rows.where(sa.not_(is_usable(table))) if failed else rows
        chosen = rows.order_by(*_by_id(table.c)).limit(limit).subquery("chosen")
        cut = sa.func.substring if self._dialect.name == "mssql" else sa.func.substr
        shown: dict[str, Any] = {name: chosen.c[name] for name in FIELDS}
        shown["text"] = cut(chosen.c.text, 1, LONGEST_TEXT, type_=chosen.c.text.type)
        return sa.select(*shown.values()).order_by(*_by_id(chosen.c))

    def values(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Return a row as the database takes it."""
        pairs = zip(self._convert.items(), cells, strict=True)
        return {name: cell if cell is None else convert(cell) for (name, convert), cell in pairs}

    def _converter(self, column: Column) -> Callable[[Any], Any]:
        chars = getattr(self._types[column.name], "length", None)
        match column.kind:
            case "text" | "json" if self._dialect.name not in _HOLDS_NUL:
                return lambda text: text.replace("\x00", "\N{REPLACEMENT CHARACTER}")[:chars]
            case "text" | "json":
                return lambda text: text[:chars]
            case "timestamp":
                return lambda moment: moment.astimezone(UTC).replace(tzinfo=None)
            case "decimal" | "money" if isinstance(self._types[column.name], sa.Text):
                return lambda number: format(number, "f")
        return lambda cell: cell

    def _view(self, table: sa.Table, suffix: str) -> sa.Table:
        columns = [sa.Column(column.name, column.type, key=column.key) for column in table.c]
        return self._describe(self._spell(self._table.sibling(suffix).name), columns)

    def _describe(self, name: str, columns: "Sequence[sa.Column[Any]]") -> sa.Table:
        charset = "utf8mb4"
        return sa.Table(
            name, sa.MetaData(), *columns, schema=self.schema, mysql_charset=charset, mariadb_charset=charset
        )

    def _spell_schema(self, parts: Sequence[Part]) -> str | None:
        if len(parts) > 1 and self._dialect.name != "mssql":
            raise Misconfigured(f"Name the table schema.table, not {self._table}: the connection names the rest.")
        return ".".join(map(self._spell, parts)) if len(parts) > 1 else self._spell(parts[0]) if parts else None

    def _spell(self, part: Part) -> quoted_name:
        if part.is_exact:
            return quoted_name(part, quote=True)
        return quoted_name(str(part) if self._dialect.name in _KEEPS_CASE else part.lower(), quote=None)

    def _say(self, found: "sa.types.TypeEngine[Any]") -> str:
        return found.compile(dialect=self._dialect)


def reads_from(definition: str | None, name: str) -> bool:
    """Say whether a view reads from a table of this name, as far as the database tells what the view is.

    Some databases leave a view with the table that it was made of, whatever that is called now.
    """
    source = rf"\b(?:from|join)[\s(]+(?:[^\s()]+\.)?\W?{re.escape(name)}(?!\w)"
    return definition is None or re.search(source, definition, re.IGNORECASE) is not None


def is_usable(table: sa.Table) -> "sa.ColumnElement[bool]":
    """Tell a row with an answer that can be used."""
    return sa.and_(table.c.status == "succeeded", table.c.problem.is_(None))


def select_answered(table: sa.Table, before: datetime, found: Found) -> "sa.Select[Any]":
    """Read which requests had a usable answer at a moment: the one that `current` shows, by id and hash."""
    order = [*_newest(table), table.c.attempt.desc(), table.c.loaded_at.desc()]
    nth = sa.func.row_number().over(partition_by=_request(table, found), order_by=order).label(_NTH)
    loaded = table.c.loaded_at < before.astimezone(UTC).replace(tzinfo=None)
    known = sa.and_(is_usable(table), table.c.custom_id.is_not(None), loaded)
    ranked = sa.select(table.c.custom_id, table.c.request_hash, nth).where(known).subquery("ranked")
    wanted = sa.select(ranked.c.custom_id, ranked.c.request_hash)
    return wanted.where(ranked.c[_NTH] == 1, ranked.c.request_hash.is_not(None))


def _by_id(columns: Any) -> "list[sa.ColumnElement[Any]]":
    """Order by id, and what has none last: databases differ in where they put it."""
    return [sa.case((columns.custom_id.is_(None), 1), else_=0), columns.custom_id, columns.batch_id]


def _request(table: sa.Table, found: Found | None = None) -> "list[sa.ColumnElement[Any]]":
    """Tell requests apart over all runs; rows of older versions have only the map index of their element."""
    index = sa.cast(table.c.map_index, sa.String(_INDEX_CHARS))
    element: sa.ColumnElement[Any] = sa.case((table.c.map_index >= 0, index), else_="")
    if found is None or "element" in found:
        element = sa.func.coalesce(table.c.element, element)
    return [*(table.c[name] for name in _TASK), element]


def _newest(table: sa.Table) -> "list[sa.ColumnElement[Any]]":
    """Put the newest submission first: its name sorts by time, but the id of a batch of another sender does not."""
    elsewhere = sa.case((table.c.submit_task.is_(None), table.c.submitted_at), else_=None)
    return [elsewhere.desc(), table.c.submission.desc()]


def _first_of(table: sa.Table, key: Sequence[Any], order: Sequence[Any]) -> "sa.Select[Any]":
    nth = sa.func.row_number().over(partition_by=key, order_by=order).label(_NTH)
    ranked = sa.select(*table.c, nth).where(table.c.custom_id.is_not(None)).subquery("ranked")
    return sa.select(*(column for column in ranked.c if column.key != _NTH)).where(ranked.c[_NTH] == 1)


def _fits(wanted: "sa.types.TypeEngine[Any]", found: "sa.types.TypeEngine[Any]") -> bool:
    """A moment with a zone is not one without; a type that SQLAlchemy does not know is left to the database."""
    families = _family(wanted), _family(found)
    has_zone = getattr(found, "timezone", False)
    return not has_zone and (None in families or len({*families}) == 1 or families in _ALSO_FITS)


def _family(of: "sa.types.TypeEngine[Any]") -> Any:
    return next((family for family in _FAMILIES if isinstance(of, family)), None)
