"""The migration against a real PostgreSQL, by a master user with RDS's rights and no more."""

import json
import logging
import secrets
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
from lambda_pg._connection import SET_CLAIMS
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lambda_pg_cdk.local.servers.passwords import machine_made_password
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.roles import (
    GROUP,
    IAM,
    PROXY,
    Login,
    LoginError,
    NeighbourError,
    OwnerLockedOutError,
    UnboundLoginError,
    admit,
)
from lambda_pg_cdk.migrations.roles import LOCK as ROLES_LOCK
from lambda_pg_cdk.migrations.run import LOCK, Connections, Owner
from lambda_pg_cdk.migrations.upgrade import MigrationError, Outcome
from tests.support.canary import CANARY, assert_nowhere
from tests.support.context import Context
from tests.support.functions import load_function
from tests.support.servers import SecretsService
from tests.support.targets import (
    HEADS,
    PASSWORD,
    REVISIONS,
    TIMEOUTS,
    Target,
    add,
    new_target,
)


@pytest.fixture
def target(postgres: Postgres) -> Iterator[Target]:
    """Give a new database that belongs to the master user, and remove it afterwards."""
    with new_target(postgres) as made:
        yield made


@pytest.fixture
def neighbour(postgres: Postgres) -> Iterator[Target]:
    """Give another database of the same server."""
    with new_target(postgres) as made:
        yield made


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
    return load_function("operations/migrate")


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Give the app's folder, to which a test adds its own migrations."""
    return tmp_path


def test_a_second_run_applies_nothing(target: Target) -> None:
    """The first run reaches the newest revision; the next one has nothing to do."""
    assert target.migrate() == Outcome(HEADS, REVISIONS)
    assert target.migrate() == Outcome(HEADS, [])


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
            "INSERT INTO users (owner, name) VALUES (%s, 'Ada')",
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


@pytest.mark.parametrize("shared", [False, True])
def test_statements_look_whether_their_client_is_there(target: Target, shared: bool) -> None:
    """A pooler forgets a server connection whose client has gone; its backend has to end too."""
    target.migrate(shared=shared)
    with target.connect() as connection:
        shown = connection.execute("SHOW client_connection_check_interval").fetchone()
    assert shown == ("100ms",)


def test_both_users_of_a_rotation_have_a_limit_of_connections(target: Target) -> None:
    """The secret names one of them; what the other one may have belongs to the budget too."""
    first = target.login.name
    second = f"{first}_clone"
    target.migrate(connections=Connections(login=20))
    with psycopg.connect(target.dsn, autocommit=True) as master:
        admit(master, Login(second, "canary-of-the-clone"), like=first)
        try:
            assert target.limits() == {first: 20, second: 20}
            for limit, limits in [(30, 30), (None, 30), (-1, -1)]:
                target.migrate(connections=Connections(login=limit))
                assert target.limits() == {first: limits, second: limits}
        finally:
            master.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(second)))


