"""The processor time that a local cloud's servers and functions have used."""

from dataclasses import dataclass
from typing import Any, Self

import psutil

BOOTSTRAP = "bootstrap.py"
"""What every execution environment runs, and the template that it was forked from."""


@dataclass(frozen=True)
class CpuSeconds:
    """User and system seconds of PostgreSQL, of all PgBouncer tasks and of all environments."""

    postgresql: float
    pgbouncer: float
    functions: float

    @classmethod
    def of(cls, status: dict[str, Any], daemon: int) -> Self:
        """Read what has been used up to now; environments that have ended are not in it."""
        supervisors = [task["pid"] for task in status["pooler"]["tasks"] if task["pid"]]
        return cls(
            postgresql=server_seconds(status["postgres"]["pid"]),
            pgbouncer=sum(map(_children_seconds, supervisors)),
            functions=_functions_seconds(daemon),
        )

    def since(self, before: Self) -> "CpuSeconds":
        """Return what has been used since then."""
        return CpuSeconds(
            round(self.postgresql - before.postgresql, 3),
            round(self.pgbouncer - before.pgbouncer, 3),
            round(self.functions - before.functions, 3),
        )


def server_seconds(postmaster: int) -> float:
    """Add up PostgreSQL: itself, the backends that have ended, and those that run."""
    server = psutil.Process(postmaster)
    times = server.cpu_times()
    own = times.user + times.system
    ended = times.children_user + times.children_system
    return own + ended + sum(map(seconds_of, server.children()))


def seconds_of(process: psutil.Process) -> float:
    """Return the seconds of one process, 0 where it has just ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _children_seconds(pid: int) -> float:
    return sum(map(seconds_of, psutil.Process(pid).children(recursive=True)))


def _functions_seconds(daemon: int) -> float:
    return sum(
        seconds_of(process)
        for process in psutil.Process(daemon).children(recursive=True)
        if _is_environment(process)
    )


def _is_environment(process: psutil.Process) -> bool:
    try:
        return any(part.endswith(BOOTSTRAP) for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False
