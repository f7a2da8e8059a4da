"""docs/edge.md says what the tests of real clients show."""

import json
import re

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.schema import describe
from tests.support.clients import EXAMPLES, FOLDER, prisma_table

PAGE = (PROJECT / "docs" / "edge.md").read_text()
SECTIONS = dict(re.findall(r"(?sm)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE))
ACCELERATE = (
    *("`accelerateUrl`", "pooling", "{ ttl }", "{ swr }", "{ tags }"),
    *("`$accelerate.invalidate`", "interactive transactions", "limits"),
)


def test_it_has_each_operation_of_prisma() -> None:
    """The table is the one that the test of a real client checks."""
    assert prisma_table() in SECTIONS["Prisma"]


def test_it_names_the_tested_versions() -> None:
    """As the locks pin them."""
    packages = json.loads((FOLDER / "package.json").read_text())["devDependencies"]
    pinned = {version.rpartition("@")[2] for version in packages.values()}
    pinned.add((FOLDER / "requirements.in").read_text().strip().partition("==")[2])
    table = PAGE.partition("## Set it up")[0]
    named = set(re.findall(r"\d+\.\d+\.\d+(?:-\w+\.\d+)?", table))
    assert named <= pinned
    clients = {"@neondatabase/serverless", "neon-serverless-1.1", "kysely", "kysely-neon"}
    for name in clients | {"drizzle-orm", "drizzle-orm-next", "@prisma/adapter-neon"}:
        assert packages[name].rpartition("@")[2] in named


@pytest.mark.parametrize("feature", ACCELERATE)
def test_each_feature_of_accelerate_has_its_line(feature: str) -> None:
    """Also where there is nothing."""
    lines = [line.partition(" | ") for line in SECTIONS["From Accelerate"].splitlines()]
    (answer,) = {answer for name, _, answer in lines if feature in name and name.startswith("| ")}
    assert answer.strip(" |")


def test_the_settings_it_names_have_these_defaults() -> None:
    """Each limit with its number."""
    defaults = {name: default for name, _, default in describe(Config)}
    named = re.findall(r"`(sql\.\w+)`(?: \(([\d,]+))?", PAGE)
    assert {name for name, _ in named} <= defaults.keys()
    numbers = {name: int(number.replace(",", "")) for name, number in named if number}
    assert {"sql.max_rows", "sql.max_bytes", "sql.key_lifetime"} <= numbers.keys()
    assert numbers == {name: defaults[name] for name in numbers}


def test_it_leads_to_every_example() -> None:
    """The files that the tests run."""
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".ts", ".prisma"}}
    assert files == set(re.findall(r"\.\./examples/edge/(\S+?)\)", SECTIONS["Examples"]))
