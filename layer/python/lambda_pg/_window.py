"""How long a request goes on trying: the checkout timeout, inside the invocation's deadline."""

import math
import random
import time
from time import monotonic
from typing import Final

from lambda_pg._errors import CheckoutTimeoutError, DatabaseUnavailableError, DeadlineExceededError

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.5
DOUBLINGS: Final = 4
"""Bounds of the pause between attempts in seconds, with full jitter: a fleet does not march."""


class Window:
    """The time in which one request may try again, counted from its first attempt."""

    def __init__(self, seconds: float, deadline: float) -> None:
        """Take the checkout timeout and the time.monotonic() of the deadline, or infinity."""
        self._seconds = seconds
        self._until = monotonic() + seconds
        self._deadline = deadline
        self._attempts = 0

    @property
    def deadline(self) -> float:
        """The time.monotonic() at which the invocation's time is up."""
        return self._deadline

    def remaining(self) -> float:
        """Return the seconds left for a checkout; raises DeadlineExceededError when none are."""
        left = min(self._until, self._deadline) - monotonic()
        if left <= 0 and self._deadline <= self._until:
            raise DeadlineExceededError(
                "the invocation's deadline passed before the database was asked"
            )
        return max(0.0, left)

    def pause(self, cause: Exception) -> None:
        """Sleep before the next attempt; raises from `cause` when there is no time for one."""
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._attempts, DOUBLINGS))
        self._attempts += 1
        pause = random.uniform(0, longest)  # noqa: S311  # jitter, not a secret
        if monotonic() + pause >= min(self._until, self._deadline):
            raise self._error(cause) from cause
        time.sleep(pause)

    def _error(self, cause: Exception) -> DatabaseUnavailableError:
        tried = f"{self._attempts} attempt{'s' if self._attempts > 1 else ''}"
        if self._deadline <= self._until and not math.isinf(self._deadline):
            return DeadlineExceededError(
                f"the invocation's deadline passed after {tried}; "
                f"the last one failed: {_first_line(cause)}"
            )
        return CheckoutTimeoutError(
            f"no success within {self._seconds:.1f} s ({tried}); "
            f"the last one failed: {_first_line(cause)}"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
