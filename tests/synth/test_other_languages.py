"""The table of docs/other-languages.md has the variables that attached functions get."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from lambda_pg_cdk import PROJECT
from tests.support.templates import Stage

PAGE = (PROJECT / "docs" / "other-languages.md").read_text()

POOLERS = (
    "instance-pgbouncer",
    "instance-rds-proxy-with-secret",
    "instance-rds-proxy",
    "external",
)
"""The combination for each column of the table, in their order."""


def documented(column: int) -> dict[str, str]:
    """Read the variables of a column, each with what the table says of its value."""
    rows = re.findall(r"(?m)^\| `([A-Z_]+)` \|(.*)\|$", PAGE)
    cells = {name: rest.split("|")[column].strip() for name, rest in rows}
    return {name: cell for name, cell in cells.items() if cell != "-"}


def attached(stage: Stage) -> list[dict[str, Any]]:
    """Read the layer's variables of the functions that use the pooler."""
    found = (
        each.get("Environment", {}).get("Variables", {}) for each in stage.functions().values()
    )
    return [
        {name: value for name, value in each.items() if name.startswith(("PG", "LAMBDA_PG_"))}
        for each in found
        if "LAMBDA_PG_SLOTS" in each  # which the budget has counted
    ]


@pytest.mark.parametrize("pooler", POOLERS)
def test_the_table_has_what_the_stacks_write(
    combinations: Mapping[str, Stage], pooler: str
) -> None:
    """The same names, and the values that are always the same."""
    table = documented(POOLERS.index(pooler))
    found = attached(combinations[pooler])
    assert found
    for variables in found:
        assert variables.keys() == table.keys()
        fixed = {name: cell.strip("`") for name, cell in table.items() if cell.startswith("`")}
        assert {name: variables[name] for name in fixed} == fixed
