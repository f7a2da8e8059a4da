"""Credentials change under load, in whichever order their places learn of it: no request fails."""

import datetime
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import psycopg
import pytest
from lambda_pg import CredentialsError, Database, DatabaseUnavailableError, _iam
from lambda_pg._secrets import Fetch, SecretError
from psycopg import sql
from psycopg.rows import TupleRow

from tests.support.clocks import Clock
from tests.support.layer import (
    PASSWORD,
    Admin,
    Open,
    end_backends,
    is_refused,
    scalar,
    settings_for,
)
from tests.support.load import Load
from tests.support.servers import PoolerFixture, SecretsService, change_password
from tests.support.waiting import wait_until

SECOND: Final = "canary-of-the-second-version"
THIRD: Final = "canary-of-the-third-version"

RECONNECTING: Final = 0.05
"""Lifetime in seconds of connections that put every change to the test."""


class Secret:
    """The secret of the test's role, and what a rotation does to both."""

    def __init__(self, service: SecretsService, admin: Admin) -> None:
        """Create it, as it is before a rotation."""
        self._service = service
        self._admin = admin
        self.arn = service.create({"username": "layer_test", "password": PASSWORD})

    def set(self, password: str = SECOND, user: str = "layer_test") -> None:
        """Make a new version current."""
        self._service.put(self.arn, {"username": user, "password": password})

    def change_role(self, password: str = SECOND) -> None:
        """Change the role's password in the database."""
        self._admin.execute(
            sql.SQL("ALTER ROLE layer_test PASSWORD {}").format(sql.Literal(password))
        )

    def open(self, open_database: Open, **changes: object) -> Database[TupleRow]:
        """Make a database that takes its credentials from here."""
        return open_database(user=None, password=None, secret_arn=self.arn, **changes)


@pytest.fixture
def secret(secrets_service: SecretsService, secrets_environment: None, admin: Admin) -> Secret:
    """A secret in Secrets Manager."""
    return Secret(secrets_service, admin)


@pytest.fixture
def other_role(admin: Admin) -> Iterator[str]:
    """The other one of two users that take turns."""
    admin.execute(f"CREATE ROLE layer_test_clone LOGIN PASSWORD '{SECOND}'")
    admin.execute("GRANT ALL ON counter TO layer_test_clone")
    yield "layer_test_clone"
    admin.execute("DROP OWNED BY layer_test_clone")
    admin.execute("DROP ROLE layer_test_clone")


class Reconnecting(Load):
    """Statements whose connections live so short that every change is put to the test."""

    def wait_for(self, more: int) -> None:
        """Wait until so many more logins were accepted, or a statement failed."""
        goal = self._logins() + more
        wait_until(lambda: self.errors or self._logins() >= goal)

    def _logins(self) -> int:
        stats = self._db.stats()
        return stats["connections_num"] - stats["connections_errors"]


def refuses(db: Database[TupleRow], admin: Admin, password: str) -> bool:
    """Tell whether the server refuses a password of the role."""
    settings = db._settings
    try:
        psycopg.connect(
            host="127.0.0.1",
            port=settings.port,
            dbname="postgres",
            user="layer_test",
            password=password,
        ).close()
    except psycopg.OperationalError:
        return True
    return False


class Throttled(Fetch):
    """A fetch that Secrets Manager throttles."""

    def run(self) -> None:
        """Answer as fetch_secret does."""
        self._error = SecretError("Secrets Manager refused: ThrottlingException", passing=True)


def throttle(db: Database[TupleRow], seconds: float) -> list[str]:
    """Throttle each fetch of a database for so long; return the stages asked for meanwhile."""
    until, asked, start = time.monotonic() + seconds, list[str](), db._credentials._start_fetch

    def begin(arn: str, stage: str) -> Fetch:
        if time.monotonic() >= until:
            return start(arn, stage)
        asked.append(stage)
        fetch = Throttled(arn, stage)
        fetch.start()
        return fetch

    db._credentials._start_fetch = begin
    return asked


# The database itself


THROTTLED: Final = 2.3
"""Seconds: a last look comes 0.3 s before the end of the checkout timeout of 3 s."""


