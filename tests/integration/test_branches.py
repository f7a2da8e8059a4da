"""The base's, the sample's and the app's migrations are branches of one database."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from lambda_pg._connection import SET_CLAIMS
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations import plan
from lambda_pg_cdk.migrations.new import write
from lambda_pg_cdk.migrations.revisions import BASE, SAMPLE, Branch
from lambda_pg_cdk.migrations.roles import GROUP
from lambda_pg_cdk.migrations.run import migrate
from lambda_pg_cdk.migrations.upgrade import MigrationError
from tests.support.targets import HEADS, REVISIONS, TIMEOUTS, Target, add, new_target

ONE_LINE = (Path(__file__).parent / "one_line.sql").read_text()
ROWS = "SELECT version_num FROM alembic_version ORDER BY version_num"


@pytest.fixture
def target(postgres: Postgres) -> Iterator[Target]:
    """Give a new database that belongs to the master user, and remove it afterwards."""
    with new_target(postgres) as made:
        yield made


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Give a project's folder of migrations."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    return folder


def rows_of(target: Target) -> list[object]:
    """Read alembic_version."""
    with psycopg.connect(target.dsn) as owner:
        return [row[0] for row in owner.execute(ROWS)]


def make_one_line(target: Target, revision: str) -> uuid.UUID:
    """Make the state of a database from before the branches, with a user; return its owner."""
    subject = uuid.uuid4()
    with psycopg.connect(target.dsn, autocommit=True) as owner:
        known = owner.execute("SELECT FROM pg_roles WHERE rolname = %s", [GROUP]).fetchone()
        if known is None:
            owner.execute(f"CREATE ROLE {GROUP}")
        first, _, second = ONE_LINE.partition("-- 0002\n")
        owner.execute(first.encode())
        if revision != "0001":
            owner.execute(second.encode())
            owner.execute("UPDATE alembic_version SET version_num = %s", [revision])
        owner.execute("ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
        owner.execute("INSERT INTO users (owner, name) VALUES (%s, 'Ada')", [subject])
        owner.execute("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    return subject


def names_of(target: Target, subject: uuid.UUID) -> list[object]:
    """Read a subject's users, as the application."""
    with target.connect() as connection:
        claims = json.dumps({"sub": str(subject)})
        connection.execute(SET_CLAIMS.replace(b"$1", b"%s"), [claims])
        return [row[0] for row in connection.execute("SELECT name FROM users")]


def newer_than(revision: str) -> list[str]:
    """List what base and sample apply after a revision of the one line."""
    rows = plan.ONE_LINE[revision]
    return [each for each in REVISIONS if each > max(row for row in rows if row[:-4] == each[:-4])]


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_database_from_before_the_branches_goes_on(
    target: Target, app: Path, revision: str
) -> None:
    """Its row becomes those of two branches, its users stay, and the app's 0001 is a new one."""
    subject = make_one_line(target, revision)
    add(app, "0001", None)
    outcome = target.migrate(app)
    assert outcome.applied == [*newer_than(revision), "0001"]
    assert rows_of(target) == ["0001", *HEADS]
    assert names_of(target, subject) == ["Ada"]
    assert target.migrate(app).applied == []


def test_the_project_s_later_revisions_of_the_one_line_go_on(target: Target, app: Path) -> None:
    """They followed 0002; moved to the project's folder, the first of them follows nothing."""
    subject = make_one_line(target, "0003")
    add(app, "0003", None)
    add(app, "0004", "0003")
    assert target.migrate(app).applied == [*newer_than("0002"), "0004"]
    assert rows_of(target) == ["0004", *HEADS]
    assert names_of(target, subject) == ["Ada"]


def test_a_failed_migration_leaves_the_one_line(target: Target, app: Path) -> None:
    """The split into branches is a part of the one transaction."""
    make_one_line(target, "0002")
    add(app, "0001", None, "SELECT 1 / 0")
    with pytest.raises(MigrationError, match=r"migration 0001 .*division by zero"):
        target.migrate(app)
    assert rows_of(target) == ["0002"]


def test_the_base_goes_on_beneath_the_app(target: Target, app: Path, tmp_path: Path) -> None:
    """The next version of the product and the app's next revision: each branch keeps its row."""
    add(app, "0001", None)
    assert target.migrate(app).applied == [*REVISIONS, "0001"]
    base = tmp_path / "base"
    base.mkdir()
    for file in BASE.folder.glob("*.py"):
        (base / file.name).write_text(file.read_text())
    add(base, "lambda_pg_0004", "lambda_pg_0003")
    add(app, "0002", "0001", "ALTER TABLE made_by_lambda_pg_0004 ADD m int")
    connection = psycopg.connect(target.dsn, autocommit=True)
    branches = [Branch(base, BASE.prefix), SAMPLE, Branch(app)]
    outcome = migrate(connection, lambda: target.login, TIMEOUTS, branches, patience=30)
    assert outcome.applied == ["lambda_pg_0004", "0002"]
    assert outcome.revisions == ["lambda_pg_0004", "users_0003", "0002"]
    assert rows_of(target) == ["0002", "lambda_pg_0004", "users_0003"]

    add(app, "0003", "0002")
    outcome = target.migrate(app)  # as the older version, which the project has gone back to
    assert outcome.applied == ["0003"]
    assert rows_of(target) == ["0003", "lambda_pg_0004", "users_0003"]
    assert "lambda_pg_0004" in outcome.warnings[0]


