"""The migration against a real PostgreSQL, by a master user with RDS's rights and no more."""

import json
import secrets
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from local.postgres import Postgres
from migrations.roles import GROUP, Login, Timeouts
from migrations.run import LOCK, migrate
from migrations.upgrade import MigrationError, Outcome

TIMEOUTS = Timeouts(statement=7, lock=2, idle_in_transaction=20)
HEAD = "0001"

ENV = (Path(__file__).parents[2] / "migrations" / "env.py").read_text()
NEXT = """
from alembic import op
revision = "{revision}"
down_revision = {down}
def upgrade():
    op.execute("CREATE TABLE made_by_{revision} (n int)")
    op.execute("{statement}")
"""


class Target:
    """One database of the server, and its application's login."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn = make_conninfo(dsn, dbname=name)
        self.login = Login(f"app_{name}", "canary-Pa55word")

    def migrate(self, scripts: Path | None = None) -> Outcome:
        """Run the migration as the function does."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        extra = () if scripts is None else (scripts,)
        return migrate(connection, self.login, TIMEOUTS, *extra)

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """Log in as the application."""
        return psycopg.connect(self.dsn, user=self.login.name, password=self.login.password)

    def tables(self) -> set[object]:
        """List the tables, as the master user."""
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return {row[0] for row in rows}


@pytest.fixture
def target(postgres: Postgres) -> Iterator[Target]:
    """Give a new database that belongs to the master user, and remove it afterwards."""
    name = f"migrated_{secrets.token_hex(4)}"
    master = str(conninfo_to_dict(postgres.dsn)["user"])
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {} OWNER {}")
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(master)))
        yield Target(postgres.dsn, name)
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        admin.execute(drop.format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(f"app_{name}")))


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Give a folder of migrations to which a test adds its own."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    return tmp_path


def add(scripts: Path, revision: str, down: str | None, statement: str = "SELECT 1") -> None:
    """Write a revision that creates a table and then runs `statement`."""
    text = NEXT.format(revision=revision, down=repr(down), statement=statement)
    (scripts / "versions" / f"{revision}.py").write_text(text)


def test_a_second_run_applies_nothing(target: Target) -> None:
    """The first run reaches the newest revision; the next one has nothing to do."""
    assert target.migrate() == Outcome(HEAD, [HEAD])
    assert target.migrate() == Outcome(HEAD, [])


def test_rows_belong_to_the_claimed_subject(target: Target) -> None:
    """A subject sees and changes its own rows; another one, or none, sees nothing."""
    target.migrate()
    mine, other = uuid.uuid4(), uuid.uuid4()
    with target.connect() as connection:
        claim(connection, json.dumps({"sub": str(mine)}))
        connection.execute("INSERT INTO users (owner, name) VALUES (%s, 'me')", [mine])
    for claims, seen in (
        (json.dumps({"sub": str(mine)}), 1),
        (json.dumps({"sub": str(other)}), 0),
        (json.dumps({"sub": "no-uuid"}), 0),
        ("{}", 0),
        ("", 0),
        (None, 0),
    ):
        with target.connect() as connection:
            claim(connection, claims)
            assert connection.execute("SELECT count(*) FROM users").fetchone() == (seen,), claims


def test_a_row_cannot_be_given_to_somebody_else(target: Target) -> None:
    """Inserting for another owner, or handing a row over, is refused by the policy."""
    target.migrate()
    mine, other = uuid.uuid4(), uuid.uuid4()
    with target.connect() as connection:
        claim(connection, json.dumps({"sub": str(mine)}))
        connection.execute("INSERT INTO users (owner, name) VALUES (%s, 'me')", [mine])
        for statement in (
            "INSERT INTO users (owner, name) VALUES (%s, 'x')",
            "UPDATE users SET owner = %s",
        ):
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege),
                connection.transaction(),
            ):
                connection.execute(statement, [other])


