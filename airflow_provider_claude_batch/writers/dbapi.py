"""Any other database: rows are staged on disk, then swapped by executemany, in the SQL that SQLAlchemy spells."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from airflow_provider_claude_batch.errors import Misconfigured, WarehouseUnavailable
from airflow_provider_claude_batch.masking import mask
from airflow_provider_claude_batch.row import Column, Row
from airflow_provider_claude_batch.writers import Answer, Retryable
from airflow_provider_claude_batch.writers.portable import (
    AddColumn,
    CreateView,
    Definition,
    DropView,
    Found,
    reads_from,
    select_answered,
)
from airflow_provider_claude_batch.writers.sample import Sample
from airflow_provider_claude_batch.writers.spool import read_spool, write_spool
from airflow_provider_claude_batch.writers.table import Table, is_in_the_way

_BATCHES = 500  # Oracle takes 1,000 values in a list, SQL Server 2,100 in a statement
_TRIES = 6
_MISTAKES = (exc.ProgrammingError, exc.IntegrityError, exc.DataError, exc.NotSupportedError)
_LASTING = re.compile(
    r"denied|authenticat|password|permission|privilege|unknown database|no such (table|column)|read.?only|packet",
    re.IGNORECASE,
)
_PASSING = re.compile(r"lock|serializ|concurrent", re.IGNORECASE)
_ANYTHING = re.compile("")
_UNREADABLE: Found = {"": {}}
_QUOTED = re.compile(r"""(?<!\w)(["'`])(.*\1|.*)""", re.DOTALL)

_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


class DbApiWriter:
    """Write rows into one table of any database that Airflow has a DbApiHook for, and SQLAlchemy a dialect."""

    def __init__(self, hook: Any, table: Table, columns: Sequence[Column]) -> None:
        if not hasattr(hook, "get_sqlalchemy_engine"):
            conn_type = getattr(hook, "conn_type", type(hook).__name__)
            raise Misconfigured(f"There is no writer for connections of type {conn_type!r}: name one of a database.")
        self._hook = hook
        self._columns = tuple(columns)
        with self._told():
            options = {"creator": hook.get_conn, "poolclass": NullPool, "hide_parameters": True}
            self._engine: sa.Engine = hook.get_sqlalchemy_engine(options)
        self._definition = Definition(table, columns, self._engine.dialect)

    def replace(self, batch_ids: Sequence[str], rows: Iterable[Row]) -> None:
        """Replace the rows of the batches; a crash leaves the old rows or the new, where there are transactions."""
        log.warning(
            "Connection %r is of a database that has no bulk path of its own here: rows are inserted by executemany.",
            self._hook.get_conn_id(),
        )
        with TemporaryDirectory(prefix="claude_batch_") as folder:
            spool = Path(folder, "rows.msgpack")
            write_spool(rows, spool)
            with self._told():
                _again(self._create)
                self._show()
                _again(lambda: self._swap(batch_ids, spool), when=_PASSING)

    def retryable(self, batch_ids: Sequence[str]) -> Iterator[Retryable]:
        """Read which requests of the batches may be tried again."""
        found: list[Retryable] = []
        with self._told(), self._engine.connect() as con:
            table = self._definition.table(self._columns_of(con))
            wanted = sa.select(table.c.custom_id, table.c.problem, table.c.output_tokens, table.c.status)
            wanted = wanted.where(table.c.retryable, table.c.custom_id.is_not(None))
            for ids in _slices(batch_ids):
                found += (tuple(row) for row in con.execute(wanted.where(table.c.batch_id.in_(ids))))
        yield from sorted(found, key=lambda row: row[0])

    def answered(self, before: datetime) -> Iterator[Answer]:
        """Read which requests had a usable answer at a moment, by id and hash."""
        answered: list[Answer] = []
        with self._told(), self._engine.connect() as con:
            if found := self._columns_of(con):
                table = self._definition.table(found)
                answered += ((row[0], row[1]) for row in con.execute(select_answered(table, before, found)))
        yield from answered

    def exists(self) -> bool:
        """Say whether the table is there."""
        with self._told(), self._engine.connect() as con:
            return bool(self._columns_of(con))

    def sample(self, batch_ids: Sequence[str], *, failed: bool, limit: int) -> list[Sample]:
        """Read some rows of the batches for people to look at."""
        sampled: list[Sample] = []
        with self._told(), self._engine.connect() as con:
            found = self._columns_of(con)
            for ids in _slices(sorted(batch_ids)) if found else ():
                wanted = self._definition.select_sample(found, ids, failed=failed, limit=limit)
                sampled += (Sample.of(tuple(row)) for row in con.execute(wanted))
        return sorted(sampled, key=lambda one: (one.custom_id is None, one.custom_id or ""))[:limit]

    def _swap(self, batch_ids: Sequence[str], spool: Path) -> None:
        with self._engine.begin() as con:
            table = self._definition.table(self._columns_of(con))
            for ids in _slices(batch_ids):
                con.execute(table.delete().where(table.c.batch_id.in_(ids)))
            for chunk in read_spool(spool, self._columns):
                con.execute(table.insert(), [self._definition.values(cells) for cells in chunk])

    def _create(self) -> None:
        """Bring the table to today's columns, where it has not got them."""
        with self._engine.begin() as con:
            found = self._columns_of(con)
            missing = self._definition.missing(found)
            table = self._definition.table(found)
            if not found:
                con.execute(sa.schema.CreateTable(table))
            for name in missing if found else ():
                con.execute(AddColumn(table.c[name]))

    def _show(self) -> None:
        """Create the views; a database without them, or one that does not let us, is loaded all the same."""
        try:
            while not _again(self._create_views):
                log.info("Another load added columns; creating the views again.")
        except exc.DBAPIError as error:
            log.warning("The views beside the table cannot be created: %s.", _sentence(error))

    def _create_views(self) -> bool:
        """Create the views, where they are not there yet; tell whether they show what the table now has."""
        with self._engine.begin() as con:
            found = self._columns_of(con)
            views = self._definition.views(self._definition.table(found))
            shown = {view: self._columns_of(con, view.name).keys() for view in views}
            self._refuse_tables(con, views)
            if all(columns == found.keys() for columns in shown.values()) and self._are_of_the_table(con, views):
                return True
            for view in reversed([view for view in views if shown[view]]):
                con.execute(DropView(view))
            for view, select in views.items():
                con.execute(CreateView(view, select))
        with self._engine.connect() as con:
            return self._columns_of(con).keys() == found.keys()

    def _refuse_tables(self, con: "sa.Connection", views: Iterable[sa.Table]) -> None:
        tables = {*map(str.lower, sa.inspect(con).get_table_names(self._definition.schema))}
        for view in views:
            if view.name.lower() in tables:
                raise is_in_the_way(view, self._definition.name)

    def _are_of_the_table(self, con: "sa.Connection", views: Iterable[sa.Table]) -> bool:
        latest, current, errors = views
        bases = {latest: self._definition.name, current: self._definition.name, errors: latest.name}
        try:
            inspector, schema = sa.inspect(con), self._definition.schema
            return all(reads_from(inspector.get_view_definition(view.name, schema), bases[view]) for view in bases)
        except NotImplementedError:
            return True

    def _columns_of(self, con: "sa.Connection", name: str | None = None) -> Found:
        """Return the columns of the table, or of a view, by our names where they are ours."""
        try:
            columns = sa.inspect(con).get_columns(name or self._definition.name, self._definition.schema)
        except exc.NoSuchTableError:
            return {}
        except exc.UnreflectableTableError:  # so MySQL says that a view shows a column which is gone
            return _UNREADABLE
        return self._definition.named(columns)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except exc.NoSuchModuleError as error:
            raise Misconfigured(f"SQLAlchemy has no dialect for {self._where()}: {_sentence(error)}.") from None
        except exc.SQLAlchemyError as error:
            cls = WarehouseUnavailable if _may_pass(error) else Misconfigured
            raise cls(f"The database could not use {self._where()}: {_sentence(error)}.") from None

    def _where(self) -> str:
        return f"connection {self._hook.get_conn_id()!r}"


def _again(step: Callable[[], _Result], when: re.Pattern[str] = _ANYTHING) -> _Result:
    """Try a step again that another load was in the way of: what it finds then may leave nothing to do."""
    for attempt in range(_TRIES - 1):
        try:
            return step()
        except exc.DBAPIError as error:
            if not when.search(_sentence(error)):
                raise
            time.sleep(2.0**attempt / 20 * (0.5 + random.random()))  # noqa: S311
    return step()


def _may_pass(error: exc.SQLAlchemyError) -> bool:
    if not isinstance(error, exc.DBAPIError) or isinstance(error, _MISTAKES):
        return False
    return not _LASTING.search(_sentence(error))


def _sentence(error: exc.SQLAlchemyError) -> str:
    """Say what the driver said, without anything quoted: it may be a part of an answer."""
    told = error.orig.args if isinstance(error, exc.DBAPIError) and error.orig else error.args
    texts = (part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in told)
    return _QUOTED.sub("…", mask(" ".join(texts))).strip().partition("\n")[0] or type(error).__name__


def _slices(batch_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (batch_ids[start : start + _BATCHES] for start in range(0, len(batch_ids), _BATCHES))
