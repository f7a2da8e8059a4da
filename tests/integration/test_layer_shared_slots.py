"""Several Databases in one environment, one for each login, share one number of slots."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from lambda_pg import CheckoutTimeoutError, ConfigurationError, Database, Settings, SharedSlots
from psycopg.rows import TupleRow

from tests.support.layer import Admin, in_child, scalar, slot_taken
from tests.support.waiting import wait_until

# Python 3.12 warns of any fork of a process with threads; the layer must bear it.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

Share = Callable[..., list[Database[TupleRow]]]


@pytest.fixture
def share(settings: Settings) -> Iterator[Share]:
    """Make Databases that share so many slots; each names itself in pg_stat_activity."""
    with ExitStack() as opened:

        def make(slots: int, count: int, **changes: Any) -> list[Database[TupleRow]]:
            shared, found = SharedSlots(slots), []
            for number in range(count):
                named = replace(settings, application_name=f"sharer-{number}", **changes)
                found.append(Database(named, slots=shared))
                opened.callback(found[-1].close)
            return found

        yield make


def names(admin: Admin) -> list[str]:
    """Name those that have a backend."""
    rows = admin.execute(
        "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'sharer-%'"
        " ORDER BY 1"
    )
    return [row[0] for row in rows]


def test_the_one_that_was_idle_for_longest_goes_first(share: Share, admin: Admin) -> None:
    """Not the one that was opened first."""
    first, second, third = share(2, 3)
    first.execute("SELECT 1")
    second.execute("SELECT 1")
    first.execute("SELECT 1")
    third.execute("SELECT 1")
    wait_until(lambda: names(admin) == ["sharer-0", "sharer-2"])
    assert [db.stats()["pool_size"] for db in (first, second, third)] == [1, 0, 1]
    assert {db.stats()["pool_max"] for db in (first, second, third)} == {2}
    second.execute("SELECT 1")
    wait_until(lambda: names(admin) == ["sharer-1", "sharer-2"])


def test_a_connection_in_use_is_not_closed(share: Share) -> None:
    """The other Database waits for it, in vain or until it is returned."""
    first, second = share(1, 2, checkout_timeout=1.0)
    with slot_taken(first), pytest.raises(CheckoutTimeoutError, match="all 1 slots"):
        second.execute("SELECT 1")
    assert scalar(second, "SELECT 1") == 1


def test_a_thread_that_waits_gets_the_slot_of_another_database(share: Share) -> None:
    """As soon as its connection is returned, which is then closed."""
    first, second = share(1, 2, checkout_timeout=20.0)
    held = first.getconn()
    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(scalar, second, "SELECT 7")
        wait_until(lambda: second.stats()["requests_waiting"])
        first.putconn(held)
        assert served.result() == 7
    assert held.closed
    assert [db.stats()["pool_size"] for db in (first, second)] == [0, 1]


def test_never_more_backends_than_slots(share: Share, admin: Admin) -> None:
    """With eight threads and three logins on two slots, and every thread is served."""
    databases = share(2, 3, checkout_timeout=20.0)
    most = 0

    def ask(number: int) -> object:
        return [scalar(databases[turn % 3], f"SELECT {number}") for turn in range(number, 15)]

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, number) for number in range(8)]
        while not all(each.done() for each in asked):
            # A backend that was just closed may still be listed: two looks in a row count.
            most = max(most, min(len(names(admin)), len(names(admin))))
        for number, each in enumerate(asked):
            assert set(each.result()) == {number}  # type: ignore[call-overload]
    assert sum(db.stats()["pool_size"] for db in databases) <= 2
    assert most <= 3


def test_a_nested_checkout_that_can_never_succeed_is_refused(share: Share) -> None:
    """Also where the thread has the slots by several Databases."""
    first, second = share(2, 2)
    refused = pytest.raises(ConfigurationError, match="all 2 slots")
    with first.connection(), second.connection(), refused:
        first.execute("SELECT 1")
    assert scalar(first, "SELECT 1") == 1


def test_closing_and_forgetting_free_the_slots(share: Share) -> None:
    """One Database's connections go, and the other one's stay."""
    first, second = share(2, 2)
    for db in (first, second):
        db.execute("SELECT 1")
    first.forget()
    assert [db.stats()["pool_size"] for db in (first, second)] == [0, 1]
    with first.connection(), ThreadPoolExecutor(1) as threads:
        assert threads.submit(scalar, second, "SELECT 7").result() == 7


def test_a_reclaim_frees_the_slot_for_the_others(share: Share) -> None:
    """A handler that leaves a connection open has lost it at its end."""
    first, second = share(1, 2)
    first.getconn()
    first._pool.reclaim()
    assert scalar(second, "SELECT 7") == 7


def test_a_dropped_connection_frees_the_slot_for_the_others(share: Share) -> None:
    """Nothing refers to it any more, and a thread of another Database waits."""
    first, second = share(1, 2, checkout_timeout=20.0)
    kept = [first.getconn()]
    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(scalar, second, "SELECT 7")
        wait_until(lambda: second.stats()["requests_waiting"])
        kept.clear()
        assert served.result() == 7
    assert first.stats()["pool_size"] == 0


def test_a_forked_child_has_all_slots(share: Share) -> None:
    """Its parent's connections, and the threads that wait there, do not count in it."""
    first, second = share(1, 2, checkout_timeout=20.0)
    held = first.getconn()
    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(scalar, second, "SELECT 7")
        wait_until(lambda: second.stats()["requests_waiting"])
        answer = in_child(lambda: [scalar(db, "SELECT 8") for db in (first, second)])
        assert answer == "[8, 8]"
        first.putconn(held)
        assert served.result() == 7


def test_no_slots_are_refused() -> None:
    """A mistake that would let every request wait."""
    with pytest.raises(ValueError, match="at least one"):
        SharedSlots(0)
