"""The layer as an ordinary distribution: what `pip install ./layer` brings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lambda_pg_cdk import __version__

ROOT = Path(__file__).resolve().parents[2]
LAYER = ROOT / "layer"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the distribution, which pip builds a wheel of first."""
    folder = tmp_path_factory.mktemp("installed")
    options = [*OFFLINE, "--no-build-isolation", "--no-compile", f"--target={folder}"]
    run([*PIP, "install", *options, str(LAYER)])
    return folder


@pytest.fixture(scope="module")
def distribution(installed: Path) -> Distribution:
    """Its metadata."""
    (metadata,) = installed.glob("*.dist-info")
    return PathDistribution(metadata)


def run(command: list[str]) -> None:
    """Run a command that must succeed, and say what it said when it does not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=LAYER.parent)
    assert done.returncode == 0, done.stderr


def sources() -> Iterator[str]:
    """List the package's files as they are in the repository."""
    folder = LAYER / "python"
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix()


def test_the_metadata_say_what_it_is(distribution: Distribution) -> None:
    """Name, version, licence and the Python it needs are there for pip and for people."""
    metadata = distribution.metadata
    assert metadata["Name"] == "lambda-pg"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    readme = metadata.json["description"]
    assert "from lambda_pg import Database" in readme


def test_it_needs_psycopg_and_nothing_else(distribution: Distribution) -> None:
    """Every other dependency is an extra that its user asks for."""
    required = [Requirement(text) for text in distribution.requires or []]
    assert [each.name for each in required if each.marker is None] == ["psycopg"]
    assert set(distribution.metadata.get_all("Provides-Extra") or []) == {
        "django",
        "sqlalchemy",
        "testing",
    }


@pytest.mark.parametrize("lock", ["layer/requirements.in", "requirements/dev.in"])
def test_what_is_deployed_and_tested_is_what_it_accepts(
    distribution: Distribution, lock: str
) -> None:
    """The pins of the deployed layer and of the tests fall into the ranges that it declares."""
    pins = [Requirement(line) for line in (ROOT / lock).read_text().splitlines() if "==" in line]
    pinned = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    declared: dict[str, SpecifierSet] = {
        each.name: each.specifier for each in map(Requirement, distribution.requires or [])
    }
    checked = pinned.keys() & declared.keys()
    assert checked
    assert not [name for name in checked if pinned[name] not in declared[name]]


def test_it_holds_the_package_and_nothing_else(installed: Path) -> None:
    """Modules, types, and certificates; no tests, and no folder beside the package."""
    files = {
        path.relative_to(installed).as_posix()
        for path in (installed / "lambda_pg").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files == set(sources())
    assert "lambda_pg/py.typed" in files
    assert any(name.startswith("lambda_pg/certs/") and name.endswith(".pem") for name in files)
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"lambda_pg"}


def test_it_carries_the_licence(distribution: Distribution) -> None:
    """The text goes where the package goes."""
    text = distribution.read_text("licenses/LICENSE")
    assert text == (ROOT / "LICENSE").read_text()


def test_it_can_be_imported(installed: Path, tmp_path: Path) -> None:
    """It needs nothing of the repository, and does not import an extra by itself."""
    probe = (
        "import lambda_pg, sys; print(lambda_pg.__file__, lambda_pg.__version__);"
        "print({'pytest', 'django', 'sqlalchemy', 'boto3'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", probe],
        env={"PYTHONPATH": str(installed), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    found, imported = shown.stdout.splitlines()
    place, version = found.split()
    assert version == __version__
    assert Path(place).is_relative_to(installed)
    assert imported == "set()"


@pytest.mark.usefixtures("installed")
def test_building_leaves_nothing_behind() -> None:
    """What a build wrote into layer/ would be deployed, or committed."""
    strange = {path.name for path in LAYER.iterdir()} - {
        "LICENSE",
        "README.md",
        "__pycache__",
        "build.py",
        "cache.py",
        "psycopg-3.3.9.patch",
        "pyproject.toml",
        "python",
        "requirements.in",
        "requirements.txt",
        "roots.py",
    }
    assert not strange
    assert not list(LAYER.rglob("*.egg-info"))
