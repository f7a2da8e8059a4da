"""The layer through PgBouncer: refusals arrive at the first statement, and are sent again."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConnectFailedError,
    Database,
)
from psycopg import Cursor
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.certificates import Authority
from tests.support.layer import end_backends, is_refused, settings_for
from tests.support.load import Load
from tests.support.servers import PoolerFixture
from tests.support.waiting import wait_until


@pytest.fixture
def pooler(kept_pooler: PoolerFixture) -> PoolerFixture:
    """The pooler of this module: a test that ends it starts it again."""
    return kept_pooler


@pytest.fixture
def db(pooler: PoolerFixture, secrets_environment: None) -> Iterator[Database[TupleRow]]:
    """A database whose credentials come from Secrets Manager."""
    database = Database(settings_for(pooler))
    yield database
    database.close()


@pytest.fixture
def patient(pooler: PoolerFixture, secrets_environment: None) -> Iterator[Database[TupleRow]]:
    """A database that waits for a supervisor to start, which takes seconds on a busy machine.

    What the default waits for is seen in test_layer_waits.py.
    """
    database = Database(replace(settings_for(pooler), checkout_timeout=20.0))
    yield database
    database.close()


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


def test_a_rotation_fails_no_request(new_pooler: PoolerFixture, secrets_environment: None) -> None:
    """The old password is refused everywhere, and open, reconnecting and new clients go on."""
    pooler = new_pooler.start(REFRESH_INTERVAL="1")
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


def test_a_drain_and_a_new_pooler_fail_no_request(
    patient: Database[TupleRow], pooler: PoolerFixture
) -> None:
    """A statement that meets a draining pooler goes to the one that replaces it."""
    with Load(patient) as load:
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
    patient: Database[TupleRow], pooler: PoolerFixture
) -> None:
    """Where the caller says that twice is as good as once, a lost connection costs time only."""
    patient.execute("SELECT 1")
    assert killed_while_it_runs(patient, pooler, idempotent=True).fetchone() == (7,)


def test_a_busy_pooler_is_waited_for(new_pooler: PoolerFixture, secrets_environment: None) -> None:
    """A statement that the queue refused certainly did not run, and is sent again."""
    pooler = new_pooler.start(MAX_DB_CONNECTIONS="1", QUERY_WAIT_TIMEOUT="1")
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
