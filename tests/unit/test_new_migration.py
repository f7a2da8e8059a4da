"""Beginning a migration: the next number, the name, and what is refused."""

import shutil
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from lambda_pg_cdk.migrations.new import NewMigrationError, main, write
from lambda_pg_cdk.migrations.upgrade import SCRIPTS, configure


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Give a copy of the project's migrations."""
    copied = tmp_path / "migrations"
    shutil.copytree(SCRIPTS, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def revisions(scripts: Path) -> list[str]:
    """List what Alembic would apply, in its order."""
    directory = ScriptDirectory.from_config(configure(scripts))
    return [script.revision for script in directory.walk_revisions()][::-1]


def test_a_migration_follows_the_newest_one(scripts: Path) -> None:
    """Each has the next number, says which one it follows, and is what Alembic applies next."""
    before = revisions(scripts)
    first = write("add orders", scripts)
    second = write("Index-the orders_again", scripts)
    number = int(before[-1])
    assert first.name == f"{number + 1:04}_add_orders.py"
    assert second.name == f"{number + 2:04}_index_the_orders_again.py"
    assert f'down_revision = "{before[-1]}"' in first.read_text()
    assert revisions(scripts) == [*before, f"{number + 1:04}", f"{number + 2:04}"]


def test_the_first_migration_follows_none(scripts: Path) -> None:
    """A project that removes the sample begins with 0001."""
    shutil.rmtree(scripts / "versions")
    (scripts / "versions").mkdir()
    path = write("begin", scripts)
    assert path.name == "0001_begin.py"
    assert "down_revision = None" in path.read_text()
    assert revisions(scripts) == ["0001"]


def test_the_text_is_ready_to_be_written_on(scripts: Path) -> None:
    """It compiles, and its docstring says what the name says."""
    text = write("add orders", scripts).read_text()
    compile(text, "revision", "exec")
    assert text.startswith('"""Add orders.\n')


@pytest.mark.parametrize(
    "name", ["", " ", "1st", "a  b", "a ", "größe", "../a", "a/b", 'a"b', "a\nb", "x" * 61]
)
def test_a_name_that_cannot_be_a_file_s_is_refused(scripts: Path, name: str) -> None:
    """The message quotes the name and says what one looks like."""
    with pytest.raises(NewMigrationError) as refused:
        write(name, scripts)
    assert repr(name) in str(refused.value)
    assert "add orders" in str(refused.value)


def test_two_that_follow_the_same_one_are_refused(scripts: Path) -> None:
    """After two branches met, somebody has to say which of their migrations is the first."""
    path = write("add orders", scripts)
    number = path.name[:4]
    other = path.with_name("9000_add_carts.py")
    other.write_text(path.read_text().replace(f'revision = "{number}"', 'revision = "9000"', 1))
    with pytest.raises(NewMigrationError, match=r"several newest .*9000"):
        write("and another", scripts)


def test_a_revision_that_is_no_number_is_refused(scripts: Path) -> None:
    """There is nothing to count on from."""
    path = write("add orders", scripts)
    path.write_text(path.read_text().replace(f'"{path.name[:4]}"', '"a1b2c3"', 1))
    with pytest.raises(NewMigrationError, match="'a1b2c3'"):
        write("another", scripts)


def test_the_command_tells_by_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal goes to standard error, for make to show, and writes nothing."""
    before = revisions(SCRIPTS)
    assert main(["1st"]) == 2
    shown = capsys.readouterr()
    assert "'1st'" in shown.err
    assert not shown.out
    assert revisions(SCRIPTS) == before


def test_the_project_s_migrations_are_one_line() -> None:
    """Two of one number, or two newest ones, would be seen in a deployment only."""
    numbers = revisions(SCRIPTS)  # Alembic warns of a number that is there twice
    assert numbers == sorted(numbers)
    assert ScriptDirectory.from_config(configure(SCRIPTS)).get_current_head() == numbers[-1]
