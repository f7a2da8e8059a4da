"""How long a request goes on trying: the checkout timeout, inside the invocation's deadline."""

import math
import random
import time
from typing import Final

import psycopg

from lambda_pg._clock import monotonic
from lambda_pg._errors import CheckoutTimeoutError, DatabaseUnavailableError, DeadlineExceededError
from lambda_pg._overload import Breaker, NotReachedError, RetryBudget

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.5
DOUBLINGS: Final = 4
"""Bounds of the pause between attempts in seconds, with full jitter: a fleet does not march."""

LONGEST_CONFLICT_PAUSE: Final = 0.2
"""The same between two attempts of transactions that conflict: they take milliseconds, and one that
waits for longer and longer loses to those that have just begun."""

LAST_ATTEMPT: Final = 0.1
"""Seconds before the end of a window in which no attempt begins: a connect takes 5 to 50 ms."""


# No state that a snapshot or a fork could copy into many environments.
_jitter = random.SystemRandom()


class Window:
    """The time in which one request may try again, counted from its first attempt."""

    def __init__(
        self,
        seconds: float,
        deadline: float,
        *,
        breaker: Breaker,
        budget: RetryBudget,
        spent: float = 0.0,
    ) -> None:
        """Take the checkout timeout and the time.monotonic() of the deadline, or infinity.

        `spent` are the seconds since the request began.

        Raises DatabaseUnavailableError when the breaker admits no request now.
        """
        self._probes = breaker.is_open
        self._seconds = breaker.admit(seconds)
        self._until = monotonic() + self._seconds - spent
        self._deadline = deadline
        self._breaker = breaker
        self._budget = budget
        self._attempts = 0
        self._anew = False
        self._denied = False
        self.answered: Exception | None = None
        """What the server answered last, when it was there and could not run the statement."""
        self.invocation: int | None = None
        """The invocation that the request belongs to, where there is one."""
        self.may_have_run = False
        """Whether an attempt was lost of which nobody knows what it did."""

    @property
    def deadline(self) -> float:
        """The time.monotonic() at which the invocation's time is up."""
        return self._deadline

    def remaining(self) -> float:
        """Return the seconds left for a checkout; raises DeadlineExceededError when none are."""
        left = min(self._until, self._deadline) - monotonic()
        if left <= 0 and self._deadline <= self._until:
            raise DeadlineExceededError(
                "the invocation's deadline passed before the database was asked",
                may_have_run=self.may_have_run,
            )
        return max(0.0, left)

    def begin_anew(self) -> None:
        """Count the seconds from now, once: until now the database was at work, not away."""
        if not self._anew:
            self._anew = True
            self._until = monotonic() + self._seconds

    def may_ask_again(self) -> bool:
        """Grant, once, another try of a write that was denied by a server that takes writes."""
        denied, self._denied = self._denied, True
        return not denied

    def pause(self, cause: Exception, *, absent: bool = True) -> None:
        """Sleep before the next attempt; raises from `cause` when there is no time for one.

        No pause is longer than half of what is left, so that the window ends with an attempt,
        whenever the database comes back before. `absent` says that the database was not there to
        answer: the breaker counts that, and the budget what it may have cost. A probe tries once:
        with a whole fleet it would hammer a server that is about to come back.
        """
        if absent and self._probes:
            self._breaker.failed()
            raise DatabaseUnavailableError(
                f"the database is still away: {_first_line(cause)}"
            ) from cause
        most = LONGEST_PAUSE if absent else LONGEST_CONFLICT_PAUSE
        longest = min(most, FIRST_PAUSE * 2 ** min(self._attempts, DOUBLINGS))
        self._attempts += 1
        costs = absent and _costs(cause)
        rest = self._breaker.rest if costs else 0.0
        left = min(self._until, self._deadline) - monotonic()
        in_time = left > LAST_ATTEMPT + rest
        if not (in_time and (not costs or self._budget.spend())):
            if absent:
                self._breaker.failed()
            raise self._error(cause, in_time=in_time) from cause
        time.sleep(max(rest, min(_jitter.uniform(0, longest), left / 2)))

    def _error(self, cause: Exception, *, in_time: bool) -> DatabaseUnavailableError:
        tried = f"{self._attempts} attempt{'s' if self._attempts > 1 else ''}"
        if in_time:
            return DatabaseUnavailableError(
                f"this environment has spent its budget of retries (after {tried}); "
                f"the last one failed: {_first_line(cause)}"
            )
        if self._deadline <= self._until and not math.isinf(self._deadline):
            return DeadlineExceededError(
                f"the invocation's deadline passed after {tried}; "
                f"the last one failed: {_first_line(cause)}",
                may_have_run=self.may_have_run,
            )
        return CheckoutTimeoutError(
            f"no success within {self._seconds:.1f} s ({tried}); "
            f"the last one failed: {_first_line(cause)}"
        )


def _costs(error: Exception) -> bool:
    """Tell whether a server may have worked on a failed attempt in vain."""
    return not isinstance(error, NotReachedError | psycopg.errors.ConnectionTimeout)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
