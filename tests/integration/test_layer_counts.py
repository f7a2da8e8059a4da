"""What is counted, printed and logged; and that none of it holds a secret."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import ConfigurationError, Database, DeadlineExceededError
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.clocks import Clock
from tests.support.context import Context
from tests.support.layer import PASSWORD, Admin, Open, kill_backends, scalar
from tests.support.servers import SecretsService

PARAMETER: Final = "canary-of-a-parameter"
CLAIM: Final = "canary-of-a-claim"
CANARIES: Final = ("canary", PASSWORD)


def changes(db: Database[TupleRow], action: Callable[[], object]) -> dict[str, int]:
    """Return the counters that an action changes, and by how much."""
    before = db.stats()
    action()
    return {
        name: value - before[name]
        for name, value in db.stats().items()
        if value != before[name] and not name.endswith("_ms")
    }


def failing(error: type[Exception], action: Callable[[], object]) -> Callable[[], None]:
    """Expect an error of an action."""

    def act() -> None:
        with pytest.raises(error):
            action()

    return act


def borrow(db: Database[TupleRow]) -> None:
    """Use a connection."""
    with db.connection() as connection:
        connection.execute("SELECT 1")


def test_each_thing_is_counted_once(db: Database[TupleRow], admin: Admin, clock: Clock) -> None:
    """By psycopg_pool's names; what costs nothing more than a checkout counts as one."""
    clock.govern(db)
    first = {"requests_num": 1, "connections_num": 1, "pool_size": 1, "pool_available": 1}
    assert changes(db, lambda: db.execute("SELECT 1")) == first
    one = {"requests_num": 1}
    assert changes(db, lambda: db.execute("SELECT 1")) == one
    assert changes(db, lambda: db.execute("SELECT 1", claims={"sub": "a"})) == one
    assert changes(db, lambda: borrow(db)) == one
    assert changes(db, lambda: db.run_transaction(lambda c: c.execute("SELECT 1"))) == one
    division = failing(psycopg.errors.DivisionByZero, lambda: db.execute("SELECT 1/0"))
    assert changes(db, division) == one
    kill_backends(admin)
    replaced = {"requests_num": 1, "connections_num": 1, "connections_lost": 1}
    assert changes(db, lambda: db.execute("SELECT 1")) == replaced
    clock.shift += 86400
    assert changes(db, lambda: borrow(db)) == {"requests_num": 1, "connections_num": 1}
    nested = failing(ConfigurationError, lambda: db.execute("SELECT 1"))
    with db.connection():
        assert db.stats()["pool_available"] == 0
        assert changes(db, nested) == {"requests_num": 1, "requests_errors": 1}


def test_what_is_lost_in_the_hands_of_a_caller_is_a_bad_return(
    db: Database[TupleRow], admin: Admin
) -> None:
    """The connection is gone, and its slot is free."""
    db.execute("SELECT 1")

    def lose() -> None:
        with db.connection() as connection:
            kill_backends(admin)
            connection.execute("SELECT 1")

    assert changes(db, failing(psycopg.OperationalError, lose)) == {
        "requests_num": 1,
        "returns_bad": 1,
        "pool_size": -1,
        "pool_available": -1,
    }


def test_an_outage_is_counted_by_its_attempts(open_database: Open) -> None:
    """One request, one error, and a connect for each attempt."""
    db = open_database(port=processes.free_port(), checkout_timeout=0.3)
    counted = changes(db, failing(psycopg.OperationalError, lambda: db.execute("SELECT 1")))
    attempts = counted.pop("connections_num")
    assert counted == {
        "requests_num": 1,
        "requests_errors": 1,
        "connections_errors": attempts,
        "retries": attempts - 1,
    }
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            borrow(db)
    refused = failing(psycopg.OperationalError, lambda: db.execute("SELECT 1"))
    assert changes(db, refused) == {"requests_num": 1, "requests_errors": 1}


def test_times_are_counted(db: Database[TupleRow]) -> None:
    """In whole milliseconds."""
    db.execute("SELECT 1")
    stats = db.stats()
    assert stats["connections_ms"] > 0
    assert all(type(value) is int for value in stats.values())


# Metrics


