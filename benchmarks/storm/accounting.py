"""The exact processor time of a local cloud's processes, and how long they wait for a processor.

The kernel counts each process's processor time in nanoseconds. `/proc/PID/stat` rounds it down to
ticks of 10 ms, twice: of 500 environments with 20 ms each, half would be lost.
"""

import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

import psutil

BOOTSTRAP: Final = "bootstrap.py"
"""The program of every execution environment, and of the template that it was forked from."""

MODULES: Final = {
    "lambda_pg_cdk.local.control_plane": "control_plane",
    "lambda_pg_cdk.local.pooler_service.balancer": "balancer",
    "local.control_plane": "control_plane",
    "local.pooler_service.balancer": "balancer",
}
"""Module of a child of the cloud's daemon → part; each is one process. The last two are the names
in the older checkout that whole_request.py measures."""

SIMULATOR: Final = ("daemon", "control_plane", "balancer", "load")
"""Parts that exist only because the cloud is local."""


@dataclass(frozen=True)
class CpuSeconds:
    """User and system seconds of each part of a storm.

    `pgbouncer`: of all tasks, without their supervisors; `functions`: of all environments;
    `daemon`: the API's front end and the Runtime API; `load`: what sends the requests.
    """

    functions: float
    pgbouncer: float
    postgresql: float
    daemon: float
    control_plane: float
    balancer: float
    load: float

    def since(self, before: Self, load: float) -> "CpuSeconds":
        """Return the difference, with `load` as measured around the load itself.

        The load's process also reads the others, for 0.1 s in a storm of 150; that is not load.
        """
        used = {
            each.name: round(getattr(self, each.name) - getattr(before, each.name), 4)
            for each in fields(self)
        }
        return CpuSeconds(**used | {"load": round(load, 4)})

    @property
    def total(self) -> float:
        """The seconds of all parts."""
        return float(sum(asdict(self).values()))


def simulator_seconds(cpu: Mapping[str, float]) -> float:
    """Return what a local cloud uses in addition to functions, pooler and database."""
    return sum(cpu[part] for part in SIMULATOR)


@dataclass(frozen=True)
class Usage:
    """The processor time and waits of a cloud's processes up to a moment.

    `cpu` has no load yet: the process that reads is the one that sends it. `waits`: seconds in the
    run queue, by process id. The wait of an ended environment is unknown; its processor time is
    known.
    """

    cpu: CpuSeconds
    waits: Mapping[int, float]
    environments: frozenset[int]

    @classmethod
    def of(cls, status: dict[str, Any], daemon: int) -> Self:
        """Read the processes of a cloud; `status` is its status, `daemon` a process id."""
        root = psutil.Process(daemon)
        parts: dict[str, float] = dict.fromkeys(MODULES.values(), 0.0)
        waits = {daemon: run_queue_seconds(daemon)}
        environments: set[int] = set()
        functions = _ended(root)  # of its children only cold environments end during a storm
        for child in root.children():
            command = _command(child)
            if any(word.endswith(BOOTSTRAP) for word in command):
                family = [child, *child.children(recursive=True)]
                functions += sum(seconds_of(one.pid) + _ended(one) for one in family)
                environments.update(one.pid for one in family)
            for part in filter(None, map(MODULES.get, command)):
                family = [child, *child.children(recursive=True)]
                parts[part] += sum(seconds_of(one.pid) for one in family)
                waits[child.pid] = run_queue_seconds(child.pid)
        poolers = [one.pid for one in _poolers(status)]
        waits |= {pid: run_queue_seconds(pid) for pid in [*poolers, *environments]}
        cpu = CpuSeconds(
            functions=functions,
            pgbouncer=sum(map(seconds_of, poolers)),
            postgresql=server_seconds(status["postgres"]["pid"]),
            daemon=seconds_of(daemon),
            load=0.0,
            **parts,
        )
        return cls(cpu, waits, frozenset(environments))

    def waited_since(self, before: Self) -> "Waits":
        """Return how long processes have waited for a processor since then."""
        waited = {pid: each - before.waits.get(pid, 0.0) for pid, each in self.waits.items()}
        of_environments = [waited[pid] for pid in self.environments]
        of_servers = [each for pid, each in waited.items() if pid not in self.environments]
        mean = round(statistics.mean(of_environments), 3) if of_environments else None
        return Waits(mean, round(max(of_servers, default=0.0), 3))


@dataclass(frozen=True)
class Waits:
    """Seconds in the run queue: the mean of the environments, and the most of a server.

    `environment` is None if no environment is left: those that time out are ended.
    """

    environment: float | None
    server: float


def seconds_of(pid: int) -> float:
    """Return the processor seconds of one process, 0 if it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of a process: posix-timers.h
    except OSError:
        return 0.0


def server_seconds(postmaster: int) -> float:
    """Return the processor seconds of the postmaster and all backends, ended ones included."""
    server = psutil.Process(postmaster)
    running = sum(seconds_of(child.pid) for child in server.children())
    return seconds_of(postmaster) + _ended(server) + running


def own_seconds() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run_queue_seconds(pid: int) -> float:
    """Return how long the main thread of a process was ready to run and had no processor.

    0 if it has ended, or if the kernel does not count it (CONFIG_SCHED_INFO).
    """
    return _run_queue_seconds(Path(f"/proc/{pid}/schedstat"))


def run_queue_seconds_of_threads(pid: int) -> float:
    """Return the same for all threads of a process together."""
    return sum(map(_run_queue_seconds, Path(f"/proc/{pid}/task").glob("*/schedstat")))


def _run_queue_seconds(statistics_of: Path) -> float:
    try:
        _, waited, _ = statistics_of.read_text().split()
    except (OSError, ValueError):
        return 0.0
    return int(waited) / 1e9


def busy_seconds() -> float:
    """Return the seconds that this machine's processors were busy, or stolen by a hypervisor."""
    times = psutil.cpu_times()
    return float(sum(times[:8])) - times.idle - getattr(times, "iowait", 0.0)


def _ended(process: psutil.Process) -> float:
    """Return the seconds of a process's ended children, which the kernel adds up."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.children_user + times.children_system)


def _poolers(status: dict[str, Any]) -> Iterator[psutil.Process]:
    for task in status["pooler"]["tasks"]:
        if task["pid"]:
            yield from psutil.Process(task["pid"]).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