def test_a_stage_may_have_no_sample(target: Target, app: Path) -> None:
    """Neither from the start nor after one that had it, whose table stays."""
    add(app, "0001", None)
    for before in (False, True):
        if before:
            target.migrate(app)
        connection = psycopg.connect(target.dsn, autocommit=True)
        branches = [BASE, Branch(app)]
        outcome = migrate(connection, lambda: target.login, TIMEOUTS, branches, patience=30)
        assert outcome.revisions == ["lambda_pg_0003", "0001"]
        assert ("users" in target.tables()) is before
        assert outcome.warnings == []


def test_alembic_reads_the_branches_too(target: Target, app: Path) -> None:
    """Its own command line finds the same heads, and the base by its label."""
    add(app, "0001", None)
    target.migrate(app)
    config = Config()
    config.set_main_option("script_location", str(app))
    config.set_main_option("path_separator", "newline")
    folders = [BASE.folder, SAMPLE.folder, app]
    config.set_main_option("version_locations", "\n".join(map(str, folders)))
    directory = ScriptDirectory.from_config(config)
    assert sorted(directory.get_heads()) == rows_of(target)
    assert directory.get_revision("lambda_pg@head").revision == "lambda_pg_0003"


def test_a_deleted_revision_is_named(target: Target, app: Path) -> None:
    """With the statement for a database that no longer has what it made."""
    add(app, "0001", None)
    deleted = add(app, "0002", "0001")
    target.migrate(app)
    deleted.unlink()
    add(app, "0003", "0001")
    with pytest.raises(MigrationError) as failed:
        target.migrate(app)
    message = str(failed.value)
    assert "has the migration 0002, and migrations/ has no file for it" in message
    with psycopg.connect(target.dsn, autocommit=True) as owner:
        owner.execute(message.rpartition("deploy again: ")[2].encode())
    assert target.migrate(app).applied == ["0003"]


def test_another_project_s_alembic_is_named(target: Target) -> None:
    """Its table has this name by default: nothing is taken for ours, and nothing is changed."""
    with psycopg.connect(target.dsn, autocommit=True) as owner:
        owner.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        owner.execute("INSERT INTO alembic_version VALUES ('27c6a30d7c24')")
    with pytest.raises(MigrationError, match=r"'27c6a30d7c24', .*version_table"):
        target.migrate()
    assert target.tables() == {"alembic_version"}


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("def upgrade():\n    op.create_tabel('x')\n", 5, "AttributeError: "),
        ("import no_such_module\n", 4, "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "def upgrade():\n    op.execute('SELECT nothing')\n",
            5,
            'column "nothing" does not exist',
        ),
        ("def upgrade():\n    {}['x']\n", 5, "KeyError: 'x'"),
    ],
)
def test_a_broken_revision_is_named_with_its_line(
    target: Target, app: Path, body: str, line: int, reason: str
) -> None:
    """Whatever breaks it; the schema is as it was."""
    head = 'from alembic import op\nrevision = "0001"\ndown_revision = None\n'
    (app / "0001_broken.py").write_text(head + body)
    with pytest.raises(MigrationError) as failed:
        target.migrate(app)
    place = f"migration 0001 (migrations/0001_broken.py, line {line}) failed"
    assert str(failed.value).startswith(place)
    assert reason in str(failed.value)
    assert target.tables() == set()


def test_a_revision_without_upgrade_is_named(target: Target, app: Path) -> None:
    """There is no line to name."""
    (app / "0001_empty.py").write_text('revision = "0001"\ndown_revision = None\n')
    with pytest.raises(MigrationError, match=r"migration 0001 \(migrations/0001_empty.py\) failed"):
        target.migrate(app)


def test_a_new_migration_makes_a_table_for_functions(target: Target, app: Path) -> None:
    """As it is written: no warning, each caller has its own rows, and inserts get the owner."""
    write("add orders", app)
    write("index the orders again", app).write_text(
        'from alembic import op\nrevision = "0002"\ndown_revision = "0001"\n'
        "def upgrade():\n    op.execute('ALTER TABLE orders ADD total int')\n"
    )
    assert target.migrate(app).warnings == []
    mine, other = (json.dumps({"sub": str(uuid.uuid4())}) for _ in range(2))
    for claims, count in ((mine, 1), (other, 1), (mine, 2)):
        with target.connect() as connection:
            connection.execute(SET_CLAIMS.replace(b"$1", b"%s"), [claims])
            connection.execute("INSERT INTO orders (total) VALUES (995)")
            found = connection.execute("SELECT count(*) FROM orders").fetchone()
            assert found == (count,)