def test_a_member_of_the_group_whom_another_one_made_keeps_its_limit(
    target: Target, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Only who made a role may change it; the log names it, and the deployment goes on."""
    with psycopg.connect(target.dsn) as master:
        if master.info.server_version < 160000:
            pytest.skip("before PostgreSQL 16, CREATEROLE may change every role")
    target.migrate()
    stranger = Login(f"{target.login.name}_other", PASSWORD)
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        create_role(admin, stranger)
        grant = sql.SQL("GRANT {} TO {}")
        admin.execute(grant.format(sql.Identifier(GROUP), sql.Identifier(stranger.name)))
        try:
            target.migrate(connections=Connections(login=20))
            assert target.limits() == {target.login.name: 20, stranger.name: -1}
            assert f"ALTER ROLE {stranger.name} CONNECTION LIMIT 20" in caplog.text
        finally:
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(stranger.name)))


def test_the_owner_is_no_user_with_a_limit(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    """From PostgreSQL 16 on it is a member of the group that it made, and cannot limit itself."""
    target.migrate(connections=Connections(login=20))
    assert "connection limit" not in caplog.text


def test_a_borrowed_role_keeps_its_limit_of_connections(target: Target) -> None:
    """Another pooler may have its own idea of how many connections it takes."""
    target.login = replace(target.login, borrowed=True)
    target.migrate(shared=True, connections=Connections(login=20))
    assert target.limits() == {target.login.name: -1}


def test_the_database_s_timeouts_are_not_the_migration_s(target: Target, scripts: Path) -> None:
    """A revision may take longer than a request's statement or transaction."""
    timeouts = replace(TIMEOUTS, statement=1, transaction=1)
    add(scripts, "0001", None)
    target.migrate(scripts, timeouts=timeouts)
    add(scripts, "0002", "0001", "SELECT pg_sleep(1.5)")
    assert target.migrate(scripts, timeouts=timeouts).applied == ["0002"]


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
        create_role(admin, target.login, attribute)
    for borrowed in (False, True):
        target.login = replace(target.login, borrowed=borrowed)
        with pytest.raises(UnboundLoginError) as refused:
            target.migrate(shared=borrowed)
        assert target.login.name in str(refused.value)
        assert "a separate user" in str(refused.value)
    assert target.tables() == set()


@pytest.mark.parametrize("borrowed", [False, True])
def test_the_owner_is_refused(target: Target, postgres: Postgres, borrowed: bool) -> None:
    """The application would change the schema; the owner's URL may be in both of a secret's."""
    master = conninfo_to_dict(target.dsn)
    target.login = Login(str(master["user"]), "another-Pa55word", borrowed)
    with pytest.raises(LoginError, match=r"is the owner.* a separate user"):
        target.migrate(shared=borrowed)
    psycopg.connect(target.dsn).close()
    assert target.tables() == set()


def test_a_role_that_is_none_of_the_application_s_is_not_taken(target: Target) -> None:
    """Who may write the secret would get the rights of any role that it names."""
    with psycopg.connect(target.dsn, autocommit=True) as master:
        create_role(master, target.login)
    stranger = target.login
    target.login = Login(stranger.name, "another-Pa55word")
    with pytest.raises(LoginError, match="does not belong to the application"):
        target.migrate()
    psycopg.connect(target.dsn, user=stranger.name, password=PASSWORD).close()
    assert target.tables() == set()


def test_a_borrowed_role_keeps_its_password(target: Target) -> None:
    """Somebody else's role gets the group, and limits in this database, and stays as it is."""
    with psycopg.connect(target.dsn, autocommit=True) as master:
        create_role(master, target.login)
    right = target.login
    target.login = Login(right.name, "another-Pa55word", borrowed=True)
    target.migrate(shared=True)
    target.login = right
    with target.connect() as connection:
        connection.execute("SELECT FROM users")
        assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)


def test_a_borrowed_role_may_have_another_administrator(
    target: Target, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Then its limits are for that one to set, which the log says with the statement."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        create_role(admin, target.login)
        version = admin.info.server_version
    target.login = replace(target.login, borrowed=True)
    with caplog.at_level(logging.WARNING, "migrate"):
        target.migrate(shared=True)
    if version >= 160000:  # on older ones CREATEROLE is over all roles
        assert f"ALTER ROLE {target.login.name} SET statement_timeout = '7s'" in caplog.text
    with target.connect() as connection:
        connection.execute("SELECT FROM users")


@pytest.mark.parametrize(("host", "verified"), [("localhost", True), ("ep-x.neon.tech", False)])
def test_a_borrowed_role_that_is_not_there_is_made(
    target: Target, postgres: Postgres, host: str, verified: bool
) -> None:
    """By its verifier; Neon takes none, and gets the password itself."""
    password = f"canary-{secrets.token_hex(8)}"
    target.login = Login(target.login.name, password, borrowed=True)
    with logged_statements(postgres):
        for _ in range(2):
            target.migrate(shared=True, host=host, hostaddr="127.0.0.1", sslmode="verify-ca")
    target.connect().close()
    assert (password not in postgres.log.read_text()) is verified


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
    assert function.login_of(url) == Login(name, "p@ss", borrowed=True)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"postgresql://app:a[{CANARY}@pooler.example.com/app", "an unescaped character"),
        (f"postgresql://app:[{CANARY}]@pooler.example.com/app", "an unescaped character"),
        ("postgresql://app@pooler.example.com/app", "no user or no password"),
        ("postgresql://app:@pooler.example.com/app", "no user or no password"),
        (f"postgresql://:{CANARY}@pooler.example.com/app", "no user or no password"),
        (None, "the secret's field 'url'"),
    ],
)
def test_a_url_without_a_login_is_refused(
    target: Target, function: ModuleType, url: str | None, reason: str
) -> None:
    """What is wrong with it is told, and nothing of it; without a password it would clear one."""
    with pytest.raises(LoginError, match=reason) as refused:
        function.login_of(url)
    assert_nowhere(refused.value)