def test_the_application_owns_nothing(target: Target) -> None:
    """The login cannot change the schema, and the group cannot log in."""
    target.migrate()
    with target.connect() as connection:
        for statement in ("DROP TABLE users", "CREATE TABLE mine (n int)", "DELETE FROM users"):
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege),
                connection.transaction(),
            ):
                connection.execute(statement)
        group = connection.execute("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", [GROUP])
        assert group.fetchone() == (False,)


def test_timeouts_hold_for_every_session(target: Target) -> None:
    """They are set on the database, so that each login has them."""
    target.migrate()
    with target.connect() as connection:
        shown = [
            connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert shown == [("7s",), ("2s",), ("20s",)]


def test_a_new_password_is_taken_over(target: Target) -> None:
    """After the secret has changed, the next run lets the new password in and not the old."""
    target.migrate()
    old, target.login = target.login, Login(target.login.name, "another-Pa55word")
    target.migrate()
    target.connect().close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(target.dsn, user=old.name, password=old.password)


def test_a_failure_names_the_revision_and_leaves_nothing(target: Target, scripts: Path) -> None:
    """All pending revisions are undone, and the message is PostgreSQL's, without a password."""
    add(scripts, "a1", None)
    add(scripts, "a2", "a1", "SELECT 1 / 0")
    with pytest.raises(MigrationError) as failed:
        target.migrate(scripts)
    assert "a2" in str(failed.value)
    assert "division by zero" in str(failed.value)
    assert target.login.password not in str(failed.value)
    assert not target.tables() & {"made_by_a1", "made_by_a2"}
    add(scripts, "a2", "a1")
    assert target.migrate(scripts).applied == ["a1", "a2"]


def test_an_older_deployment_leaves_a_newer_schema(target: Target, scripts: Path) -> None:
    """A deployment that rolls back runs its older migrations, which must not fail."""
    add(scripts, "a1", None)
    add(scripts, "a2", "a1")
    target.migrate(scripts)
    (scripts / "versions" / "a2.py").unlink()
    assert target.migrate(scripts) == Outcome("a2", [])


def test_a_lock_in_use_ends_the_migration_soon(target: Target, scripts: Path) -> None:
    """DDL waits for a table's readers at most as long as the lock timeout."""
    target.migrate()
    add(scripts, HEAD, None)
    add(scripts, "a2", HEAD, "ALTER TABLE users ADD COLUMN n int")
    with psycopg.connect(target.dsn) as reader:
        reader.execute("SELECT FROM users")
        with pytest.raises(MigrationError, match=r"a2.*lock timeout"):
            target.migrate(scripts)


def test_two_migrations_take_turns(target: Target) -> None:
    """While one holds the lock the other waits, and then finds nothing to do."""
    outcomes: list[Outcome] = []
    with psycopg.connect(target.dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        runs = [
            threading.Thread(target=lambda: outcomes.append(target.migrate())) for _ in range(2)
        ]
        for run in runs:
            run.start()
        wait_for_waiters(holder, 2)
    for run in runs:
        run.join(timeout=30)
    assert sorted(len(outcome.applied) for outcome in outcomes) == [0, 1]


def test_no_password_reaches_the_server(target: Target, postgres: Postgres) -> None:
    """Statements may be logged: the password travels as its verifier only."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET log_statement = 'all'")
        admin.execute("SELECT pg_reload_conf()")
        try:
            target.migrate()
        finally:
            admin.execute("ALTER SYSTEM RESET log_statement")
            admin.execute("SELECT pg_reload_conf()")
    log = postgres.log.read_text()
    assert "SCRAM-SHA-256$" in log
    assert target.login.password not in log


def claim(connection: psycopg.Connection[tuple[object, ...]], claims: str | None) -> None:
    """Set the claims of the open transaction."""
    if claims is not None:
        connection.execute("SELECT set_config('request.jwt.claims', %s, true)", [claims])


def wait_for_waiters(connection: psycopg.Connection[tuple[object, ...]], count: int) -> None:
    """Wait until `count` sessions wait for an advisory lock."""
    for _ in range(300):
        row = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        ).fetchone()
        if row == (count,):
            return
        threading.Event().wait(0.05)
    pytest.fail(f"no {count} sessions wait for the lock")
