"""Everything that is read of a cloud before and after a measurement, and nothing in between."""

import os
import time
from types import TracebackType
from typing import Any, Self

from benchmarks.storm.accounting import CpuSeconds, Usage, Waits, busy_seconds, own_seconds
from benchmarks.storm.connections import ConnectionLog, Observed
from lambda_pg_cdk.local.cloud import LocalCloud


class Meter:
    """Measure while the `with` block runs; what was found is there after it.

    `before` and `after` are the cloud's status, `server` the server connections, `others` the
    share of all processors that other programs had (0 to 1).
    """

    before: dict[str, Any]
    after: dict[str, Any]
    cpu: CpuSeconds
    waits: Waits
    server: Observed
    others: float
    seconds: float

    def __init__(self, cloud: LocalCloud) -> None:
        """Take a cloud that runs."""
        self._cloud = cloud
        self._daemon = cloud.state.daemon

    def __enter__(self) -> Self:
        """Read what has been used so far."""
        self.before = self._cloud.status()
        self._log = ConnectionLog.of(self._cloud)
        self._used = Usage.of(self.before, self._daemon)
        self._busy, self._own = busy_seconds(), own_seconds()
        self._began, self._clock = time.time(), time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Read again, and tell the differences."""
        if error is not None:
            return
        self.seconds = time.monotonic() - self._clock
        busy, own = busy_seconds() - self._busy, own_seconds() - self._own
        ended = time.time()
        self.after = self._cloud.status()
        used = Usage.of(self.after, self._daemon)
        self.cpu = used.cpu.since(self._used.cpu, load=own)
        self.waits = used.waited_since(self._used)
        self.server = self._log.observed(self._began, ended)
        self.others = others_share(busy, self.cpu.total, self.seconds)


def others_share(busy: float, ours: float, seconds: float) -> float:
    """Return the share of all processors that others had in so many seconds.

    `busy` and `ours` are processor seconds of all programs and of the measured ones.
    """
    processors = os.cpu_count() or 1
    return round(min(max((busy - ours) / (processors * seconds), 0.0), 1.0), 3)
