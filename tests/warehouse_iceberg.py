"""Iceberg tables of a catalog in SQLite, with their files in a folder; DuckDB reads them."""

import re
from datetime import UTC
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from warehouse import set_connection

DOCS = Path(__file__).parent.parent / "docs/warehouses.md"
MOMENT = pa.timestamp("us", UTC)
_OF_VIEWS = (
    "test_views_of_an_older_version_are_brought_up_to_date",
    "test_views_of_a_table_that_is_complete_are_put_back",
    "test_a_column_of_ours_that_a_user_dropped_is_added_again",
    *(
        f"test_views_show_what_a_table_has_after_a_user_changed_its_columns[{change}]"
        for change in ("DROP COLUMN score", "RENAME COLUMN score TO former", "ADD COLUMN note TEXTS")
    ),
    *(
        f"test_a_table_of_the_users_that_has_the_name_of_a_view_is_refused_and_left_alone[{view}]"
        for view in ("t_latest", "t_errors")
    ),
    *(f"test_views_are_of_the_new_table_after_the_old_one_was_renamed[{by}]" for by in ("the user", "the load")),
)


class Iceberg:
    """Reads tables with PyIceberg and runs SQL on them with DuckDB, with the views of our documentation."""

    kind, text, number, wrong = "iceberg", "string", "long", "boolean"
    grows = 400
    lacks = {  # noqa: RUF012
        "test_a_table_of_an_older_version_gains_columns_and_keeps_what_is_not_ours": "a column has no default",
        **dict.fromkeys(_OF_VIEWS, "PyIceberg creates no views"),
        "test_answers_of_a_table_that_has_no_elements_yet_are_read_back": "no SQL drops a column; see test_iceberg.py",
        'test_odd_names_name_a_table["%s?"]': "PyIceberg takes the % of a location for an escape",
        "test_a_swap_that_fails_leaves_the_old_rows": "Iceberg enforces nothing unique; see test_iceberg.py",
    }

    def __init__(self, **properties: str) -> None:
        self.properties = properties

    @property
    def catalog(self) -> Catalog:
        return load_catalog("warehouse", **self.properties)

    def open(self, namespace: str = "default") -> duckdb.DuckDBPyConnection:
        con = duckdb.connect()
        con.execute("SET python_enable_replacements = false")
        is_there = (namespace,) in self.catalog.list_namespaces()
        for identifier in self.catalog.list_tables(namespace) if is_there else ():
            register(con, identifier[-1], self.catalog.load_table(identifier).scan().to_arrow())
        return con

    def query(self, sql: str, namespace: str = "default") -> list[tuple[Any, ...]]:
        with self.open(namespace) as con:
            return con.execute(sql).fetchall()

    def execute(self, *statements: str) -> None:
        """Let DuckDB change copies of the tables, and put these in their place."""
        self.catalog.create_namespace_if_not_exists("default")
        with self.open() as con:
            for statement in statements:
                con.execute(statement)
            for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                changed = con.table(quote(name)).to_arrow_table()
                table = self.catalog.create_table_if_not_exists(("default", name), changed.schema)
                table.overwrite(changed.cast(table.schema().as_arrow()))

    def types(self, table: str = "t") -> dict[str, str]:
        if self.catalog.table_exists(("default", table)):
            fields = self.catalog.load_table(("default", table)).schema().fields
            return {field.name: str(field.field_type) for field in fields}
        with self.open() as con:
            return {found[0]: found[1] for found in con.execute(f"DESCRIBE {table}").fetchall()}


def register(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy a table, and create the views that our documentation has for it."""
    moments = [field.with_type(pa.timestamp("us")) if field.type == MOMENT else field for field in rows.schema]
    con.register("rows_of_iceberg", rows.cast(pa.schema(moments)))
    con.execute(f"CREATE TABLE {quote(name)} AS SELECT * FROM rows_of_iceberg")
    con.unregister("rows_of_iceberg")
    if "custom_id" in rows.column_names:
        con.execute(re.sub(r"\blabels(\w*)", lambda found: quote(name + found[1]), views()))


def views() -> str:
    """Return the SQL of the views, as documented."""
    return DOCS.read_text().partition("\n## Iceberg\n")[2].partition("```sql\n")[2].partition("```")[0]


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iceberg:
    """Make the connection to a catalog without tables."""
    (folder / "lake").mkdir()
    properties = {"type": "sql", "warehouse": f"file://{folder}/lake"}
    uri = f"sqlite:///{folder}/catalog.db"
    set_connection(monkeypatch, "iceberg", host=uri, extra=properties)
    warehouse = Iceberg(uri=uri, **properties)
    warehouse.catalog.list_namespaces()
    return warehouse
