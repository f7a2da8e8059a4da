"""Transactions that took too long: the server or PgBouncer ends them, and they are undone."""

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest
from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from psycopg import errors
from psycopg.rows import TupleRow

from tests.support.layer import Admin, settings_for
from tests.support.servers import DATABASE, PoolerFixture
from tests.support.waiting import wait_until

INSERT = "INSERT INTO counter VALUES (1)"
FAREWELL = "pooler error: idle transaction timeout"
TIMEOUTS = {
    "idle_in_transaction_session_timeout": errors.IdleInTransactionSessionTimeout,
    "transaction_timeout": errors.TransactionTimeout,
}
Work = Callable[[psycopg.Connection[TupleRow]], object]
Verb = Callable[[Database[TupleRow], Work], object]
Wait = Callable[[psycopg.Connection[TupleRow]], None]


@pytest.fixture(params=TIMEOUTS)
def timeout(request: pytest.FixtureRequest, admin: Admin) -> Iterator[str]:
    """Each timeout, set on the database as the stacks do."""
    name = str(request.param)
    admin.execute(f"ALTER DATABASE postgres SET {name} = '200ms'")
    yield name
    admin.execute(f"ALTER DATABASE postgres RESET {name}")


def in_a_block(db: Database[TupleRow], work: Work) -> object:
    """Work in transaction()."""
    with db.transaction() as connection:
        return work(connection)


def as_a_unit(db: Database[TupleRow], work: Work) -> object:
    """Work in run_transaction()."""
    return db.run_transaction(work)


def in_a_block_with_claims(db: Database[TupleRow], work: Work) -> object:
    """Work in transaction(), with claims."""
    with db.transaction(claims={"sub": "a"}) as connection:
        return work(connection)


def pause_at_the_end(connection: psycopg.Connection[TupleRow], wait: Wait) -> None:
    """Write, and let the time pass before COMMIT."""
    connection.execute(INSERT)
    wait(connection)


def pause_in_between(connection: psycopg.Connection[TupleRow], wait: Wait) -> None:
    """Write, and let the time pass before another statement."""
    pause_at_the_end(connection, wait)
    connection.execute("SELECT 1")


VERBS = pytest.mark.parametrize("verb", [in_a_block, in_a_block_with_claims, as_a_unit])
WORKS = pytest.mark.parametrize("work", [pause_at_the_end, pause_in_between])


def assert_too_long(
    db: Database[TupleRow], verb: Verb, work: Callable[..., None], wait: Wait
) -> DatabaseUnavailableError:
    """Fail by taking too long, once; return what a handler catches."""
    runs: list[object] = []

    def counted(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(connection)
        work(connection, wait)

    with pytest.raises(DatabaseUnavailableError, match="took too long") as caught:
        verb(db, counted)
    assert len(runs) == 1
    assert db.stats()["retries"] == 0
    assert db._retry.breaker.failures == 0
    return caught.value


@VERBS
@WORKS
def test_a_transaction_that_took_too_long_is_unavailability(
    db: Database[TupleRow], admin: Admin, timeout: str, verb: Verb, work: Callable[..., None]
) -> None:
    """A handler answers 503, nothing is there, and nobody repeats what takes too long."""

    def wait(connection: psycopg.Connection[TupleRow]) -> None:
        query, pid = "SELECT FROM pg_stat_activity WHERE pid = %s", connection.info.backend_pid
        wait_until(lambda: not admin.execute(query, [pid]).rowcount)

    error = assert_too_long(db, verb, work, wait)
    assert isinstance(error.__cause__, TIMEOUTS[timeout])
    assert admin.execute("SELECT FROM counter").rowcount == 0
    db.execute(INSERT)
    assert admin.execute("SELECT FROM counter").rowcount == 1


def test_a_statement_may_take_too_long_for_its_transaction(
    db: Database[TupleRow], admin: Admin
) -> None:
    """`transaction_timeout` strikes in the middle of a statement, too."""
    admin.execute("ALTER DATABASE postgres SET transaction_timeout = '200ms'")
    try:
        for verb in (in_a_block, as_a_unit):
            with pytest.raises(DatabaseUnavailableError, match="took too long"):
                verb(db, lambda connection: connection.execute("SELECT pg_sleep(30)"))
        with pytest.raises(CommitOutcomeUnknownError):
            db.execute("SELECT pg_sleep(30)")  # a procedure may have committed before
    finally:
        admin.execute("ALTER DATABASE postgres RESET transaction_timeout")


def test_a_timeout_that_may_have_come_after_the_commit_is_looked_up(
    db: Database[TupleRow], admin: Admin
) -> None:
    """The server may notice `transaction_timeout` when COMMIT has taken effect already.

    Here it strikes before, in a trigger that COMMIT runs: the answer is the same.
    """
    admin.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$"
    )
    admin.execute(
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON counter DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    try:
        with pytest.raises(CommitOutcomeUnknownError):
            in_a_block(db, _insert_within_a_moment)
        with pytest.raises(DatabaseUnavailableError, match="took too long"):
            as_a_unit(db, _insert_within_a_moment)
        assert db.stats()["retries"] == 1, "the outcome was asked for once"
    finally:
        admin.execute("DROP TRIGGER slow ON counter")
        admin.execute("DROP FUNCTION slow")
    assert admin.execute("SELECT FROM counter").rowcount == 0


def _insert_within_a_moment(connection: psycopg.Connection[TupleRow]) -> None:
    connection.execute("SET LOCAL transaction_timeout = '300ms'")
    connection.execute(INSERT)


def test_a_server_that_ended_before_commit_was_sent_has_not_committed(
    db: Database[TupleRow], admin: Admin
) -> None:
    """A farewell that came while the caller computed is heard before COMMIT is sent."""
    ended: list[int] = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute(INSERT)
        if not ended:
            ended.append(connection.info.backend_pid)
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", ended)

    with pytest.raises(DatabaseUnavailableError, match="rolled back"):
        in_a_block(db, work)
    ended.clear()
    as_a_unit(db, work)
    assert admin.execute("SELECT FROM counter").rowcount == 1


@VERBS
@WORKS
def test_pgbouncers_timeout_is_the_same(
    new_pooler: PoolerFixture, secrets_environment: None, verb: Verb, work: Callable[..., None]
) -> None:
    """PgBouncer has one, too, which is shorter than the server's in the stacks."""
    pooler = new_pooler.start(IDLE_TRANSACTION_TIMEOUT="1")
    with (
        psycopg.connect(pooler.postgres.superuser_dsn, dbname=DATABASE, autocommit=True) as admin,
        closing(Database(settings_for(pooler))) as db,
    ):
        admin.execute("CREATE TABLE counter (n int)")
        admin.execute("GRANT ALL ON counter TO PUBLIC")
        try:
            assert_too_long(db, verb, work, lambda _: wait_until(lambda: FAREWELL in pooler.log))
            assert admin.execute("SELECT FROM counter").rowcount == 0
            db.execute(INSERT)
        finally:
            admin.execute("DROP TABLE counter")
