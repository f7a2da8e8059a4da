"""The typed face: tests/typing/face.py names all of it, and a stranger's checker knows it all."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import lambda_pg
import lambda_pg.http_api
import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
FACE = ast.parse((ROOT / "tests" / "typing" / "face.py").read_text())

THEIRS = "lambda_pg.django.base."
"""What Django loads and nobody imports; its base classes have no types."""


@pytest.mark.parametrize("package", [lambda_pg, lambda_pg.http_api], ids=lambda it: it.__name__)
def test_every_public_name_is_pinned(package: ModuleType) -> None:
    """Whatever the layer exports has a line that says what its type is."""
    imported = {
        alias.name
        for node in ast.walk(FACE)
        if isinstance(node, ast.ImportFrom) and node.module == package.__name__
        for alias in node.names
    }
    assert imported == set(package.__all__)
    assert package.__all__ == sorted(package.__all__)


def test_every_verb_is_pinned() -> None:
    """So has every public method of a Database."""
    verbs = {name for name in vars(lambda_pg.Database) if not name.startswith("_")}
    used = {node.attr for node in ast.walk(FACE) if isinstance(node, ast.Attribute)}
    assert verbs <= used


def test_every_part_of_a_request_is_pinned() -> None:
    """So has every public attribute and method of what lambda_pg.http_api hands to a function."""
    parts = {
        name
        for kind in (
            lambda_pg.http_api.Answer,
            lambda_pg.http_api.Problem,
            lambda_pg.http_api.Request,
        )
        for name in {*vars(kind), *getattr(kind, "__annotations__", {})}
        if not name.startswith("_")
    }
    used = {node.attr for node in ast.walk(FACE) if isinstance(node, ast.Attribute)}
    assert parts <= used


def test_a_stranger_s_checker_knows_every_type() -> None:
    """What pyright finds in the installed package has no unknown part."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "layer" / "python"),
    }
    pyright = ROOT / "node_modules" / ".bin" / "pyright"
    shown = subprocess.run(
        [pyright, "--verifytypes", "lambda_pg", "--ignoreexternal", "--outputjson"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    symbols = json.loads(shown.stdout)["typeCompleteness"]["symbols"]
    assert {"lambda_pg._database.Database.execute", "lambda_pg.sqlalchemy.create_engine"} <= {
        symbol["name"] for symbol in symbols
    }
    assert not [
        symbol["name"]
        for symbol in symbols
        if not (symbol["isTypeKnown"] or symbol["isTypeAmbiguous"])
        and not symbol["name"].startswith(THEIRS)
    ]
