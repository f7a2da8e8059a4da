"""The documentation names what there is: every setting with its default, and only open ways."""

import re
from pathlib import Path

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.schema import REQUIRED, Rule, describe

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = (ROOT / "docs" / "configuration.md").read_text()


def row(name: str, rule: Rule, default: object) -> str:
    """Write one setting as the reference does."""
    shown = "required" if default is REQUIRED else f"`{_json(default)}`"
    allowed = rule.allowed().replace("'", "`") or "-"
    return f"| `{name}` | {rule.doc} | {allowed} | {shown} |"


def _json(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[]" if value == () else str(value)


def test_every_stage_setting_is_documented() -> None:
    """Each setting of cdk.json stands in the reference with meaning, range and default."""
    rows = [row(*described) for described in describe(Config)]
    missing = [line for line in rows if line not in REFERENCE]
    assert not missing, "\n".join(["docs/configuration.md lacks:", *missing])


def test_the_reference_names_no_stage_setting_that_is_gone() -> None:
    """A row for a setting that does not exist misleads."""
    documented = re.findall(r"(?m)^\| `([a-z_.]+)` \|", REFERENCE)
    assert set(documented) == {name for name, _, _ in describe(Config)}


def test_nobody_is_sent_to_a_console_that_cannot_be_reached() -> None:
    """On AWS nothing leads to the socket of PgBouncer's console; locally `status` names it."""
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    asking = [line for line in lines if re.search("SHOW [A-Z]+`", line)]
    assert [line for line in asking if not line.startswith("| Locally |")] == []
    assert all("admin_dsn" in line for line in asking)


INTERNAL = {
    "LAMBDA_PG_CLOUD",
    "LAMBDA_PG_CONTROL_URL",
    "LAMBDA_PG_PORTS",
    "LAMBDA_PG_SECRETS_PORT",
}
"""What the local cloud says to its own processes."""


def test_every_environment_variable_is_documented() -> None:
    """Each variable that the layer or the local cloud reads stands in the reference."""
    prefixes = "(?:LAMBDA_PG_[A-Z]|PG[A-Z]|DATABASE_URL|DIRECT_URL|AWS_ENDPOINT|AWS_REGION)"
    layer = names_in("layer/python/lambda_pg/*.py", prefixes)
    local = names_in("local/**/*.py", "LAMBDA_PG_")
    assert "PGSSLROOTCERT" in layer
    assert "LAMBDA_PG_POSTGRES" in local
    missing = (layer | local) - set(re.findall(r"`([A-Z_]+)`", REFERENCE)) - INTERNAL
    assert not missing, f"docs/configuration.md lacks {sorted(missing)}"


def names_in(pattern: str, prefix: str) -> set[str]:
    """Find the quoted names of variables in sources."""
    text = "".join(source.read_text() for source in ROOT.glob(pattern))
    return set(re.findall(rf'"({prefix}[A-Z_]*)"', text))


def test_every_test_that_the_security_page_names_is_there() -> None:
    """A claim without its test is none; `::name` alone is of the file before it."""
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", page)
    assert len([name for _, name in named if name]) > 30
    file = ""
    for path, name in named:
        file = path or file
        text = (ROOT / file).read_text()
        assert not name or f"def {name}(" in text, f"{file}::{name} is not there"
