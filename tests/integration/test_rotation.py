"""The rotation function against a real PostgreSQL, its Secrets Manager and a real PgBouncer."""

import json
import logging
import re
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import Database
from lambda_pg._connection import SET_CLAIMS
from moto.secretsmanager.models import (
    FakeSecret,
    SecretsManagerBackend,
    secretsmanager_backends,
)
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.levels import LEVELS, Levels
from lambda_pg_cdk.migrations.roles import (
    CLIENT_CHECK,
    GROUP,
    LOCK,
    Login,
    Timeouts,
    group_of,
)
from lambda_pg_cdk.migrations.run import Connections, migrate
from lambda_pg_cdk.stage.budget import login_limit, most_tasks
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.task import sql_database
from tests.support import servers
from tests.support.clocks import Clock
from tests.support.context import Context
from tests.support.functions import load_function
from tests.support.layer import Admin, busy_clients, count_served, pool_sizes, settings_for, vanish
from tests.support.load import Load, Requests, wait_for_each
from tests.support.servers import REGION, PoolerFixture, SecretsService
from tests.support.sql_server import sql_server, through
from tests.support.waiting import wait_until

STEPS: Final = ("createSecret", "setSecret", "testSecret", "finishSecret")
TIMEOUTS: Final = Timeouts(statement=7, lock=2, idle_in_transaction=20)
FIRST: Final = "canary-of-the-first-password"
ACCOUNT: Final = "123456789012"

RECONNECTING: Final = 0.05
"""Lifetime in seconds of connections that put every change to the test."""

Level = pytest.mark.parametrize("level", LEVELS, indirect=True)
Strategy = pytest.mark.parametrize("strategy", ["alternating", "single"], indirect=True)


class Application:
    """A database, its application's secret, and the function that rotates it."""

    def __init__(
        self, postgres: Postgres, service: SecretsService, strategy: str, level: str = ""
    ) -> None:
        """Create the secret, the application's or a trust level's; `deploy` migrates."""
        self.strategy, self.level = strategy, level
        self.database = f"rotated_{secrets.token_hex(4)}"
        self.user = f"app_{self.database}"
        self.master_dsn = make_conninfo(postgres.dsn, dbname=self.database)
        self.arn = service.create({"username": self.user, "password": FIRST, "engine": "postgres"})
        self.function: ModuleType
        self._service = service

    @property
    def users(self) -> tuple[str, str]:
        """The users that take turns, the first one first."""
        return self.user, f"{self.user}_clone"

    @property
    def all_users(self) -> tuple[str, ...]:
        """Every user of the database."""
        return *self.users, f"other_{self.database}"

    def deploy(self, *, shared: bool = False, login_limit: int = -1) -> None:
        """Migrate, as each deployment does; others may use the database too."""
        connection = psycopg.connect(self.master_dsn, autocommit=True)
        other = Login(self.all_users[-1], FIRST)
        migrate(
            connection,
            (lambda: other) if self.level else self._login,
            TIMEOUTS,
            patience=60.0,
            shared=shared,
            connections=Connections(login=login_limit),
            levels=Levels({self.level: self._login}, TIMEOUTS) if self.level else None,
        )

    def rotate(self, token: str | None = None) -> str:
        """Go through all steps, as Secrets Manager does; return the version's id."""
        token = token or self.begin()
        for step in STEPS:
            self.take(step, token)
        return token

    def begin(self) -> str:
        """Make an empty version with the label AWSPENDING, as RotateSecret does."""
        token = str(uuid.uuid4())
        secret: Any = secretsmanager_backends[ACCOUNT][REGION].secrets[self.arn]
        secret.remove_version_stages_from_old_versions(["AWSPENDING"])
        secret.versions[token] = {
            "createdate": 0,
            "version_id": token,
            "version_stages": ["AWSPENDING"],
        }
        return token

    def begin_trial(self) -> str:
        """Make a version with the label AWSPENDING that is a copy of AWSCURRENT."""
        token = self.begin()
        secret: Any = secretsmanager_backends[ACCOUNT][REGION].secrets[self.arn]
        secret.versions[token]["secret_string"] = json.dumps(self.content())
        return token

    def take(self, step: str, token: str, arn: str | None = None) -> None:
        """Invoke the function for one step."""
        event = {"Step": step, "SecretId": arn or self.arn, "ClientRequestToken": token}
        assert self.function.handler(event, Context(30)) is None

    def content(self, stage: str = "AWSCURRENT") -> dict[str, str]:
        """Read a version of the secret."""
        answer = self._service.client.get_secret_value(SecretId=self.arn, VersionStage=stage)
        content: dict[str, str] = json.loads(answer["SecretString"])
        return content

    def put(self, content: str) -> None:
        """Write the secret by hand."""
        self._service.client.put_secret_value(SecretId=self.arn, SecretString=content)

    def stages(self) -> dict[str, list[str]]:
        """List the versions with their labels."""
        described = self._service.client.describe_secret(SecretId=self.arn)
        stages: dict[str, list[str]] = described["VersionIdsToStages"]
        return stages

    def connect(self, login: dict[str, str]) -> psycopg.Connection[TupleRow]:
        """Log in to the database itself."""
        user, password = login["username"], login["password"]
        return psycopg.connect(self.master_dsn, user=user, password=password)

    def master(self) -> psycopg.Connection[TupleRow]:
        """Log in as the master user."""
        return psycopg.connect(self.master_dsn, autocommit=True)

    def _login(self) -> Login:
        content = self.content()
        group = group_of(self.level) if self.level else GROUP
        return Login(content["username"], content["password"], group=group)


