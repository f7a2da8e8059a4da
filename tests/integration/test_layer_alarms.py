"""Exceptions from signal handlers, between any two steps: no slot is lost for good."""

import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType

import psycopg
import pytest
from lambda_pg import CheckoutTimeoutError, Database, DatabaseUnavailableError
from psycopg.rows import TupleRow

from tests.support.layer import Admin, Open, kill_backends, scalar, slot_taken
from tests.support.waiting import wait_until

ALARMS = 300
"""For each kind of request. A third is aimed at its beginning and a third at its end, the steps
that take a slot and give it back: the eight tests, which share them, aim 800 at each. Spread evenly
over 0.8 ms, most alarms meet the wait for the server, and each costs a new connection."""

NEW_CONNECTIONS = 100
UNITS = 500

jitter = random.SystemRandom()

Request = Callable[[Database[TupleRow]], object]

# What a block that is left by an alarm raises while its memory is freed goes nowhere.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class AlarmError(TimeoutError):
    """What a handler's own timeout raises, as Powertools' and many others' do."""


def ring(_: int, __: FrameType | None) -> None:
    """Interrupt whatever runs in the main thread."""
    raise AlarmError


@pytest.fixture
def alarms() -> Iterator[Callable[[float], None]]:
    """Set the clock that rings once after some seconds; 0 stops it."""
    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def by_execute(db: Database[TupleRow]) -> None:
    """Run one statement."""
    db.execute("SELECT 1")


def by_work(db: Database[TupleRow]) -> None:
    """Run a unit of work."""
    db.run_transaction(lambda connection: connection.execute("SELECT 1"))


def by_transaction(db: Database[TupleRow]) -> None:
    """Use a block."""
    with db.transaction() as connection:
        connection.execute("SELECT 1")


def by_connection(db: Database[TupleRow]) -> None:
    """Use a caller's connection, under a deadline that ends long before the test."""
    with db.deadline(1), db.connection() as connection:
        connection.execute("SELECT 1")


def by_new_connection(db: Database[TupleRow]) -> None:
    """Open a connection."""
    db.close()
    db.execute("SELECT 1")


REQUESTS = [by_execute, by_work, by_transaction, by_connection, by_new_connection]


