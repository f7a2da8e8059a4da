"""docs/pooling.md says what the profiles decide, and each row of its table is a test."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from lambda_pg import _profiles
from lambda_pg._profiles import (
    PGBOUNCER,
    RDS_PROXY,
    SUPABASE_TRANSACTION,
    Profile,
    ProfileName,
)
from lambda_pg._statements import refusal, session_effect

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pooling.md").read_text()
TESTS = ROOT / "tests" / "integration" / "test_pooling.py"

STATEMENT = re.compile(r"`((?:[A-Z]{3,}) [^`]+)`")


@dataclass(frozen=True)
class Row:
    """One row of the table of what breaks."""

    what: str
    pgbouncer: str
    rds_proxy: str
    test: str

    @property
    def statements(self) -> list[str]:
        """The statements that the row names."""
        return STATEMENT.findall(self.what)


def cells(line: str) -> list[str]:
    """Split a row of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


ROWS = [
    Row(what, pgbouncer, rds_proxy, test.strip("`"))
    for what, _, pgbouncer, rds_proxy, _, _, _, test in (
        cells(line) for line in PAGE.splitlines() if line.endswith("` |") and "`test_" in line
    )
]
NAMED = [pytest.param(row, id=row.test) for row in ROWS if row.statements]


def test_each_row_is_a_test_and_each_test_a_row() -> None:
    """No row without its proof, no proof that the page does not tell of."""
    tree = ast.parse(TESTS.read_text())
    tests = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert [row.test for row in ROWS] == tests


@pytest.mark.parametrize("row", NAMED)
def test_strict_mode_refuses_what_the_page_says(row: Row) -> None:
    """What works through PgBouncer is let through, what does not is refused; so for what pins."""
    for statement in row.statements:
        assert (refusal(statement, PGBOUNCER) is None) == row.pgbouncer.startswith("works")
        assert (session_effect(statement) is None) == row.pgbouncer.startswith("works")
        pinned = refusal(statement, RDS_PROXY) is not None
        assert pinned == row.rds_proxy.startswith("pins"), statement


def test_most_rows_name_a_statement() -> None:
    """The test above looks at every row but those of the protocol."""
    assert {row.test for row in ROWS if not row.statements} == {
        "test_protocol_prepare",
        "test_startup_options",
        "test_cancel",
    }


ADDRESSES = {
    "direct": "`direct`: everything else",
    "pgbouncer": "`pgbouncer`: only by name",
    "rds_proxy": "`rds-proxy`: `*.proxy-*.rds.amazonaws.com`",
    "supabase_direct": "`supabase`: `db.*.supabase.co:5432`",
    "supabase_session": "`supabase`: `*.pooler.supabase.com:5432`",
    "supabase_transaction": "`supabase`: port 6543",
    "neon_direct": "`neon`: `ep-*.neon.tech`",
    "neon_pooled": "`neon`: `ep-*-pooler.*.neon.tech`",
}
PROFILES = {
    name.lower(): value for name, value in vars(_profiles).items() if isinstance(value, Profile)
}


def profile_row(address: str, profile: Profile) -> str:
    """Write a profile as the page does."""
    decided = (profile.session, profile.cancel, profile.prepared, profile.startup_options)
    ages = (f"{profile.max_lifetime:g}", f"{profile.max_idle:g}")
    shown = [*("yes" if yes else "no" for yes in decided), *ages, f"`{profile.roots.name}`"]
    return f"| {address} | {' | '.join(shown)} |"


def test_every_profile_is_documented_as_it_is() -> None:
    """The page's table of profiles holds every profile with what it decides, and no other."""
    assert PROFILES.keys() == ADDRESSES.keys()
    rows = [profile_row(ADDRESSES[name], profile) for name, profile in PROFILES.items()]
    documented = [line for line in PAGE.splitlines() if line.endswith(".pem` |")]
    assert documented == rows


def test_every_profile_has_a_section() -> None:
    """Each name has a section that says why."""
    assert re.findall(r"(?m)^### (.+)$", PAGE) == list(get_args(ProfileName))


def test_the_page_gives_a_statement_that_is_too_long_its_limit() -> None:
    """16 KB is what the code counts."""
    assert "more than 16 KB" in PAGE
    assert refusal("SELECT '" + "x" * 16 * 1024 + "'", RDS_PROXY) is not None
    assert refusal("SELECT '" + "x" * 16 * 1024 + "'", SUPABASE_TRANSACTION) is None
