"""The migration against a real PostgreSQL, by a master user with RDS's rights and no more."""

import json
import logging
import secrets
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from local.postgres import Postgres
from migrations.roles import GROUP, IAM, Login, Timeouts, UnboundLoginError, admit
from migrations.run import LOCK, migrate
from migrations.upgrade import SCRIPTS, MigrationError, Outcome
from tests.integration.functions import load_function
from tests.integration.layer import Context
from tests.integration.servers import SecretsService

TIMEOUTS = Timeouts(statement=7, lock=2, idle_in_transaction=20, transaction=30)
HEAD = "0001"
PASSWORD = "canary-Pa55word"

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
        self.login = Login(f"app_{name}", PASSWORD)

    def migrate(
        self,
        scripts: Path = SCRIPTS,
        *,
        timeouts: Timeouts = TIMEOUTS,
        patience: float = 60.0,
        shared: bool = False,
    ) -> Outcome:
        """Run the migration as the function does."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        return migrate(
            connection, lambda: self.login, timeouts, scripts, patience=patience, shared=shared
        )

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
def iam(postgres: Postgres) -> Iterator[None]:
    """Give the server the role that RDS has for logins by IAM."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {IAM} NOLOGIN")
        admin.execute(f"GRANT {IAM} TO rds_superuser WITH ADMIN OPTION")
        yield
        admin.execute(f"DROP ROLE {IAM}")


@pytest.fixture
def function(
    target: Target,
    postgres: Postgres,
    secrets_service: SecretsService,
    secrets_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> ModuleType:
    """Give the function, with the environment that its stack gives it."""
    master = conninfo_to_dict(target.dsn)
    secret = {"username": str(master["user"]), "password": str(master["password"])}
    for name, value in {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGDATABASE": str(master["dbname"]),
        "PGSSLROOTCERT": str(postgres.ca_file),
        "LAMBDA_PG_PROFILE": "direct",
        "LAMBDA_PG_SECRET_ARN": secrets_service.create(secret),
        "STATEMENT_TIMEOUT": "7",
        "LOCK_TIMEOUT": "2",
        "IDLE_IN_TRANSACTION_TIMEOUT": "20",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return load_function("migrate")


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


def test_a_transaction_has_a_timeout_where_the_server_knows_one(target: Target) -> None:
    """PostgreSQL has it from 17 on; on older ones nothing is set, and nothing fails."""
    target.migrate()
    with target.connect() as connection:
        shown = connection.execute("SELECT current_setting('transaction_timeout', true)").fetchone()
        assert shown == ("30s" if connection.info.server_version >= 170000 else None,)
    target.migrate(timeouts=replace(TIMEOUTS, transaction=0))
    with target.connect() as connection:
        shown = connection.execute("SELECT current_setting('transaction_timeout', true)").fetchone()
        assert shown in {("0",), (None,)}


def test_the_database_s_timeouts_are_not_the_migration_s(target: Target, scripts: Path) -> None:
    """A revision may take longer than a request's statement or transaction."""
    timeouts = replace(TIMEOUTS, statement=1, transaction=1)
    add(scripts, HEAD, None)
    target.migrate(scripts, timeouts=timeouts)
    add(scripts, "a2", HEAD, "SELECT pg_sleep(1.5)")
    assert target.migrate(scripts, timeouts=timeouts).applied == ["a2"]


def test_in_a_shared_database_nothing_changes_for_others(
    target: Target, postgres: Postgres
) -> None:
    """Whoever could connect still can, without the limits that the application's user has."""
    target.migrate(shared=True)
    with target.connect() as connection:
        limited = connection.execute("SHOW statement_timeout").fetchone()
    assert limited == ("7s",)
    other = f"other_{secrets.token_hex(4)}"
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        admin.execute(create.format(sql.Identifier(other), PASSWORD))
        try:
            with psycopg.connect(target.dsn, user=other, password=PASSWORD) as connection:
                assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
        finally:
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(other)))


@pytest.mark.parametrize("attribute", ["BYPASSRLS", "SUPERUSER"])
def test_a_user_whom_no_policy_binds_is_refused(
    target: Target, postgres: Postgres, attribute: str
) -> None:
    """Every caller would see everybody's rows; nothing of the migration stays."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        create = sql.SQL("CREATE ROLE {} LOGIN {}")
        admin.execute(create.format(sql.Identifier(target.login.name), sql.SQL(attribute)))
        master = sql.Identifier(str(conninfo_to_dict(postgres.dsn)["user"]))
        admin.execute(
            sql.SQL("GRANT {} TO {} WITH ADMIN OPTION").format(
                sql.Identifier(target.login.name), master
            )
        )
    with pytest.raises((UnboundLoginError, psycopg.errors.InsufficientPrivilege)) as refused:
        target.migrate()
    if attribute == "BYPASSRLS":
        assert target.login.name in str(refused.value)
        assert "a user of its own" in str(refused.value)
    assert target.tables() == set()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://app:p%40ss@pooler.example.com:6432/app", "app"),
        ("postgresql://app.abcdef:p%40ss@aws-0-eu-west-1.pooler.supabase.com:6543/postgres", "app"),
        ("postgresql://a.b:p%40ss@ep-x-pooler.eu-west-1.aws.neon.tech/app", "a.b"),
    ],
)
def test_an_external_pooler_s_url_names_the_user(
    target: Target, function: ModuleType, url: str, name: str
) -> None:
    """As the database knows it: Supabase's pooler wants the project behind it."""
    assert function.login_of(url) == Login(name, "p@ss")


