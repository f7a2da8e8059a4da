"""The documentation names what there is: every setting with its default, and only open ways."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.cost import mutations, sql
from lambda_pg_cdk.stage.budget import LOGIN_MILLISECONDS
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
    return json.dumps(value) if isinstance(value, tuple) else str(value)


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
    layer = names_in("layer/python/lambda_pg/**/*.py", prefixes)
    local = names_in("local/**/*.py", "LAMBDA_PG_")
    assert {"PGSSLROOTCERT", "LAMBDA_PG_API_MAX_BODY"} <= layer
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


INDEX = (ROOT / "docs" / "README.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_index_has_every_page(page: Path) -> None:
    """A page that no task leads to is not found."""
    assert re.search(rf"\]\({re.escape(page.name)}[)#]", INDEX)


def test_the_index_has_every_decision_with_its_title() -> None:
    """Each decision stands in the index with number and title, in order, and no other."""
    expected = [
        f"| [{int(path.name[:4])}](decisions/{path.name}) | {title(path)} |" for path in DECISIONS
    ]
    assert re.findall(r"(?m)^\| \[\d+\]\(decisions/.*$", INDEX) == expected


def title(page: Path) -> str:
    """Return the title of a page."""
    return page.read_text().partition("\n")[0].removeprefix("# ")


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s#]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize(
    "page",
    [*PAGES, *DECISIONS, ROOT / "docs" / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"],
    ids=lambda page: page.name,
)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Each relative link names a file that exists, and a heading that the file has."""
    broken = [
        f"{target}#{anchor}" if anchor else target
        for target, anchor in LINK.findall(page.read_text())
        if not re.match("[a-z]+:", target) and not _exists(page, target, anchor)
    ]
    assert not broken


def _exists(page: Path, target: str, anchor: str) -> bool:
    path = page.parent / target if target else page
    if not path.exists() or not anchor:
        return path.exists()
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
    return anchor in {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
    }


PRIVATE = re.compile(r"_[a-z]\w*")


def test_decision_8_lists_the_private_names_of_psycopg_that_the_layer_uses() -> None:
    """A newer psycopg may drop each of them: the list says what to look at."""
    (decision,) = (ROOT / "docs" / "decisions").glob("0008-*.md")
    listed = {
        name
        for row in decision.read_text().splitlines()
        if row.startswith("| ")
        for name in re.findall("`([^`]+)`", row)
    }
    layer = [ast.parse(path.read_text()) for path in (ROOT / "layer/python").rglob("*.py")]
    there = {
        name
        for path in Path(psycopg.__file__).parent.glob("*.py")
        for tree in [ast.parse(path.read_text())]
        for name in _of_classes(tree, psycopg_only=False)
    }
    used = {
        node.attr for tree in layer for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    } | {name for tree in layer for name in _of_classes(tree, psycopg_only=True)}
    ours = {name for tree in layer for name in _ours(tree)}
    private = {name for name in used & there - ours if PRIVATE.fullmatch(name)}
    needed = private | {name for tree in layer for name in _internals(tree)}
    assert needed - listed == set(), "used and not listed"
    assert listed - needed == set(), "listed and not used"


def _of_classes(tree: ast.Module, *, psycopg_only: bool) -> Iterator[str]:
    """Yield the names of methods and attributes of a module's classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (_is_psycopgs(node) or not psycopg_only):
            for member in ast.walk(node):
                if isinstance(member, ast.FunctionDef):
                    yield member.name
                elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    yield member.target.id
                elif isinstance(member, ast.Attribute) and _is_self(member.value):
                    yield member.attr


def _ours(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module of the layer makes for itself."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef) and not _is_psycopgs(node):
            yield from _of_classes(ast.Module([node], []), psycopg_only=False)


def _is_psycopgs(node: ast.ClassDef) -> bool:
    """Tell whether a class is one of psycopg's, or of the layer's connection."""
    bases = " ".join(map(ast.unparse, node.bases))
    return "psycopg." in bases or bases.startswith("Connection")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _internals(tree: ast.Module) -> Iterator[str]:
    """Yield what a module takes of psycopg's generators and waits, and of its private modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("psycopg._"):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and node.attr.islower():
            name = ast.unparse(node)
            yield from [name] if re.fullmatch(r"(generators|waiting)\.\w+", name) else []


