"""The amounts of docs/costs.md are the arithmetic beside them, with the page's own prices."""

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from lambda_pg_cdk.stage.loading import load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "costs.md").read_text()
REGIONS = ("us-east-1", "eu-west-1")
UNKNOWN = "—"
TIMES = "\N{MULTIPLICATION SIGN}"

Prices = dict[str, Decimal]

OPERATIONS: dict[type, Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Row:
    """An amount for each region, and how it comes about."""

    what: str
    arithmetic: str
    amounts: tuple[str, str]


def cells(line: str) -> list[str]:
    """Split a row of a table."""
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def prices() -> dict[str, list[str]]:
    """Read the table of prices: by name what, unit, two prices and the source."""
    lines = re.findall(r"(?m)^\| `\w+` \|.*$", PAGE.partition("\n## Prices\n")[2])
    return {name.strip("`"): rest for name, *rest in map(cells, lines)}


PRICES: dict[str, Prices] = {
    region: {
        name: Decimal(row[2 + column])
        for name, row in prices().items()
        if row[2 + column] != UNKNOWN
    }
    for column, region in enumerate(REGIONS)
}


def tables() -> Iterator[list[Row]]:
    """Read the tables of amounts."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.MULTILINE):
        head, _, *lines = block.splitlines()
        if cells(head)[1] == "arithmetic":
            rows = (cells(line) for line in lines)
            yield [Row(what, sum_.strip("`"), (us, eu)) for what, sum_, us, eu in rows]


def compute(arithmetic: str, known: Prices) -> Decimal | None:
    """Evaluate sums, differences, products and quotients; None where a price is not known."""
    return evaluate(ast.parse(arithmetic.replace(TIMES, "*"), mode="eval").body, known)


def evaluate(node: ast.expr, known: Prices) -> Decimal | None:
    """Evaluate a part of it."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return Decimal(str(value))
        case ast.Name(id=name):
            assert name in prices(), f"{name} is not in the table of prices"
            return known.get(name)
        case ast.BinOp(left=left, op=op, right=right):
            one, other = evaluate(left, known), evaluate(right, known)
            return None if one is None or other is None else OPERATIONS[type(op)](one, other)
    raise AssertionError(f"not understood: {ast.unparse(node)}")


def shown(amount: Decimal | None) -> str:
    """Write an amount as the page does."""
    if amount is None:
        return UNKNOWN
    return f"{amount.quantize(Decimal('0.01'), ROUND_HALF_UP):,}"


def expected(rows: list[Row], row: Row, region: str) -> str:
    """Compute what must stand in a cell; a total without a part says so."""
    if row.arithmetic != "total":
        return shown(compute(row.arithmetic, PRICES[region]))
    parts = {part.what: compute(part.arithmetic, PRICES[region]) for part in rows if part != row}
    missing = [what for what, amount in parts.items() if amount is None]
    total = shown(sum((amount for amount in parts.values() if amount), Decimal(0)))
    return " and the ".join([total, *missing])


@pytest.mark.parametrize("region", REGIONS)
def test_every_amount_is_its_arithmetic(region: str) -> None:
    """No number is typed wrong."""
    column = REGIONS.index(region)
    found = [(rows, row) for rows in tables() for row in rows]
    assert len(found) > 40
    wrong = [
        f"{row.what}: {row.amounts[column]} should be {right}"
        for rows, row in found
        if (right := expected(rows, row, region)) != row.amounts[column]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_price_has_a_source() -> None:
    """Each names sources that are on the page, and one that was not found says so."""
    listed = set(re.findall(r"(?m)^(\d+)\. ", PAGE.partition("### Sources")[2]))
    cited = set()
    for name, (_, _, us, eu, source) in prices().items():
        numbers = set(re.findall(r"\[(\d+)\]", source))
        assert numbers or name == "hours", name
        assert (UNKNOWN in (us, eu)) == ("no source found" in source), name
        cited |= numbers
    assert cited == listed


def test_every_price_is_used() -> None:
    """A price without an amount is one that nobody checks."""
    used = {
        name
        for rows in tables()
        for row in rows
        for name in re.findall(r"[a-z]\w+", row.arithmetic)
    }
    assert used - {"total"} == set(prices())


def test_no_amount_stands_outside_of_the_tables() -> None:
    """What is not in a table is not computed."""
    prose = re.sub(r"(?m)^\|.*$", "", PAGE.partition("## Prices")[0])
    assert not re.findall(r"\$ ?\d|\d+\.\d\d\b", prose)


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_the_stages_are_those_of_cdk_json(stage: str) -> None:
    """A stage of another size has other costs."""
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    config = load({**context, "stage": stage}.get)
    (rows,) = [rows for rows in tables() if rows[-1].what == f"**{stage}**"]
    written = {row.what: row.arithmetic.replace(TIMES, "*") for row in rows}
    tasks, zones = config.pgbouncer, "_multi_az" if config.database.multi_az else ""
    size = config.database.instance_class.replace(".", "_")
    gateways = "NAT gateways" if config.network.nat_gateways > 1 else "NAT gateway"
    assert config.network.egress == "nat"
    assert written[gateways] == f"{config.network.nat_gateways} * (nat + ipv4) * hours"
    assert written["PgBouncer"] == (
        f"{tasks.tasks} * ({tasks.cpu / 1024:g} * fargate_vcpu"
        f" + {tasks.memory / 1024:g} * fargate_gb) * hours"
    )
    assert written["database"] == f"rds_{size}{zones} * hours"
    assert written["its storage"] == f"{config.database.storage_gib} * gp3{zones}"
