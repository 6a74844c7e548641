import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.writers.table import Table, quote

parts = st.lists(
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=9),
    min_size=1,
    max_size=3,
).map(tuple)


@settings(max_examples=100, deadline=None)
@given(parts)
def test_every_quoted_name_comes_back(names):
    table = Table.parse(".".join(map(quote, names)))
    assert table.parts == names
    assert Table.parse(str(table)) == table


@settings(max_examples=100, deadline=None)
@given(st.text('ab_9."é \x00', max_size=12) | st.text(max_size=12))
def test_whatever_is_accepted_round_trips(name):
    try:
        table = Table.parse(name)
    except Misconfigured:
        return
    assert Table.parse(str(table)) == table
    assert all(table.parts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t", ("t",)),
        ("select", ("select",)),
        ("Größe_7", ("Größe_7",)),
        ("表", ("表",)),
        ("marts.labels", ("marts", "labels")),
        ("db.marts.labels", ("db", "marts", "labels")),
        ('"odd name"', ("odd name",)),
        ('"a.b".c', ("a.b", "c")),
        ('a."b""c"', ("a", 'b"c')),
        ('"x; DROP TABLE y"', ("x; DROP TABLE y",)),
    ],
)
def test_names_are_read_as_sql_reads_them(name, expected):
    table = Table.parse(name)
    assert table.parts == expected
    assert table.name == expected[-1]
    assert table.sibling("_latest").parts == (*expected[:-1], expected[-1] + "_latest")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "7a",
        "a-b",
        "a.",
        ".a",
        "a..b",
        "a.b.c.d",
        '"',
        '""',
        '"a',
        'a"b',
        '"a""',
        "a;b",
        "a\n",
        "a--",
        '"\x00"',
    ],
)
def test_names_that_are_not_names_are_refused(name):
    with pytest.raises(Misconfigured, match="is not a table name"):
        Table.parse(name)


def test_a_long_name_does_not_fill_the_log():
    with pytest.raises(Misconfigured) as caught:
        Table.parse("a b" * 1_000)
    assert len(str(caught.value)) < 250
