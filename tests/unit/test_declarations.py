"""The file in which a project declares what `/sql`'s trust levels may do with its tables."""

import itertools
from pathlib import Path

import pytest

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.migrations.declarations import AccessError, Grant, read_access

READER = '[reader.orders]\nverbs = ["SELECT"]\n'


def declare(folder: Path, text: str) -> Path:
    """Write a project's file; return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "sql_access.toml").write_text(text)
    return folder


def test_each_table_of_a_level_is_a_grant(tmp_path: Path) -> None:
    """With its schema, verbs and rows, and where it was read."""
    folder = declare(
        tmp_path / "migrations",
        READER + '[writer."billing.Invoices"]\nverbs = ["INSERT", "DELETE"]\nrows = "n > 1"\n',
    )
    where = "migrations/sql_access.toml, "
    assert read_access([folder]) == [
        Grant("reader", "public", "orders", ("SELECT",), None, where + "[reader.orders]"),
        Grant(
            *("writer", "billing", "Invoices", ("INSERT", "DELETE"), "n > 1"),
            where + '[writer."billing.Invoices"]',
        ),
    ]


def test_a_folder_without_the_file_declares_nothing(tmp_path: Path) -> None:
    """Nor does one that is missing."""
    assert read_access([tmp_path, tmp_path / "missing"]) == []


def test_the_project_s_file_counts_before_the_sample_s(tmp_path: Path) -> None:
    """For the same level and table; so a project can take a right of the sample back."""
    project = declare(tmp_path, "[reader.users]\nverbs = []\n")
    sample = PACKAGE / "migrations" / "sample"
    found = {(each.level, each.table): each.verbs for each in read_access([sample, project])}
    assert found["reader", "users"] == ()
    levels, tables = ("reader", "writer", "caller"), ("users", "notes")
    assert set(found) == set(itertools.product(levels, tables))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[reader", "sql_access.toml: Expected"),
        (READER + READER, "line 3"),
        (
            '[admin.orders]\nverbs = ["SELECT"]',
            "it has 'admin'; must have entries of the trust levels",
        ),
        ("reader = 1", "it has 'reader'; must have entries"),
        (
            '[reader]\norders = ["SELECT"]',
            "[reader.orders]: the entry must have a table and its verbs",
        ),
        ("[reader.orders]", "verbs is None; must be a list of verbs"),
        ('[reader.orders]\nverbs = "SELECT"', "verbs is 'SELECT'; must be a list"),
        ('[reader.orders]\nverbs = ["SELECT", "INSERT"]', "that the level reader can have: SELECT"),
        ('[writer.orders]\nverbs = ["TRUNCATE"]', "can have: SELECT, INSERT, UPDATE, DELETE"),
        ('[writer.orders]\nverbs = ["select"]', "verbs is ['select']"),
        ('[reader.orders]\nverbs = [["SELECT"]]', "verbs is [['SELECT']]"),
        (READER + 'rows = ""', "rows is ''; must be an SQL condition"),
        (READER + "rows = true", "rows is True; must be an SQL condition"),
        (READER + 'row = "true"', "it has 'row'; may have verbs and rows only"),
        ('[reader.billing.invoices]\nverbs = ["SELECT"]', 'as in [reader."billing.invoices"]'),
        ('[reader."a.b.c"]\nverbs = ["SELECT"]', "the entry must have a table and its verbs"),
        ('[reader.""]\nverbs = ["SELECT"]', "the entry must have a table and its verbs"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    """The file, the heading, the value, and what may be there."""
    with pytest.raises(AccessError) as caught:
        read_access([declare(tmp_path / "migrations", text)])
    assert "migrations/sql_access.toml" in str(caught.value)
    assert told in str(caught.value)


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    """Editors of other times write such files."""
    (tmp_path / "sql_access.toml").write_bytes(b"# \xff")
    with pytest.raises(AccessError, match=r"sql_access\.toml: "):
        read_access([tmp_path])
