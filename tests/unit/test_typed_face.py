"""The typed face: tests/typing/face.py names all of it, and a stranger's checker knows it all."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import lambda_pg
import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
FACE = ast.parse((ROOT / "tests" / "typing" / "face.py").read_text())

THEIRS = "lambda_pg.django.base."
"""What Django loads and nobody imports; its base classes have no types."""


def test_every_public_name_is_pinned() -> None:
    """Whatever the layer exports has a line that says what its type is."""
    imported = {
        alias.name
        for node in ast.walk(FACE)
        if isinstance(node, ast.ImportFrom) and node.module == "lambda_pg"
        for alias in node.names
    }
    assert imported == set(lambda_pg.__all__)
    assert lambda_pg.__all__ == sorted(lambda_pg.__all__)


def test_every_verb_is_pinned() -> None:
    """So has every public method of a Database."""
    verbs = {name for name in vars(lambda_pg.Database) if not name.startswith("_")}
    used = {node.attr for node in ast.walk(FACE) if isinstance(node, ast.Attribute)}
    assert verbs <= used


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