@pytest.mark.parametrize("right", [SECOND, THIRD])
def test_two_rotations_while_secrets_are_throttled(
    open_database: Open, secret: Secret, admin: Admin, right: str
) -> None:
    """A warm environment knows neither version; the first request finds what the database takes.

    It may be the current one, or the previous one while the database is not so far yet.
    """
    db = secret.open(open_database)
    assert scalar(db, "SELECT 1") == 1
    secret.set(SECOND)
    secret.set(THIRD)
    secret.change_role(right)
    db.close()
    asked = throttle(db, 1.2 if right == SECOND else THROTTLED)
    assert scalar(db, "SELECT 1") == 1
    assert 1 <= len(asked) <= THROTTLED + 2


def test_a_new_environment_while_secrets_are_throttled(open_database: Open, secret: Secret) -> None:
    """It waits for its turn, once a second, until the throttling ends within its window."""
    db = secret.open(open_database)
    asked = throttle(db, THROTTLED)
    assert scalar(db, "SELECT 1") == 1
    assert 1 <= len(asked) <= THROTTLED + 2


def test_one_user_whose_database_is_first(
    open_database: Open, secret: Secret, admin: Admin
) -> None:
    """Logins are refused until the secret has the new password too: requests wait for it."""
    db = secret.open(open_database, max_lifetime=RECONNECTING)
    with Reconnecting(db) as load:
        load.wait_for(3)
        secret.change_role()
        assert refuses(db, admin, PASSWORD)
        time.sleep(1.2)
        secret.set()
        load.wait_for(3)
    assert not load.errors
    assert db.stats()["refreshes"] >= 2
    assert db.stats()["connections_errors"] > 0


def test_one_user_whose_secret_is_first(open_database: Open, secret: Secret, clock: Clock) -> None:
    """New environments find a password that is not right yet, use the old one, then the new one."""
    secret.set()
    db = secret.open(open_database, max_lifetime=RECONNECTING)
    with Reconnecting(db) as load:
        load.wait_for(3)
        secret.change_role()
        load.wait_for(3)
    assert not load.errors


def test_one_user_whose_secret_is_first_for_an_environment_that_is_warm(
    open_database: Open, secret: Secret, clock: Clock
) -> None:
    """It learns of the new version by the clock, and goes on with the old one until it is right."""
    db = clock.govern(secret.open(open_database, max_lifetime=RECONNECTING))
    with Reconnecting(db) as load:
        load.wait_for(3)
        secret.set()
        clock.shift += 1000
        load.wait_for(3)
        for _ in range(3):
            clock.shift += 31
            load.wait_for(2)
        secret.change_role()
        load.wait_for(3)
        clock.shift += 31
        load.wait_for(3)
    assert not load.errors


def test_two_users_that_take_turns(
    open_database: Open, secret: Secret, other_role: str, clock: Clock
) -> None:
    """No login is ever refused; each environment changes over when its time has come."""
    db = clock.govern(secret.open(open_database))
    with Load(db) as load:
        load.wait_for(20)
        secret.set(user=other_role)
        load.wait_for(20)
        assert db.stats()["refreshes"] == 1
        clock.shift += 1000
        load.wait_for(20)
    assert not load.errors
    assert scalar(db, "SELECT current_user") == other_role
    assert db.stats()["connections_errors"] == 0
    assert db.stats()["connections_num"] == 2


def test_a_changed_secret_drains_each_connection_at_its_next_checkout(
    open_database: Open, secret: Secret, other_role: str, clock: Clock, admin: Admin
) -> None:
    """Not before the time to look has come, and not while a handler has it in his hands."""
    db = clock.govern(secret.open(open_database, slots=3))
    held = [db.getconn() for _ in range(3)]
    for connection in held[1:]:
        db.putconn(connection)
    secret.set(user=other_role)
    assert scalar(db, "SELECT current_user") == "layer_test"
    clock.shift += 1000
    row = held[0].execute("SELECT current_user").fetchone()
    assert row == ("layer_test",)
    db.putconn(held[0])
    users = []
    again = []
    for _ in range(3):
        again.append(db.getconn())
        row = again[-1].execute("SELECT current_user").fetchone()
        users.append(row[0] if row else None)
    assert users == [other_role] * 3
    for connection in again:
        db.putconn(connection)
    left = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'layer_test'"
    ).fetchone()
    assert left == (0,)
    assert db.stats()["refreshes"] == 2


