"""Which module imports which: no circle between files, and no room imports a room above it."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping

import pytest

from lambda_pg_cdk import PROJECT
from tests.support.modules import ROOMS, SOURCES, arrows_up, circle, graph, imports, parsed


def test_no_circle() -> None:
    """No file imports, directly or through others, a file that imports it."""
    assert circle(graph(SOURCES)) == []


def test_no_arrow_up() -> None:
    """A room imports only the rooms below it."""
    assert arrows_up(graph(SOURCES)) == []


def test_every_room_is_linked() -> None:
    """The package has a link for each room, and each link leads to its room."""
    links = {path.name: path for path in (PROJECT / "lambda_pg_cdk").iterdir() if path.is_symlink()}
    assert set(links) == set(ROOMS) - {"lambda_pg"}
    assert all(link.resolve() == PROJECT / name for name, link in links.items())


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("lambda_pg_cdk.stage.limits", "from lambda_pg_cdk.stage.config import Config"),
        ("lambda_pg._errors", "from lambda_pg import _database"),
        ("lambda_pg_cdk.pgbouncer.settings", "from .supervisor import Supervisor"),
    ],
)
def test_a_circle_is_found(module: str, line: str) -> None:
    """One more import, however it is written, closes a circle that the test above reports."""
    assert module in circle(graph({**SOURCES, module: f"{SOURCES[module]}\n{line}\n"}))


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("lambda_pg_cdk.stage.budget", "lambda_pg_cdk.stacks.api"),
        ("lambda_pg_cdk.stacks.api", "lambda_pg_cdk.local.cloud"),
        ("lambda_pg_cdk.local.cloud", "benchmarks.report"),
    ],
)
def test_an_arrow_up_is_found(module: str, other: str) -> None:
    """One import of a room above is reported by name."""
    found = graph({**SOURCES, module: f"{SOURCES[module]}\nimport {other}\n"})
    assert arrows_up(found) == [f"{module} imports {other}"]


@pytest.mark.parametrize(
    "module",
    [
        "stage.loading",
        "stage.budget",
        "stage.environment",
        "stage.sources",
        "tools.tunnel",
        "tools.preflight",
        "tools.image",
        "tools.synth",
    ],
)
def test_a_stage_needs_no_cdk(module: str) -> None:
    """Settings, budget and these tools do not import the CDK, which takes seconds to start."""
    program = f"import sys, lambda_pg_cdk.{module}; print({{'aws_cdk', 'jsii'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, check=True, text=True
    )
    assert done.stdout == "set()\n"


def test_rooms_are_imported_by_one_name() -> None:
    """Nothing imports a room by its folder's name: the module would exist twice."""
    bare = defaultdict(list)
    for name, source in SOURCES.items():
        for origin, inner in imports(name, source):
            first = origin.split(".")[0]
            if inner and first in ROOMS and first != "lambda_pg":
                bare[name].append(origin)
    assert dict(bare) == {}


def imported_tests(sources: Mapping[str, str]) -> list[str]:
    """List the modules that import a test module or a conftest."""
    return [
        f"{name} imports {other}"
        for name, others in sorted(graph(sources).items())
        for other in sorted(others)
        if other.startswith("tests.") and other.split(".")[-1].startswith(("test_", "conftest"))
    ]


def test_no_test_imports_another() -> None:
    """What several test modules need is in tests/support, so that each can be run alone."""
    assert imported_tests(SOURCES) == []


def test_a_test_that_imports_another_is_found() -> None:
    """One such import is reported by name."""
    line = "from tests.unit.test_budget import CONFIG"
    module = "tests.unit.test_pulse"
    assert imported_tests({**SOURCES, module: f"{SOURCES[module]}\n{line}\n"}) == [
        f"{module} imports tests.unit.test_budget"
    ]


CDK = (
    *("aws_cdk", "benchmarks.app", "cdk_nag", "constructs", "examples.cdk", "lambda_pg_cdk.stacks"),
    *("lambda_pg_cdk.AppError", "lambda_pg_cdk.DeployedStage", "lambda_pg_cdk.Stage"),
)
"""What starts the CDK when it is imported: modules, and names of the face for apps."""


def starting_the_cdk(sources: Mapping[str, str]) -> list[str]:
    """List the modules of tests that start the CDK when they are imported."""
    return [
        name
        for name, source in sorted(sources.items())
        if name.startswith("tests.")
        for node in parsed(source).body
        if any(f"{each}.".startswith(tuple(f"{start}." for start in CDK)) for each in _named(node))
    ]


def _named(node: ast.stmt) -> list[str]:
    """Name what a statement imports, as in `aws_cdk` or `aws_cdk.App`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def test_no_test_starts_the_cdk_at_collection() -> None:
    """Every process of a test run imports every test, and would start the CDK for seconds."""
    assert starting_the_cdk(SOURCES) == []


@pytest.mark.parametrize(
    "line",
    [
        "from aws_cdk import App",
        "import aws_cdk",
        "from lambda_pg_cdk.stacks.app import Stage",
        "from lambda_pg_cdk import stacks",
        "from lambda_pg_cdk import Cap, Stage",
    ],
)
def test_a_test_that_starts_the_cdk_is_found(line: str) -> None:
    """One such import is reported by the module's name."""
    module = "tests.unit.test_pulse"
    found = starting_the_cdk({module: f"{SOURCES[module]}\n{line}\n"})
    assert found == [module]
