"""The context of an invocation."""

import time
from collections.abc import Callable


class Context:
    """The part of Lambda's context that the layer reads."""

    def __init__(
        self,
        seconds: float,
        request_id: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start an invocation that may take `seconds`, counted by a clock."""
        self.aws_request_id = request_id
        self._clock = clock
        self._until = clock() + seconds

    def get_remaining_time_in_millis(self) -> int:
        """Return how much time remains."""
        return max(0, int((self._until - self._clock()) * 1000))
