"""When to stop trying: a budget for retries, and a breaker for a database that is away."""

import math
import time
from collections.abc import Callable
from typing import Final

import psycopg

from lambda_pg._errors import DatabaseUnavailableError
from lambda_pg._jitter import jitter

BUDGET: Final = 60
"""Retries that may cost the server something and that an environment may spend at once."""

RETRY_REFILL_RATE: Final = 4.0
"""Such retries that come back each second. A request makes eight in the first 1.5 s of an outage,
and then four a second: one request at a time cannot spend all in a window, or in a minute of short
outages; threads that share an environment can."""

FAILURES: Final = 3
"""Requests in a row that the database had to fail before the breaker opens."""

PROBE: Final = 1.0
"""Seconds that the one request may try which looks whether the database is back. A login may take
longer, among those of a whole fleet: it is kept, and the next probe goes on with it."""

PROBE_PAUSE: Final = (0.25, 0.75)
"""Bounds of the seconds between two probes. With PROBE they keep the promise that the first
success follows at most 2 s after a fault has ended."""

SLOW_LOGIN: Final = 0.5
"""Seconds from which a login is one of too many at once."""

REST: Final = (0.25, 1.0)
LONGEST_REST: Final = 30.0
"""Bounds of the pause after such a login whose work was in vain, as its statement was refused: by
what it took, doubled for each one in a row, and in seconds."""


class NotReachedError(psycopg.OperationalError):
    """Report an attempt of which the server has seen nothing: a refusal by the kernel, no route."""


class RetryBudget:
    """Bound the work in vain that the retries of one environment give a server.

    What costs is a retry after an answer: a login that was refused or cut, a statement that a
    pooler has refused or lost (5 ms of PgBouncer 1.24 for the login that follows). What costs
    nothing is not counted: the server has not seen the attempt (NotReachedError), it has not
    answered yet (its login is kept and finished), or it is there and two transactions conflict,
    which the window bounds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Start with all of it."""
        self._clock = clock
        self._left = float(BUDGET)
        self._at = clock()

    def spend(self) -> bool:
        """Take one retry; tell whether there was one left."""
        now = self._clock()
        self._left = min(BUDGET, self._left + max(0.0, now - self._at) * RETRY_REFILL_RATE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Breaker:
    """Fail fast after several failures in a row, but for one probe at a time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Start closed. The clock is the wall's: a thawed environment probes at once."""
        self._clock = clock
        self.failures = 0
        """Requests in a row that were failed by the database's absence."""
        self._probe_at = 0.0
        self._rests_until = -math.inf
        self._slow_logins = 0
        """In a row, since the last request that did not fail."""

    @property
    def is_open(self) -> bool:
        """Tell whether requests fail without a try."""
        return self.failures >= FAILURES

    def logged_in(self, seconds: float) -> None:
        """Note what a login took: the next one waits where there are too many at once.

        A pooler that works on hundreds of logins has no time for statements, and refuses those
        that wait too long for a server connection. Clients who log in again at once keep it so.
        """
        if not self.failures:
            self._slow_logins = 0
        if seconds > SLOW_LOGIN:
            rest = seconds * jitter.uniform(*REST) * 2.0**self._slow_logins
            self._rests_until = self._clock() + min(LONGEST_REST, rest)
            self._slow_logins = min(10, self._slow_logins + 1)

    @property
    def rest(self) -> float:
        """The seconds until another login may follow one that was in vain."""
        rest = self._rests_until - self._clock()
        return rest if 0 < rest <= LONGEST_REST else 0.0  # later: the clock was set back

    def admit(self, seconds: float) -> float:
        """Return the seconds that a request may try, out of those that it would.

        Raises DatabaseUnavailableError while the breaker is open and another request probes, or
        has just done so in vain, and while the pooler has too many logins to do.
        """
        if self.failures and (rest := self.rest):
            raise DatabaseUnavailableError(
                "the pooler is overloaded with logins, and has refused the last request: "
                f"the next login is in {rest:.1f} s",
                retry_after=max(0.1, rest),
            )
        if not self.is_open:
            return seconds
        now = self._clock()
        probe = min(PROBE, seconds)
        busy = probe + PROBE_PAUSE[1]
        if now < self._probe_at <= now + busy:  # later: the clock was set back
            raise DatabaseUnavailableError(
                f"the database failed the last {self.failures} requests: the next try is in "
                f"{self._probe_at - now:.1f} s",
                retry_after=max(0.1, self._probe_at - now),
            )
        self._probe_at = now + busy  # others wait while this one looks
        return probe

    def failed(self) -> None:
        """Count a request that found no database."""
        self.failures += 1
        self._probe_at = self._clock() + jitter.uniform(*PROBE_PAUSE)

    def succeeded(self) -> None:
        """Close: the database answers."""
        self.failures = 0
