"""One deadline bounds every wait on the database, inside an invocation and outside of Lambda."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from lambda_pg import Database, DeadlineExceededError
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.context import Context
from tests.support.layer import Admin, Open, scalar, settings_for, slot_taken
from tests.support.recorder import Recorder, socket_of
from tests.support.servers import PoolerFixture
from tests.support.waiting import wait_until

SLEEP: Final = "SELECT pg_sleep(20)"


@contextmanager
def ends_within(seconds: float, at_least: float = 0.0) -> Iterator[None]:
    """Expect DeadlineExceededError in that time."""
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        yield
    assert at_least <= time.monotonic() - started < seconds


def through_execute(db: Database[TupleRow]) -> None:
    """Run one statement."""
    db.execute(SLEEP)


def through_claims(db: Database[TupleRow]) -> None:
    """Run one statement in a transaction with claims."""
    db.execute(SLEEP, claims={"sub": "a"})


def through_connection(db: Database[TupleRow]) -> None:
    """Use a connection."""
    with db.connection() as connection:
        connection.execute(SLEEP)


def through_transaction(db: Database[TupleRow]) -> None:
    """Use a transaction, after its first statement."""
    with db.transaction() as connection:
        connection.execute("SELECT 1")
        connection.execute(SLEEP)


def through_run_transaction(db: Database[TupleRow]) -> None:
    """Run a unit of work."""
    db.run_transaction(lambda connection: connection.execute(SLEEP))


def through_stream(db: Database[TupleRow]) -> None:
    """Wait for the first row of many."""
    with db.connection() as connection:
        next(connection.cursor().stream(SLEEP))


def through_copy(db: Database[TupleRow]) -> None:
    """Wait for the first line of a COPY."""
    with db.connection() as connection, connection.cursor().copy(f"COPY ({SLEEP}) TO STDOUT") as c:
        list(c)


VERBS: Final = [
    through_execute,
    through_claims,
    through_connection,
    through_transaction,
    through_run_transaction,
    through_stream,
    through_copy,
]


def at_work(admin: Admin) -> int:
    """Count the backends that run the long statement."""
    row = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
        " AND query LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("verb", VERBS)
def test_a_deadline_of_ones_own_ends_a_statement_on_the_server_too(
    db: Database[TupleRow], admin: Admin, verb: Callable[[Database[TupleRow]], None]
) -> None:
    """Its backend is free at once, and the next statement has a connection."""
    db.execute("SELECT 1")
    with ends_within(0.7, at_least=0.3), db.deadline(0.3):
        verb(db)
    wait_until(lambda: not at_work(admin), 1)
    assert scalar(db, "SELECT 1") == 1
    assert db.stats()["deadline_cancels"] == 1


def test_of_several_deadlines_the_earliest_holds(db: Database[TupleRow]) -> None:
    """A later one inside changes nothing, and the end of an earlier one gives time back."""
    with db.deadline(0.4):
        with ends_within(0.4), db.deadline(0.1):
            db.execute(SLEEP)
        assert scalar(db, "SELECT 1") == 1
        with ends_within(0.6), db.deadline(60):
            db.execute(SLEEP)
    assert scalar(db, "SELECT 1 FROM pg_sleep(0.5)") == 1


def test_a_deadline_bounds_a_connection_that_is_already_out(db: Database[TupleRow]) -> None:
    """A part of a handler may have less time than its connection."""
    with db.connection() as connection:
        connection.execute("SELECT 1")
        with db.deadline(30):
            pass
        assert connection.execute("SELECT 1 FROM pg_sleep(0.1)").fetchone() == (1,)
        with ends_within(0.6), db.deadline(0.2):
            connection.execute(SLEEP)


def test_a_deadline_that_has_ended_frees_the_connection_that_is_out(db: Database[TupleRow]) -> None:
    """What was taken inside it, as an adapter does, is not bound by it for ever."""
    with db.deadline(0.2):
        connection = db.getconn()
    assert connection.execute("SELECT 1 FROM pg_sleep(0.3)").fetchone() == (1,)
    db.putconn(connection)


def test_a_deadline_is_that_of_its_thread(open_database: Open) -> None:
    """Another thread goes on, however early the first one's ends."""
    db = open_database(slots=2)
    started = threading.Event()

    def other() -> object:
        started.set()
        return scalar(db, "SELECT 1 FROM pg_sleep(0.5)")

    with ThreadPoolExecutor(1) as threads, db.deadline(0.2):
        answer = threads.submit(other)
        started.wait()
        with ends_within(0.5):
            db.execute(SLEEP)
        assert answer.result() == 1


def test_an_invocations_deadline_bounds_the_handlers_threads(open_database: Open) -> None:
    """They work for the same invocation."""
    db = open_database(slots=2)

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(db.execute, SLEEP).result()

    with ends_within(1.0):
        handler(None, Context(0.8))