@pytest.mark.parametrize("login", [("", PASSWORD), ("app", "")])
def test_an_empty_login_is_refused(login: tuple[str, str]) -> None:
    """PostgreSQL treats an empty password as none."""
    with pytest.raises(LoginError, match="write one into its secret"):
        Login(*login)


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


@pytest.mark.parametrize(
    ("made", "many", "rounds"), [(True, False, 1), (False, False, 4096), (True, True, 4096)]
)
def test_a_password_that_a_machine_made_has_a_cheap_verifier(
    target: Target, postgres: Postgres, made: bool, many: bool, rounds: int
) -> None:
    """One hash round, so that a direct login costs its client a fifth; and it logs in.

    Where a client of somebody else's logs in, it has as many as any password.
    """
    password = machine_made_password() if made else PASSWORD
    target.login = Login(target.login.name, password, many_rounds=many)
    target.migrate()
    with psycopg.connect(postgres.superuser_dsn) as admin:
        row = admin.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [target.login.name]
        ).fetchone()
        version = admin.info.server_version
    assert row is not None
    assert row[0].startswith(f"SCRAM-SHA-256${rounds if version >= 160000 else 4096}:")
    target.connect().close()


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
        assert target.migrate().applied == REVISIONS
    assert IAM in caplog.text
    assert target.login.name in caplog.text


def test_a_failure_names_the_revision_and_leaves_nothing(target: Target, scripts: Path) -> None:
    """All pending revisions are undone, and the message is PostgreSQL's, without a password."""
    add(scripts, "0001", None)
    broken = add(scripts, "0002", "0001", "SELECT 1 / 0")
    with pytest.raises(MigrationError) as failed:
        target.migrate(scripts)
    assert f"migration 0002 ({scripts.name}/{broken.name}, line 8) failed" in str(failed.value)
    assert "division by zero" in str(failed.value)
    assert PASSWORD not in str(failed.value)
    assert not target.tables()
    add(scripts, "0002", "0001")
    assert target.migrate(scripts).applied == [*REVISIONS, "0001", "0002"]


def test_an_older_deployment_leaves_a_newer_schema(target: Target, scripts: Path) -> None:
    """A deployment that rolls back runs its older migrations, which must not fail."""
    add(scripts, "0001", None)
    newer = add(scripts, "0002", "0001")
    target.migrate(scripts)
    newer.unlink()
    outcome = target.migrate(scripts)
    assert (outcome.revisions, outcome.applied) == ([*HEADS, "0002"], [])
    (note,) = outcome.warnings
    assert "the migration 0002, and the newest one" in note


def test_a_lock_in_use_ends_the_migration_soon(target: Target, scripts: Path) -> None:
    """DDL waits for a table's readers at most as long as the lock timeout."""
    target.migrate()
    add(scripts, "0001", None, "ALTER TABLE users ADD COLUMN n int")
    with psycopg.connect(target.dsn) as reader:
        reader.execute("SELECT FROM users")
        with pytest.raises(MigrationError, match=r"migration 0001 .*lock timeout"):
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
    assert sorted(len(outcome.applied) for outcome in outcomes) == [0, len(REVISIONS)]


def test_a_migration_that_waits_in_vain_names_who_has_the_lock(target: Target) -> None:
    """A lock that is never given back ends the wait, not the function's whole time."""
    with psycopg.connect(target.dsn, autocommit=True, application_name="stuck") as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        with pytest.raises(MigrationError) as failed:
            target.migrate(patience=0.2)
        pid = holder.info.backend_pid
    assert f"process {pid} has the lock (stuck" in str(failed.value)
    assert f"pg_terminate_backend({pid})" in str(failed.value)
    assert target.migrate().applied == REVISIONS


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


def test_logins_of_two_databases_do_not_disturb_each_other(
    target: Target, neighbour: Target
) -> None:
    """The lock is one database's and roles are the server's: what collides is tried again."""

    def repeat(where: Target) -> None:
        with psycopg.connect(where.dsn, autocommit=True) as connection:
            for _ in range(40):
                admit(connection, target.login)

    with ThreadPoolExecutor(2) as threads:
        for run in [threads.submit(repeat, where) for where in (target, neighbour)]:
            run.result()


