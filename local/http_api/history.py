"""The API's answers of the last minutes, second by second."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT = 300
"""Seconds that are remembered."""


@dataclass
class Second:
    """The answers of one second of the clock."""

    second: int  # since the epoch
    statuses: Counter[str] = field(default_factory=Counter)
    durations: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the answers by status class, and their durations' median and 95th percentile."""
        ranked = sorted(self.durations)
        return {
            "second": self.second,
            "statuses": dict(self.statuses),
            "p50": round(_rank(ranked, 0.5), 4),
            "p95": round(_rank(ranked, 0.95), 4),
        }


def _rank(ranked: list[float], share: float) -> float:
    return ranked[math.ceil(share * len(ranked)) - 1]


class History:
    """Answers of the last minutes; only a summary is kept of each past second."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Begin empty."""
        self.answered: Counter[int] = Counter()
        """Answers since the beginning, by status."""
        self._clock = clock
        self._over: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._current: Second | None = None

    def add(self, status: int, seconds: float) -> None:
        """Count one answer in the current second."""
        self.answered[status] += 1
        now = int(self._clock())
        current = self._current
        if current is None or current.second != now:
            if current is not None:
                self._over.append(current.summary())
            current = self._current = Second(now)
        current.statuses[f"{status // 100}xx"] += 1
        current.durations.append(seconds)

    def seconds(self) -> list[dict[str, Any]]:
        """Return the seconds of the last minutes that had answers, oldest first."""
        oldest = self._clock() - KEPT
        latest = [self._current.summary()] if self._current is not None else []
        return [each for each in [*self._over, *latest] if each["second"] >= oldest]