@pytest.mark.parametrize(("own", "invocation"), [(0.2, 30.0), (30.0, 0.7)])
def test_inside_a_handler_the_earlier_deadline_holds(
    db: Database[TupleRow], own: float, invocation: float
) -> None:
    """Be it the invocation's or one's own."""

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> None:
        with db.deadline(own):
            db.execute(SLEEP)

    with ends_within(0.7):
        handler(None, Context(invocation))


def write(db: Database[TupleRow], verb: str) -> None:
    """Insert one row."""
    insert = "INSERT INTO counter VALUES (1)"
    match verb:
        case "execute":
            db.execute(insert)
        case "execute with parameters":
            db.execute("INSERT INTO counter VALUES (%s)", [1])
        case "execute with claims":
            db.execute(insert, claims={"sub": "a"})
        case "run_transaction":
            db.run_transaction(lambda connection: connection.execute(insert))
        case "transaction":
            with db.transaction() as connection:
                connection.execute(insert)
        case _:
            with db.connection() as connection:
                connection.execute(insert)


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    "verb",
    [
        "execute",
        "execute with parameters",
        "execute with claims",
        "run_transaction",
        "transaction",
        "connection",
    ],
)
def test_a_deadline_that_has_passed_sends_nothing(
    db: Database[TupleRow], admin: Admin, verb: str, *, warm: bool
) -> None:
    """The error says so, and it is true: no row comes later either."""
    if warm:
        db.execute("SELECT 1")
    with pytest.raises(DeadlineExceededError) as caught, db.deadline(-1):
        write(db, verb)
    assert not caught.value.may_have_run
    assert scalar(db, "SELECT pg_backend_pid()") is not None
    assert admin.execute("SELECT count(*) FROM counter").fetchone() == (0,)


def test_a_deadline_ends_the_wait_for_a_slot(open_database: Open) -> None:
    """Another thread has the only connection."""
    db = open_database()
    with slot_taken(db), ends_within(0.5, at_least=0.2), db.deadline(0.2):
        db.execute("SELECT 1")


def test_a_deadline_ends_the_sleeps_between_attempts(
    open_database: Open, postgres: Postgres
) -> None:
    """Nobody listens: each attempt fails at once, and the last pause would be too long."""
    db = open_database(port=processes.free_port())
    with ends_within(0.5), db.deadline(0.3):
        db.execute("SELECT 1")


def test_a_deadline_ends_a_connect_that_is_not_answered(open_database: Open) -> None:
    """A port that takes connections and never says a word."""
    with Silent() as port, ends_within(0.6, at_least=0.2):
        db = open_database(port=port)
        with db.deadline(0.3):
            db.execute("SELECT 1")


class Silent:
    """A server that accepts and is silent."""

    def __enter__(self) -> int:
        """Listen; return the port."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._socket.close()


def test_a_statement_through_the_pooler_is_cancelled_on_the_server(
    pooler: PoolerFixture, secrets_environment: None, admin: Admin
) -> None:
    """PgBouncer passes the request on, so its server connection is free for others."""
    db = Database(settings_for(pooler))
    db.execute("SELECT 1")
    with ends_within(0.8), db.deadline(0.3):
        db.execute(SLEEP)
    wait_until(lambda: not at_work(admin), 1)
    assert scalar(db, "SELECT 1") == 1
    db.close()


@pytest.mark.parametrize(("profile", "cancels"), [("direct", 1), ("rds-proxy", 0)])
def test_a_cancel_request_is_sent_only_where_one_is_served(
    open_database: Open,
    postgres: Postgres,
    admin: Admin,
    tmp_path: Path,
    profile: str,
    cancels: int,
) -> None:
    """RDS Proxy does not take any: there the socket is closed, and the statement runs on."""
    with Recorder(socket_of(postgres), tmp_path) as recorder:
        db = open_database(port=recorder.port, sslrootcert=recorder.ca_file, profile=profile)
        db.execute("SELECT 1")
        with ends_within(0.8), db.deadline(0.3):
            db.execute(SLEEP)
        assert [m.kind for m in recorder.messages].count("CancelRequest") == cancels
        assert scalar(db, "SELECT 1") == 1
        db.close()
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE query LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()"
    )


def test_a_wait_for_notifications_that_ends_by_itself_is_no_deadline(
    db: Database[TupleRow],
) -> None:
    """Its own timeout is the shorter one; a longer one is bounded by the deadline."""
    with db.deadline(1.0), db.connection() as connection:
        connection.execute("LISTEN news")
        assert list(connection.notifies(timeout=0.05)) == []
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with ends_within(0.6), db.deadline(0.2), db.connection() as connection:
        list(connection.notifies(timeout=5))
