"""The table of versions in docs/pooling.md is what the tests run."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from lambda_pg._connector import OLDEST_SERVER

from lambda_pg_cdk.local.install.postgres_discovery import npm_version
from lambda_pg_cdk.stage.loading import load_stage
from tests.support.servers import MAJOR

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pooling.md").read_text()
ROWS = [
    (name, shown, by)
    for name, by, shown in re.findall(r"(?m)^\| ([\w-]+) \| (.+) \| (\d[\d., ]*) \|$", PAGE)
]
LOCK = (ROOT / "requirements" / "dev.txt").read_text()
LOCKED = dict(re.findall(r"(?m)^([\w-]+)(?:\[\w+\])?==([\d.]+) ", LOCK))
PACKAGES = [(name, shown) for name, shown, _ in ROWS if name != "PostgreSQL"]
EXPECTED = {
    "PostgreSQL",
    "psycopg",
    "SQLAlchemy",
    "Django",
    "Flask-SQLAlchemy",
    "SQLModel",
    "Alembic",
    "aws-lambda-powertools",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "moto",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
}


def test_the_table_has_every_row() -> None:
    """A row that somebody drops is missed."""
    assert {name for name, _, _ in ROWS} >= EXPECTED


@pytest.mark.parametrize(("name", "shown"), PACKAGES)
def test_a_row_shows_the_version_that_is_locked_and_installed(name: str, shown: str) -> None:
    """Where a newer one is pinned, the table changes with it."""
    assert LOCKED[name.lower()] == shown
    assert version(name) == shown


def test_postgresql_is_the_one_that_the_tests_ask_for() -> None:
    """The integration tests take a server of one major version, and some tests one of each."""
    versions = ROOT / "tests" / "integration" / "test_layer_versions.py"
    (end,) = set(re.findall(r"range\(OLDEST_SERVER, (\d+)\)", versions.read_text()))
    each = ", ".join(map(str, range(OLDEST_SERVER, int(end))))
    assert [shown for name, shown, _ in ROWS if name == "PostgreSQL"] == [str(MAJOR), each]


def test_what_is_tested_beside_what_is_deployed_is_said() -> None:
    """A stage begins with one version, and npm has another: the page names both."""
    database = load_stage("prod").database
    deployed = f"{database.major_version}.{database.minor_version}"
    tested = npm_version(database.major_version).partition(".0-")[0]
    text = " ".join(PAGE.split())
    assert f"Stages begin with PostgreSQL {deployed} (`database.minor_version`)" in text
    assert f"elsewhere they run {tested} from npm" in text
    assert f"https://www.postgresql.org/docs/release/{deployed}/" in text
    assert int(tested.partition(".")[2]) <= database.minor_version


@pytest.mark.parametrize("by", [by for _, _, by in ROWS])
def test_a_row_names_files_that_exist(by: str) -> None:
    """A reader can look up what was tested."""
    for file in re.findall(r"`([\w/]+\.py)`", by):
        assert any((ROOT / folder / file).is_file() for folder in (".", "tests/integration"))


def test_the_other_page_leads_to_the_table() -> None:
    """There is one table, and both pages have it."""
    assert "(pooling.md#compatibility)" in (ROOT / "docs" / "integrations.md").read_text()