def interrupted(
    db: Database[TupleRow],
    alarms: Callable[[float], None],
    request: Request,
    within: float,
    after: float = 1e-6,
) -> bool:
    """Send one request that an alarm may end; tell whether it did."""
    try:
        alarms(jitter.uniform(after, within))
        request(db)
        alarms(0)
    except AlarmError:
        return True
    except RuntimeError as error:  # contextlib's and threading's own, after an alarm inside them
        return isinstance(error.__context__, AlarmError)
    return False


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("request_", REQUESTS)
def test_alarms_take_no_slot_for_good(
    open_database: Open, alarms: Callable[[float], None], request_: Request, slots: int
) -> None:
    """After hundreds of alarms in the middle of requests, each slot can be used."""
    db = open_database(slots=slots, checkout_timeout=2)
    if request_ is by_new_connection:
        times = [(1e-6, 0.008)] * NEW_CONNECTIONS
    else:
        took = typical_seconds(db, request_)
        beginning, end = (1e-6, took / 3), (took * 0.75, took * 1.1)
        times = [beginning, end, (1e-6, 4 * took)] * (ALARMS // 3)
    rung = sum(interrupted(db, alarms, request_, within, after) for after, within in times)
    assert rung > len(times) // 10
    assert_all_slots_work(db, slots)


def typical_seconds(db: Database[TupleRow], request: Request) -> float:
    """Return how long a request takes over an open connection."""
    took = []
    for _ in range(21):
        began = time.monotonic()
        request(db)
        took.append(time.monotonic() - began)
    return statistics.median(took)


def assert_all_slots_work(db: Database[TupleRow], slots: int) -> None:
    """Use every slot at the same time, and one after the other."""
    together = threading.Barrier(slots)

    def use(_: int) -> None:
        with db.connection() as connection:
            together.wait(10)
            connection.execute("SELECT 1")

    with ThreadPoolExecutor(slots) as threads:
        list(threads.map(use, range(slots)))
    stats = db.stats()
    assert stats["pool_size"] == stats["pool_available"] == slots
    assert not db._pool.lent
    assert db._invocations.deadline == db._invocations.earliest() == float("inf")


class Gap:
    """An alarm that rings right after a method of the pool has done its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        """Ring once: the next calls are undisturbed."""
        method = getattr(owner, name)

        def rung(*arguments: object, **options: object) -> object:
            method(*arguments, **options)
            monkeypatch.setattr(owner, name, method)
            raise AlarmError

        monkeypatch.setattr(owner, name, rung)


@pytest.mark.parametrize("name", ["take", "put", "release", "checkout", "lend", "return_lent"])
@pytest.mark.parametrize("request_", REQUESTS[:4])
def test_an_alarm_in_a_gap_costs_a_connection_at_most(
    open_database: Open, monkeypatch: pytest.MonkeyPatch, request_: Request, name: str
) -> None:
    """Between a step and the next one nobody is there to give the slot back: it comes by itself."""
    db = open_database(checkout_timeout=1)
    for _ in range(3):
        with monkeypatch.context() as patched:
            Gap(patched, db._pool, name)
            with suppress(AlarmError):
                request_(db)
        request_(db)
    assert_all_slots_work(db, 1)


@pytest.mark.parametrize("name", ["_next_idle", "_take_slot", "_connect"])
def test_an_alarm_in_a_checkout_costs_a_connection_at_most(
    open_database: Open, admin: Admin, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """So it is where a checkout has taken a slot, or opened a connection, a moment ago."""
    db = open_database(checkout_timeout=1)
    by_work(db)
    if name == "_connect":
        kill_backends(admin)
    with monkeypatch.context() as patched:
        Gap(patched, db._pool, name)
        with pytest.raises(AlarmError):
            by_work(db)
    by_work(db)
    assert_all_slots_work(db, 1)


def test_who_waits_gets_the_slot_that_nobody_has_any_more(open_database: Open) -> None:
    """A connection that its caller dropped wakes a thread that waits for a slot."""
    db = open_database(checkout_timeout=10)
    kept = [db.getconn()]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(scalar, db, "SELECT 1")
        wait_until(lambda: db.stats()["requests_waiting"])
        kept.clear()
        assert waiting.result(5) == 1


def test_a_slot_in_use_is_not_given_to_another(open_database: Open) -> None:
    """The control: what is held counts, and a full pool is still full."""
    db = open_database(checkout_timeout=0.3)
    with slot_taken(db), pytest.raises(CheckoutTimeoutError):
        db.execute("SELECT 1")
    held = db.getconn()
    with ThreadPoolExecutor(1) as threads, pytest.raises(DatabaseUnavailableError):
        threads.submit(db.execute, "SELECT 1").result()
    db.putconn(held)
    assert_all_slots_work(db, 1)


def test_a_deadline_that_an_alarm_met_is_not_everybodys(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alarm right after a deadline was set must not leave it there for good."""
    db = open_database()
    with monkeypatch.context() as patched:
        Gap(patched, db._pool, "bind")
        with pytest.raises(AlarmError), db.deadline(0.001):
            pass
    assert scalar(db, "SELECT 1 FROM pg_sleep(0.01)") == 1


def test_what_alarms_interrupt_is_never_half_done(
    open_database: Open, admin: Admin, alarms: Callable[[float], None]
) -> None:
    """A unit of work that an alarm ends is there as a whole or not at all."""
    db = open_database(checkout_timeout=2)

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute("INSERT INTO counter VALUES (1)")
        connection.execute("INSERT INTO counter VALUES (-1)")

    rung = sum(
        interrupted(db, alarms, lambda each: each.run_transaction(work), 0.002)
        for _ in range(UNITS)
    )
    assert rung > UNITS // 10
    db.run_transaction(work)  # on a busy machine every one of them may have been interrupted
    row = admin.execute("SELECT coalesce(sum(n), 0), count(*) > 0 FROM counter").fetchone()
    assert row == (0, True)