def test_an_unchanged_secret_drains_nothing(
    open_database: Open, secret: Secret, clock: Clock
) -> None:
    """A look that finds what was there costs a request, and no connection."""
    db = clock.govern(secret.open(open_database))
    pid = scalar(db, "SELECT pg_backend_pid()")
    for _ in range(5):  # 1150 s, in pauses shorter than what a connection may be idle
        clock.shift += 230
        assert scalar(db, "SELECT pg_backend_pid()") == pid
    assert db.stats()["refreshes"] == 2


def test_a_connection_in_a_transaction_is_not_drained(
    open_database: Open, secret: Secret, other_role: str, clock: Clock
) -> None:
    """The transaction goes on and commits, and the next checkout is the other user's."""
    db = clock.govern(secret.open(open_database))
    with db.transaction() as connection:
        connection.execute("INSERT INTO counter VALUES (1)")
        secret.set(user=other_role)
        clock.shift += 1000
        connection.execute("INSERT INTO counter VALUES (2)")
    assert scalar(db, "SELECT count(*) FROM counter") == 2
    assert scalar(db, "SELECT current_user") == other_role


def test_without_secrets_manager_the_old_copy_serves(
    open_database: Open, secret: Secret, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expired copy may well be right: open connections and new ones go on."""
    db = clock.govern(secret.open(open_database, max_lifetime=RECONNECTING))
    with Reconnecting(db) as load:
        load.wait_for(3)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        clock.shift += 1000
        load.wait_for(3)
        clock.shift += 31
        load.wait_for(3)
    assert not load.errors


def test_a_rotation_after_the_clock_was_set_back(
    open_database: Open, secret: Secret, clock: Clock
) -> None:
    """The last look seems to be in the future, and is no reason not to look again."""
    db = clock.govern(secret.open(open_database))
    db.execute("SELECT 1")
    secret.change_role()
    secret.set()
    clock.shift -= 3600
    db.close()
    assert scalar(db, "SELECT 1") == 1


def test_a_password_that_stays_wrong_is_told_in_time(open_database: Open, secret: Secret) -> None:
    """Neither version is right: the error says so, within the checkout timeout."""
    secret.set("wrong-canary")
    secret.change_role("nobody-knows-canary")
    db = secret.open(open_database, checkout_timeout=0.6)
    started = time.monotonic()
    with pytest.raises(CredentialsError, match="refused") as caught:
        db.execute("SELECT 1")
    assert time.monotonic() - started < 1.6
    assert caught.value.retry_after > 0


@pytest.mark.parametrize("there_is_a_newer", [True, False])
def test_a_refusal_is_not_hidden_by_a_last_look_that_is_too_short(
    open_database: Open,
    secret: Secret,
    monkeypatch: pytest.MonkeyPatch,
    there_is_a_newer: bool,
) -> None:
    """The end of the window comes as a silence: what the caller is told is the refusal."""
    looks = []

    def connect(*_: object) -> None:
        looks.append(1)
        if len(looks) > 1:
            raise psycopg.errors.ConnectionTimeout("connection timeout expired: within 0.0 s")
        if there_is_a_newer:
            secret.set()
        raise psycopg.OperationalError("FATAL:  password authentication failed for user")

    monkeypatch.setattr("lambda_pg._connector.Connector.connect", connect)
    db = secret.open(open_database, checkout_timeout=0.4)
    with pytest.raises(CredentialsError, match="refused") as caught:
        db.execute("SELECT 1")
    assert "password authentication failed" in str(caught.value.__cause__)
    assert len(looks) > 1


def test_a_silence_after_a_refusal_is_told_as_what_it_is(
    open_database: Open, secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With time enough for an answer, none means that the server is gone, not the login."""
    looks = []

    def connect(*_: object) -> None:
        looks.append(1)
        if len(looks) == 1:
            raise psycopg.OperationalError("FATAL:  password authentication failed for user")
        time.sleep(2.6)
        raise psycopg.errors.ConnectionTimeout("connection timeout expired: within 2.4 s")

    monkeypatch.setattr("lambda_pg._connector.Connector.connect", connect)
    db = secret.open(open_database, checkout_timeout=2.5)
    with pytest.raises(DatabaseUnavailableError, match="no success within") as caught:
        db.execute("SELECT 1")
    assert not isinstance(caught.value, CredentialsError)


# Through the pooler


def pooled(pooler: PoolerFixture, **changes: object) -> Database[TupleRow]:
    """Make a database for a pooler's login."""
    return Database(replace(settings_for(pooler), **changes))  # type: ignore[arg-type]


def test_one_user_whose_database_is_first_behind_the_pooler(
    new_pooler: PoolerFixture, secrets_environment: None
) -> None:
    """The pooler's server logins fail until secret and pooler know: requests wait for both."""
    pooler = new_pooler.start(REFRESH_INTERVAL="1")
    db = pooled(pooler, max_lifetime=RECONNECTING)
    with Reconnecting(db) as load:
        load.wait_for(3)
        change_password(pooler.postgres, pooler.login.name, SECOND)
        end_backends(pooler)
        time.sleep(0.3)
        pooler.service.put(pooler.login.arn, {"username": pooler.login.name, "password": SECOND})
        wait_until(lambda: is_refused(pooler, pooler.login.password))
        load.wait_for(3)
    assert not load.errors
    db.close()


def test_a_pooler_that_does_not_know_the_new_password_gets_the_old_one(
    pooler: PoolerFixture, secrets_environment: None
) -> None:
    """New environments meet one that has not looked yet: AWSPREVIOUS is what it knows."""
    old = pooler.login.password
    with pooler.connect() as client:
        client.execute("SELECT 1")  # its server connection lives on, whatever the pooler reads
    pooler.service.put(pooler.login.arn, {"username": pooler.login.name, "password": SECOND})
    assert not is_refused(pooler, old)  # a refusal of the new one would make the pooler look
    db = pooled(pooler, max_lifetime=RECONNECTING)
    with Reconnecting(db) as load:
        load.wait_for(5)
    assert not load.errors
    db.close()


def test_two_users_that_take_turns_through_the_pooler(
    new_pooler: PoolerFixture, secrets_environment: None, clock: Clock
) -> None:
    """The pooler knows both; the layer may come with the new one before it has looked."""
    pooler = new_pooler.start(REFRESH_INTERVAL="1")
    name = f"app_{secrets.token_hex(4)}"
    change_password(pooler.postgres, name, SECOND, verb="CREATE")
    db = clock.govern(pooled(pooler))
    with Load(db) as load:
        load.wait_for(20)
        pooler.service.put(pooler.login.arn, {"username": name, "password": SECOND})
        clock.shift += 1000
        load.wait_for(20)
        wait_until(lambda: turned(db, clock, name))
        load.wait_for(20)
    assert not load.errors
    db.close()


def turned(db: Database[TupleRow], clock: Clock, user: str) -> bool:
    """Let half a minute pass, and tell whether the other user's turn has come."""
    clock.shift += 31
    row = db.execute("SELECT current_user", idempotent=True).fetchone()
    return row == (user,)


# IAM


@pytest.fixture
def role_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a function's role."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-the-role")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary-of-the-session")


class Fixed(datetime.datetime):
    """A clock that tells one time."""

    at = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]  # noqa: ARG003 - inherited
        """Tell it."""
        return cls.at


