"""Threads that a handler leaves behind: the next invocation does not wait for them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest
from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from psycopg.rows import TupleRow

from tests.support.context import Context
from tests.support.layer import APPLICATION, Admin, Open, kill_backends, scalar
from tests.support.waiting import wait_until

ENDED = "the invocation in which this thread asked for a connection has ended"
CLOSED = "the connection was closed because its invocation has ended"
"""What is said where the thread had its connection already."""

Use = Callable[[Database[TupleRow]], object]


def execute(db: Database[TupleRow]) -> object:
    """Run one statement."""
    return db.execute("INSERT INTO counter SELECT 1 FROM pg_sleep(60)")


def execute_with_claims(db: Database[TupleRow]) -> object:
    """Run one in a transaction of one round trip."""
    return db.execute("INSERT INTO counter SELECT 1 FROM pg_sleep(60)", claims={"sub": "a"})


def execute_idempotent(db: Database[TupleRow]) -> object:
    """Run one that would be retried."""
    return db.execute("SELECT pg_sleep(60)", idempotent=True)


def connection(db: Database[TupleRow]) -> object:
    """Run one over a connection in hand."""
    with db.connection() as borrowed:
        return borrowed.execute("INSERT INTO counter SELECT 1 FROM pg_sleep(60)")


def copy_out(db: Database[TupleRow]) -> object:
    """Read a COPY."""
    with db.connection() as borrowed, borrowed.cursor() as cursor:
        slow = "SELECT n, pg_sleep(0.01) FROM generate_series(1, 6000) n"
        with cursor.copy(f"COPY ({slow}) TO STDOUT") as copy:
            return [bytes(block) for block in copy]


def copy_in(db: Database[TupleRow]) -> object:
    """Write a COPY."""
    with (
        db.connection() as borrowed,
        borrowed.cursor() as cursor,
        cursor.copy("COPY counter FROM STDIN") as copy,
    ):
        for _ in range(6000):
            copy.write("1\n" * 1000)
            time.sleep(0.01)
    return None


def stream(db: Database[TupleRow]) -> object:
    """Read rows one by one."""
    with db.connection() as borrowed, borrowed.cursor() as cursor:
        slow = "SELECT n, pg_sleep(0.01) FROM generate_series(1, 6000) n"
        return [row[0] for row in cursor.stream(slow)]


def transaction(db: Database[TupleRow]) -> object:
    """Run one in a transaction."""
    with db.transaction() as borrowed:
        borrowed.execute("INSERT INTO counter VALUES (1)")
        return borrowed.execute("SELECT pg_sleep(60)")


def transaction_copy_in(db: Database[TupleRow]) -> object:
    """Write a COPY in a transaction."""
    with (
        db.transaction() as borrowed,
        borrowed.cursor() as cursor,
        cursor.copy("COPY counter FROM STDIN") as copy,
    ):
        for _ in range(6000):
            copy.write("1\n" * 1000)
            time.sleep(0.01)
    return None


def run_transaction(db: Database[TupleRow]) -> object:
    """Run a unit of work, which would be run again."""

    def work(borrowed: psycopg.Connection[TupleRow]) -> object:
        borrowed.execute("INSERT INTO counter VALUES (1)")
        return borrowed.execute("SELECT pg_sleep(60)")

    return db.run_transaction(work)


UNKNOWN: list[Use] = [
    execute,
    execute_with_claims,
    execute_idempotent,
    connection,
    copy_out,
    copy_in,
    stream,
]
UNDONE: list[Use] = [transaction, transaction_copy_in, run_transaction]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that nobody waits for before the test's end."""
    with ThreadPoolExecutor(8) as made:
        yield made


def leave_behind(
    db: Database[TupleRow], threads: ThreadPoolExecutor, admin: Admin, use: Use
) -> Future[object]:
    """Let an invocation start a thread, and end while the thread's statement is at work."""

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> Future[object]:
        started = threads.submit(use, db)
        wait_until(lambda: at_work(admin) or started.done())
        return started

    return handler(None, Context(60))


def at_work(admin: Admin) -> bool:
    """Tell whether a statement of the layer's is at work."""
    query = "SELECT FROM pg_stat_activity WHERE application_name = %s AND state = 'active'"
    return admin.execute(query, [APPLICATION]).rowcount > 0


def ask_next(db: Database[TupleRow]) -> object:
    """Serve another invocation."""

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> object:
        return scalar(db, "SELECT 7")

    return handler(None, Context(60))


@pytest.mark.parametrize("use", [*UNKNOWN, *UNDONE])
@pytest.mark.parametrize("slots", [1, 2])
def test_a_thread_that_outlives_its_invocation_gets_an_error_and_hinders_nobody(
    open_database: Open,
    admin: Admin,
    threads: ThreadPoolExecutor,
    use: Use,
    slots: int,
) -> None:
    """Its connection ends with the invocation; the slot is the next one's, and nothing is rerun."""
    db = open_database(slots=slots)
    left = leave_behind(db, threads, admin, use)
    assert ask_next(db) == 7  # not after the checkout timeout of 3 s: that would raise
    error = left.exception(timeout=10)
    expected = DatabaseUnavailableError if use in UNDONE else CommitOutcomeUnknownError
    assert isinstance(error, expected), error
    assert str(error).startswith((ENDED, CLOSED)), error
    stats = db.stats()
    assert (stats["leaks"], stats["retries"]) == (1, 0)
    wait_until(lambda: db.stats()["pool_size"] == db.stats()["pool_available"] == 1)
    assert ask_next(db) == 7
    assert db.stats()["leaks"] == 1
    kill_backends(admin)  # a server may notice only at the statement's end that its client is gone
    assert scalar(db, "SELECT count(*) FROM counter") == 0