def test_a_server_has_one_application(target: Target, neighbour: Target) -> None:
    """The group and its users are the server's: those of the first could log in to the second."""
    neighbour.migrate()
    with pytest.raises(NeighbourError) as refused:
        target.migrate()
    name = str(conninfo_to_dict(neighbour.dsn)["dbname"])
    assert f"{name!r} of this server" in str(refused.value)
    assert "Use a separate server" in str(refused.value)
    assert target.tables() == set()
    with psycopg.connect(neighbour.dsn, autocommit=True) as master:
        master.execute(str(refused.value).partition("in use: ")[2])
    assert target.migrate().applied == REVISIONS


def test_a_login_is_read_when_no_rotation_can_end_any_more(target: Target) -> None:
    """It holds the roles' lock until its password is current, for longer than a lock may wait."""
    target.migrate()
    soon = replace(TIMEOUTS, lock=1)
    with psycopg.connect(target.dsn) as rotation:
        rotation.execute("SELECT pg_advisory_xact_lock(%s)", [ROLES_LOCK])
        run = threading.Thread(target=target.migrate, kwargs={"timeouts": soon})
        run.start()
        wait_for_waiters(rotation, 1)
        rotation.execute("SELECT pg_sleep(1.2)")
        target.login = Login(target.login.name, "rotated-Pa55word")
        rotation.rollback()
    run.join(timeout=30)
    target.connect().close()


def test_rds_proxy_s_own_role_may_connect(target: Target, postgres: Postgres) -> None:
    """It cannot as one of PUBLIC any more."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        name = str(conninfo_to_dict(target.dsn)["dbname"])
        admin.execute(f"CREATE ROLE {PROXY} LOGIN")
        try:
            target.migrate()
            may = admin.execute("SELECT has_database_privilege(%s, %s, 'CONNECT')", [PROXY, name])
            assert may.fetchone() == (True,)
        finally:
            revoke = sql.SQL("REVOKE ALL ON DATABASE {} FROM {}")
            admin.execute(revoke.format(sql.Identifier(name), sql.Identifier(PROXY)))
            admin.execute(f"DROP ROLE {PROXY}")


def test_fewer_connections_than_the_budget_s_are_refused(target: Target) -> None:
    """A parameter that waits for a reboot would let the first storm find the server full."""
    with psycopg.connect(target.dsn) as connection:
        row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
    assert row is not None
    allowed = row[0]
    assert isinstance(allowed, int)
    with pytest.raises(MigrationError) as refused:
        target.migrate(connections=Connections(server=allowed + 1))
    for told in (str(allowed), str(allowed + 1), "only after a reboot", "deploy again"):
        assert told in str(refused.value)
    with psycopg.connect(target.dsn) as connection:
        found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [target.login.name])
        assert found.fetchone() is None
    assert target.migrate(connections=Connections(server=allowed)).applied == REVISIONS


def test_the_function_takes_the_budget_from_its_environment(
    target: Target, function: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAX_CONNECTIONS, without which nothing is held against the server's number; LOGIN_LIMIT."""
    monkeypatch.setenv("APP_USER", target.login.name)
    monkeypatch.setenv("MAX_CONNECTIONS", "5000")
    with pytest.raises(MigrationError, match="5000"):
        function.handler({}, Context(30))
    monkeypatch.delenv("MAX_CONNECTIONS")
    monkeypatch.setenv("LOGIN_LIMIT", "20")
    assert function.handler({}, Context(30))["applied"] == REVISIONS
    assert target.limits() == {target.login.name: 20}


