"""Beginning a migration: the next number, the name, and what is refused."""

from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.migrations import new
from lambda_pg_cdk.migrations.new import NewMigrationError, main, write
from lambda_pg_cdk.migrations.revisions import BASE, SAMPLE, Branch, MigrationError, read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name a project's folder of migrations, which the first one makes."""
    return tmp_path / "migrations"


def revisions(folder: Path) -> list[str]:
    """List what would be applied, in its order."""
    return [revision.id for revision in read(Branch(folder))]


def test_a_migration_follows_the_newest_one(folder: Path) -> None:
    """Each has the next number, says which one it follows, and is what is applied next."""
    assert write("add orders", folder).name == "0001_add_orders.py"
    assert "down_revision = None" in (folder / "0001_add_orders.py").read_text()
    second = write("Index-the orders_again", folder)
    assert second.name == "0002_index_the_orders_again.py"
    assert 'down_revision = "0001"' in second.read_text()
    assert revisions(folder) == ["0001", "0002"]


@pytest.mark.parametrize("name", ["add orders", "create orders", "add table orders", "Add_orders"])
def test_a_name_that_asks_for_a_table_makes_one(folder: Path, name: str) -> None:
    """With a grant, row-level security, a policy, and the claims that it may compare with."""
    text = write(name, folder).read_text()
    for part in (
        "CREATE TABLE orders (",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own_rows ON orders TO lambda_pg_app",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO lambda_pg_app",
        "current_setting('request.jwt.claims', true)",
    ):
        assert part in text
    assert "$" not in text


@pytest.mark.parametrize("name", ["begin", "add a column", "index the orders"])
def test_another_name_has_the_same_as_a_comment(folder: Path, name: str) -> None:
    """It changes nothing by itself."""
    text = write(name, folder).read_text()
    for part in (
        "GRANT SELECT",
        "ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY",
        "request.jwt.claims",
    ):
        (line,) = [line for line in text.splitlines() if part in line]
        assert line.strip().startswith("#")


def test_the_text_is_ready_to_be_written_on(folder: Path) -> None:
    """It compiles, and its docstring says what the name says."""
    for name in ("add orders", "mend the orders"):
        text = write(name, folder).read_text()
        compile(text, "revision", "exec")
        assert text.startswith(f'"""{name.capitalize()}.\n')


@pytest.mark.parametrize(
    "name", ["", " ", "1st", "a  b", "a ", "größe", "../a", "a/b", 'a"b', "a\nb", "x" * 61]
)
def test_a_name_that_cannot_be_a_file_s_is_refused(folder: Path, name: str) -> None:
    """The message quotes the name and says what one looks like."""
    with pytest.raises(NewMigrationError) as refused:
        write(name, folder)
    assert repr(name) in str(refused.value)
    assert "add orders" in str(refused.value)
    assert not folder.exists()


def test_the_command_tells_by_its_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal goes to standard error, for make to show, and writes nothing."""
    assert write.__defaults__ == (PROJECT / "migrations",)
    monkeypatch.setattr(new.write, "__defaults__", (folder,))
    assert main(["1st"]) == 2
    shown = capsys.readouterr()
    assert "'1st'" in shown.err
    assert not shown.out
    assert main(["add", "orders"]) == 0
    assert capsys.readouterr().out == f"{folder / '0001_add_orders.py'}\n"
    (folder / "0001_add_orders.py").write_text("revision =")
    assert main(["again"]) == 2
    assert "migrations/0001_add_orders.py, line 1: invalid syntax" in capsys.readouterr().err


FIRST = 'revision = "0001"\ndown_revision = None\n'


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"0001_a": "revision ="}, "migrations/0001_a.py, line 1: invalid syntax"),
        ({"0001_a": f"{FIRST}return 1"}, "0001_a.py, line 3: 'return' outside function"),
        ({"0001_a": f"{FIRST}\0"}, "0001_a.py.*null bytes"),
        ({"0001_a": ""}, "migrations/0001_a.py: its revision is missing; must be '0001'"),
        ({"0001_a": 'revision = "a1b2"'}, "its revision is 'a1b2'; must be '0001'"),
        ({"0001_a": 'revision = "0001"'}, "its down_revision is missing; must be the revision"),
        (
            {"0001_a": 'revision = "0001"\ndown_revision = ("0002", "0003")'},
            r"its down_revision is \('0002', '0003'\); must be",
        ),
        (
            {"0001_a": FIRST, "0001_b": FIRST},
            "migrations/0001_a.py and 0001_b.py have the same number",
        ),
        (
            {"0001_a": FIRST, "0001_b": 'revision = "0001"\ndown_revision = "0001"'},
            "migrations/0001_a.py and 0001_b.py have the same number",
        ),
        (
            {"0001_a": FIRST, "0002_b": 'revision = "0002"\ndown_revision = None'},
            "0001_a.py and 0002_b.py are both the first: set the down_revision .* to '0001'",
        ),
        (
            {
                "0001_a": FIRST,
                "0002_b": 'revision = "0002"\ndown_revision = "0001"',
                "0003_c": 'revision = "0003"\ndown_revision = "0001"',
            },
            "0002_b.py and 0003_c.py both follow '0001': set .* '0002'",
        ),
        (
            {"0001_a": FIRST, "0003_c": 'revision = "0003"\ndown_revision = "0002"'},
            "migrations/0003_c.py follows '0002', and no file of the folder has that revision",
        ),
        (
            {"0003_c": 'revision = "0003"\ndown_revision = "0003"'},
            "migrations/0003_c.py follows '0003', and no file",
        ),
    ],
)
def test_what_is_not_one_line_is_named(folder: Path, files: dict[str, str], problem: str) -> None:
    """By its file, for a new migration as for a deployment."""
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    with pytest.raises(MigrationError, match=problem):
        write("another", folder)


def test_annotated_names_and_other_files_are_read_as_alembic_does(folder: Path) -> None:
    """As its own template writes them; what has no number is not a revision."""
    folder.mkdir()
    text = 'revision: str = "0001"\ndown_revision: str | None = None\nbranch_labels: str\n'
    (folder / "0001_a.py").write_text(text)
    (folder / "conftest.py").write_text("revision =")
    assert revisions(folder) == ["0001"]


def test_the_product_s_migrations_are_two_lines() -> None:
    """Each of the base and of the sample follows the one before."""
    for branch in (BASE, SAMPLE):
        numbers = [revision.id for revision in read(branch)]
        assert numbers
        assert numbers == sorted(numbers)
