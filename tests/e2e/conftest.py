"""One local cloud for all end-to-end tests: the whole project, deployed."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.paths import another_state_dir


@pytest.fixture(scope="session")
def cloud() -> Iterator[LocalCloud]:
    """Start a local cloud with everything deployed; it ends with the tests."""
    with LocalCloud(another_state_dir(), Options(bound=True)) as started:
        yield started


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project that can be deployed."""
    git = ["git", "ls-files", "-z"]
    listed = subprocess.run(git, cwd=PROJECT, check=True, capture_output=True, text=True)
    folder = tmp_path / "project"
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, target, follow_symlinks=False)
    (folder / ".venv").symlink_to(PROJECT / ".venv")
    (folder / "node_modules").symlink_to(PROJECT / "node_modules")
    return folder
