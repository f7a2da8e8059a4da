"""Count the failed starts of tasks, and pause between them, as ECS's circuit breaker does."""

import sys
import time

from lambda_pg_cdk.local.pooler_service.rolling import pause_after

MAX_FAILED_STARTS = 3
"""Failed starts in a row after which a deployment counts as failed."""


class FailedStarts:
    """Failed starts in a row."""

    def __init__(self) -> None:
        self.latest = ""
        self._count = 0
        self._not_before = 0.0

    @property
    def too_many(self) -> bool:
        """Whether the deployment counts as failed."""
        return self._count >= MAX_FAILED_STARTS

    def add(self, reason: str) -> None:
        """Count a failure: the pause before the next start grows."""
        self._count += 1
        self.latest = reason
        self._not_before = time.monotonic() + pause_after(self._count)
        print(f"pooler: {reason}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Forget all failures: a task has started, or another deployment begins."""
        self.latest, self._count, self._not_before = "", 0, 0.0

    @property
    def pause_over(self) -> bool:
        """Whether the next task may start."""
        return time.monotonic() >= self._not_before
