"""Reads a cloud's status, connections and processor time before and after a measurement."""

import os
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.storm.accounting import CpuSeconds, Usage, Waits, busy_seconds, own_seconds
from benchmarks.storm.connections import ConnectionLog, Observed
from lambda_pg_cdk.local.cloud import LocalCloud


@dataclass(frozen=True)
class Reading:
    """What a measurement used.

    `before` and `after` are the cloud's status, `server` the server connections, `others` the
    share of all processors that other programs used (0 to 1).
    """

    before: dict[str, Any]
    after: dict[str, Any]
    cpu: CpuSeconds
    waits: Waits
    server: Observed
    others: float
    seconds: float


class Meter:
    """Measures a cloud from now until `read`; nothing is read in between."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Take a running cloud; read what it has used so far."""
        self._cloud = cloud
        self._daemon = cloud.state.daemon
        self._status = cloud.status()
        self._log = ConnectionLog.of(cloud)
        self._used = Usage.of(self._status, self._daemon)
        self._busy, self._own = busy_seconds(), own_seconds()
        self._began, self._clock = time.time(), time.monotonic()

    def read(self) -> Reading:
        """Read again, and return the differences."""
        seconds = time.monotonic() - self._clock
        busy, own = busy_seconds() - self._busy, own_seconds() - self._own
        ended = time.time()
        after = self._cloud.status()
        used = Usage.of(after, self._daemon)
        cpu = used.cpu.since(self._used.cpu, load=own)
        return Reading(
            before=self._status,
            after=after,
            cpu=cpu,
            waits=used.waited_since(self._used),
            server=self._log.observed(self._began, ended),
            others=others_share(busy, cpu.total, seconds),
            seconds=seconds,
        )


def others_share(busy: float, ours: float, seconds: float) -> float:
    """Return the share of all processors that other programs used in so many seconds.

    `busy` and `ours` are processor seconds of all programs and of the measured ones.
    """
    processors = os.cpu_count() or 1
    return round(min(max((busy - ours) / (processors * seconds), 0.0), 1.0), 3)
