"""Clocks that a test sets."""

import time

from lambda_pg import Database
from psycopg.rows import TupleRow


class FixedClock:
    """A wall clock that stands still until the test moves it."""

    now = 1_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Clock:
    """The wall's clock, which the test can shift."""

    def __init__(self) -> None:
        """Begin with the right time."""
        self.shift = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return time.time() + self.shift

    def govern(self, db: Database[TupleRow]) -> Database[TupleRow]:
        """Let a database live by this clock."""
        for part in (db._pool, db._credentials, db._retry.breaker, db._retry.budget):
            part._clock = self
        return db
