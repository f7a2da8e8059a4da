"""The layer in the hands of hasty callers, threads and clocks: what they must not be able to do."""

import gc
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    ConfigurationError,
    CredentialsError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
)
from lambda_pg._connection import Connection
from lambda_pg._overload import FAILURES
from lambda_pg._profiles import DIRECT
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.canary import CANARY, assert_in_no_frame
from tests.support.context import Context
from tests.support.layer import Admin, Open, sockets_to
from tests.support.servers import SecretsService
from tests.support.waiting import wait_until


def borrowed(connection: psycopg.Connection[TupleRow]) -> Connection[TupleRow]:
    """Show a caller's connection as the layer sees it."""
    assert isinstance(connection, Connection)
    return connection


def rows(admin: Admin) -> list[int]:
    """Return what stands in the table."""
    return [n for (n,) in admin.execute("SELECT n FROM counter ORDER BY n")]


# The end of an invocation, and threads that go on


def ask_for_ever(db: Database[TupleRow], number: int, ready: threading.Semaphore) -> object:
    """Ask over one connection until it is lost; return what should not have come."""
    try:
        with db.connection() as connection:
            ready.release()
            for turn in itertools.count():
                asked = (number, turn)
                row = connection.execute("SELECT %s, %s, pg_sleep(0.002)", asked).fetchone()
                if row is None or row[:2] != asked:
                    return asked, row
    except psycopg.OperationalError:
        pass
    return None


def test_an_end_while_threads_wait_harms_nobody(open_database: Open) -> None:
    """Their connections end, and no thread goes on in memory that libpq has freed."""
    db, threads = open_database(slots=4), ThreadPoolExecutor(200)
    asking: list[Future[object]] = []

    @db.bind_lambda_context
    def handler(number: int, _: Any) -> None:
        ready = threading.Semaphore(0)
        asking.extend(threads.submit(ask_for_ever, db, number, ready) for _ in range(4))
        for _each in range(4):
            assert ready.acquire(timeout=10)

    for number in range(30):
        handler(number, Context(10))
    threads.shutdown()
    assert {each.result() for each in asking} == {None}
    assert db.stats()["pool_size"] == 0


def test_a_connection_that_is_returned_while_it_is_reclaimed_frees_one_slot(
    db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up, as its socket was shut: it is not in the pool as well."""
    connection = borrowed(db.getconn())
    clean = Connection.clean

    def clean_late(self: Connection[Any]) -> bool:
        db._pool.reclaim()
        return clean(self)

    monkeypatch.setattr(Connection, "clean", clean_late)
    db.putconn(connection)
    assert db.stats()["pool_size"] == db.stats()["pool_available"] == 0
    assert connection.closed
    assert db.execute("SELECT 1").fetchone() == (1,)


def test_a_block_cannot_return_what_its_caller_has_returned(open_database: Open) -> None:
    """A connection is never twice in the pool, where two would take it."""
    db = open_database(slots=2)
    with db.connection() as connection:
        db.putconn(connection)
    with db.connection() as one, db.connection() as other:
        assert one is not other


def test_an_interrupt_while_a_connection_is_cleaned_frees_its_slot(
    db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller's alarm that rings during ROLLBACK costs the connection and no slot."""

    def ring(_: Connection[Any], __: bytes) -> None:
        raise KeyboardInterrupt

    connection = db.getconn()
    connection.execute("BEGIN")
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "command", ring)
        with pytest.raises(KeyboardInterrupt):
            db.putconn(connection)
    assert db.stats()["pool_size"] == 0
    assert db.execute("SELECT 1").fetchone() == (1,)


# Waits for a slot


def test_a_connection_that_is_put_back_unused_wakes_who_waits(open_database: Open) -> None:
    """One that needs a closer look, which its taker's deadline does not allow, is not forgotten."""
    db = open_database(checkout_timeout=5)
    db.execute("SELECT 1")
    (idle,) = db._pool._idle
    poll = idle.poll
    served = list[float]()

    def wait() -> None:
        began = time.monotonic()
        with db.connection():
            served.append(time.monotonic() - began)

    waiting = threading.Thread(target=wait)

    def look(_: int) -> list[tuple[int, int]]:
        waiting.start()
        wait_until(lambda: db._pool.waiting)
        idle.poll = poll
        return [(0, 1)]

    idle.poll = look
    assert db._pool.take() is None
    waiting.join()
    assert served[0] < 2