@pytest.fixture(autouse=True)
def labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let moto move the labels of a secret as AWS does: at once, and AWSCURRENT is the default."""
    lock = threading.RLock()

    def atomic(method: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return method(*args, **kwargs)

        return locked

    def current(secret: Any) -> str | None:
        labelled = secret.versions.items()
        found = (each for each, is_ in labelled if "AWSCURRENT" in is_["version_stages"])
        return next(found, None)

    for name in ("get_secret_value", "put_secret_value", "update_secret_version_stage"):
        method = getattr(SecretsManagerBackend, name)
        monkeypatch.setattr(SecretsManagerBackend, name, atomic(method))
    default = property(current, lambda *_: None)
    monkeypatch.setattr(FakeSecret, "default_version_id", default, raising=False)


@pytest.fixture
def strategy(request: pytest.FixtureRequest) -> str:
    """ROTATION."""
    return str(getattr(request, "param", "alternating"))


@pytest.fixture
def level(request: pytest.FixtureRequest) -> str:
    """The trust level whose secret is rotated, or nothing for the application's."""
    return str(getattr(request, "param", ""))


@pytest.fixture
def application(
    strategy: str,
    level: str,
    postgres: Postgres,
    secrets_service: SecretsService,
    secrets_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Application]:
    """An application whose first deployment is still to come; nothing of it stays."""
    made = Application(postgres, secrets_service, strategy, level)
    master = conninfo_to_dict(postgres.dsn)
    secret = {"username": str(master["user"]), "password": str(master["password"])}
    for name, value in {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGDATABASE": made.database,
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": str(postgres.ca_file),
        "LAMBDA_PG_PROFILE": "direct",
        "LAMBDA_PG_SECRET_ARN": secrets_service.create(secret),
        "ROTATION": strategy,
        "SQL_ROLES": json.dumps({level: made.arn} if level else {}),
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        database, owner = sql.Identifier(made.database), sql.Identifier(str(master["user"]))
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, owner))
        made.function = load_function("operations/rotate")
        yield made
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
        for user in made.all_users:
            admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(user)))


@pytest.fixture
def app(application: Application) -> Application:
    """An application that is deployed."""
    application.deploy()
    return application


def use(app: Application, login: dict[str, str]) -> None:
    """Work as the application does: under its policies, with its group's rights and timeouts."""
    mine, other = uuid.uuid4(), uuid.uuid4()
    with app.connect(login) as connection:
        claim = SET_CLAIMS.replace(b"$1", b"%s")
        connection.execute(claim, [json.dumps({"sub": str(mine)})])
        connection.execute("INSERT INTO users (name) VALUES ('me')")
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)
        connection.execute(claim, [json.dumps({"sub": str(other)})])
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)
        shown = connection.execute("SHOW client_connection_check_interval").fetchone()
        assert shown == ("100ms",)


def refused(app: Application, login: dict[str, str]) -> bool:
    """Tell whether the database refuses a login."""
    try:
        app.connect(login).close()
    except psycopg.OperationalError as error:
        return "password authentication failed" in str(error)
    return False


# The steps


def test_two_users_take_turns(app: Application) -> None:
    """After each rotation the other one is current, and the one before stays as good as it was."""
    logins = [app.content()]
    for _ in range(3):
        app.rotate()
        logins.append(app.content())
        assert app.content("AWSPREVIOUS") == logins[-2]
        use(app, logins[-1])
        use(app, logins[-2])
    first, clone = app.users
    assert [login["username"] for login in logins] == [first, clone, first, clone]
    assert len({login["password"] for login in logins}) == 4
    assert refused(app, logins[0])
    assert refused(app, logins[1])


@pytest.mark.parametrize("strategy", ["single"], indirect=True)
def test_one_user_gets_a_new_password(app: Application) -> None:
    """The user stays, the new password is good, and the old one is not any more."""
    logins = [app.content()]
    for _ in range(2):
        app.rotate()
        logins.append(app.content())
        use(app, logins[-1])
        assert refused(app, logins[-2])
    assert {login["username"] for login in logins} == {app.user}
    assert len({login["password"] for login in logins}) == 3


@Strategy
def test_a_password_needs_no_quoting_and_the_rest_of_the_secret_stays(app: Application) -> None:
    """It has the form of the first one, which CloudFormation made."""
    app.rotate()
    content = app.content()
    assert len(content["password"]) == 40
    assert set(content["password"]) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_."
    )
    assert content["engine"] == "postgres"


@Strategy
def test_every_step_may_be_repeated(app: Application) -> None:
    """A repetition finds what the first try has done; after the last step it changes nothing."""
    token = app.begin()
    pending = set()
    for step in STEPS:
        for _ in range(2):
            app.take(step, token)
            pending.add(json.dumps(app.content("AWSPENDING")))
    assert len(pending) == 1
    stages = app.stages()
    app.rotate(token)
    assert app.stages() == stages
    assert "AWSCURRENT" in stages[token]
    use(app, app.content())


