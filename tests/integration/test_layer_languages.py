"""A server that does not speak English: refused logins and full slots mean the same there."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from lambda_pg import ConnectFailedError, Database, Settings, _verbose
from lambda_pg._credentials import DOUBTED_PAUSE
from lambda_pg._secrets import Fetch
from psycopg import sql
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import (
    PostgresBinaries,
    PostgresNotFoundError,
    find_postgres,
)
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import PASSWORD, Admin, Open, end_backends, later, scalar, settings_for
from tests.support.locales import make_locale
from tests.support.postgres import CopiedPostgres
from tests.support.servers import DATABASE, PoolerFixture, SecretsService
from tests.support.waiting import wait_until

SECOND = "canary-of-the-second-version"
REFUSED = {"de_DE": "Passwort-Authentifizierung", "ja_JP": "パスワード認証に失敗しました"}
"""What each server says of a wrong password."""


def installed() -> PostgresBinaries:
    """Find a server with message catalogues: those of npm have none."""
    try:
        return find_postgres(15, environment=os.environ | {"LAMBDA_PG_POSTGRES": "installed"})
    except PostgresNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=sorted(REFUSED))
def postgres(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Postgres]:
    """A server for each language, instead of the one for all tests."""
    binaries, language = installed(), request.param
    folder = short_folder / language
    folder.mkdir()
    make_locale(folder, language, catalogue=f"postgres-{binaries.major}")
    server = CopiedPostgres(
        binaries,
        folder / "pg",
        port=processes.free_port(),
        max_connections=16,
        durable=False,
        parameters={"lc_messages": f"{language}.UTF-8"},
        environment={"LOCPATH": str(folder)},
    )
    try:
        server.start()
        server.create_master("master", "canary-of-the-master", DATABASE)
        with pytest.raises(psycopg.OperationalError, match=REFUSED[language]):
            psycopg.connect(server.dsn_of("master", "wrong", DATABASE))
        yield server
    finally:
        server.stop()


@pytest.fixture
def arn(secrets_service: SecretsService, secrets_environment: None, admin: Admin) -> str:
    """The secret of the test's role."""
    return secrets_service.create({"username": "layer_test", "password": PASSWORD})


@pytest.fixture
def db(open_database: Open, arn: str) -> Database[TupleRow]:
    """A database that takes its credentials from there."""
    return open_database(user=None, password=None, secret_arn=arn)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A libpq that cannot be asked for verbose errors."""
    monkeypatch.setattr(_verbose, "IS_POSSIBLE", False)


def change_role(admin: Admin, password: str = SECOND) -> None:
    """Change the role's password in the database."""
    admin.execute(sql.SQL("ALTER ROLE layer_test PASSWORD {}").format(sql.Literal(password)))


def change_secret(service: SecretsService, arn: str) -> None:
    """Make the password of `change_role` the current one."""
    service.put(arn, {"username": "layer_test", "password": SECOND})


def test_a_login_refused_after_a_rotation_gets_the_new_secret(
    db: Database[TupleRow], arn: str, admin: Admin, secrets_service: SecretsService
) -> None:
    """Long before the time to live of the old one ends."""
    assert scalar(db, "SELECT 1") == 1
    change_role(admin)
    change_secret(secrets_service, arn)
    db.close()
    assert scalar(db, "SELECT 1") == 1
    assert db.stats()["refreshes"] == 2


def test_a_rotation_is_waited_for(
    db: Database[TupleRow], arn: str, admin: Admin, secrets_service: SecretsService
) -> None:
    """The database knows the new password, the secret not yet."""
    assert scalar(db, "SELECT 1") == 1
    change_role(admin)
    db.close()
    with later(0.7, lambda: change_secret(secrets_service, arn)):
        assert scalar(db, "SELECT 1") == 1


def test_a_login_that_nothing_explains_gets_the_new_secret(
    blind: None, db: Database[TupleRow], arn: str, admin: Admin, secrets_service: SecretsService
) -> None:
    """Without an SQLSTATE a refusal may be about the credentials: they are looked at."""
    assert scalar(db, "SELECT 1") == 1
    change_role(admin)
    change_secret(secrets_service, arn)
    db.close()
    wait_until(lambda: served(db), 5)