TABLES = [
    ("CREATE TABLE t (id int)", ["'permission denied'", "row-level security is off"]),
    ("CREATE TABLE t (id serial, owner uuid)", ["'permission denied'", "sequence t_id_seq"]),
    (
        (
            "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY);"
            f" GRANT SELECT, INSERT ON t TO {GROUP}"
        ),
        ["row-level security is off"],
    ),
    (
        (
            f"CREATE TABLE t (owner uuid); GRANT SELECT ON t TO {GROUP};"
            " ALTER TABLE t ENABLE ROW LEVEL SECURITY"
        ),
        [f"it has no policy for {GROUP}"],
    ),
    (
        (
            f"CREATE TABLE t (owner uuid); GRANT SELECT ON t TO {GROUP};"
            " ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
            " CREATE POLICY p ON t TO pg_monitor USING (true)"
        ),
        [f"it has no policy for {GROUP}"],
    ),
    (
        (
            f"CREATE TABLE t (n int); GRANT SELECT ON t TO {GROUP};"
            " ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
            " CREATE POLICY p ON t AS RESTRICTIVE USING (true)"
        ),
        [f"it has no policy for {GROUP}"],
    ),
    (
        f'CREATE SCHEMA shop; CREATE TABLE shop."T" (n int); GRANT SELECT ON shop."T" TO {GROUP}',
        ['table shop."T": ', "its schema shop", "row-level security is off"],
    ),
    (
        (
            "CREATE TABLE t (n int) PARTITION BY RANGE (n);"  # noqa: S608 - a constant
            f" GRANT SELECT ON t TO {GROUP};"
            " CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (1) TO (2)"
        ),
        ["table t: ", "row-level security is off"],
    ),
]


@pytest.mark.parametrize(("statements", "told"), TABLES, ids=lambda each: str(each)[:60])
def test_a_table_that_functions_cannot_use_is_told_with_the_remedy(
    target: Target, app: Path, statements: str, told: list[str]
) -> None:
    """At each migration, until the statements of the warning are in one."""
    revision = write("begin", app)
    revision.write_text(revision.read_text().replace('"""\n        """', repr(statements)))
    for applied in ([*REVISIONS, "0001"], []):
        outcome = target.migrate(app)
        assert outcome.applied == applied
        (warning,) = outcome.warnings
        assert all(part in warning for part in told), warning
    remedy = warning.partition("Add to a new migration: ")[2].partition(" Or, if")[0]
    second = write("mend", app)
    second.write_text(second.read_text().replace('"""\n        """', repr(remedy)))
    assert target.migrate(app).warnings == []


@pytest.mark.parametrize(
    "statements",
    [
        f"CREATE TABLE t (n int); REVOKE ALL ON t FROM {GROUP}",
        (
            f"CREATE TABLE t (n int); GRANT SELECT ON t TO {GROUP};"
            " ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON t USING (true)"
        ),
        (
            f"CREATE TABLE t (n int, owner uuid); GRANT SELECT (n) ON t TO {GROUP};"
            " ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
            f" CREATE POLICY p ON t TO {GROUP} USING (n = 1)"
        ),
        "CREATE VIEW v AS SELECT 1",
        "CREATE TEMPORARY TABLE t (n int)",
    ],
)
def test_what_is_meant_so_is_no_warning(target: Target, app: Path, statements: str) -> None:
    """A table that functions do not use, one whose rows everybody may read, and no table."""
    revision = write("begin", app)
    revision.write_text(revision.read_text().replace('"""\n        """', repr(statements)))
    assert target.migrate(app).warnings == []


def test_in_a_shared_database_other_tables_are_no_warning(target: Target, app: Path) -> None:
    """They are somebody else's, unless the application may use them."""
    with psycopg.connect(target.dsn, autocommit=True) as owner:
        owner.execute("CREATE TABLE theirs (n int)")
    write("begin", app).write_text(
        'from alembic import op\nrevision = "0001"\ndown_revision = None\n'
        "def upgrade():\n    op.execute('CREATE TABLE ours (n int)')\n"
    )
    (warning,) = target.migrate(app, shared=True).warnings
    assert warning.startswith("table ours: ")
    with psycopg.connect(target.dsn, autocommit=True) as owner:
        owner.execute(f"GRANT SELECT ON theirs TO {GROUP}")
    (warning,) = target.migrate(app, shared=True).warnings
    assert warning.startswith("table theirs: row-level security is off")


def test_an_extension_s_table_is_no_warning(target: Target, app: Path, postgres: Postgres) -> None:
    """Nobody can add a policy to it; here a table of ours becomes one."""
    add(app, "0001", None)
    target.migrate(app)
    with psycopg.connect(target.dsn, autocommit=True) as owner:
        owner.execute("CREATE TABLE t (n int)")
    assert len(target.migrate(app).warnings) == 1
    dsn = make_conninfo(postgres.superuser_dsn, dbname=conninfo_to_dict(target.dsn)["dbname"])
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("ALTER EXTENSION plpgsql ADD TABLE t")
    assert target.migrate(app).warnings == []