@pytest.fixture
def sql_roles(
    target: Target, secrets_service: SecretsService, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Give the function the logins of two trust levels; return their users."""
    users = {level: f"app_{level}_{target.login.name}" for level in ("reader", "caller")}
    secret = secrets_service.create({"username": users["reader"], "password": PASSWORD})
    url = f"postgresql://{users['caller']}:{PASSWORD}@127.0.0.1/app"
    arns = {"reader": secret, "caller": secrets_service.create({"url": url})}
    timeouts = {"statement": 5, "lock": 1, "idle_in_transaction": 3, "transaction": 6}
    monkeypatch.setenv("APP_USER", target.login.name)
    monkeypatch.setenv("SQL_ROLES", json.dumps(arns))
    monkeypatch.setenv("SQL_TIMEOUTS", json.dumps(timeouts))
    monkeypatch.setenv("SQL_LOGIN_LIMIT", "4")
    return users


def test_the_function_takes_the_trust_levels_from_its_environment(
    target: Target,
    function: ModuleType,
    sql_roles: dict[str, str],
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQL_ROLES with secrets or users, SQL_TIMEOUTS, SQL_LOGIN_LIMIT; without them all are off."""
    seen = "SELECT count(*) FROM users"
    try:
        assert function.handler({}, Context(30))["revisions"] == HEADS
        for user in sql_roles.values():
            with psycopg.connect(target.dsn, user=user, password=PASSWORD) as connection:
                assert connection.execute(seen).fetchone() == (0,)
                assert connection.execute("SHOW statement_timeout").fetchone() == ("5s",)
                limit = "SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user"
                assert connection.execute(limit).fetchone() == (4,)
        monkeypatch.delenv("SQL_ROLES")
        monkeypatch.delenv("SQL_TIMEOUTS")
        assert function.handler({}, Context(30))["revisions"] == HEADS
        for user in sql_roles.values():
            with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
                psycopg.connect(target.dsn, user=user, password=PASSWORD)
    finally:
        drop_users(postgres, target, sql_roles.values())


def test_a_trust_level_by_tokens_is_a_member_of_rds_iam(
    target: Target,
    function: ModuleType,
    iam: None,
    sql_roles: dict[str, str],
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQL_ROLES has its user then, and no secret."""
    user = sql_roles["reader"]
    monkeypatch.setenv("SQL_ROLES", json.dumps({"reader": user}))
    try:
        assert function.handler({}, Context(30))["revisions"] == HEADS
        with psycopg.connect(postgres.superuser_dsn) as admin:
            assert groups_of(admin, user) == {"lambda_pg_sql_reader", IAM}
    finally:
        drop_users(postgres, target, [user])


@pytest.fixture
def deployed_levels(
    target: Target, function: ModuleType, sql_roles: dict[str, str], postgres: Postgres
) -> Iterator[dict[str, str]]:
    """Deploy two trust levels; return their users, which the owner has created."""
    function.handler({}, Context(30))
    yield sql_roles
    drop_users(postgres, target, sql_roles.values())


def test_a_trust_level_that_would_lock_the_owner_out_is_refused(
    target: Target,
    function: ModuleType,
    deployed_levels: dict[str, str],
    iam_only: None,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the application's user is: the owner becomes a member of what it creates."""
    user = deployed_levels["reader"]
    monkeypatch.setattr(function, "read_login", lambda: target.login)
    monkeypatch.setenv("SQL_ROLES", json.dumps({"reader": user}))
    with pytest.raises(OwnerLockedOutError, match=f"CREATE ROLE {user} LOGIN; GRANT lambda_pg_sql"):
        function.handler({}, Context(30))
    with psycopg.connect(postgres.superuser_dsn) as admin:
        assert groups_of(admin, user) == {"lambda_pg_sql_reader"}


def drop_users(postgres: Postgres, target: Target, users: Iterable[str]) -> None:
    """Drop the users of trust levels with all that they have in the target's database."""
    dsn = make_conninfo(postgres.superuser_dsn, dbname=str(conninfo_to_dict(target.dsn)["dbname"]))
    with psycopg.connect(dsn, autocommit=True) as admin:
        for user in users:
            admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(user)))


@pytest.mark.parametrize("password", [{}, {"password": ""}, {"password": None}])
def test_a_secret_without_a_password_is_refused(
    target: Target,
    function: ModuleType,
    secrets_service: SecretsService,
    monkeypatch: pytest.MonkeyPatch,
    password: dict[str, str],
) -> None:
    """Nor is its user taken for one of IAM's, who has none."""
    arn = secrets_service.create({"username": target.login.name} | password)
    monkeypatch.setenv("APP_SECRET_ARN", arn)
    with pytest.raises(LoginError, match="an empty password"):
        function.handler({}, Context(30))
    assert target.tables() == set()


