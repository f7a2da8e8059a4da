"""The server's own error is raised, whatever it has done to the connection."""

from collections.abc import Callable, Iterator
from typing import Final

import psycopg
import pytest
from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from psycopg.rows import TupleRow

from tests.support.layer import Admin, scalar

Connection = psycopg.Connection[TupleRow]
Action = Callable[[Connection], object]

WRITE: Final = "INSERT INTO deferred VALUES (%s)"
END: Final = "SELECT pg_terminate_backend(pg_backend_pid())"

SCHEMA: Final = """
    CREATE TABLE deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE fatal (n int);
    CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
      $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER die AFTER INSERT ON fatal
      DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die();
    GRANT ALL ON deferred, fatal TO layer_test;
"""


@pytest.fixture(autouse=True)
def tables(admin: Admin) -> Iterator[None]:
    """One table whose duplicates fail at the commit, and one whose commit ends the connection."""
    admin.execute(SCHEMA)
    yield
    admin.execute("DROP TABLE deferred, fatal; DROP FUNCTION die")


# An error that comes only when the work is committed


def executemany(connection: Connection) -> None:
    """Insert the same row twice with one call."""
    connection.cursor().executemany(WRITE, [(1,), (1,)])


def executemany_returning(connection: Connection) -> None:
    """Insert them, and ask for the rows."""
    connection.cursor().executemany(f"{WRITE} RETURNING n", [(1,), (1,)], returning=True)


def others_executemany(connection: Connection) -> None:
    """Insert them by a cursor that is not the layer's."""
    psycopg.ClientCursor(connection).executemany(WRITE, [(1,), (1,)])


def pipeline(connection: Connection) -> None:
    """Insert them in a pipeline."""
    with connection.pipeline():
        connection.execute(WRITE, [1])
        connection.execute(WRITE, [1])


def synchronised_pipeline(connection: Connection) -> None:
    """Insert them in a pipeline that goes on after its Sync."""
    with connection.pipeline() as line:
        connection.execute(WRITE, [1])
        connection.execute(WRITE, [1])
        line.sync()
        connection.execute("SELECT 1")


def nested_pipeline(connection: Connection) -> None:
    """Insert them in a pipeline inside another one."""
    with connection.pipeline(), connection.pipeline():
        connection.execute(WRITE, [1])
        connection.execute(WRITE, [1])


def pipelined_executemany(connection: Connection) -> None:
    """Insert them with one call inside of a pipeline."""
    with connection.pipeline():
        connection.cursor().executemany(WRITE, [(1,), (1,)])


def pipelined_transaction(connection: Connection) -> None:
    """Insert them in a transaction inside of a pipeline."""
    with connection.pipeline(), connection.transaction():
        connection.execute(WRITE, [1])
        connection.execute(WRITE, [1])


def inner_transaction(connection: Connection) -> None:
    """Insert them in psycopg's transaction."""
    with connection.transaction():
        connection.execute(WRITE, [1])
        connection.execute(WRITE, [1])


def copy_in(connection: Connection) -> None:
    """Copy them in."""
    with connection.cursor().copy("COPY deferred FROM STDIN") as copy:
        copy.write_row([1])
        copy.write_row([1])


def copy_out(connection: Connection) -> None:
    """Copy out what inserts them."""
    query = "COPY (INSERT INTO deferred VALUES (1), (1) RETURNING n) TO STDOUT"
    with connection.cursor().copy(query) as copy:
        list(copy)


def stream(connection: Connection) -> None:
    """Insert them, and read them as they come."""
    assert len(list(connection.cursor().stream(f"{WRITE}, (1) RETURNING n", [1]))) == 2


def streamed_in_chunks(connection: Connection) -> None:
    """Read several rows at a time."""
    list(connection.cursor().stream(f"{WRITE}, (1) RETURNING n", [1], size=5))


def single(connection: Connection) -> None:
    """Insert them with one statement."""
    connection.execute(f"{WRITE}, (1)", [1])


WRITERS: Final = [
    executemany,
    executemany_returning,
    others_executemany,
    pipeline,
    synchronised_pipeline,
    nested_pipeline,
    pipelined_executemany,
    pipelined_transaction,
    inner_transaction,
    copy_in,
    copy_out,
    stream,
    streamed_in_chunks,
    single,
]


def in_connection(db: Database[TupleRow], action: Action) -> None:
    """Act on a connection in autocommit."""
    with db.connection() as connection:
        action(connection)


def by_getconn(db: Database[TupleRow], action: Action) -> None:
    """Act on a connection that is taken and put back."""
    connection = db.getconn()
    try:
        action(connection)
    finally:
        db.putconn(connection)


def in_transaction(db: Database[TupleRow], action: Action) -> None:
    """Act in a transaction of the layer's."""
    with db.transaction(claims={"sub": "a"}) as connection:
        action(connection)


def in_unit_of_work(db: Database[TupleRow], action: Action) -> None:
    """Act in a unit of work."""
    db.run_transaction(action)


