"""Watch the connections of PostgreSQL and of PgBouncer while a benchmark goes on.

The sampler is a process of its own and comes before all others where it may: in a program that
sends a thousand requests it would be late. Backends are counted by PostgreSQL; clients of the
pooler by the kernel, as PgBouncer's console answers only between two logins. It connects before
the load does, and gets its addresses on standard input.
"""

import itertools
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg

ROOT: Final = Path(__file__).resolve().parents[2]
INTERVAL: Final = 0.025
"""Seconds of rest between two samples: one takes up to 5 ms."""

PERIOD: Final = 0.1
"""Seconds of the time series that are kept as one number, their peak."""

BACKENDS: Final = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)

# The kernel's interface: sock_diag(7) and netlink(7).
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_ORDER: Final = struct.Struct("=BBHIH46s")  # inet_diag_req_v2; the rest of its id is a wildcard
_ESTABLISHED: Final = 1 << 1
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_NETLINK_SOCK_DIAG: Final = 4
_ERROR, _DONE = 2, 3

Sample = tuple[float, int]
"""Seconds of the monotonic clock, and connections."""


@dataclass(frozen=True)
class Observed:
    """What was seen of one kind of connection; `series` is the peak of each PERIOD."""

    peak: int
    series: list[int]


def observe(samples: Sequence[Sample], began: float, ended: float) -> Observed:
    """Thin samples out to the peak of each period between two moments."""
    series = [0] * (int((ended - began) / PERIOD) + 1)
    for at, count in samples:
        period = min(max(int((at - began) / PERIOD), 0), len(series) - 1)
        series[period] = max(series[period], count)
    return Observed(max(series), series)


def widest_gap(times: Sequence[float], began: float, ended: float) -> float:
    """Return the longest time between two samples, the edges included."""
    edges = [began, *(at for at in times if began <= at <= ended), ended]
    return max(after - before for before, after in itertools.pairwise(edges))


class Sampler:
    """Sample while the `with` block runs; what was seen is there after it.

    `server` are server connections, all clients of the database included, `client` the pooler's
    client connections. `widest_gap_ms` is the longest time without a sample.
    """

    server: Observed
    client: Observed
    samples: int
    widest_gap_ms: float

    def __init__(self, status: dict[str, Any], *, clients_every: float = INTERVAL) -> None:
        """Take the addresses from a cloud's status and connect.

        `clients_every`: seconds between two counts of client connections, for which the kernel
        walks through all there are: among thousands that shows in what is measured.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.storm.sampler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        pooler = status["pooler"]
        tasks = [task["address"] for task in pooler["tasks"]]
        dsn = status["postgres"]["dsn"]
        self._send(
            {
                "database": dsn,
                "tasks": tasks,
                "port": pooler["port"],
                "clients_every": clients_every,
            }
        )
        self._receive()

    def __enter__(self) -> Self:
        """Begin."""
        self._began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; a sampler that failed on the way makes the run fail."""
        ended = time.monotonic()
        self._send({})
        found = self._receive()
        self._process.communicate()
        self.samples = len(found)
        times = [at for at, _, _ in found]
        self.widest_gap_ms = round(1000 * widest_gap(times, self._began, ended), 1)
        self.server = observe([(at, n) for at, n, _ in found], self._began, ended)
        self.client = observe([(at, n) for at, _, n in found], self._began, ended)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            raise RuntimeError("the sampler has ended: it could not ask the database or the kernel")
        return json.loads(line)


def established(addresses: Collection[str], port: int) -> int:
    """Ask the kernel for the TCP connections at a port of some addresses (sock_diag(7))."""
    order = _ORDER.pack(
        socket.AF_INET, socket.IPPROTO_TCP, 0, _ESTABLISHED, socket.htons(port), b""
    )
    header = _HEADER.pack(_HEADER.size + len(order), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    wanted = {socket.inet_aton(address) for address in addresses}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(header + order)
        found = 0
        while True:
            for kind, body in _messages(kernel.recv(1 << 18)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise OSError(f"the kernel does not list its connections: {body!r}")
                found += body[8:12] in wanted


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def main() -> int:
    """Sample until the second line comes."""
    order = json.loads(sys.stdin.readline())
    with psycopg.connect(order["database"], autocommit=True, prepare_threshold=0) as connection:
        _hurry(os.getpid(), connection.info.backend_pid)
        samples: list[tuple[float, int, int]] = []
        clients, due = 0, 0.0
        print(json.dumps({}), flush=True)
        while not _told_to_stop(INTERVAL):
            at = time.monotonic()
            row = connection.execute(BACKENDS).fetchone()
            if at >= due:
                clients = established(order["tasks"], order["port"])
                due = at + order["clients_every"] - INTERVAL / 2
            samples.append((at, row[0] if row else 0, clients))
    print(json.dumps(samples), flush=True)
    return 0


def _hurry(*pids: int) -> None:
    """Let the sampler and the backend that answers it come first, where root allows that."""
    with suppress(PermissionError):
        for pid in pids:
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))


def _told_to_stop(seconds: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable)


if __name__ == "__main__":
    sys.exit(main())