def invoke(
    db: Database[TupleRow], action: Callable[[], object], request_id: str = "request-1"
) -> object:
    """Call something as the handler of one invocation."""

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> object:
        return action()

    return handler(None, Context(30, request_id))


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what was printed."""
    printed = capsys.readouterr()
    assert not printed.err
    return [json.loads(line) for line in printed.out.splitlines()]


def test_an_invocation_that_did_something_prints_one_line(
    open_database: Open, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In CloudWatch's format, with what it alone has added."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders")
    db = open_database(metrics=True)
    invoke(db, lambda: [db.execute("SELECT 1") for _ in range(3)])
    (line,) = lines(capsys)
    assert line["Checkouts"] == 3
    assert line["Connects"] == 1
    assert line["FunctionName"] == "orders"
    assert line["AwsRequestId"] == "request-1"
    assert abs(line["_aws"]["Timestamp"] / 1000 - time.time()) < 60
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert {metric["Name"] for metric in directive["Metrics"]} == {
        "Checkouts",
        "Connects",
        "ConnectTime",
    }
    invoke(db, lambda: db.execute("SELECT 1"), "request-2")
    (line,) = lines(capsys)
    assert (line["Checkouts"], line["AwsRequestId"]) == (1, "request-2")
    assert "Connects" not in line
    invoke(db, lambda: None)
    assert lines(capsys) == []


def test_an_invocation_that_failed_prints_its_line_too(
    open_database: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deadlines and leaks are what somebody looks for."""
    db = open_database(metrics=True)
    kept: list[object] = []

    def fail() -> None:
        kept.append(db.getconn())
        raise LookupError

    with pytest.raises(LookupError):
        invoke(db, fail)
    (line,) = lines(capsys)
    assert (line["Checkouts"], line["Leaks"]) == (1, 1)

    invoke(db, lambda: db.execute("SELECT 1"))  # connects: nothing but the statement takes long
    lines(capsys)

    def hurry() -> None:
        with db.deadline(1):
            db.execute("SELECT pg_sleep(5)")

    with pytest.raises(DeadlineExceededError):
        invoke(db, hurry)
    (line,) = lines(capsys)
    assert line["DeadlineCancels"] == 1


def test_without_the_setting_nothing_is_printed(
    db: Database[TupleRow], capsys: pytest.CaptureFixture[str]
) -> None:
    """Log lines cost money."""
    invoke(db, lambda: db.execute("SELECT 1"))
    assert lines(capsys) == []


# Secrets


class Disaster:
    """A database, and something that goes wrong with it."""

    def __init__(
        self,
        open_database: Open,
        postgres: Postgres,
        admin: Admin,
        service: SecretsService,
        folder: Path,
    ) -> None:
        """Take what disasters need."""
        self.opened: list[Database[TupleRow]] = []
        self._open = open_database
        self.postgres = postgres
        self.admin = admin
        self.service = service
        self.folder = folder

    def open(self, **changes: Any) -> Database[TupleRow]:
        """Make a database that prints its metrics."""
        self.opened.append(self._open(metrics=True, **changes))
        return self.opened[-1]

    def run(self, db: Database[TupleRow]) -> None:
        """Use every verb, with a parameter and a claim that nobody may see."""
        db.execute("SELECT %s", [PARAMETER], claims={"sub": CLAIM})
        with db.transaction(claims={"sub": CLAIM}) as connection:
            connection.execute("SELECT %s", [PARAMETER])
        db.run_transaction(lambda c: c.execute("SELECT %s", [PARAMETER]), claims={"sub": CLAIM})

    def wrong_password(self) -> None:
        """The login is refused."""
        self.run(self.open(password="canary-wrong", checkout_timeout=0.3))

    def wrong_secret(self) -> None:
        """The login with the secret is refused."""
        arn = self.service.create({"username": "layer_test", "password": "canary-wrong"})
        self.run(self.open(user=None, password=None, secret_arn=arn, checkout_timeout=0.3))

    def broken_secret(self) -> None:
        """The secret cannot be used."""
        arn = self.service.create({"username": "layer_test", "password": ""})
        self.service.client.put_secret_value(SecretId=arn, SecretString="canary of no JSON {")
        self.run(self.open(user=None, password=None, secret_arn=arn))

    def secret_with_a_broken_url(self) -> None:
        """The URL in the secret cannot be read."""
        arn = self.service.create({"url": "postgresql://layer_test:canary@pass@host:x/db"})
        self.run(self.open(user=None, password=None, secret_arn=arn, host=None))

    def nobody_listens(self) -> None:
        """Connects are refused."""
        self.run(self.open(port=processes.free_port(), checkout_timeout=0.3))

    def wrong_ca(self) -> None:
        """The server is a stranger."""
        other = self.folder / "other.pem"
        other.write_text(Authority.create("somebody else").pem)
        self.run(self.open(sslrootcert=other))

    def lost(self) -> None:
        """The backend dies while a statement runs."""
        db = self.open()
        with db.connection() as connection:
            connection.execute("SELECT %s", [PARAMETER])
            kill_backends(self.admin)
            connection.execute("SELECT %s", [PARAMETER])

    def cut(self) -> None:
        """The answer to a write is lost."""
        with FaultProxy("127.0.0.1", self.postgres.port) as proxy:
            db = self.open(port=proxy.port)
            db.execute("SELECT 1")
            with proxy.cut_after(0):
                db.execute("SELECT %s", [PARAMETER], claims={"sub": CLAIM})

    def late(self) -> None:
        """The deadline passes."""
        db = self.open()
        with db.deadline(0.1):
            db.execute("SELECT pg_sleep(5), %s", [PARAMETER], claims={"sub": CLAIM})

    def nested(self) -> None:
        """A checkout inside another."""
        db = self.open()
        with db.connection():
            self.run(db)

    def swallowed(self) -> None:
        """A failed transaction is to be committed."""
        db = self.open()
        with db.transaction(claims={"sub": CLAIM}) as connection:
            failing(
                psycopg.errors.DivisionByZero,
                lambda: connection.execute("SELECT 1/0, %s", [PARAMETER]),
            )()

    def leaked(self) -> None:
        """A handler keeps a connection, and fails."""
        db = self.open()

        def keep() -> None:
            db.getconn().execute("SELECT %s", [PARAMETER])
            raise LookupError

        invoke(db, keep)

    def conflict(self) -> None:
        """A unit of work conflicts until there is no time left."""
        db = self.open(checkout_timeout=0.2)
        raising = "DO $$ BEGIN RAISE 'conflict' USING ERRCODE = '40001'; END $$"

        def work(connection: psycopg.Connection[TupleRow]) -> None:
            connection.execute("SELECT %s", [PARAMETER])
            connection.execute(raising)

        db.run_transaction(work, claims={"sub": CLAIM})

    def unserialisable(self) -> None:
        """Claims are no JSON."""
        self.open().execute("SELECT 1", claims={"sub": {CLAIM}})

    def unadaptable(self) -> None:
        """A parameter has no form for the server."""
        self.open().execute("SELECT %s", [f"{PARAMETER}\0"])


