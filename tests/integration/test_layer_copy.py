"""COPY and stream() whose server or pooler goes away in the middle: all of it, or nothing."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress

import psycopg
import pytest
from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import APPLICATION, Open, scalar, settings_for
from tests.support.servers import PoolerFixture
from tests.support.waiting import wait_until

Interrupt = Callable[[], object]
Work = Callable[[psycopg.Connection[TupleRow], Interrupt], int]
Block = Callable[[Database[TupleRow]], AbstractContextManager[psycopg.Connection[TupleRow]]]

ROWS = 1000
"""In each piece; there are 300 of them, more than any buffer on the way holds."""

PIECES = 300
READ = 30_000
MANY = f"SELECT generate_series(1, {READ}), repeat('x', 1000)"
"""Rows to read, which are 30 MB: wide ones, since each row costs the client the same."""


def copy_in(connection: psycopg.Connection[TupleRow], interrupt: Interrupt) -> int:
    """Write many rows; return how many."""
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY counter FROM STDIN") as copy,
    ):
        for piece in range(PIECES):
            copy.write("1\n" * ROWS)
            if piece == 5:
                interrupt()
    return PIECES * ROWS


def copy_out(connection: psycopg.Connection[TupleRow], interrupt: Interrupt) -> int:
    """Read many rows; return how many."""
    count = 0
    with connection.cursor() as cursor, cursor.copy(f"COPY ({MANY}) TO STDOUT") as copy:
        for _ in copy.rows():
            count += 1
            if count == ROWS:
                interrupt()
    return count


def stream(connection: psycopg.Connection[TupleRow], interrupt: Interrupt) -> int:
    """Read many rows one by one; return how many."""
    count = 0
    with connection.cursor() as cursor:
        for _ in cursor.stream(MANY):
            count += 1
            if count == ROWS:
                interrupt()
    return count


def in_autocommit(
    db: Database[TupleRow],
) -> AbstractContextManager[psycopg.Connection[TupleRow]]:
    """Work without a transaction of the layer's."""
    return db.connection()


def in_transaction(
    db: Database[TupleRow],
) -> AbstractContextManager[psycopg.Connection[TupleRow]]:
    """Work in one."""
    return db.transaction()


WORKS = pytest.mark.parametrize("work", [copy_in, copy_out, stream])
BLOCKS = pytest.mark.parametrize("block", [in_autocommit, in_transaction])


def outcome(db: Database[TupleRow], block: Block, work: Work, interrupt: Interrupt) -> object:
    """Do the work, interrupted in its middle; return the error, or None with every row seen."""
    try:
        with block(db) as connection:
            count = work(connection, interrupt)
    except psycopg.OperationalError as error:
        return error
    assert count == (PIECES * ROWS if work is copy_in else READ)
    return None


def check(db: Database[TupleRow], block: Block, error: object) -> None:
    """Compare what the caller was told with what is there, and ask again."""
    if block is in_transaction:
        assert isinstance(error, DatabaseUnavailableError), error
        assert "rolled back" in str(error)
    else:
        assert isinstance(error, CommitOutcomeUnknownError), error
    wait_until(lambda: serves(db))
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    stats = db.stats()
    assert stats["pool_size"] == stats["pool_available"] == 1
    assert stats["leaks"] == 0


def serves(db: Database[TupleRow]) -> bool:
    """Tell whether a statement is served."""
    try:
        return scalar(db, "SELECT 1") == 1
    except DatabaseUnavailableError:
        return False


# The server


def backend(postgres: Postgres) -> int:
    """Find the layer's one backend."""
    with psycopg.connect(postgres.superuser_dsn) as admin:
        rows = admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", [APPLICATION]
        ).fetchall()
    ((pid,),) = rows
    return int(pid)


def fast_shutdown(postgres: Postgres) -> None:
    """Restart the server as RDS's reboot does."""
    postgres.restart("fast")