def test_the_current_version_is_not_set_again(app: Application) -> None:
    """What is AWSCURRENT is done, even where the database has another password since."""
    token = app.rotate()
    login = app.content()
    with app.master() as master:
        change = sql.SQL("ALTER ROLE {} PASSWORD 'changed-by-hand'")
        master.execute(change.format(sql.Identifier(login["username"])))
    app.take("setSecret", token)
    assert refused(app, login)


@Strategy
def test_a_version_of_another_rotation_is_refused(app: Application) -> None:
    """The token must be a version that is AWSPENDING: an unknown or an overtaken one is not."""
    overtaken = app.begin()
    app.begin()
    for token in (str(uuid.uuid4()), overtaken):
        for step in STEPS:
            with pytest.raises(app.function.RotationError) as caught:
                app.take(step, token)
            for told in (step, app.arn, token, "rotate it again"):
                assert told in str(caught.value)
    use(app, app.content())


def test_a_step_out_of_turn_is_refused(app: Application) -> None:
    """There is nothing to set or to finish before the next login was made up."""
    token = app.begin()
    for step in STEPS[1:]:
        with pytest.raises(app.function.RotationError, match="createSecret comes first"):
            app.take(step, token)
    assert app.content()["password"] == FIRST


def test_a_trial_of_the_settings_only_logs_in(app: Application) -> None:
    """A schedule that does not rotate at once has a copy of AWSCURRENT tested, and nothing more."""
    app.take("testSecret", app.begin_trial())
    use(app, app.content())


@Strategy
def test_a_trial_before_the_first_deployment_fails_and_hinders_nothing(
    application: Application,
) -> None:
    """Nobody has made the user yet; a label that is left over goes with the next rotation."""
    token = application.begin_trial()
    with pytest.raises(application.function.RotationError, match="the first deployment's") as told:
        application.take("testSecret", token)
    assert FIRST not in str(told.value)
    application.deploy()
    before = application.content()
    with pytest.raises(application.function.RotationError, match="rotate again"):
        application.take("createSecret", token)
    assert "AWSPENDING" not in application.stages()[token]
    assert application.content() == before
    application.rotate()
    assert application.content()["password"] != before["password"]
    use(application, application.content())


def test_in_a_shared_database_both_users_have_the_timeouts(application: Application) -> None:
    """They are each user's own there: a rotation takes them over, and others have none."""
    application.deploy(shared=True)
    for _ in range(2):
        application.rotate()
        use(application, application.content())
        use(application, application.content("AWSPREVIOUS"))
    with application.master() as master:
        assert master.execute("SHOW statement_timeout").fetchone() == ("0",)


# The secrets of trust levels


@Level
def test_a_level_s_users_alternate_in_its_group(app: Application) -> None:
    """The second user has the group and the timeouts of the first one, and no other group."""
    for user in (app.users[1], app.users[0]):
        app.rotate()
        assert app.content()["username"] == user
        with app.connect(app.content()) as connection:
            groups = connection.execute(
                "SELECT rolname::text FROM pg_roles WHERE pg_has_role(oid, 'MEMBER')"
                " AND rolname <> current_user"
            )
            assert groups.fetchall() == [(group_of(app.level),)]
            assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)
            connection.execute("SELECT count(*) FROM users")


@pytest.mark.parametrize("level", ["reader"], indirect=True)
@pytest.mark.parametrize("changes", [{}, {"group": "lambda_pg_app"}, {"Group": "lambda_pg_app"}])
def test_a_caller_does_not_choose_the_group(app: Application, changes: dict[str, str]) -> None:
    """The group comes from the function's variables, whatever event and secret say."""
    content = json.dumps({**app.content(), **changes})
    app.put(content)
    token = app.begin()
    for step in STEPS:
        event = {"Step": step, "SecretId": app.arn, "ClientRequestToken": token, **changes}
        app.function.handler(event, Context(30))
    with app.connect(app.content()) as connection:
        for group, held in ((GROUP, False), (group_of("reader"), True)):
            row = connection.execute("SELECT pg_has_role(%s, 'USAGE')", [group]).fetchone()
            assert row == (held,)


