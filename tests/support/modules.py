"""The project's modules, and which of them imports which."""

import ast
import subprocess
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from lambda_pg_cdk import PROJECT

ROOMS: Mapping[str, frozenset[str]] = {
    "lambda_pg": frozenset(),
    "layer": frozenset(),
    "pgbouncer": frozenset(),
    "migrations": frozenset({"lambda_pg"}),
    "functions": frozenset({"lambda_pg"}),
    "operations": frozenset({"lambda_pg", "migrations"}),
    "stage": frozenset({"layer", "migrations"}),
    "stacks": frozenset({"functions", "layer", "migrations", "stage"}),
    "template": frozenset({"lambda_pg"}),
    "tools": frozenset({"functions", "layer", "local", "stage", "stacks"}),
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
def parsed(source: str) -> ast.Module:
    """Parse a module's source, each once: several checks look at all of them."""
    return ast.parse(source)


@cache
def imports(name: str, source: str) -> frozenset[tuple[str, str]]:
    """Return what a module imports, wherever in it the import stands: origins and names in them."""
    package = name.split(".") if name in PACKAGES else name.split(".")[:-1]
    found = set()
    for node in ast.walk(_without_face(parsed(source)) if name == FACE else parsed(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            found |= {(origin, alias.name) for alias in node.names}
    return frozenset(found)


FACE = "lambda_pg_cdk"
"""The package, which imports what an app uses when the app asks for it."""


def _without_face(tree: ast.Module) -> ast.Module:
    """Leave out what only a type checker imports."""
    return ast.Module([each for each in tree.body if not isinstance(each, ast.If)], [])


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
