"""The layer through PgBouncer: refusals arrive at the first statement, and are sent again."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConnectFailedError,
    Database,
    Settings,
)
from psycopg import Cursor
from psycopg.rows import TupleRow

from local.certificates import Authority
from tests.integration.servers import DATABASE, PoolerFixture


def settings_for(pooler: PoolerFixture) -> Settings:
    """Say what the stacks say to a function: endpoint, CA and the ARN of the secret."""
    return Settings(
        host="127.0.0.1",
        port=pooler.port,
        dbname=DATABASE,
        secret_arn=pooler.login.arn,
        profile="pgbouncer",
        ca_pem=pooler.authority.pem,
    )


@pytest.fixture
def db(pooler: PoolerFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database[TupleRow]]:
    """A database whose credentials come from Secrets Manager."""
    for name, value in pooler.service.environment.items():
        monkeypatch.setenv(name, value)
    database = Database(settings_for(pooler))
    yield database
    database.close()


class Load:
    """Statements one after the other from a thread, until told to stop."""

    def __init__(self, db: Database[TupleRow]) -> None:
        """Start nothing yet."""
        self._db = db
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.served = 0
        self.errors: list[Exception] = []

    def __enter__(self) -> "Load":
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and wait."""
        self._stop.set()
        self._thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until so many more statements were served, or one failed."""
        goal, deadline = self.served + more, time.monotonic() + 20
        while self.served < goal and not self.errors:
            assert time.monotonic() < deadline, f"{goal - self.served} statements are missing"
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._db.execute("SELECT 1", claims={"sub": "a"}, idempotent=True)
                self.served += 1
            except Exception as error:  # noqa: BLE001 - whatever comes is what the test counts
                self.errors.append(error)


def test_claims_are_gone_for_the_next_client(db: Database[TupleRow], pooler: PoolerFixture) -> None:
    """Two clients that share one server connection do not see each other's claims."""
    query = "SELECT pg_backend_pid(), current_setting('request.jwt.claims', true)"
    mine = db.execute(query, claims={"sub": "a"}).fetchone()
    with pooler.connect() as other:
        theirs = other.execute(query).fetchone()
    assert mine is not None
    assert theirs is not None
    assert mine[0] == theirs[0]
    assert mine[1] == '{"sub": "a"}'
    assert not theirs[1]


def test_a_rotation_fails_no_request(
    new_pooler: PoolerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old password is refused everywhere, and open, reconnecting and new clients go on."""
    pooler = new_pooler.start(REFRESH_INTERVAL="1")
    for name, value in pooler.service.environment.items():
        monkeypatch.setenv(name, value)
    old, db = pooler.login.password, Database(settings_for(pooler))
    with Load(db) as load:
        load.wait_for(20)
        pooler.rotate_password("second-canary")
        end_backends(pooler)
        wait_until(lambda: is_refused(pooler, old))
        load.wait_for(20)
    assert not load.errors
    db.close()  # its next connect uses the cached, old password first
    assert db.execute("SELECT 1").fetchone() == (1,)
    db.close()


def end_backends(pooler: PoolerFixture) -> None:
    """End the login's server connections: the pooler has to log in again."""
    with psycopg.connect(pooler.postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s",
            [pooler.login.name],
        )


def is_refused(pooler: PoolerFixture, password: str) -> bool:
    """Tell whether the pooler refuses a password."""
    try:
        pooler.connect(password=password).close()
    except psycopg.OperationalError:
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until it holds, for at most 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited for 20 s"
        time.sleep(0.05)


def test_a_drain_and_a_new_pooler_fail_no_request(
    db: Database[TupleRow], pooler: PoolerFixture
) -> None:
    """A statement that meets a draining pooler goes to the one that replaces it."""
    with Load(db) as load:
        load.wait_for(20)
        pooler.process.stop()
        pooler.start()
        load.wait_for(20)
    assert not load.errors


def test_without_a_pooler_the_answer_comes_in_time(
    db: Database[TupleRow], pooler: PoolerFixture
) -> None:
    """An outage longer than the checkout timeout is answered within it + 1 s, then ends."""
    assert db.execute("SELECT 1").fetchone() == (1,)
    pooler.process.kill()
    started = time.monotonic()
    with pytest.raises(CheckoutTimeoutError, match="refused"):
        db.execute("SELECT 1", idempotent=True)  # it may meet the pooler's last moment
    assert time.monotonic() - started < 4
    pooler.start()
    assert db.execute("SELECT 1").fetchone() == (1,)


def killed_while_it_runs(
    db: Database[TupleRow], pooler: PoolerFixture, *, idempotent: bool
) -> Cursor[TupleRow]:
    """Kill the pooler while it waits for a statement's answer, and start another."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(db.execute, "SELECT 7 FROM pg_sleep(1)", idempotent=idempotent)
        time.sleep(0.5)
        pooler.process.kill()
        pooler.start()
        return running.result()


def test_a_lost_statement_is_reported_as_unknown(
    db: Database[TupleRow], pooler: PoolerFixture
) -> None:
    """It was sent and its answer is lost: sending it again could do it twice."""
    db.execute("SELECT 1")
    with pytest.raises(CommitOutcomeUnknownError):
        killed_while_it_runs(db, pooler, idempotent=False)
    assert db.execute("SELECT 1").fetchone() == (1,)


def test_a_lost_idempotent_statement_is_sent_again(
    db: Database[TupleRow], pooler: PoolerFixture
) -> None:
    """Where the caller says that twice is as good as once, a lost connection costs time only."""
    db.execute("SELECT 1")
    assert killed_while_it_runs(db, pooler, idempotent=True).fetchone() == (7,)


def test_a_busy_pooler_is_waited_for(
    new_pooler: PoolerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that the queue refused certainly did not run, and is sent again."""
    pooler = new_pooler.start(MAX_DB_CONNECTIONS="1", QUERY_WAIT_TIMEOUT="1")
    for name, value in pooler.service.environment.items():
        monkeypatch.setenv(name, value)
    db = Database(settings_for(pooler))
    with pooler.connect() as holder:
        holder.execute("BEGIN")
        release = threading.Timer(1.5, holder.execute, ["COMMIT"])
        release.start()
        assert db.execute("SELECT 1").fetchone() == (1,)
        release.join()
    db.close()


def test_a_pooler_of_another_ca_is_refused(db: Database[TupleRow], pooler: PoolerFixture) -> None:
    """The stack's own CA is the only one that counts."""
    pem = Authority.create("somebody else").pem
    stranger = Database(replace(settings_for(pooler), ca_pem=pem))
    with pytest.raises(ConnectFailedError, match="certificate verify failed"):
        stranger.execute("SELECT 1")
    assert db.execute("SELECT 1").fetchone() == (1,)


def test_a_pooler_of_another_name_is_refused(db: Database[TupleRow], pooler: PoolerFixture) -> None:
    """The right CA is not enough: the certificate is for 127.0.0.1, not for localhost."""
    stranger = Database(replace(settings_for(pooler), host="localhost"))
    with pytest.raises(ConnectFailedError, match="does not match host name"):
        stranger.execute("SELECT 1")
    assert db.execute("SELECT 1").fetchone() == (1,)