def test_a_thread_that_waits_for_a_slot_past_the_end_sends_nothing(
    db: Database[TupleRow], admin: Admin, threads: ThreadPoolExecutor
) -> None:
    """What it wanted belongs to an invocation that has been answered."""
    waiting: list[Future[object]] = []

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> Future[object]:
        first = threads.submit(execute, db)
        wait_until(lambda: at_work(admin))
        waiting.append(threads.submit(db.execute, "INSERT INTO counter VALUES (2)"))
        wait_until(lambda: db.stats()["requests_waiting"] == 1)
        return first

    first = handler(None, Context(60))
    assert ask_next(db) == 7
    assert isinstance(first.exception(timeout=10), CommitOutcomeUnknownError)
    kill_backends(admin)
    error = waiting[0].exception(timeout=10)
    assert isinstance(error, DatabaseUnavailableError)
    assert str(error) == f"{ENDED}: nothing was sent"
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    stats = db.stats()
    assert stats["pool_size"] == stats["pool_available"] == 1


def test_a_connection_is_not_closed_under_a_copy(
    db: Database[TupleRow], threads: ThreadPoolExecutor
) -> None:
    """Its thread alone may free what it works in, also between two writes."""
    begun, go_on = threading.Event(), threading.Event()
    seen: list[psycopg.Connection[TupleRow]] = []

    def work() -> None:
        with (
            db.connection() as borrowed,
            borrowed.cursor() as cursor,
            cursor.copy("COPY counter FROM STDIN") as copy,
        ):
            seen.append(borrowed)
            begun.set()
            assert go_on.wait(10)
            for _ in range(1000):
                copy.write("1\n" * 1000)

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> Future[None]:
        left = threads.submit(work)
        assert begun.wait(10)
        return left

    left = handler(None, Context(60))
    closed_by_the_end = seen[0].closed
    go_on.set()
    error = left.exception(10)
    assert isinstance(error, CommitOutcomeUnknownError)
    assert str(error).startswith(ENDED)
    assert not closed_by_the_end
    assert seen[0].closed
    assert scalar(db, "SELECT count(*) FROM counter") == 0


def test_a_thread_that_comes_back_between_invocations_is_served(
    db: Database[TupleRow], threads: ThreadPoolExecutor
) -> None:
    """It holds nothing at the end of the first one, so nothing of it is cut."""
    again, done = threading.Event(), threading.Event()

    def twice() -> tuple[object, object]:
        first = scalar(db, "SELECT 1")
        done.set()
        assert again.wait(10)
        return first, scalar(db, "SELECT 2")

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> Future[tuple[object, object]]:
        left = threads.submit(twice)
        assert done.wait(10)
        return left

    left = handler(None, Context(60))
    again.set()
    assert left.result(10) == (1, 2)
    assert ask_next(db) == 7
    assert db.stats()["leaks"] == 0


def test_no_thread_gets_another_ones_rows(open_database: Open) -> None:
    """Many invocations in a row, each with threads of the ones before still at work."""
    db = open_database(slots=2)
    wrong: list[object] = []
    told: list[psycopg.Error] = []

    def echo(number: int) -> None:
        try:
            match number % 3:
                case 0:
                    row = db.execute("SELECT %s::int, pg_sleep(0.01)", [number]).fetchone()
                case 1:
                    with db.connection() as borrowed, borrowed.cursor() as cursor:
                        query = f"COPY (SELECT {number}, pg_sleep(0.01)) TO STDOUT"
                        with cursor.copy(query) as copy:
                            text = b"".join(bytes(block) for block in copy)
                    row = (int(text.split()[0]),)
                case _:
                    row = db.run_transaction(
                        lambda borrowed: borrowed.execute(
                            "SELECT %s::int, pg_sleep(0.01)", [number]
                        ).fetchone()
                    )
            if row is None or row[0] != number:
                wrong.append((number, row))
        except psycopg.Error as error:
            told.append(error)

    @db.bind_lambda_context
    def handler(event: int, context: Context) -> object:
        for each in range(3):
            pool.submit(echo, event * 10 + each)
        time.sleep(0.01)  # so that threads are at all places when it ends
        return scalar(db, f"SELECT {event}")

    with ThreadPoolExecutor(12) as pool:
        for turn in range(100):
            assert handler(turn, Context(60)) == turn
    assert not wrong
    assert all(
        isinstance(error, DatabaseUnavailableError | CommitOutcomeUnknownError) for error in told
    ), told
    assert any(str(error).startswith(ENDED) for error in told), "no thread has met an end"
    stats = db.stats()
    assert stats["pool_size"] == stats["pool_available"] <= 2