class StubDatetime:
    """The module, with that clock."""

    UTC = datetime.UTC
    datetime = Fixed


def test_the_token_is_what_is_sent_as_the_password(
    open_database: Open,
    admin: Admin,
    role_keys: None,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A role whose password is the token of that second lets it in, and each connect needs one.

    RDS's plugin is not to be had: it would look at the token instead of a password.
    """
    monkeypatch.setattr(_iam, "datetime", StubDatetime)
    db = clock.govern(
        open_database(password=None, auth="iam", region="eu-west-1", checkout_timeout=1.0)
    )
    allow(db, admin)
    pid = scalar(db, "SELECT pg_backend_pid()")

    monkeypatch.setattr(Fixed, "at", Fixed.at + datetime.timedelta(minutes=20))
    for _ in range(4):
        clock.shift += 300
        assert scalar(db, "SELECT pg_backend_pid()") == pid  # what is open stays open
    assert db.stats()["refreshes"] == 2
    db.close()
    with pytest.raises(CredentialsError):
        db.execute("SELECT 1")
    allow(db, admin)
    assert scalar(db, "SELECT pg_backend_pid()") != pid


def allow(db: Database[TupleRow], admin: Admin) -> None:
    """Make the role's password the token of this moment."""
    settings = db._settings
    token = _iam.auth_token(settings)
    assert token.startswith(f"127.0.0.1:{settings.port}/?Action=connect&DBUser=layer_test&")
    admin.execute(sql.SQL("ALTER ROLE layer_test PASSWORD {}").format(sql.Literal(token)))