def test_a_wait_ends_with_a_last_look(
    db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notice that comes as the time is up would wake nobody: the slot is taken all the same."""
    pool = db._pool
    held = db.getconn()

    def too_late(_: float) -> bool:
        db.putconn(held)
        return False

    monkeypatch.setattr(pool._slots.shared.freed, "wait", too_late)
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(pool.checkout(1.0)))
    thread.start()
    thread.join()
    assert taken == [held]


def test_a_wait_for_a_slot_still_ends(open_database: Open) -> None:
    """The last look finds nothing: the caller hears of it in time."""
    db = open_database(checkout_timeout=0.2)
    with db.connection():
        refused: list[BaseException] = []

        def ask() -> None:
            with pytest.raises(CheckoutTimeoutError) as raised:
                db.execute("SELECT 1")
            refused.append(raised.value)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(5)
    assert refused


# What is told of a deadline


class Steps:
    """A monotonic clock that stands far in the future after a number of readings."""

    def __init__(self, readings: int) -> None:
        """Take how many readings are true."""
        self._left = readings

    def __call__(self) -> float:
        """Tell the time."""
        self._left -= 1
        return time.monotonic() + (0 if self._left >= 0 else 3600)


def test_a_deadline_that_passes_while_libpq_sends_does_not_deny_that_it_was_sent(
    db: Database[TupleRow], admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that gets the processor too late takes the answer, or leaves the outcome open."""
    db.execute("SELECT 1")
    with db.deadline(60):
        monkeypatch.setattr("lambda_pg._connection.monotonic", Steps(1))
        denied = False
        try:
            db.execute("INSERT INTO counter VALUES (1)")
        except DeadlineExceededError as error:
            denied = not error.may_have_run
    assert not denied
    wait_until(lambda: rows(admin) == [1])


def test_a_deadline_that_passes_between_the_rows_of_a_stream_leaves_the_outcome_open(
    db: Database[TupleRow], admin: Admin
) -> None:
    """The rows of INSERT … RETURNING tell that it ran."""
    insert = "INSERT INTO counter SELECT generate_series(1, 3) RETURNING n"
    with db.connection() as connection:
        stream = connection.cursor().stream(insert)
        assert next(stream) == (1,)
        with db.deadline(0), pytest.raises(DeadlineExceededError) as raised:
            next(stream)
    assert raised.value.may_have_run
    assert rows(admin) in ([], [1, 2, 3])


def test_a_stream_that_is_left_early_is_not_cancelled_where_no_cancel_arrives(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RDS Proxy knows no cancel: the rest of the rows is read, and the connection goes on."""
    sent: list[object] = []
    monkeypatch.setattr(psycopg.Connection, "cancel_safe", lambda *_, **__: sent.append(1))
    with open_database(profile="rds-proxy").connection() as connection:
        for _ in connection.cursor().stream("SELECT generate_series(1, 1000)"):
            break
        gc.collect()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not sent


def test_the_cancel_of_a_stream_is_brief(
    db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Psycopg would give it 5 s, past any deadline."""
    given: list[float] = []
    cancel = psycopg.Connection.cancel_safe

    def watched(self: psycopg.Connection[Any], *, timeout: float) -> None:
        given.append(timeout)
        cancel(self, timeout=timeout)

    monkeypatch.setattr(psycopg.Connection, "cancel_safe", watched)
    with db.connection() as connection:
        stream = connection.cursor().stream("SELECT generate_series(1, 10000000)")
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert given == [0.25]


# Nothing runs outside of the layer's transaction


def test_nothing_is_sent_in_a_block_whose_transaction_was_not_begun(
    db: Database[TupleRow], admin: Admin
) -> None:
    """Who goes on after an error does not find himself in autocommit, and without claims."""

    def act() -> None:
        with db.transaction(claims={"sub": "a"}) as connection:
            with pytest.raises(DeadlineExceededError), db.deadline(0):
                connection.execute("SELECT 1")
            connection.execute("INSERT INTO counter VALUES (1)")

    with pytest.raises(psycopg.ProgrammingError, match="is not open"):
        act()
    assert rows(admin) == []


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_nothing_is_sent_after_a_statement_has_ended_the_transaction(
    db: Database[TupleRow], admin: Admin, end: str
) -> None:
    """It would run in autocommit, be there in spite of the error, and know no tenant."""

    def act() -> None:
        with db.transaction(claims={"sub": "a"}) as connection:
            cursor = psycopg.ClientCursor(connection)  # nobody looks at its statements
            cursor.execute("SELECT 1")
            cursor.execute(end)
            cursor.execute("INSERT INTO counter VALUES (1)")

    with pytest.raises(psycopg.ProgrammingError, match="has ended it"):
        act()
    assert rows(admin) == []


ENDS = [
    "COMMIT",
    "commit and chain",
    "END",
    "/* by hand */ Abort",
    "INSERT INTO counter VALUES (2); ROLLBACK",
    "-- done\nPREPARE TRANSACTION 'x'",
]


@pytest.mark.parametrize("end", ENDS)
def test_a_statement_that_ends_the_transaction_is_refused(
    db: Database[TupleRow], admin: Admin, end: str
) -> None:
    """A unit of work that commits by itself would be rerun when the answer to that is lost."""

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute("INSERT INTO counter VALUES (1)")
        connection.execute(end)

    with pytest.raises(psycopg.ProgrammingError, match="to commit, leave the with block"):
        db.run_transaction(work)
    assert rows(admin) == []


def test_a_savepoint_may_be_ended(db: Database[TupleRow], admin: Admin) -> None:
    """And what only looks like an end is none."""
    with db.transaction() as connection:
        connection.execute("SAVEPOINT s")
        connection.execute("INSERT INTO counter VALUES (1)")
        connection.execute("ROLLBACK TO SAVEPOINT s")
        connection.execute("INSERT INTO counter SELECT CASE WHEN true THEN 2\nEND")
        connection.execute("SELECT ';\ncommit'")
        connection.execute("ROLLBACK WORK TO s")
        connection.execute("INSERT INTO counter VALUES (3)")
    assert rows(admin) == [3]


def test_psycopgs_blocks_work_inside_a_transaction(db: Database[TupleRow], admin: Admin) -> None:
    """Savepoints, pipelines, executemany, COPY and streams are inside of it."""
    with db.transaction() as connection:
        with connection.transaction():
            connection.execute("INSERT INTO counter VALUES (1)")
        with connection.pipeline():
            connection.execute("INSERT INTO counter VALUES (2)")
            connection.execute("INSERT INTO counter VALUES (3)")
        connection.cursor().executemany("INSERT INTO counter VALUES (%s)", [(4,), (5,)])
        with connection.cursor().copy("COPY counter FROM STDIN") as copy:
            copy.write_row((6,))
        assert len(list(connection.cursor().stream("SELECT n FROM counter"))) == 6
    assert rows(admin) == [1, 2, 3, 4, 5, 6]


# What one user leaves to the next


def test_a_psycopg_transaction_that_is_never_left_ends_with_its_connection(
    db: Database[TupleRow],
) -> None:
    """Its end would roll back what the next one does: it says that its work was rolled back."""
    later = ExitStack()
    with db.connection() as one:
        later.enter_context(one.transaction())
    with db.connection() as other:
        assert other is not one
        other.execute("BEGIN")
        other.commit()
    with pytest.raises(DatabaseUnavailableError, match="rolled back"):
        later.close()


def test_a_result_in_binary_is_one_statements(db: Database[TupleRow]) -> None:
    """`binary=True` with the first statement of a transaction is not kept by its cursor."""
    with db.transaction() as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1", binary=True)
        assert cursor.pgresult is not None
        assert cursor.pgresult.fformat(0) == 1
        cursor.execute("SELECT 1")
        assert cursor.pgresult is not None
        assert cursor.pgresult.fformat(0) == 0


def test_a_statement_is_looked_at_anew_where_the_endpoint_has_changed(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was harmless through a pooler may leave session state on a direct connection."""
    db = open_database(profile="pgbouncer")
    db.execute("SET my.state = 'left'")
    db.close()
    monkeypatch.setattr("lambda_pg._connector.profile_for", lambda *_: DIRECT)
    db.execute("SET my.state = 'left'")
    row = db.execute("SELECT current_setting('my.state', true)").fetchone()
    assert row is not None
    assert row[0] in {None, ""}


# Clocks


def test_a_clock_that_is_set_back_during_a_request_does_not_prolong_it(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout timeout is counted by a clock that nobody sets."""
    db = open_database(port=processes.free_port(), checkout_timeout=0.5)
    readings = iter([time.time()])
    monkeypatch.setattr(
        "lambda_pg._database.time", lambda: next(readings, time.time() - 30), raising=False
    )
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError):
        db.execute("SELECT 1")
    assert time.monotonic() - began < 2


# The breaker


def test_a_breaker_closes_where_a_connect_takes_longer_than_a_probe(
    settings: Settings, postgres: Postgres
) -> None:
    """A database far away is found again after an outage, too."""
    with FaultProxy("127.0.0.1", postgres.port) as network, ExitStack() as later:
        db = Database(replace(settings, port=network.port))
        later.callback(db.close)
        later.enter_context(network.latency(0.1))
        db.execute("SELECT 1")
        assert db.stats()["connections_ms"] > 1000
        with network.refuse():
            network.reset()
            for _ in range(FAILURES):
                db._retry.breaker.failed()
        wait_until(lambda: answers(db), 10)


def answers(db: Database[TupleRow]) -> bool:
    """Tell whether the database can be reached."""
    try:
        db.execute("SELECT 1")
    except DatabaseUnavailableError:
        return False
    return True


def test_a_silent_address_is_not_waited_for_again_where_there_are_others(
    open_database: Open, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a load balancer's zones is away: it costs one request, not each."""
    monkeypatch.setattr("lambda_pg._connector.resolve", lambda *_: ["127.0.0.2", "127.0.0.1"])
    db = open_database(checkout_timeout=0.5)
    with socket.create_server(("127.0.0.2", settings.port or 0)):
        assert not answers(db)
        assert answers(db)


def test_connects_in_vain_leave_no_socket_behind(open_database: Open, settings: Settings) -> None:
    """Three wait for an answer beside each other at most, and they are closed with the database."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        db = open_database(port=port, checkout_timeout=0.8)
        for _ in range(5):
            with pytest.raises(DatabaseUnavailableError) as kept:
                db.execute("SELECT 1")
            assert 1 <= len(sockets_to(port)) <= 3
            db._retry.breaker.succeeded()
        db.close()
        assert not sockets_to(port), kept


# What a logger that prints the variables of a traceback could show


@pytest.fixture
def refused(settings: Settings) -> Iterator[Database[TupleRow]]:
    """A database whose password, the canary, is wrong."""
    db = Database(replace(settings, password=CANARY + "-wrong"))
    yield db
    db.close()


def test_no_variable_of_a_refused_login_has_the_password(refused: Database[TupleRow]) -> None:
    """The connection string is in no frame of the error and its causes."""
    with pytest.raises(CredentialsError) as raised:
        refused.execute("SELECT 1")
    assert_in_no_frame(raised.value)


def test_no_variable_of_a_connect_in_vain_has_the_password(settings: Settings) -> None:
    """Nor where nobody listens."""
    db = Database(
        replace(settings, port=processes.free_port(), password=CANARY, checkout_timeout=0.2)
    )
    with pytest.raises(DatabaseUnavailableError) as raised:
        db.execute("SELECT 1")
    assert_in_no_frame(raised.value)


@pytest.mark.usefixtures("secrets_environment")
def test_no_variable_of_an_unusable_secret_has_its_content(
    settings: Settings, secrets_service: SecretsService
) -> None:
    """The error names the field; no frame has the text that was fetched."""
    arn = secrets_service.create({"username": "app", "password": CANARY, "port": "none"})
    db = Database(replace(settings, user=None, password=None, secret_arn=arn))
    with pytest.raises(ConfigurationError) as raised:
        db.execute("SELECT 1")
    assert_in_no_frame(raised.value)


@pytest.mark.usefixtures("secrets_environment")
def test_no_variable_of_a_fetch_in_vain_has_the_keys(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No frame has the request, its headers or the role's keys."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{processes.free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", CANARY)
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:some-AbCdEf"
    db = Database(replace(settings, user=None, password=None, secret_arn=arn, checkout_timeout=0.2))
    with pytest.raises(DatabaseUnavailableError) as raised:
        db.execute("SELECT 1")
    assert_in_no_frame(raised.value)


def test_long_statements_leave_nothing_in_memory(db: Database[TupleRow]) -> None:
    """A hundred statements of half a megabyte are run, and none of them is kept."""
    for number in range(100):
        assert db.execute(f"SELECT {number} -- {'a' * 500_000}").fetchone() == (number,)
    db.execute("SELECT 1")
    (connection,) = db._pool._idle
    assert connection.harmless == {"SELECT 1"}