LENDERS: Final = [in_connection, by_getconn, in_transaction, in_unit_of_work]
Lender = Callable[[Database[TupleRow], Action], None]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("lender", LENDERS)
def test_a_constraint_that_fails_the_commit_is_the_error(
    db: Database[TupleRow], lender: Lender, write: Action, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps its details, nothing stays, and the connection is in order: nobody left it open."""
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        lender(db, write)
    assert caught.value.diag.table_name == "deferred"
    assert scalar(db, "SELECT count(*) FROM deferred") == 0
    stats = db.stats()
    assert (stats["leaks"], stats["returns_bad"], stats["connections_num"]) == (0, 0, 1)
    assert not caplog.records


def test_a_serialization_failure_at_a_sync_is_the_error(
    db: Database[TupleRow], admin: Admin
) -> None:
    """So is any other error that comes there: the work was rolled back, and may be run again."""
    admin.execute(
        "CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'conflict' USING ERRCODE = '40001'; END $$;"
        "CREATE CONSTRAINT TRIGGER conflict AFTER INSERT ON deferred"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION conflict()"
    )
    for write in (executemany, pipeline, stream):
        with pytest.raises(psycopg.errors.SerializationFailure):
            in_connection(db, write)
    assert scalar(db, "SELECT count(*) FROM deferred") == 0
    assert db.stats()["connections_num"] == 1
    admin.execute("DROP FUNCTION conflict CASCADE")


def test_a_pipeline_goes_on_after_an_error_at_its_sync(db: Database[TupleRow]) -> None:
    """What comes after it has its own answers."""
    with db.connection() as connection, connection.pipeline() as line:
        connection.execute(WRITE, [1])
        connection.execute(WRITE, [1])
        with pytest.raises(psycopg.errors.UniqueViolation):
            line.sync()
        assert connection.execute("SELECT 2").fetchall() == [(2,)]
        connection.execute(WRITE, [3])
    assert db.execute("SELECT n FROM deferred").fetchall() == [(3,)]
    assert db.stats()["connections_num"] == 1


# An error with which the server ends the connection


def fatal_pipeline(connection: Connection) -> None:
    """Have the backend end in the middle of a pipeline."""
    with connection.pipeline():
        connection.execute(END)
        connection.execute("SELECT 1")


def fatal_executemany(connection: Connection) -> None:
    """Have it end at the first of several."""
    connection.cursor().executemany(f"{END}, %s", [(1,), (2,)])


def fatal_stream(connection: Connection) -> None:
    """Have it end before the first row."""
    list(connection.cursor().stream(END))


def fatal_copy_out(connection: Connection) -> None:
    """Have it end while it copies out."""
    with connection.cursor().copy(f"COPY ({END}) TO STDOUT") as copy:
        list(copy)


def fatal_commit(connection: Connection) -> None:
    """Have it end at the commit of one statement."""
    connection.execute("INSERT INTO fatal VALUES (1)")


def fatal_commit_of_many(connection: Connection) -> None:
    """Have it end at the commit of several."""
    connection.cursor().executemany("INSERT INTO fatal VALUES (%s)", [(1,), (2,)])


def ended(connection: Connection, admin: Admin) -> None:
    """End the backend from outside, and wait until it is gone."""
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])


FATAL: Final = [
    fatal_pipeline,
    fatal_executemany,
    fatal_stream,
    fatal_copy_out,
    fatal_commit,
    fatal_commit_of_many,
]


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and those that it was raised from."""
    return [error] if error.__cause__ is None else [error, *causes(error.__cause__)]


@pytest.mark.parametrize("action", FATAL)
@pytest.mark.parametrize("lender", [in_connection, in_transaction])
def test_what_the_server_said_before_it_hung_up_is_the_cause(
    db: Database[TupleRow], lender: Lender, action: Action
) -> None:
    """Not that the socket was found closed afterwards."""
    expected = (CommitOutcomeUnknownError, DatabaseUnavailableError)
    with pytest.raises(expected) as caught:
        lender(db, action)
    assert isinstance(causes(caught.value)[1], psycopg.errors.AdminShutdown)
    assert scalar(db, "SELECT count(*) FROM fatal") == 0
    assert db.stats()["leaks"] == 0


@pytest.mark.parametrize("lender", [in_connection, in_transaction])
def test_it_is_the_cause_where_the_client_was_still_sending(
    db: Database[TupleRow], admin: Admin, lender: Lender
) -> None:
    """A COPY and long parameters fill the socket before anything is read."""

    def copy(connection: Connection) -> None:
        with connection.cursor().copy("COPY deferred FROM STDIN") as copy:
            copy.write("1\n" * 1000)
            ended(connection, admin)
            for _ in range(3000):
                copy.write("1\n" * 1000)

    def many(connection: Connection) -> None:
        connection.execute("SELECT 1")
        ended(connection, admin)
        connection.cursor().executemany("SELECT length(%s)", [["x" * 4_000_000]] * 10)

    for action in (copy, many):
        with pytest.raises((CommitOutcomeUnknownError, DatabaseUnavailableError)) as caught:
            lender(db, action)
        assert isinstance(causes(caught.value)[1], psycopg.errors.AdminShutdown), action.__name__
