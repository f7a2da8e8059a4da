"""What an application keeps over the end of its invocation: a connection, a cursor, a generator."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from lambda_pg import Database, DatabaseUnavailableError, DeadlineExceededError
from psycopg.rows import TupleRow

from tests.support.context import Context
from tests.support.layer import Admin

ENDED = "its invocation has ended"

Connection = psycopg.Connection[TupleRow]
Use = Callable[[Connection], object]


@pytest.fixture
def kept(db: Database[TupleRow], admin: Admin) -> Connection:
    """A connection of an invocation that has ended, with a row that was not committed."""
    connection = leave(db, db.getconn)
    assert admin.execute("SELECT count(*) FROM counter").fetchone() == (0,)
    return connection


def leave(db: Database[TupleRow], take: Callable[[], Connection]) -> Connection:
    """Leave a connection in the middle of a transaction at the end of an invocation."""

    @db.bind_lambda_context
    def handler(_event: object, _context: object) -> Connection:
        connection = take()
        connection.autocommit = False
        connection.execute("INSERT INTO counter VALUES (1)")
        return connection

    return handler({}, Context(5))


def test_its_rollback_and_its_close_succeed(db: Database[TupleRow], kept: Connection) -> None:
    """Its transaction is gone, which is what both are for; so may they be said again."""
    for _ in range(2):
        kept.rollback()
        kept.close()
        kept.rollback()
    db.putconn(kept)
    assert kept.closed


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda connection: connection.execute("SELECT 1"), id="execute"),
        pytest.param(lambda connection: connection.cursor(), id="cursor"),
        pytest.param(lambda connection: connection.cursor("named"), id="named"),
        pytest.param(lambda connection: connection.commit(), id="commit"),
        pytest.param(lambda connection: connection.transaction().__enter__(), id="transaction"),
        pytest.param(lambda connection: connection.pipeline().__enter__(), id="pipeline"),
        pytest.param(lambda connection: connection.set_autocommit(True), id="autocommit"),
        pytest.param(lambda connection: connection.set_isolation_level(None), id="isolation"),
        pytest.param(lambda connection: next(connection.notifies(timeout=0)), id="notifies"),
        pytest.param(lambda connection: connection.tpc_recover(), id="tpc"),
        pytest.param(lambda connection: connection.__enter__(), id="with"),
    ],
)
def test_anything_else_says_that_its_invocation_has_ended(kept: Connection, use: Use) -> None:
    """Not that a connection is closed, which nobody here has done, nor anything else."""
    with pytest.raises(DatabaseUnavailableError, match=ENDED):
        use(kept)


@pytest.mark.parametrize(
    "use",
    [
        lambda cursor: cursor.execute("SELECT 2"),
        lambda cursor: cursor.executemany("SELECT %s", [(1,)]),
        lambda cursor: next(cursor.stream("SELECT 2")),
        lambda cursor: cursor.copy("COPY counter TO STDOUT").__enter__(),
    ],
    ids=["execute", "executemany", "stream", "copy"],
)
def test_a_cursor_says_so_too(db: Database[TupleRow], use: Callable[[Any], object]) -> None:
    """It runs nothing more; the rows that it has read are still here."""

    @db.bind_lambda_context
    def handler(_event: object, _context: object) -> psycopg.Cursor[TupleRow]:
        return db.getconn().execute("SELECT 1")

    cursor = handler({}, Context(5))
    with pytest.raises(DatabaseUnavailableError, match=ENDED):
        use(cursor)
    cursor.close()


def test_rows_that_were_read_are_still_here(db: Database[TupleRow]) -> None:
    """They are in memory: nothing of the connection is needed for them."""

    @db.bind_lambda_context
    def handler(_event: object, _context: object) -> psycopg.Cursor[TupleRow]:
        return db.getconn().execute("SELECT generate_series(1, 2)")

    assert handler({}, Context(5)).fetchall() == [(1,), (2,)]


@pytest.mark.parametrize("named", [False, True], ids=["stream", "named"])
def test_a_generator_says_so(db: Database[TupleRow], named: bool) -> None:
    """One that reads row by row cannot go on, and says why, whatever its deadline was."""

    def rows() -> Iterator[TupleRow]:
        connection = db.getconn()
        if not named:
            yield from connection.cursor().stream("SELECT generate_series(1, 100000)")
            return
        with connection.transaction(), connection.cursor("named") as cursor:
            cursor.itersize = 1
            yield from cursor.execute("SELECT generate_series(1, 100000)")

    reading = rows()

    @db.bind_lambda_context
    def handler(_event: object, _context: object) -> TupleRow:
        return next(reading)

    assert handler({}, Context(5)) == (1,)
    with pytest.raises(psycopg.OperationalError, match=ENDED):
        handler({}, Context(5))
    assert db.stats()["leaks"] == 1
    assert db.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("block", ["psycopg's", "connection", "transaction"])
def test_a_block_that_outlives_its_invocation_does_not_end_in_silence(
    db: Database[TupleRow], admin: Admin, block: str
) -> None:
    """What it wrote was rolled back: a block that is left as if all were well says so."""

    def work() -> Iterator[None]:
        if block == "transaction":
            with db.transaction() as connection:
                connection.execute("INSERT INTO counter VALUES (1)")
                yield
            return
        taken = db.getconn() if block == "psycopg's" else db.connection().__enter__()
        with taken.transaction():
            taken.execute("INSERT INTO counter VALUES (1)")
            yield

    working = work()

    @db.bind_lambda_context
    def handler(_event: object, _context: object) -> None:
        next(working)

    handler({}, Context(5))
    with pytest.raises(DatabaseUnavailableError, match="has ended"):
        handler({}, Context(5))
    assert admin.execute("SELECT count(*) FROM counter").fetchone() == (0,)


def test_a_block_whose_connection_was_lost_unnoticed_does_not_end_in_silence(
    db: Database[TupleRow], admin: Admin
) -> None:
    """The error of its statement was caught: psycopg would leave the block as if committed."""

    def work() -> None:
        with db.connection() as connection, connection.transaction():
            connection.execute("INSERT INTO counter VALUES (1)")
            with db.deadline(0.2), pytest.raises(DeadlineExceededError):
                connection.execute("SELECT pg_sleep(30)")

    with pytest.raises(DatabaseUnavailableError, match="rolled back"):
        work()
    assert admin.execute("SELECT count(*) FROM counter").fetchone() == (0,)
