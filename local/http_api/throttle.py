"""A token bucket, as in the description of API Gateway's throttling."""

import time
from collections.abc import Callable

from lambda_pg_cdk.local.deployment.deployed import Throttle


class Bucket:
    """Allows `burst` requests at once and `rate` a second after that."""

    def __init__(self, settings: Throttle, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._tokens = float(settings.burst)
        self._at = clock()

    def take(self) -> bool:
        """Take a token if there is one."""
        if not self._settings.burst:
            return True
        now = self._clock()
        refilled = self._tokens + (now - self._at) * self._settings.rate
        self._tokens, self._at = min(refilled, float(self._settings.burst)), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