@pytest.mark.parametrize("shared", ["1", ""])
def test_the_function_is_told_that_a_database_is_shared(
    target: Target,
    function: ModuleType,
    secrets_service: SecretsService,
    monkeypatch: pytest.MonkeyPatch,
    shared: str,
) -> None:
    """The user of APP_SECRET_ARN is made in either case; others may connect as before, or not."""
    login = {"username": target.login.name, "password": PASSWORD}
    monkeypatch.setenv("APP_SECRET_ARN", secrets_service.create(login))
    monkeypatch.setenv("SHARED_DATABASE", shared)
    load_function("operations/migrate").handler({}, Context(30))
    with target.connect() as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)
        public = connection.execute(
            "SELECT count(*) > 0 FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', 1)))"
            " AS granted WHERE datname = current_database() AND grantee = 0"
        )
        assert public.fetchone() == (shared == "1",)


@pytest.fixture
def iam_only(target: Target, iam: None, postgres: Postgres) -> Iterator[None]:
    """Let members of IAM's role log in as RDS does: by token, which this server has none of.

    On RDS the owner may grant that role without being its member. Here only a superuser can. Who
    makes a role is its member from PostgreSQL 16 on.
    """
    with psycopg.connect(postgres.superuser_dsn) as admin:
        if admin.info.server_version < 160000:
            pytest.skip("from PostgreSQL 16 on, who makes a role is its member")
    owner = sql.Identifier(str(conninfo_to_dict(target.dsn)["user"]))
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        row = admin.execute("SHOW hba_file").fetchone()
        assert row is not None
        hba = Path(str(row[0]))
        before = hba.read_text()
        target.login = Login(target.login.name, PASSWORD)
        target.migrate()
        admin.execute(f"REVOKE {IAM} FROM rds_superuser")
        admin.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(owner))
        hba.write_text(f"hostssl all +{IAM} all reject\n{before}")
        admin.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            hba.write_text(before)
            admin.execute("SELECT pg_reload_conf()")
            admin.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(owner))


def is_let_in(target: Target) -> bool:
    """Tell whether the owner's password is taken."""
    try:
        psycopg.connect(target.dsn).close()
    except psycopg.OperationalError as error:
        if "rejects connection" not in str(error):
            raise
        return False
    return True


def is_of_iam(target: Target, postgres: Postgres) -> bool:
    """Tell whether the application's user is one of IAM's."""
    with psycopg.connect(postgres.superuser_dsn) as admin:
        return IAM in groups_of(admin, target.login.name)


def test_who_made_one_of_iam_s_is_locked_out(
    target: Target, iam_only: None, postgres: Postgres
) -> None:
    """What all of this is about: the grant alone shuts the owner's password out."""
    assert is_let_in(target)
    with psycopg.connect(target.dsn, autocommit=True) as owner:
        owner.execute(f"GRANT {IAM} TO {target.login.name}")
        assert not is_let_in(target)
        owner.execute(f"REVOKE {IAM} FROM {target.login.name}")
    assert is_let_in(target)


@pytest.mark.parametrize("shared", [True, False])
def test_a_grant_that_would_lock_the_owner_out_is_refused(
    target: Target, iam_only: None, postgres: Postgres, shared: bool
) -> None:
    """Before it is committed: nothing is changed, and the message says what to do."""
    target.login = Login(target.login.name)
    with pytest.raises(OwnerLockedOutError) as refused:
        target.migrate(shared=shared)
    assert is_let_in(target)
    assert not is_of_iam(target, postgres)
    for told in (target.login.name, "Nothing was changed", f"GRANT {GROUP}, {IAM} TO", "'secret'"):
        assert told in str(refused.value)


def test_a_grant_after_which_the_owner_cannot_log_in_is_undone(
    target: Target, iam_only: None, postgres: Postgres
) -> None:
    """By the connection that is still open: a token was to be taken, and is not."""
    target.login = Login(target.login.name)
    tried: list[bool] = []

    def check() -> None:
        tried.append(is_of_iam(target, postgres))
        psycopg.connect(target.dsn).close()

    with pytest.raises(MigrationError) as refused:
        target.migrate(owner=Owner(check, by_token=True))
    assert tried == [True]
    assert is_let_in(target)
    assert not is_of_iam(target, postgres)
    assert "the grant was undone" in str(refused.value)
    assert "rds-db:connect" in str(refused.value)


