"""The tests of a new project are run as its owner runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.paths import import_root
from lambda_pg_cdk.tools.new import write


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A new project."""
    write("shop", tmp_path / "shop")
    return tmp_path / "shop"


def pytest_in(project: Path) -> subprocess.CompletedProcess[str]:
    """Run a project's tests, with the packages of this checkout.

    Where they are installed, pytest finds their fixtures by itself.
    """
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    for plugin in ("lambda_pg.testing", "lambda_pg_cdk.migrations.testing"):
        command += ["-p", plugin]
    packages = (PROJECT / "layer" / "python", import_root(project.parent))
    return subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tests_of_a_new_project_pass(project: Path) -> None:
    """On a real PostgreSQL, with the migration and its policy."""
    done = pytest_in(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_what_a_synthesis_writes_is_not_tested(project: Path) -> None:
    """The zip files of functions have packages with tests of theirs."""
    written = project / "cdk.out" / "asset.0" / "test_package.py"
    written.parent.mkdir(parents=True)
    written.write_text("raise RuntimeError")
    done = pytest_in(project)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "failing"),
    [
        ("    op.execute(POLICY)\n", "test_an_order_can_be_read"),
        ('    op.execute("GRANT SELECT, INSERT ON orders TO lambda_pg_app")\n', "can_be_read"),
        ('    op.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")\n', "nobody_elses"),
    ],
    ids=["policy", "grant", "row-level security"],
)
def test_a_forgotten_line_of_the_migration_is_noticed(
    project: Path, line: str, failing: str
) -> None:
    """They would hold nothing otherwise."""
    migration = project / "migrations" / "0001_orders.py"
    assert line in migration.read_text()
    migration.write_text(migration.read_text().replace(line, ""))
    done = pytest_in(project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert failing in done.stdout
