"""Which module imports which: no circle between files, and no room imports a room above it."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT

ROOMS: Mapping[str, frozenset[str]] = {
    "lambda_pg": frozenset(),
    "layer": frozenset(),
    "pgbouncer": frozenset(),
    "migrations": frozenset(),
    "functions": frozenset({"lambda_pg"}),
    "operations": frozenset({"lambda_pg", "migrations"}),
    "stage": frozenset({"layer"}),
    "stacks": frozenset({"layer", "stage"}),
    "tools": frozenset({"layer", "stage", "stacks"}),
    "local": frozenset({"layer", "pgbouncer", "stage"}),
    "console": frozenset({"local", "pgbouncer"}),
}
"""The rooms of the two packages, and which others each may import."""

ABOVE = ("app", "benchmarks", "examples", "tests")
"""What may import every room, and what no room imports."""


def modules() -> dict[str, Path]:
    """Name every module by the path that Python imports it by."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
        text=True,
    )
    files = [Path(name) for name in listed.stdout.split("\0") if name]
    return {name_of(file): PROJECT / file for file in files if (PROJECT / file).is_file()}


def name_of(file: Path) -> str:
    """Turn a file's path into a module's name."""
    parts = file.with_suffix("").parts
    parts = parts[2:] if parts[:2] == ("layer", "python") else parts
    parts = ("lambda_pg_cdk", *parts) if parts[0] in ROOMS and parts[0] != "lambda_pg" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(name: str, source: str) -> frozenset[tuple[str, str]]:
    """Return what a module imports, wherever in it the import stands: origins and names in them."""
    package = name.split(".") if name in PACKAGES else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            found |= {(origin, alias.name) for alias in node.names}
    return frozenset(found)


MODULES = modules()
PACKAGES = frozenset(name for name, path in MODULES.items() if path.name == "__init__.py")


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Map each module to those that it imports."""
    found = {}
    for name, source in sources.items():
        names = {(origin, f"{origin}.{inner}") for origin, inner in imports(name, source)}
        others = {inner if inner in sources else origin for origin, inner in names}
        found[name] = (others & sources.keys()) - {name}
    return found


def circle(found: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of a circle, or nothing."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room(name: str) -> str:
    """Name the room of a module."""
    parts = name.split(".")
    return parts[1] if parts[0] == "lambda_pg_cdk" and len(parts) > 1 else parts[0]


def arrows_up(found: Mapping[str, set[str]]) -> list[str]:
    """List the imports between rooms that `ROOMS` does not allow."""
    return [
        f"{name} imports {other}"
        for name, others in sorted(found.items())
        if room(name) in ROOMS
        for other in sorted(others)
        if room(other) in {*ROOMS, *ABOVE} - {room(name)} - ROOMS[room(name)]
    ]


SOURCES = {name: path.read_text() for name, path in MODULES.items()}


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
