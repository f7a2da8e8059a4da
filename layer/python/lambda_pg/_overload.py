"""When to stop retrying: a budget for retries, and a breaker for an unavailable database."""

import math
import time
from collections.abc import Callable
from typing import Final

import psycopg

from lambda_pg._errors import DatabaseUnavailableError
from lambda_pg._jitter import jitter

BUDGET: Final = 60
"""Retries that cost the server something and that an environment may make at once."""

RETRY_REFILL_RATE: Final = 4.0
"""Such retries that are refilled each second. A request makes eight in the first 1.5 s of an
outage, and then four a second: one request at a time cannot use the budget up in a window, or in a
minute of short outages; threads that share an environment can."""

FAILURES: Final = 3
"""Consecutive requests that failed for lack of a database before the breaker opens."""

PROBE: Final = 1.0
"""Seconds that a probe may take: the one request that is tried while the breaker is open. A login
may take longer, among those of a whole fleet: it is kept, and the next probe continues it."""

PROBE_PAUSE: Final = (0.25, 0.75)
"""Bounds of the seconds between two probes. With PROBE they keep the promise that the first
success follows at most 2 s after a fault has ended."""

SLOW_LOGIN: Final = 0.5
"""Seconds after which a login counts as slow: too many log in at once."""

REST: Final = (0.25, 1.0)
LONGEST_REST: Final = 30.0
"""Bounds of the pause after a slow login whose statement was then refused: as a part of the time
that it took, doubled for each consecutive one, and in seconds."""


class NotReachedError(psycopg.OperationalError):
    """Report an attempt that the server has not seen: refused by the kernel, or without a route."""


class RetryBudget:
    """Bound the useless work that the retries of one environment give a server.

    A retry after an answer costs the server something: a login that was refused or cut, a statement
    that a pooler has refused or lost (5 ms of PgBouncer 1.24 for the login that follows). Other
    retries are not counted: the server has not seen the attempt (NotReachedError), it has not
    answered yet (its login is kept and finished), or two transactions conflict, which the window
    bounds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Start with a full budget."""
        self._clock = clock
        self._left = float(BUDGET)
        self._at = clock()

    def spend(self) -> bool:
        """Take one retry; return whether there was one left."""
        now = self._clock()
        self._left = min(BUDGET, self._left + max(0.0, now - self._at) * RETRY_REFILL_RATE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Breaker:
    """Fail fast after several consecutive failures, except for one probe at a time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Start closed. The clock is the wall's: a thawed environment probes at once."""
        self._clock = clock
        self.failures = 0
        """Consecutive requests that found no database."""
        self._probe_at = 0.0
        self._rests_until = -math.inf
        self._slow_logins = 0
        """Consecutive ones, since the last request that did not fail."""

    @property
    def is_open(self) -> bool:
        """Whether requests fail without an attempt."""
        return self.failures >= FAILURES

    def logged_in(self, seconds: float) -> None:
        """Note the seconds that a login took: after a slow one the next login waits.

        A pooler that works on hundreds of logins has no time for statements, and rejects clients
        that wait too long for a server connection. If they log in again at once, it stays busy.
        """
        if not self.failures:
            self._slow_logins = 0
        if seconds > SLOW_LOGIN:
            rest = seconds * jitter.uniform(*REST) * 2.0**self._slow_logins
            self._rests_until = self._clock() + min(LONGEST_REST, rest)
            self._slow_logins = min(10, self._slow_logins + 1)

    @property
    def rest(self) -> float:
        """The seconds until another login may follow a useless one."""
        rest = self._rests_until - self._clock()
        return rest if 0 < rest <= LONGEST_REST else 0.0  # later: the clock was set back

    def admit(self, seconds: float) -> float:
        """Return the seconds that a request may try: at most `seconds`, less for a probe.

        Raises DatabaseUnavailableError while the breaker is open and another request probes, or
        has just failed to, and while the pooler has too many logins.
        """
        if self.failures and (rest := self.rest):
            raise DatabaseUnavailableError(
                "the pooler is overloaded with logins, and has refused the last request: "
                f"the next login is tried in {rest:.1f} s",
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
        self._probe_at = now + busy  # others fail fast while this one probes
        return probe

    def failed(self) -> None:
        """Count a request that found no database."""
        self.failures += 1
        self._probe_at = self._clock() + jitter.uniform(*PROBE_PAUSE)

    def succeeded(self) -> None:
        """Close: the database answers."""
        self.failures = 0
