"""The local clouds that end-to-end tests share: the whole project, deployed."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.paths import another_state_dir
from tests.support.place import Place, state_folder


@pytest.fixture(scope="session")
def cloud() -> Iterator[LocalCloud]:
    """Start a local cloud with everything deployed; it ends with the tests."""
    with LocalCloud(another_state_dir(), Options(bound=True)) as started:
        yield started


@pytest.fixture(scope="session")
def whole() -> Iterator[Place]:
    """Start a local cloud by the command line, as `make up` does: with every part that there is.

    Its owner's umask lets others read. The last test that uses it ends it (tests/conftest.py).
    """
    with state_folder() as place:
        code, place.output = place.run("up", umask=0o022)
        assert code == 0, place.output
        yield place


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that can be changed and deployed; the changes stay."""
    folder = copy_to(tmp_path_factory.mktemp("copy") / "project")
    (folder / ".venv").symlink_to(PROJECT / ".venv")
    (folder / "node_modules").symlink_to(PROJECT / "node_modules")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project's files that one test changes."""
    return copy_to(tmp_path / "tree")


def copy_to(folder: Path) -> Path:
    """Copy the project's files, as Git has them, to a folder."""
    git = ["git", "ls-files", "-z"]
    listed = subprocess.run(git, cwd=PROJECT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, target, follow_symlinks=False)
    return folder