@pytest.fixture
def stage(
    open_database: Open,
    postgres: Postgres,
    admin: Admin,
    secrets_service: SecretsService,
    secrets_environment: None,
    tmp_path: Path,
) -> Disaster:
    """Where disasters happen."""
    return Disaster(open_database, postgres, admin, secrets_service, tmp_path)


DISASTERS: Final = [
    Disaster.wrong_password,
    Disaster.wrong_secret,
    Disaster.broken_secret,
    Disaster.secret_with_a_broken_url,
    Disaster.nobody_listens,
    Disaster.wrong_ca,
    Disaster.lost,
    Disaster.cut,
    Disaster.late,
    Disaster.nested,
    Disaster.swallowed,
    Disaster.leaked,
    Disaster.conflict,
    Disaster.unserialisable,
    Disaster.unadaptable,
]


@pytest.mark.parametrize("disaster", DISASTERS)
def test_no_error_no_log_and_no_metric_holds_a_secret(
    disaster: Callable[[Disaster], None],
    stage: Disaster,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No password, no parameter, no claim: in no text, representation or attribute of either."""
    caplog.set_level(logging.DEBUG, logger="lambda_pg")
    caplog.set_level(logging.DEBUG, logger="psycopg")
    told: list[str] = []
    try:
        disaster(stage)
    except Exception as error:  # noqa: BLE001 - whatever comes must hold no secret
        told = told_by(error)
    assert told, "nothing went wrong"
    shown = [*told, *capsys.readouterr(), caplog.text]
    shown += [str(vars(record)) for record in caplog.records]
    shown += [f"{db!r} {db} {db._settings!r} {db.stats()}" for db in stage.opened]
    for text in shown:
        assert not [canary for canary in CANARIES if canary in text], text


def told_by(error: BaseException) -> list[str]:
    """Return all that an error and those underneath tell, attributes included."""
    told = []
    seen: BaseException | None = error
    while seen is not None:
        told += [str(seen), repr(seen), repr(seen.args), repr(vars(seen))]
        seen = seen.__cause__ or seen.__context__
    return told


def test_a_connection_shows_no_password(db: Database[TupleRow]) -> None:
    """Neither it nor its cursor."""
    with db.connection() as connection:
        cursor = connection.execute("SELECT %s", [PARAMETER])
        shown = f"{connection!r} {connection} {cursor!r} {connection.info.dsn}"
    assert "canary" not in shown
    assert scalar(db, "SELECT 1") == 1
