"""A wall clock that is set forward or back, or begins in 1970: at every moment that looks at it."""

import datetime
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final

import pytest
from lambda_pg import (
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
    _iam,
    _secrets,
)
from lambda_pg._overload import FAILURES
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.clocks import Clock
from tests.support.context import Context
from tests.support.layer import PASSWORD, Admin, Open, kill_backends, scalar
from tests.support.servers import SecretsService
from tests.support.waiting import wait_until

HOUR: Final = 3600.0
DAY: Final = 86400.0

JUMPS: Final = {
    "10 s forward": 10.0,
    "an hour forward": HOUR,
    "a day forward": DAY,
    "10 s back": -10.0,
    "an hour back": -HOUR,
    "a day back": -DAY,
    "to 1970": 5.0 - time.time(),
}


LONG: Final = {name: jump for name, jump in JUMPS.items() if name != "10 s forward"}
"""10 s are within the time that a connection may be idle without a question."""


@pytest.fixture(params=list(JUMPS.values()), ids=list(JUMPS))
def jump(request: pytest.FixtureRequest) -> float:
    """Seconds by which the clock is set."""
    return float(request.param)


# While connections are idle


@pytest.mark.parametrize("jump", LONG.values(), ids=LONG)
def test_an_idle_connection_that_went_silent_is_not_trusted_after_a_jump(
    settings: Settings, postgres: Postgres, clock: Clock, jump: float
) -> None:
    """Nobody knows for how long it was idle: it is asked before a write is risked on it."""
    with FaultProxy("127.0.0.1", postgres.port) as network:
        db = clock.govern(Database(replace(settings, port=network.port)))
        db.execute("SELECT 1")
        with network.stall(connections="open"), db.deadline(10):
            clock.shift += jump
            db.execute("INSERT INTO counter VALUES (1)")
        assert scalar(db, "SELECT count(*) FROM counter") == 1
        db.close()


def test_a_jump_costs_an_idle_connection_a_question_at_most(
    db: Database[TupleRow], clock: Clock, jump: float
) -> None:
    """One that is alive stays where the clock went back; no request fails in any case."""
    clock.govern(db)
    db.execute("SELECT 1")
    clock.shift += jump
    for _ in range(3):
        assert scalar(db, "SELECT 1") == 1
    kept = jump < HOUR
    assert db.stats()["connections_num"] == (1 if kept else 2)


def test_a_lifetime_ends_by_the_clock_that_was_set_right(open_database: Open, clock: Clock) -> None:
    """An environment that began a day ahead does not keep its connections a day longer."""
    clock.shift = DAY
    db = clock.govern(open_database(max_lifetime=1000, max_idle=5000, idle_check_after=5000))
    before = scalar(db, "SELECT pg_backend_pid()")
    clock.shift = 0
    assert scalar(db, "SELECT pg_backend_pid()") == before
    clock.shift = 1001
    assert scalar(db, "SELECT pg_backend_pid()") != before


# While credentials are cached


def test_credentials_are_looked_at_again_after_the_clock_was_set_right(
    open_database: Open,
    clock: Clock,
    secrets_service: SecretsService,
    secrets_environment: None,
) -> None:
    """What was fetched a day ahead is not fresh for a day: a rotation is followed in time."""
    arn = secrets_service.create({"username": "layer_test", "password": PASSWORD})
    clock.shift = DAY
    db = clock.govern(open_database(user=None, password=None, secret_arn=arn))
    db.execute("SELECT 1")
    clock.shift = 0
    db.execute("SELECT 1")
    clock.shift = 901
    db.execute("SELECT 1")
    assert db.stats()["refreshes"] == 2