@pytest.mark.parametrize("level", ["reader"], indirect=True)
def test_a_level_s_secret_that_the_function_does_not_know_gets_no_rights(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second user would be made in the application's group."""
    monkeypatch.setenv("SQL_ROLES", "{}")
    app.function = load_function("operations/rotate")
    token = app.begin()
    app.take("createSecret", token)
    with pytest.raises(app.function.RotationError, match="it is not a member of lambda_pg_app"):
        app.take("setSecret", token)
    with app.master() as master:
        row = master.execute("SELECT FROM pg_roles WHERE rolname = %s", [app.users[1]]).fetchone()
        assert row is None


# What can go wrong


@contextmanager
def powerless_master(postgres: Postgres) -> Iterator[None]:
    """Take the right to change roles from the master user."""
    master = sql.Identifier(str(conninfo_to_dict(postgres.dsn)["user"]))
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE {} NOCREATEROLE").format(master))
        try:
            yield
        finally:
            admin.execute(sql.SQL("ALTER ROLE {} CREATEROLE").format(master))


@Strategy
def test_a_step_that_fails_changes_nothing_and_the_next_rotation_recovers(
    app: Application, postgres: Postgres
) -> None:
    """What was in use goes on; the service may try the same version again, or another one."""
    before = app.content()
    token = app.begin()
    app.take("createSecret", token)
    with powerless_master(postgres):
        for _ in range(2):
            with pytest.raises(app.function.RotationError) as caught:
                app.take("setSecret", token)
            for told in ("setSecret", app.arn, "as the master user", "permission denied"):
                assert told in str(caught.value)
    assert app.content() == before
    use(app, before)
    app.rotate(token)
    use(app, app.content())

    token = app.begin()
    app.take("createSecret", token)
    with powerless_master(postgres), pytest.raises(app.function.RotationError):
        app.take("setSecret", token)
    app.rotate()
    use(app, app.content())


def test_a_next_user_who_is_not_next_is_refused(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strategy was changed in the middle of a rotation: the message says how to begin anew."""
    token = app.begin()
    app.take("createSecret", token)
    monkeypatch.setenv("ROTATION", "single")
    app.function = load_function("operations/rotate")
    with pytest.raises(app.function.RotationError, match="Remove the label AWSPENDING") as caught:
        app.take("setSecret", token)
    assert all(repr(user) in str(caught.value) for user in app.users)
    assert app.content()["password"] == FIRST
    app.rotate()
    use(app, app.content())


def test_a_database_that_is_away_is_told_with_who_wanted_to_come(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function logs in as two users, by two secrets: the message says which."""
    token = app.begin()
    app.take("createSecret", token)
    monkeypatch.setenv("PGPORT", str(processes.free_port()))
    monkeypatch.setenv("LAMBDA_PG_CHECKOUT_TIMEOUT", "0.3")
    app.function = load_function("operations/rotate")
    master = re.escape(f"as the master user, by the secret {app.function.settings.secret_arn}: ")
    with pytest.raises(app.function.RotationError, match=f"{master}.*refused"):
        app.take("setSecret", token)
    clone = re.escape(f"as '{app.users[1]}', by AWSPENDING: ")
    with pytest.raises(app.function.RotationError, match=f"{clone}.*refused"):
        app.take("testSecret", token)


@pytest.mark.parametrize("strategy", ["single"], indirect=True)
def test_a_password_that_a_deployment_set_back_is_not_made_current(app: Application) -> None:
    """It came in between, with the password that AWSCURRENT had; a repetition puts it right."""
    token = app.begin()
    for step in STEPS[:3]:
        app.take(step, token)
    before = app.content()
    app.deploy()
    with pytest.raises(app.function.RotationError, match=r"by AWSPENDING: .*refused"):
        app.take("finishSecret", token)
    assert app.content() == before
    use(app, before)
    app.rotate(token)
    use(app, app.content())


def test_the_first_rotation_may_come_before_the_first_deployment(application: Application) -> None:
    """Secrets Manager rotates as soon as it is told to: the deployment takes over what it finds."""
    application.rotate()
    application.deploy()
    use(application, application.content())
    application.rotate()
    use(application, application.content())
    use(application, application.content("AWSPREVIOUS"))


# The login that an RDS Proxy waits for


def admit(app: Application) -> None:
    """Invoke the function as a deployment does before it makes the proxy."""
    event = {"Step": "admitCurrent", "SecretId": app.arn}
    assert app.function.handler(event, Context(30)) is None


@Strategy
@pytest.mark.parametrize("shared", [False, True])
def test_the_login_is_there_before_the_first_migration(
    application: Application, shared: bool
) -> None:
    """The proxy connects with it; the migration gives it the rest, as if it had come first."""
    assert refused(application, application.content())
    if shared:
        with application.master() as master:
            name = sql.Identifier(application.database)
            master.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
    admit(application)
    with application.connect(application.content()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    application.deploy(shared=shared)
    use(application, application.content())
    application.rotate()
    use(application, application.content())


@pytest.mark.parametrize(("many", "rounds"), [("", 1), ("1", 4096)])
def test_a_proxy_s_password_is_hashed_as_often_as_its_client_may_ask_for(
    application: Application,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    many: str,
    rounds: int,
) -> None:
    """By a rotation and by the login that comes early, which is of the same secret."""
    monkeypatch.setenv("MANY_ROUNDS", many)
    application.function = load_function("operations/rotate")
    application.rotate()
    first = verifier_of(application, postgres)
    admit(application)
    for found in (first, verifier_of(application, postgres)):
        assert found.startswith(f"SCRAM-SHA-256${rounds}:")


def verifier_of(app: Application, postgres: Postgres) -> str:
    """Read what the database keeps of the current user's password."""
    with psycopg.connect(postgres.superuser_dsn) as admin:
        if admin.info.server_version < 160000:
            pytest.skip("the rounds cannot be set before PostgreSQL 16")
        found = admin.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [app.content()["username"]]
        )
        return str(found.fetchall()[0][0])


@Strategy
def test_letting_the_login_in_again_disturbs_nobody(app: Application) -> None:
    """A deployment does it for another server, or for the same one after a rotation."""
    for _ in range(2):
        app.rotate()
        admit(app)
        use(app, app.content())


def test_the_login_waits_for_the_end_of_a_rotation_longer_than_requests_may(
    app: Application,
) -> None:
    """The database's own limits are 7 s for a statement and 2 s for a lock."""
    with app.master() as master:
        master.execute(
            sql.SQL("ALTER DATABASE {} SET lock_timeout = '1ms'").format(
                sql.Identifier(app.database)
            )
        )
    app.function.db.close()
    with ThreadPoolExecutor(1) as pool, app.master() as holder:
        with holder.transaction():
            holder.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            admitted = pool.submit(admit, app)
            waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            with app.master() as other:
                wait_until(
                    lambda: admitted.done() or other.execute(waiting).fetchone() is not None, 20
                )
            assert not admitted.done()
        assert admitted.result(30) is None


def test_the_login_of_somebody_else_is_not_let_in(application: Application) -> None:
    """As in a migration; nothing is changed, and the message keeps the password to itself."""
    user = sql.Identifier(application.user)
    with application.master() as master:
        master.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'stranger'").format(user))
    with pytest.raises(
        application.function.RotationError, match="does not belong to the application"
    ) as no:
        admit(application)
    assert str(no.value).startswith(f"admitCurrent failed for the secret {application.arn}: ")
    assert FIRST not in str(no.value)
    application.connect({"username": application.user, "password": "stranger"}).close()


def test_the_login_of_a_server_that_another_lambda_pg_uses_is_not_let_in(
    application: Application, postgres: Postgres
) -> None:
    """The users of each would log in to the other."""
    name = sql.Identifier(f"other_{application.database}")
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
        group = sql.Identifier(GROUP)
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [GROUP]).fetchone() is None:
            admin.execute(sql.SQL("CREATE ROLE {}").format(group))
        admin.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, group))
        try:
            with pytest.raises(application.function.RotationError, match="Use a separate server"):
                admit(application)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {}").format(name))
    assert refused(application, application.content())


