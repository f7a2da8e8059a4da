"""Steady loads of statements, one after the other from a thread each."""

import operator
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from psycopg.rows import TupleRow

from tests.support.waiting import wait_until

REST = 0.01
"""Seconds between two statements of a load: without it, each load of a test takes a whole core."""


class Requests:
    """Requests from a thread with a short rest between them, until told to stop."""

    def __init__(self, ask: Callable[[], object]) -> None:
        """Start nothing yet."""
        self._ask = ask
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.served = 0
        self.errors: list[Exception] = []

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and wait."""
        self._stop.set()
        self._thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until so many more statements were served, or one failed."""
        wait_for_each([self], more)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._ask()
                self.served += 1
            except Exception as error:  # noqa: BLE001 - whatever comes is what the test counts
                self.errors.append(error)
            self._stop.wait(REST)


class Load(Requests):
    """Statements of a Database."""

    def __init__(self, db: Database[TupleRow]) -> None:
        """Start nothing yet."""
        super().__init__(self._request)
        self._db = db

    def _request(self) -> None:
        self._db.execute("SELECT 1", claims={"sub": "a"}, idempotent=True)


def wait_for_each(loads: Sequence[Requests], more: int) -> None:
    """Wait until each load has served so many more statements, all at once, or one failed."""
    goals = [load.served + more for load in loads]
    deadline = time.monotonic() + 20
    while any(
        load.served < goal and not load.errors for load, goal in zip(loads, goals, strict=True)
    ):
        missing = [goal - load.served for load, goal in zip(loads, goals, strict=True)]
        assert time.monotonic() < deadline, f"statements are missing: {missing}"
        time.sleep(0.01)


class Ledger(Load):
    """Writers that each note which rows were acknowledged, and of which nobody knows."""

    def __init__(
        self,
        db: Database[TupleRow],
        write: Callable[[Database[TupleRow], int], object],
        first: int,
    ) -> None:
        """Begin with no row; numbers count from `first`."""
        super().__init__(db)
        self._write = write
        self._next = first
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.refused = 0

    def _request(self) -> None:
        self._next += 1
        try:
            self._write(self._db, self._next)
        except CommitOutcomeUnknownError:
            self.unknown.append(self._next)
        except DatabaseUnavailableError:
            self.refused += 1
        else:
            self.acknowledged.append(self._next)


def insert_alone(db: Database[TupleRow], number: int) -> None:
    """Write one row in autocommit."""
    db.execute("INSERT INTO counter VALUES (%s)", [number])


def insert_as_work(db: Database[TupleRow], number: int) -> None:
    """Write one row as a unit of work."""
    db.run_transaction(lambda held: held.execute("INSERT INTO counter VALUES (%s)", [number]))


def wait_for_rows(ledgers: list[Ledger]) -> None:
    """Wait until every writer has had some more rows acknowledged."""
    goal = [len(ledger.acknowledged) + 20 for ledger in ledgers]
    wait_until(lambda: all(map(operator.ge, (len(each.acknowledged) for each in ledgers), goal)))


def wait_for_refusals(ledgers: list[Ledger]) -> None:
    """Wait until every writer was refused once more."""
    before = [ledger.refused for ledger in ledgers]
    wait_until(lambda: all(map(operator.gt, (each.refused for each in ledgers), before)))