def test_a_new_password_is_taken_over(target: Target) -> None:
    """After the secret has changed, the next run lets the new password in and not the old."""
    target.migrate()
    old, target.login = target.login, Login(target.login.name, "another-Pa55word")
    target.migrate()
    target.connect().close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(target.dsn, user=old.name, password=old.password)


def test_a_deployment_leaves_the_other_user_as_it_is(target: Target) -> None:
    """Where two users take turns, only the one that the secret names gets its password again."""
    target.migrate()
    first = target.login
    target.login = Login(f"{first.name}_clone", "canary-of-the-clone")
    try:
        target.migrate()
        for login in (first, target.login):
            with psycopg.connect(target.dsn, user=login.name, password=login.password) as session:
                session.execute("SELECT FROM users")
    finally:
        with psycopg.connect(target.dsn, autocommit=True) as master:
            master.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(target.login.name)))


def test_a_user_of_iam_has_no_password(target: Target, iam: None, postgres: Postgres) -> None:
    """The role is made a member of what RDS looks at, and of the application's group."""
    target.login = Login(target.login.name)
    target.migrate()
    target.migrate()
    with psycopg.connect(postgres.superuser_dsn) as admin:
        password = admin.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [target.login.name]
        )
        assert password.fetchone() == (None,)
        assert groups_of(admin, target.login.name) == {GROUP, IAM}


def test_a_user_of_iam_can_get_a_password(target: Target, iam: None, postgres: Postgres) -> None:
    """RDS lets members of its role in by token only, so the membership has to end."""
    target.login = Login(target.login.name)
    target.migrate()
    target.login = Login(target.login.name, PASSWORD)
    target.migrate()
    with psycopg.connect(postgres.superuser_dsn) as admin:
        assert groups_of(admin, target.login.name) == {GROUP}
    target.connect().close()


def test_a_server_without_iam_is_told_in_the_log(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    """A local server has no such role; the deployment goes on, and the login waits for one."""
    target.login = Login(target.login.name)
    with caplog.at_level(logging.WARNING, "migrate"):
        assert target.migrate().applied == [HEAD]
    assert IAM in caplog.text
    assert target.login.name in caplog.text


def test_a_failure_names_the_revision_and_leaves_nothing(target: Target, scripts: Path) -> None:
    """All pending revisions are undone, and the message is PostgreSQL's, without a password."""
    add(scripts, "a1", None)
    add(scripts, "a2", "a1", "SELECT 1 / 0")
    with pytest.raises(MigrationError) as failed:
        target.migrate(scripts)
    assert "a2" in str(failed.value)
    assert "division by zero" in str(failed.value)
    assert PASSWORD not in str(failed.value)
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


def test_a_migration_that_waits_in_vain_names_who_has_the_lock(target: Target) -> None:
    """A lock that is never given back ends the wait, not the function's whole time."""
    with psycopg.connect(target.dsn, autocommit=True, application_name="stuck") as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        with pytest.raises(MigrationError) as failed:
            target.migrate(patience=0.2)
        pid = holder.info.backend_pid
    assert f"process {pid} has the lock (stuck" in str(failed.value)
    assert f"pg_terminate_backend({pid})" in str(failed.value)
    assert target.migrate().applied == [HEAD]


def test_the_login_is_read_after_the_wait(target: Target) -> None:
    """While one migration waits for another, a rotation may change what was right before."""
    target.migrate()
    with psycopg.connect(target.dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        run = threading.Thread(target=target.migrate)
        run.start()
        wait_for_waiters(holder, 1)
        target.login = Login(target.login.name, "rotated-Pa55word")
    run.join(timeout=30)
    target.connect().close()


def test_logins_that_are_let_in_at_once_do_not_disturb_each_other(target: Target) -> None:
    """A rotation may meet a deployment: PostgreSQL refuses to change one role twice at a time."""
    target.migrate()

    def repeat() -> None:
        with psycopg.connect(target.dsn, autocommit=True) as connection:
            for _ in range(20):
                admit(connection, target.login)

    with ThreadPoolExecutor(4) as threads:
        for run in [threads.submit(repeat) for _ in range(4)]:
            run.result()


def test_the_function_lets_a_user_of_iam_in(
    target: Target, function: ModuleType, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """APP_USER stands in the place of a secret."""
    monkeypatch.setenv("APP_USER", target.login.name)
    assert function.handler({}, Context(30)) == {"revision": HEAD, "applied": [HEAD]}
    with psycopg.connect(postgres.superuser_dsn) as admin:
        assert groups_of(admin, target.login.name) == {GROUP}


def test_the_function_s_time_ends_its_wait(target: Target, function: ModuleType) -> None:
    """It answers who has the lock before Lambda ends it without a word."""
    with psycopg.connect(target.dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        with pytest.raises(MigrationError, match=f"process {holder.info.backend_pid} has the lock"):
            function.handler({}, Context(3))


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
    assert PASSWORD not in log


def groups_of(admin: psycopg.Connection[tuple[object, ...]], name: str) -> set[object]:
    """List the roles that a role is a direct member of."""
    rows = admin.execute(
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = %s::regrole", [name]
    )
    return {row[0] for row in rows}


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