def test_the_logins_that_fit_into_the_checkout_timeout_are_the_budgets() -> None:
    """Of one task with a quarter of a vCPU, half of one and a whole one, in the default 3 s."""
    quarter, half, whole = (int(3000 * cpu / LOGIN_MILLISECONDS) for cpu in (0.25, 0.5, 1))
    assert f"{quarter} in 3 s with a quarter of a vCPU" in text_of("costs.md")
    page = text_of("operations.md")
    assert f"{quarter} clients with 0.25 vCPU, {half:,} clients with 0.5 vCPU" in page
    assert f"{whole:,} clients with 1 vCPU" in page


def text_of(pattern: str) -> str:
    """Return a page or a decision without its line breaks."""
    (page,) = (ROOT / "docs").glob(pattern)
    return " ".join(page.read_text().split())


def result(name: str) -> Any:
    """Read a committed result of the benchmarks."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_the_python_of_the_pages_can_be_parsed() -> None:
    """Blocks that were wrapped like prose, or cut, are no programs."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        (page.name, block)
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert len(blocks) > 20
    for page, block in blocks:
        compile(block, page, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_proof_names_the_promises_that_the_committed_storm_missed() -> None:
    """A goal that was not kept is not hidden in a JSON file."""
    missed = [goal["found"] for goal in result("storm")["goals"] if not goal["held"]]
    said = re.search(r"The committed run missed these: (.*?) \(", text_of("proof.md"))
    assert missed == (re.findall(r"[0-9.]+", said[1]) if said else [])


def test_the_proof_names_the_promises_of_sql_that_the_committed_run_missed() -> None:
    """Each row over its goal, directly and through PgBouncer, with its ratio."""
    found = result("sql")
    over = [
        row["ratio"]
        for name in found["goals"]["direct"]
        for row in found["rows"]
        if row["name"] == name and row["ratio"] > found["goals"][row["path"]][name]
    ]
    said = re.search(r"The committed run missed those of (.*?): the", text_of("proof.md"))
    assert [f"{each:.2f}" for each in over] == (re.findall(r"[0-9.]+", said[1]) if said else [])
    assert found["cold_start"]["ratio"] <= sql.COLD_GOAL
    assert max(found["refused"].values()) <= sql.MEMORY_GOAL


def test_the_proof_names_the_promises_of_writes_that_the_committed_run_missed() -> None:
    """Each path on which a PATCH with everything is over its goal, with its ratio."""
    found = result("mutations")
    over = [
        f"{row['ratio']:.2f}"
        for row in found["rows"]
        if row["name"] == mutations.WHOLE and row["ratio"] > found["goal"]
    ]
    said = re.search(r"The committed run missed that of a PATCH \((.*?)\)", text_of("proof.md"))
    assert over == (re.findall(r"[0-9.]+", said[1]) if said else [])


def test_decisions_have_the_numbers_of_the_committed_results() -> None:
    """A new result changes them."""
    rows = {(row["name"], row["path"]): row["ratio"] for row in result("sql")["rows"]}
    for name in ("lookup: run_text", "lookup: the flight's commands alone"):
        for path in ("direct", "pgbouncer"):
            assert f"{rows[name, path]:.2f}" in text_of("decisions/0048-*.md")
    storm = result("storm")
    assert f"{storm['seconds'] / 60:.0f} minutes" in text_of("decisions/0014-*.md")
    p50, p99 = storm["ratios"]["p50_ms_to_raw"], storm["ratios"]["p99_ms_to_raw"]
    assert f"Measured are {p50:.2f} and {p99:.2f}" in text_of("decisions/0026-*.md")
    for row in result("whole_request")["rows"]:
        if row["name"] == "now":
            assert f"({row['ratio']:.2f}; the goal" in text_of("decisions/0026-*.md")
    first = {row["name"]: row["ratio"] for row in result("first_request")["rows"]}
    ours, without = first["lambda-pg"], first["lambda-pg without rehearsal"]
    assert f"takes {ours:.2f} of raw psycopg's, and {without:.2f} without the rehearsal" in text_of(
        "decisions/0022-*.md"
    )


def test_decision_2_has_the_size_of_the_signer() -> None:
    """What the project maintains instead of a boto3 client is small."""
    lines = (ROOT / "layer/python/lambda_pg/_signature.py").read_text().splitlines()
    assert "fewer than 100 lines" in text_of("decisions/0002-*.md")
    assert len(lines) < 100


def test_the_glossary_has_the_project_s_words() -> None:
    """Each word of the vocabulary stands there once."""
    words = re.findall(r"(?m)^\| \*\*(.+?)\*\* \|", GLOSSARY)
    assert len(words) == len(set(words))
    assert {
        "budget",
        "checkout",
        "client connection",
        "direct URL",
        "execution environment",
        "freeze, thaw",
        "pinning",
        "pool",
        "pooler",
        "server connection",
        "slot",
        "stage",
    } <= set(words)