def test_an_owner_who_has_a_token_goes_on(
    target: Target, iam_only: None, postgres: Postgres
) -> None:
    """The grant stays, and is not asked about again."""
    target.login = Login(target.login.name)
    checks: list[int] = []
    owner = Owner(lambda: checks.append(1), by_token=True)
    assert target.migrate(owner=owner).revisions == HEADS
    assert is_of_iam(target, postgres)
    assert checks == [1]
    by_token = conninfo_to_dict(postgres.superuser_dsn)["host"]
    assert target.migrate(owner=owner, host=str(by_token)).revisions == HEADS
    assert checks == [1]


def test_a_user_whom_an_administrator_made_is_taken_as_it_is(
    target: Target, neighbour: Target, iam_only: None, postgres: Postgres
) -> None:
    """The remedy that the refusal names: the owner is no member of a role that another one made."""
    name = f"app_{conninfo_to_dict(neighbour.dsn)['dbname']}"
    target.login = Login(name)
    owner = str(conninfo_to_dict(target.dsn)["user"])
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN")
        admin.execute(f"GRANT {GROUP}, {IAM} TO {name}")
        admin.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(sql.Identifier(owner)))
    assert target.migrate(shared=True).revisions == HEADS
    assert is_let_in(target)


def test_the_function_goes_on_by_token_where_the_password_is_not_taken(
    target: Target,
    function: ModuleType,
    iam_only: None,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the deployment that makes the user one of IAM's, and in the next one."""
    monkeypatch.setenv("APP_USER", target.login.name)
    monkeypatch.setenv("OWNER_BY_TOKEN", "1")
    function = load_function("operations/migrate")
    asked: list[str] = []

    class ByToken:
        """The owner's second way, which here is the server's socket."""

        @contextmanager
        def connection(self) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
            asked.append("token")
            host = str(conninfo_to_dict(postgres.superuser_dsn)["host"])
            with psycopg.connect(target.dsn, host=host, autocommit=True) as connection:
                yield connection

        def close(self) -> None:
            asked.append("closed")

    monkeypatch.setattr(function, "with_tokens", ByToken)
    monkeypatch.setattr("lambda_pg._failures.LOGIN_REFUSED", ("pg_hba.conf rejects connection",))
    assert function.handler({}, Context(30))["revisions"] == HEADS
    assert asked == ["token", "closed"]
    assert not is_let_in(target)
    assert function.handler({}, Context(30))["revisions"] == HEADS
    assert asked == ["token", "closed"] * 2


def test_the_second_way_is_a_token_of_the_owner_s(target: Target, function: ModuleType) -> None:
    """For the same server and the user of the owner's secret, which is not asked any more."""
    shown = repr(function.with_tokens())
    owner = conninfo_to_dict(target.dsn)["user"]
    for part in (
        "auth='iam'",
        f"user='{owner}'",
        "host='127.0.0.1'",
        "region='",
        "secret_arn=None",
    ):
        assert part in shown


def test_the_function_lets_a_user_of_iam_in(
    target: Target, function: ModuleType, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """APP_USER stands in the place of a secret."""
    monkeypatch.setenv("APP_USER", target.login.name)
    assert function.handler({}, Context(30)) == {
        "revisions": HEADS,
        "applied": REVISIONS,
        "warnings": [],
    }
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
    with logged_statements(postgres):
        target.migrate()
    log = postgres.log.read_text()
    assert "SCRAM-SHA-256$" in log
    assert PASSWORD not in log


@contextmanager
def logged_statements(postgres: Postgres) -> Iterator[None]:
    """Have the server log every statement."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET log_statement = 'all'")
        admin.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            admin.execute("ALTER SYSTEM RESET log_statement")
            admin.execute("SELECT pg_reload_conf()")


def create_role(
    connection: psycopg.Connection[tuple[object, ...]], login: Login, attribute: str = "INHERIT"
) -> None:
    """Make a role by hand, outside the group."""
    create = sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}")
    connection.execute(
        create.format(sql.Identifier(login.name), sql.SQL(attribute), login.password)
    )


def groups_of(admin: psycopg.Connection[tuple[object, ...]], name: str) -> set[object]:
    """List the roles that a role is a direct member of."""
    rows = admin.execute(
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = %s::regrole", [name]
    )
    return {row[0] for row in rows}


def claim(connection: psycopg.Connection[tuple[object, ...]], claims: str | None) -> None:
    """Set the claims of the open transaction."""
    if claims is not None:
        connection.execute(SET_CLAIMS.replace(b"$1", b"%s"), [claims])


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
