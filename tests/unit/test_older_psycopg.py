"""A function that bundles another psycopg than the layer's learns so from the import."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lambda_pg._psycopg import NEEDED

LAYER = Path(__file__).parents[2] / "layer"


def imported(folder: Path) -> subprocess.CompletedProcess[str]:
    """Import lambda_pg where `folder` comes first, as /var/task does before /opt/python."""
    return subprocess.run(
        [sys.executable, "-c", "import lambda_pg"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(folder), str(LAYER / "python")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )


def bundle(folder: Path, version: str, code: str = "") -> None:
    """Write a psycopg as far as the import of the layer sees it."""
    package = folder / "psycopg"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    (package / "abc.py").write_text("Params = Query = object\n")
    metadata = folder / f"psycopg-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: psycopg\nVersion: {version}\n")


@pytest.mark.parametrize("version", ["3.1.18", "3.2.10", "3.4.0"])
@pytest.mark.parametrize("code", ["", "raise ImportError('no pq wrapper available')"])
def test_another_version_is_named_with_the_remedy(tmp_path: Path, version: str, code: str) -> None:
    """Whether names are missing or psycopg itself fails beside the layer's psycopg_binary."""
    bundle(tmp_path, version, code)
    last = imported(tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: psycopg {version} in {tmp_path}")
    assert f"lambda_pg needs psycopg>={NEEDED},<3.4" in last
    assert "Leave psycopg out of the function's package" in last


def test_an_import_that_fails_for_another_reason_is_not_explained(tmp_path: Path) -> None:
    """A fitting version whose import fails keeps its own message."""
    bundle(tmp_path, NEEDED, "raise ImportError('libpq is missing')")
    assert imported(tmp_path).stderr.strip().endswith("ImportError: libpq is missing")


def test_the_version_is_the_one_that_the_distribution_asks_for() -> None:
    """The message names what pyproject.toml requires."""
    project = tomllib.loads((LAYER / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [f"psycopg[binary]>={NEEDED},<3.4"]