def test_a_deployment_between_rotations_disturbs_nobody(app: Application) -> None:
    """Both users go on, whichever of them the secret names."""
    for _ in range(2):
        app.rotate()
        app.deploy()
        use(app, app.content())
        use(app, app.content("AWSPREVIOUS"))


def test_a_role_of_somebody_else_s_is_not_taken(app: Application) -> None:
    """It has the name that is wanted, and other rights: its password stays what it is."""
    stranger = {"username": app.users[1], "password": "canary-of-a-stranger"}
    with app.master() as master:
        master.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(stranger["username"]), stranger["password"]
            )
        )
        grant = sql.SQL("GRANT CONNECT ON DATABASE {} TO {}")
        database, role = sql.Identifier(app.database), sql.Identifier(stranger["username"])
        master.execute(grant.format(database, role))
    token = app.begin()
    app.take("createSecret", token)
    with pytest.raises(app.function.RotationError, match="does not belong to the application"):
        app.take("setSecret", token)
    assert not refused(app, stranger)


def test_a_clone_whom_no_policy_binds_is_refused(app: Application, postgres: Postgres) -> None:
    """It is a member of the group, and would show every caller everybody's rows."""
    app.rotate()
    app.rotate()
    previous = app.content("AWSPREVIOUS")
    change = sql.SQL("ALTER ROLE {} BYPASSRLS").format(sql.Identifier(app.users[1]))
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(change)
    token = app.begin()
    app.take("createSecret", token)
    with pytest.raises(app.function.RotationError, match="row-level security does not bind"):
        app.take("setSecret", token)
    assert not refused(app, previous)


@Strategy
def test_no_deployment_comes_between_the_last_test_and_the_change(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would set the password that AWSCURRENT had: it waits for the roles' lock."""
    token = app.begin()
    for step in STEPS[:3]:
        app.take(step, token)
    held: list[bool] = []

    def looking(method: Callable[..., None]) -> Callable[..., None]:
        def look(versions: object) -> None:
            with app.master() as other:
                row = other.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK]).fetchone()
            held.append(row == (False,))
            method(versions)

        return look

    monkeypatch.setattr(app.function, "test_secret", looking(app.function.test_secret))
    versions = app.function.Versions
    monkeypatch.setattr(versions, "promote", looking(versions.promote))
    app.take("finishSecret", token)
    assert held == [True, True]
    use(app, app.content())


@pytest.mark.parametrize("strategy", ["single"], indirect=True)
def test_the_master_user_is_not_rotated(
    app: Application, secrets_service: SecretsService, postgres: Postgres
) -> None:
    """Neither by its own secret nor by one that names it: the function logs in with it."""
    own = str(app.function.settings.secret_arn)
    with pytest.raises(app.function.RotationError, match="master user's"):
        app.take("createSecret", app.begin(), own)
    master = str(conninfo_to_dict(postgres.dsn)["user"])
    secrets_service.put(app.arn, {"username": master, "password": "canary-of-nobody"})
    token = app.begin()
    app.take("createSecret", token)
    with pytest.raises(
        app.function.RotationError, match=r"does not belong to the application|is the owner"
    ):
        app.take("setSecret", token)
    app.master().close()


def test_a_user_without_the_group_s_rights_does_not_become_current(app: Application) -> None:
    """The test looks at more than the login."""
    token = app.begin()
    for step in STEPS[:2]:
        app.take(step, token)
    group, user, database = map(sql.Identifier, (GROUP, app.users[1], app.database))
    with app.master() as master:
        master.execute(sql.SQL("REVOKE {} FROM {}").format(group, user))
        master.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, user))
    for step in STEPS[2:]:
        with pytest.raises(app.function.RotationError, match=f"lacks the rights of {GROUP}"):
            app.take(step, token)
    assert app.content()["password"] == FIRST