def test_a_jump_does_not_lose_credentials(
    open_database: Open,
    clock: Clock,
    jump: float,
    secrets_service: SecretsService,
    secrets_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Secrets Manager away, the copy serves whatever its age seems to be."""
    arn = secrets_service.create({"username": "layer_test", "password": PASSWORD})
    db = clock.govern(open_database(user=None, password=None, secret_arn=arn))
    db.execute("SELECT 1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    clock.shift += jump
    db.close()
    assert scalar(db, "SELECT 1") == 1


def test_in_1970_the_previous_version_is_looked_at_too(
    open_database: Open,
    clock: Clock,
    secrets_service: SecretsService,
    secrets_environment: None,
) -> None:
    """A clock near its zero must not pass for a look that was just made."""
    arn = secrets_service.create({"username": "layer_test", "password": PASSWORD})
    secrets_service.put(arn, {"username": "layer_test", "password": "not-yet-canary"})
    clock.shift = 0.1 - time.time()
    db = clock.govern(open_database(user=None, password=None, secret_arn=arn))
    assert scalar(db, "SELECT 1") == 1
    assert db.stats()["retries"] == 0


# Tokens and signatures


class Dates:
    """The module datetime, by a clock that can be set."""

    UTC = datetime.UTC

    def __init__(self, clock: Clock) -> None:
        """Take the clock."""
        self._clock = clock
        self.datetime = self

    def now(self, zone: datetime.tzinfo) -> datetime.datetime:
        """Tell the time."""
        return datetime.datetime.fromtimestamp(self._clock(), zone)


def stamp_of(token: str) -> datetime.datetime:
    """Read when a token was signed."""
    text = token.partition("X-Amz-Date=")[2].partition("&")[0]
    return datetime.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)


def test_a_token_of_a_wrong_clock_is_made_again_by_the_right_one(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is dated tomorrow, or in 1970, is not kept after the clock was set right."""
    monkeypatch.setattr(_iam, "datetime", Dates(clock))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    for wrong in (DAY, 5.0 - time.time()):
        settings = Settings(host="db", user="u", auth="iam", region="us-east-1", dbname="app")
        credentials = clock.govern(Database(settings))._credentials
        clock.shift = wrong
        credentials.get(1)
        clock.shift = 0
        signed = stamp_of(credentials.get(1).password)
        assert abs(signed.timestamp() - time.time()) < 60


class Signed(BaseHTTPRequestHandler):
    """Secrets Manager, which refuses signatures of another time as AWS does."""

    def do_POST(self) -> None:
        """Answer with the test's login, or with the refusal."""
        self.rfile.read(int(self.headers["content-length"]))
        text = self.headers["x-amz-date"]
        signed = datetime.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
        late = time.time() - signed.timestamp()
        document: dict[str, Any] = {
            "SecretString": json.dumps({"username": "layer_test", "password": PASSWORD})
        }
        if abs(late) > 300:
            what = "expired" if late > 0 else "not yet current"
            document = {
                "__type": "InvalidSignatureException",
                "message": f"Signature {what}: {text} is now {'earlier' if late > 0 else 'later'}",
            }
        body = json.dumps(document).encode()
        self.send_response(400 if abs(late) > 300 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def by_signature(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Clock]:
    """The clock that signs, and a Secrets Manager that looks at it."""
    monkeypatch.setattr(_secrets, "datetime", Dates(clock))
    server = HTTPServer(("127.0.0.1", 0), Signed)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield clock
    server.shutdown()
    thread.join()
    server.server_close()


ARN: Final = "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"


@pytest.mark.parametrize(
    "wrong",
    [HOUR, -HOUR, 5.0 - time.time()],
    ids=["an hour ahead", "an hour behind", "in 1970"],
)
def test_a_clock_that_is_set_right_in_time_costs_no_request(
    open_database: Open, by_signature: Clock, wrong: float
) -> None:
    """The refused request is signed again, with the time that it is then."""
    db = open_database(user=None, password=None, secret_arn=ARN)
    by_signature.shift = wrong
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(scalar, db, "SELECT 1")
        wait_until(lambda: db._credentials._failure)
        by_signature.shift = 0
        assert asked.result() == 1


@pytest.mark.parametrize(("wrong", "told"), [(HOUR, "not yet current"), (-HOUR, "expired")])
def test_a_clock_that_stays_wrong_is_reported(
    open_database: Open, by_signature: Clock, wrong: float, told: str
) -> None:
    """The caller answers 503, with what AWS says of the signature; then the clock is set right."""
    db = open_database(user=None, password=None, secret_arn=ARN, checkout_timeout=0.5)
    by_signature.shift = wrong
    with pytest.raises(DatabaseUnavailableError, match=f"Signature {told}"):
        db.execute("SELECT 1")
    by_signature.shift = 0
    wait_until(lambda: _serves(db))


def _serves(db: Database[TupleRow]) -> bool:
    """Tell whether a request is served: Secrets Manager is asked once a second at most."""
    with suppress(DatabaseUnavailableError):
        return scalar(db, "SELECT 1") == 1
    return False


# While the breaker is open


def test_an_open_breaker_closes_in_time_after_a_jump(
    settings: Settings, postgres: Postgres, clock: Clock, jump: float
) -> None:
    """However far the next probe seems to be."""
    with FaultProxy("127.0.0.1", postgres.port) as network, ExitStack() as later:
        db = clock.govern(Database(replace(settings, port=network.port, checkout_timeout=0.3)))
        later.callback(db.close)
        with network.refuse():
            for _ in range(FAILURES):
                with pytest.raises(DatabaseUnavailableError):
                    db.execute("SELECT 1")
            with pytest.raises(DatabaseUnavailableError, match="the next try is in") as refused:
                db.execute("SELECT 1")
            assert refused.value.retry_after < 3
            clock.shift += jump
            with pytest.raises(DatabaseUnavailableError) as probed:
                db.execute("SELECT 1")
            assert probed.value.retry_after < 3
        wait_until(lambda: serves(db), 10)


def serves(db: Database[TupleRow]) -> bool:
    """Tell whether a statement is served."""
    try:
        return scalar(db, "SELECT 1") == 1
    except DatabaseUnavailableError:
        return False


# Between an invocation's start and its end


def test_a_jump_during_an_invocation_moves_no_deadline(
    db: Database[TupleRow], clock: Clock, jump: float
) -> None:
    """What is left is asked once, at the beginning, and counted by a clock that nobody sets."""
    clock.govern(db)

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> None:
        db.execute("SELECT 1")
        clock.shift += jump
        assert scalar(db, "SELECT 7") == 7
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            db.execute("SELECT pg_sleep(60)")
        assert time.monotonic() - began < 10

    handler(None, Context(2.5, clock=clock))
    assert scalar(db, "SELECT 7") == 7


def test_connections_that_are_lost_during_a_jump_are_replaced(
    db: Database[TupleRow], admin: Admin, clock: Clock, jump: float
) -> None:
    """A failover sets clocks, too."""
    clock.govern(db)
    for _ in range(3):
        db.execute("SELECT 1")
        kill_backends(admin)
        clock.shift += jump
        assert scalar(db, "SELECT 7") == 7
        clock.shift = 0