def served(db: Database[TupleRow]) -> bool:
    """Tell whether a login succeeds; the secret is looked at once a second."""
    try:
        return scalar(db, "SELECT 1") == 1
    except ConnectFailedError:
        return False


def test_what_nothing_explains_asks_for_the_secret_once_a_second(
    blind: None, db: Database[TupleRow], admin: Admin
) -> None:
    """However many requests fail meanwhile."""
    asked, start = list[float](), db._credentials._start_fetch

    def begin(arn: str, stage: str) -> Fetch:
        if stage == "AWSCURRENT":
            asked.append(time.monotonic())
        return start(arn, stage)

    db._credentials._start_fetch = begin
    change_role(admin)
    failed = 0

    def asked_often() -> bool:
        nonlocal failed
        assert not served(db)
        failed += 1
        return len(asked) == 4

    wait_until(asked_often)
    assert failed > len(asked)
    pauses = [after - before for before, after in pairwise(asked[1:])]
    assert min(pauses) > DOUBTED_PAUSE - 0.05  # the layer's clock is the wall's, this one is not


def test_a_refusal_that_is_not_about_the_login_is_final(
    open_database: Open, arn: str, request: pytest.FixtureRequest
) -> None:
    """The first one costs a second login, which tells why; after that each costs one."""
    db = open_database(user=None, password=None, secret_arn=arn, dbname="nope")
    for logins in (2, 3, 4):
        with pytest.raises(ConnectFailedError, match=r"3D000.*nope"):
            db.execute("SELECT 1")
        assert db.stats()["connections_num"] == logins
    assert db.stats()["refreshes"] == 1


# Exhaustion


@contextmanager
def full(settings: Settings) -> Iterator[Callable[[], None]]:
    """Hold every connection that a user can have; give what frees them."""

    def hold() -> None:
        connection = psycopg.connect(
            host="127.0.0.1",
            port=settings.port,
            dbname="postgres",
            user="layer_test",
            password=settings.password,
        )
        held.callback(connection.close)

    with ExitStack() as held:
        with suppress(psycopg.OperationalError):
            while True:
                hold()
        yield held.close


@pytest.mark.parametrize("limit", ["server", "role", "database"])
def test_full_slots_are_waited_for(
    open_database: Open, admin: Admin, settings: Settings, limit: str
) -> None:
    """Of the server, the role or the database: each has a different text."""
    if limit == "role":
        admin.execute("ALTER ROLE layer_test CONNECTION LIMIT 2")
    if limit == "database":
        admin.execute("ALTER DATABASE postgres CONNECTION LIMIT 4")
    try:
        db = open_database()
        with full(settings) as free, later(0.7, free):
            assert scalar(db, "SELECT 1") == 1
        assert db.stats()["retries"]
    finally:
        admin.execute("ALTER DATABASE postgres CONNECTION LIMIT -1")


# Through PgBouncer


@pytest.fixture
def through(pooler: PoolerFixture, secrets_environment: None) -> Iterator[Database[TupleRow]]:
    """The layer, at a pooler whose server speaks the language."""
    with closing(Database(settings_for(pooler))) as db:
        assert scalar(db, "SELECT 1") == 1
        yield db


def test_a_rotation_through_the_pooler(pooler: PoolerFixture, through: Database[TupleRow]) -> None:
    """The pooler's own login is refused, then the layer's at the pooler: no request fails."""
    pooler.rotate_password(f"canary-{secrets.token_hex(16)}")
    end_backends(pooler)
    assert through.execute("SELECT 1", idempotent=True).fetchone() == (1,)
    through.close()
    assert scalar(through, "SELECT 1") == 1


def test_full_slots_behind_the_pooler_are_waited_for(
    pooler: PoolerFixture, through: Database[TupleRow], admin: Admin, settings: Settings
) -> None:
    """The pooler passes on what its server says."""
    with full(settings) as free:
        end_backends(pooler)
        with full(settings) as free_rest, later(0.7, lambda: (free(), free_rest())):
            assert through.execute("SELECT 1", idempotent=True).fetchone() == (1,)
