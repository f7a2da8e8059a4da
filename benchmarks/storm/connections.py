"""Exact counts of server connections, from PostgreSQL's log.

A local PostgreSQL logs every connection (`log_connections`, `log_disconnections`). A connection
counts from its authorisation to its disconnection. One that is then rejected, because the remaining
slots are reserved, ends with a FATAL and logs no disconnection.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from lambda_pg_cdk.local.cloud import LocalCloud

PERIOD: Final = 0.1
"""Seconds of each point in the time series; a point is the peak of its period."""

_LINE: Final = re.compile(
    r"^(?P<time>\S+ \S+) UTC \[(?P<pid>\d+)\] .*?(?P<what>FATAL:  "
    r"|LOG:  connection authorized: |LOG:  disconnection: |LOG:  starting PostgreSQL"
    r"|LOG:  all server processes terminated)",
)

Change = tuple[float, int]
"""Seconds since the epoch, and the number of connections from then on."""


@dataclass(frozen=True)
class Observed:
    """Connections in a span of time; `series` is the peak of each PERIOD."""

    peak: int
    series: list[int]


class ConnectionLog:
    """PostgreSQL's log from now on."""

    def __init__(self, path: Path) -> None:
        """Remember where the log ends; earlier lines give the connections that are open."""
        self._path = path
        self._begin = path.stat().st_size

    @classmethod
    def of(cls, cloud: LocalCloud) -> Self:
        """Take the log of a running cloud."""
        return cls(cloud.folder / "postgres" / "postgres.log")

    def observed(self, began: float, ended: float) -> Observed:
        """Return the connections between two moments (seconds since the epoch)."""
        log = self._path.read_bytes()
        before = list(changes(_lines(log[: self._begin])))
        later = list(changes(_lines(log)))[len(before) :]
        return observe(before[-1][1] if before else 0, later, began, ended)

    def logins(self) -> list[float]:
        """Return when each new connection was authorised, in order."""
        log = self._path.read_bytes()[self._begin :]
        found = (_LINE.match(line) for line in _lines(log))
        return sorted(_moment(one) for one in found if one and "authorized" in one["what"])


def most_within(moments: Sequence[float], seconds: float) -> int:
    """Return the most of these sorted moments that lie within so many seconds."""
    return max(
        (bisect_right(moments, at + seconds) - place for place, at in enumerate(moments)), default=0
    )


def changes(lines: Iterable[str]) -> Iterator[Change]:
    """Follow a log from its first line; a server that starts or restarts has no connection."""
    open_now: set[str] = set()
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        if "authorized" in found["what"]:
            open_now.add(found["pid"])
        elif "starting" in found["what"] or "terminated" in found["what"]:
            open_now.clear()
        else:
            open_now.discard(found["pid"])
        yield _moment(found), len(open_now)


def observe(first: int, later: Sequence[Change], began: float, ended: float) -> Observed:
    """Return the peak of each period between two moments, starting with `first` connections.

    Lines of several processes may be a millisecond out of order; the order of the log counts.
    """
    series = [0] * (int((ended - began) / PERIOD) + 1)

    def period(at: float) -> int:
        return min(max(int((at - began) / PERIOD), 0), len(series) - 1)

    within = [(at, count) for at, count in later if at <= ended]
    steps = [(began, first), *within]
    ends = [*(at for at, _ in within), ended]
    for (at, count), until in zip(steps, ends, strict=True):
        for place in range(period(at), max(period(at), period(until)) + 1):
            series[place] = max(series[place], count)
    return Observed(max(series), series)


def _moment(found: re.Match[str]) -> float:
    return datetime.fromisoformat(f"{found['time']}+00:00").timestamp()


def _lines(log: bytes) -> list[str]:
    return log.decode(errors="replace").splitlines()
