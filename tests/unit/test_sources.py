"""What goes into the zip of the migration: the base, the sample where it is on, and the app's."""

from pathlib import Path

import pytest

from lambda_pg_cdk import PACKAGE, PROJECT
from lambda_pg_cdk.layer.build import Target
from lambda_pg_cdk.migrations.revisions import MigrationError
from lambda_pg_cdk.stage.sources import migration_code, migrations

FIRST = 'revision = "0001"\ndown_revision = None\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Give a project with one migration."""
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_orders.py").write_text(FIRST)
    return tmp_path


def places(project: Path, *, sample: bool) -> set[str]:
    """List what goes into the zip, by its place there."""
    return {name for _, name in migrations(project, sample=sample)}


def test_the_zip_has_the_base_and_the_app_s(project: Path) -> None:
    """And files that a migration reads, which have its number."""
    (project / "migrations" / "0001_orders.sql").write_text("CREATE TABLE orders ()")
    (project / "migrations" / "README.md").write_text("")
    without = places(project, sample=False)
    assert {"lambda_pg_cdk/migrations/base", "lambda_pg_cdk/migrations/run.py"} <= without
    assert {name for name in without if name.startswith("migrations/")} == {
        "migrations/0001_orders.py",
        "migrations/0001_orders.sql",
    }
    assert places(project, sample=True) - without == {"lambda_pg_cdk/migrations/sample"}


def test_the_zip_has_all_modules_that_the_function_imports() -> None:
    """Each module of the room is in it, but those that only a developer runs."""
    room = {path.name for path in (PACKAGE / "migrations").glob("*.py")}
    packed = {path.name for path, _ in migrations(PROJECT, sample=True)}
    assert room - packed == {"new.py", "testing.py"}


def test_this_repository_s_are_taken_once() -> None:
    """The project's folder is the room that the base and the sample lie in."""
    found = [path.resolve() for path, _ in migrations(PROJECT, sample=True)]
    assert len(found) == len(set(found))
    assert not [
        name for _, name in migrations(PROJECT, sample=True) if name.startswith("migrations/")
    ]


def test_the_zip_has_what_the_project_declares_for_sql(project: Path) -> None:
    """The sample's file lies in its folder; a mistake is found at synthesis."""
    declared = project / "migrations" / "sql_access.toml"
    declared.write_text('[reader.orders]\nverbs = ["SELECT"]')
    assert "migrations/sql_access.toml" in places(project, sample=False)
    assert (PACKAGE / "migrations" / "sample" / "sql_access.toml").is_file()
    declared.write_text('[reader.orders]\nverbs = ["INSERT"]')
    with pytest.raises(MigrationError, match=r"sql_access\.toml, \[reader\.orders\]"):
        places(project, sample=False)


def test_a_changed_migration_changes_the_zip(project: Path) -> None:
    """So the function's version changes, and the migration runs again."""
    target = Target("3.13", "arm64")
    folders = set()
    for text in ("SELECT 1", "SELECT 2"):
        (project / "migrations" / "0001_orders.sql").write_text(text)
        folder = migration_code(target, sample=False, project=project)
        assert (folder / "migrations" / "0001_orders.sql").read_text() == text
        assert not (folder / "lambda_pg_cdk" / "migrations" / "sample").exists()
        folders.add(folder)
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("1_orders.py", "begins with four digits"),
        ("orders.py", "begins with four digits"),
        ("0001-orders.py", "begins with four digits"),
        ("versions/0003_orders.py", r"Move the files of migrations/versions/ to migrations/"),
    ],
)
def test_a_file_that_would_not_be_applied_is_refused(project: Path, name: str, remedy: str) -> None:
    """Silence would be a table that is missing in production."""
    file = project / "migrations" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    with pytest.raises(MigrationError, match=remedy) as refused:
        migrations(project, sample=False)
    assert str(file) in str(refused.value)


def test_a_broken_file_is_found_at_synthesis(project: Path) -> None:
    """A deployment would take minutes to say the same."""
    (project / "migrations" / "0002_items.py").write_text("revision = \n")
    with pytest.raises(MigrationError, match=r"migrations/0002_items.py, line 1: invalid syntax"):
        migrations(project, sample=False)