def terminated(postgres: Postgres) -> None:
    """End the backend by an administrator's command."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(postgres)])


def killed(postgres: Postgres) -> None:
    """Kill the backend: the server ends all others, and recovers."""
    os.kill(backend(postgres), signal.SIGKILL)
    wait_until(lambda: recovers(postgres))


def recovers(postgres: Postgres) -> bool:
    """Tell whether the server answers without the layer's backend."""
    with (
        suppress(psycopg.OperationalError),
        psycopg.connect(postgres.superuser_dsn) as admin,
    ):
        query = "SELECT FROM pg_stat_activity WHERE application_name = %s"
        return admin.execute(query, [APPLICATION]).rowcount == 0
    return False


@BLOCKS
@WORKS
@pytest.mark.parametrize("disaster", [fast_shutdown, terminated, killed])
def test_what_a_server_interrupts_is_reported_as_it_is(
    open_database: Open,
    postgres: Postgres,
    block: Block,
    work: Work,
    disaster: Callable[[Postgres], None],
) -> None:
    """Nothing of it is acknowledged, nobody waits for ever, and the next request is served."""
    db = open_database()
    db.execute("SELECT 1")
    began = time.monotonic()
    error = outcome(db, block, work, lambda: disaster(postgres))
    assert time.monotonic() - began < 60
    check(db, block, error)


@BLOCKS
def test_rows_are_acknowledged_only_after_the_last_one(
    open_database: Open, postgres: Postgres, block: Block
) -> None:
    """The control: without an interruption every row is there."""
    db = open_database()
    assert outcome(db, block, copy_in, lambda: None) is None
    assert scalar(db, "SELECT count(*) FROM counter") == PIECES * ROWS


# The pooler


@pytest.fixture
def table(postgres: Postgres) -> Iterator[None]:
    """The table in the pooler's database."""
    with psycopg.connect(postgres.superuser_dsn, dbname="app", autocommit=True) as admin:
        admin.execute("CREATE TABLE counter (n int)")
        admin.execute("GRANT ALL ON counter TO PUBLIC")
        yield
        admin.execute("DROP TABLE counter")


@BLOCKS
@WORKS
def test_what_is_at_work_when_a_pooler_drains_is_finished(
    kept_pooler: PoolerFixture,
    secrets_environment: None,
    table: None,
    block: Block,
    work: Work,
) -> None:
    """SIGTERM to the supervisor: it has drain_timeout; what comes after goes to the next pooler."""
    db: Database[TupleRow] = Database(settings_for(kept_pooler))
    assert outcome(db, block, work, lambda: drain(kept_pooler)) is None
    kept_pooler.process.stop()
    kept_pooler.start()
    assert scalar(db, "SELECT count(*) FROM counter") == (PIECES * ROWS) * (work is copy_in)
    db.close()


@BLOCKS
@WORKS
def test_what_a_drain_cuts_is_reported_as_it_is(
    new_pooler: PoolerFixture,
    secrets_environment: None,
    table: None,
    block: Block,
    work: Work,
) -> None:
    """It has taken longer than drain_timeout."""
    pooler = new_pooler.start(DRAIN_TIMEOUT="1")
    db: Database[TupleRow] = Database(settings_for(pooler))
    error = outcome(db, block, work, pooler.process.stop)
    pooler.start()
    check(db, block, error)
    db.close()


@BLOCKS
@WORKS
def test_what_a_killed_pooler_cuts_is_reported_as_it_is(
    kept_pooler: PoolerFixture,
    secrets_environment: None,
    table: None,
    block: Block,
    work: Work,
) -> None:
    """Without a farewell."""
    db: Database[TupleRow] = Database(settings_for(kept_pooler))
    error = outcome(db, block, work, kept_pooler.process.kill)
    kept_pooler.start()
    check(db, block, error)
    db.close()


def drain(pooler: PoolerFixture) -> None:
    """Tell the supervisor to end, and wait until it drains."""
    before = pooler.log.count("draining, for at most")
    pooler.process.terminate()
    wait_until(lambda: pooler.log.count("draining, for at most") > before)
    time.sleep(2)  # longer than the supervisor's own transaction holds PgBouncer