def test_a_server_that_is_not_verified_gets_no_password(
    app: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both connections are verified: the master user's, and the test of the next login."""
    token = app.begin()
    app.take("createSecret", token)
    right = app.function
    other = tmp_path / "other.pem"
    other.write_text(Authority.create("other").pem)
    with monkeypatch.context() as changed:
        changed.setenv("PGSSLROOTCERT", str(other))
        app.function = load_function("operations/rotate")
    for step in STEPS[1:]:
        with pytest.raises(app.function.RotationError, match="certificate verify failed"):
            app.take(step, token)
    app.function = right
    app.rotate(token)


@Strategy
def test_no_password_is_told_to_anybody(
    app: Application, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the server's log, which may have every statement, nor the function's has one."""
    token = app.begin()
    with (
        psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin,
        caplog.at_level(logging.DEBUG),
    ):
        admin.execute("ALTER SYSTEM SET log_statement = 'all'")
        admin.execute("SELECT pg_reload_conf()")
        try:
            app.rotate(token)
        finally:
            admin.execute("ALTER SYSTEM RESET log_statement")
            admin.execute("SELECT pg_reload_conf()")
    told = [record.getMessage() for record in caplog.records if record.name == "rotate"]
    assert len(told) == len(STEPS)
    server = postgres.log.read_text()
    assert f'ALTER ROLE "{app.content()["username"]}" PASSWORD \'SCRAM-SHA-256$' in server
    for stage in ("AWSCURRENT", "AWSPREVIOUS"):
        password = app.content(stage)["password"]
        assert password not in server
        assert password not in "".join(told)


# Under load, through the pooler


class Work(Load):
    """What an API does, one request after the other: it reads, and writes a row exactly once."""

    def __init__(self, db: Database[TupleRow]) -> None:
        """Begin with no row."""
        super().__init__(db)
        self.owner = uuid.uuid4()

    def _request(self) -> None:
        claims = {"sub": str(self.owner)}
        self._db.execute("SELECT count(*) FROM users", claims=claims, idempotent=True)
        self._db.run_transaction(self._write, claims=claims)

    @staticmethod
    def _write(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute("INSERT INTO users (name) VALUES ('Ada')")


class Reading(Load):
    """What a reader does."""

    def _request(self) -> None:
        self._db.execute("SELECT count(*) FROM users", idempotent=True)


class Fleet:
    """Several environments at work: some keep their connection, some open one after the other."""

    def __init__(self, app: Application, pooler: PoolerFixture, clock: Clock) -> None:
        """Open nothing yet."""
        self._app = app
        self._clock = clock
        self._databases = [
            self._database(pooler, each) for each in (None, None, *2 * (RECONNECTING,))
        ]
        work = Reading if app.level == "reader" else Work
        self.loads: list[Work | Reading] = [work(each) for each in self._databases]
        self._stack = ExitStack()

    def _database(self, pooler: PoolerFixture, lifetime: float | None) -> Database[TupleRow]:
        settings = replace(
            settings_for(pooler),
            dbname=self._app.database,
            secret_arn=self._app.arn,
            max_lifetime=lifetime,
        )
        return self._clock.govern(Database(settings))

    def __enter__(self) -> "Fleet":
        """Begin to work."""
        for load in self.loads:
            self._stack.enter_context(load)
        self.work()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stack.close()
        for database in self._databases:
            database.close()

    @property
    def errors(self) -> list[Exception]:
        """What failed."""
        return [error for load in self.loads for error in load.errors]

    def work(self) -> None:
        """Go on until each has served some more requests, or one failed."""
        wait_for_each(self.loads, 10)

    def follow(self, user: str) -> None:
        """Let time pass, as between two rotations, until all have gone over to a user."""
        self._clock.shift += 1000
        wait_until(lambda: self.errors or all(self._is(each, user) for each in self._databases))

    def _is(self, database: Database[TupleRow], user: str) -> bool:
        self._clock.shift += 31
        row = database.execute("SELECT current_user", idempotent=True).fetchone()
        return row == (user,)

    def rows_are_exact(self, postgres: Postgres) -> bool:
        """Tell whether each has written one row for every request that was served."""
        dsn = make_conninfo(postgres.superuser_dsn, dbname=self._app.database)
        with psycopg.connect(dsn) as admin:
            rows = admin.execute("SELECT owner, count(*) FROM users GROUP BY owner").fetchall()
        works = [load for load in self.loads if isinstance(load, Work)]
        return dict(rows) == {load.owner: load.served for load in works}


def log_in_again(pooler: PoolerFixture) -> None:
    """Let the pooler replace its server connections, as it does when their lifetime is over."""
    with psycopg.connect(pooler.process.admin_dsn, autocommit=True) as console:
        console.execute("RECONNECT")


def start(pooler: PoolerFixture, app: Application, arn: str | None = None) -> PoolerFixture:
    """Put the pooler in front of an application's database."""
    return pooler.start(
        DATABASE_NAME=app.database, USER_SECRET_ARNS=arn or app.arn, REFRESH_INTERVAL="1"
    )


def refusals(postgres: Postgres, app: Application) -> int:
    """Count the logins that the database has refused."""
    log = postgres.log.read_text()
    return sum(log.count(f'authentication failed for user "{user}"') for user in app.users)


@pytest.mark.parametrize("level", ["", *LEVELS], indirect=True)
def test_no_request_fails_while_two_users_take_turns(
    app: Application, new_pooler: PoolerFixture, postgres: Postgres, clock: Clock
) -> None:
    """Two rotations, and after each the pooler has to log in again as either of them."""
    pooler = start(new_pooler, app)
    with Fleet(app, pooler, clock) as fleet:
        for user in (app.users[1], app.users[0]):
            app.rotate()
            fleet.work()
            log_in_again(pooler)
            fleet.work()
            fleet.follow(user)
            fleet.work()
    assert not fleet.errors
    assert fleet.rows_are_exact(postgres)
    assert refusals(postgres, app) == 0


@pytest.mark.parametrize("level", ["reader"], indirect=True)
def test_no_request_of_sql_fails_while_two_users_take_turns(
    app: Application, new_pooler: PoolerFixture, secrets_service: SecretsService, clock: Clock
) -> None:
    """Through the function and the second name of the database; new environments follow."""
    application = {"username": app.all_users[-1], "password": FIRST}
    pooler = new_pooler.start(
        DATABASE_NAME=app.database,
        USER_SECRET_ARNS=secrets_service.create(application),
        SQL_SECRET_ARNS=app.arn,
        SQL_POOL_SIZE="2",
        SQL_MAX_DB_CONNECTIONS="2",
        REFRESH_INTERVAL="1",
    )
    endpoint = through(pooler) | {"PGDATABASE": sql_database(app.database)}
    roles = {"reader": servers.Login(app.user, FIRST, app.arn)}
    serve = partial(sql_server, endpoint, secrets_service, roles, SQL_DATABASE=app.database)

    def new_environments_are(user: str) -> bool:
        with serve() as fresh:
            key = replace(fresh.create_key("reader"), database=app.database)
            answer = fresh.post({"query": "SELECT current_user AS name"}, key)
            return bool(answer.body["rows"] == [{"name": user}])

    with (
        serve(environments=2) as lasting,
        serve(environments=2, LAMBDA_PG_MAX_LIFETIME=str(RECONNECTING)) as reconnecting,
        ExitStack() as stack,
    ):
        # First all keys: an environment knows none that is made within a second of its reading.
        keys = [
            (served, replace(served.create_key("reader"), database=app.database))
            for served in (lasting, lasting, reconnecting, reconnecting)
        ]
        loads = [Requests(served.asking(key, "SELECT count(*) FROM users")) for served, key in keys]
        for load in loads:
            stack.enter_context(load)
        wait_for_each(loads, 10)
        for user in (app.users[1], app.users[0]):
            app.rotate()
            wait_for_each(loads, 10)
            log_in_again(pooler)
            wait_for_each(loads, 10)
            clock.shift += 1000  # as between two rotations
            # Until the pooler has read the secret again, a new environment takes the user before.
            wait_until(partial(new_environments_are, user), 15, f"logins as {user}")
    assert [load.errors for load in loads] == [[]] * len(loads)


@pytest.mark.parametrize("strategy", ["single"], indirect=True)
def test_no_request_fails_while_one_user_gets_a_new_password(
    app: Application, new_pooler: PoolerFixture, postgres: Postgres, clock: Clock
) -> None:
    """In the middle of each rotation the pooler's logins are refused: requests wait for its end."""
    pooler = start(new_pooler, app)
    with Fleet(app, pooler, clock) as fleet:
        for _ in range(2):
            rotate_in_use(app, pooler, postgres)
            fleet.work()
    assert not fleet.errors
    assert fleet.rows_are_exact(postgres)


def test_no_request_fails_when_the_second_rotation_comes_too_soon(
    app: Application, new_pooler: PoolerFixture, postgres: Postgres, clock: Clock
) -> None:
    """Nobody has gone over to the second user when the first one's password changes."""
    pooler = start(new_pooler, app)
    with Fleet(app, pooler, clock) as fleet:
        app.rotate()
        fleet.work()
        rotate_in_use(app, pooler, postgres)
        fleet.work()
    assert not fleet.errors
    assert fleet.rows_are_exact(postgres)


@Strategy
def test_new_environments_are_served_beside_busy_ones_of_before(
    app: Application, new_pooler: PoolerFixture
) -> None:
    """After a rotation 24 clients with the old login keep their server connections busy."""
    new_pooler.environment |= pool_sizes(4, app.strategy)
    pooler = start(new_pooler, app)
    before = app.content()
    old = make_conninfo(
        pooler.dsn(),
        dbname=app.database,
        user=before["username"],
        password=before["password"],
    )
    with busy_clients(lambda: psycopg.connect(old, autocommit=True, prepare_threshold=None)):
        app.rotate()
        wait_until(lambda: knows(pooler, app.content()["username"]))
        settings = replace(settings_for(pooler), dbname=app.database, secret_arn=app.arn)
        assert count_served(settings) == 8


def test_both_users_of_a_rotation_fill_the_line_of_the_budget_and_no_more(
    application: Application, new_pooler: PoolerFixture, postgres: Postgres
) -> None:
    """Clients of both vanish: the second user, which the rotation makes, has the limit, too.

    A pooler with its own bounds knows of 4 server connections; the budget counts 3 such tasks.
    """
    sizes = {"tasks": 1, "max_tasks": 1, "max_db_connections": 4}
    config = load_stage("dev", {"pgbouncer": sizes})
    application.deploy(login_limit=login_limit(config))
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        for change in ("SET statement_timeout = '300s'", f"RESET {CLIENT_CHECK[0]}"):
            admin.execute(f"ALTER DATABASE {application.database} {change}".encode())
        new_pooler.environment |= pool_sizes(4, application.strategy)
        pooler = start(new_pooler, application)
        logins = [application.content()]
        application.rotate()
        logins.append(application.content())
        wait_until(lambda: knows(pooler, logins[1]["username"]))
        with ThreadPoolExecutor(len(logins)) as threads:
            list(threads.map(lambda login: vanish_often(pooler, application, login), logins))
        assert backends(admin, application) == dict.fromkeys(application.users, 6)
        assert most_tasks(config) * sizes["max_db_connections"] == 2 * 6
        application.master().close()  # the owner finds a place
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = ANY(%s)",
            [list(application.users)],
        )
    settings = replace(
        settings_for(pooler), dbname=application.database, secret_arn=application.arn
    )
    assert count_served(settings) == 8


def vanish_often(pooler: PoolerFixture, app: Application, login: dict[str, str]) -> None:
    """Have many more clients of a user vanish in a statement than its limit lets work."""
    user, password = login["username"], login["password"]
    address = make_conninfo(pooler.dsn(), dbname=app.database, user=user, password=password)
    for _ in range(18):
        with suppress(psycopg.OperationalError):  # refused: as it must be from the seventh on
            vanish(psycopg.connect(address, autocommit=True, prepare_threshold=None))


def backends(admin: Admin, app: Application) -> dict[str, int]:
    """Count each user's statements at work in the database itself."""
    found = admin.execute(
        "SELECT usename::text, count(*) FROM pg_stat_activity"
        " WHERE usename = ANY(%s) AND state = 'active' GROUP BY usename",
        [list(app.users)],
    )
    return dict(found.fetchall())


def knows(pooler: PoolerFixture, user: str) -> bool:
    """Tell whether the pooler has a user's password."""
    with psycopg.connect(pooler.process.admin_dsn, autocommit=True) as console:
        return user in {row[0] for row in console.execute("SHOW USERS").fetchall()}


def rotate_in_use(app: Application, pooler: PoolerFixture, postgres: Postgres) -> None:
    """Rotate a user that is in use, and have its logins refused before the last step."""
    token, before = app.begin(), refusals(postgres, app)
    for step in STEPS[:2]:
        app.take(step, token)
    log_in_again(pooler)
    wait_until(lambda: refusals(postgres, app) > before)
    for step in STEPS[2:]:
        app.take(step, token)


@Strategy
def test_requests_fail_behind_a_pooler_that_does_not_look(
    app: Application,
    new_pooler: PoolerFixture,
    postgres: Postgres,
    clock: Clock,
    secrets_service: SecretsService,
) -> None:
    """The control: one that goes on with the first password ends in refusals.

    Where two users take turns the layer bridges one rotation, with AWSPREVIOUS, and not a second.
    """
    forever = secrets_service.create(app.content())
    pooler = start(new_pooler, app, forever)
    with Fleet(app, pooler, clock) as fleet:
        app.rotate()
        if app.strategy == "alternating":
            log_in_again(pooler)
            clock.shift += 1000
            fleet.work()
            assert not fleet.errors
            app.rotate()
        log_in_again(pooler)
        wait_until(lambda: fleet.errors)
    assert fleet.rows_are_exact(postgres)


@Strategy
@pytest.mark.parametrize(
    ("done", "again"), [(0, "same"), (1, "another"), (2, "same"), (2, "another"), (3, "another")]
)
def test_a_rotation_that_ends_half_way_hinders_nobody(
    app: Application,
    new_pooler: PoolerFixture,
    postgres: Postgres,
    clock: Clock,
    done: int,
    again: str,
) -> None:
    """AWSPENDING stays behind: all go on with AWSCURRENT, and the next rotation succeeds.

    It takes the same version up again, or makes another one. Where a single user has its next
    password already, nobody can log in to the database with AWSCURRENT until then: the pooler's
    server connections go on, and clients can log in there.
    """
    pooler = start(new_pooler, app)
    with Fleet(app, pooler, clock) as fleet:
        before, token = app.content(), app.begin()
        for step in STEPS[:done]:
            app.take(step, token)
        locked_out = app.strategy == "single" and done >= 2
        assert refused(app, before) is locked_out
        if not locked_out:
            log_in_again(pooler)
        fleet.work()
        assert "AWSPENDING" in app.stages()[token]
        assert app.content() == before
        app.rotate(token if again == "same" else None)
        log_in_again(pooler)
        fleet.work()
        fleet.follow(app.content()["username"])
        fleet.work()
    assert not fleet.errors
    assert fleet.rows_are_exact(postgres)
    assert app.content()["password"] != before["password"]
    use(app, app.content())
