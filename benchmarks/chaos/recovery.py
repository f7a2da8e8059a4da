"""Recovery from an overload: a whole fleet logs in at once, at a pooler with a share of a core.

PgBouncer is killed, its clients keep sending requests, and it restarts with a quota of processor
time. Clients reach it through the local cloud's load balancer as soon as its task is healthy. The
recovery lasts from then until every environment is served. `naive` is the control: it discards the
logins that a request has no time to finish, as connection pools do, and must fail the goal.

An environment is a thread with a Database, in one of a few processes: a thread costs a fiftieth of
a forked environment. All use one password from the settings, so that only the pooler can delay
them. Clients have a low priority: they share the cores with the pooler, which on AWS has its own.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import psutil
from lambda_pg import Database, DatabaseUnavailableError, Settings, _attempts
from lambda_pg._connector import Connector
from psycopg.rows import TupleRow

from benchmarks.conclusion import conclude
from benchmarks.servers import DATABASE, ROOT, USER, Endpoint, Servers, cores, running
from benchmarks.storm.accounting import busy_seconds, run_queue_seconds_of_threads, seconds_of
from benchmarks.storm.goals import OTHERS, WAITED
from benchmarks.storm.meter import others_share
from lambda_pg_cdk.local import processes

Policy = Literal["kept", "naive"]

SHARE: Final = 0.25
"""PgBouncer's share of a core in the smallest task."""
PERIOD: Final = 0.1
"""Seconds in which it may use its share once, like the quota of a Linux container."""
LOOK_AT_QUOTA: Final = 0.002
"""Seconds between two checks of a quota that is nearly used."""
PROCESSES: Final = 4
NICENESS: Final = 10
"""The niceness of the clients' processes."""
CONTEXT: Final = multiprocessing.get_context("spawn")
REST: Final = 0.5
"""Seconds between two requests of an environment: 120 of them send 230 a second."""
MOST_A_SECOND: Final = 480
"""Requests per second of all environments: as many as a quarter of a core can serve."""
LOGINS: Final = 100
"""Logins that are measured to find the cost of one."""
CALM: Final = 1.0
"""Seconds of service before the fault."""
SERVED: Final = 3.0
"""Seconds without a failure after which a fleet has recovered."""
LOOK: Final = 0.25
"""Seconds between two checks whether it has."""
LONGEST: Final = 120.0
"""Seconds that anything is waited for at most."""
GRACE: Final = 2.0
TIMES: Final = 2.0
"""The promise: all are served within GRACE seconds plus TIMES the seconds that their logins take
alone."""
SPARE: Final = 0.02
"""How far the pooler may exceed its share: its quota is checked every few milliseconds."""


@dataclass(frozen=True)
class Scenario:
    """A fleet, `away` seconds without a pooler, and the pooler's `share` of a core after them."""

    environments: int
    away: float = 12.0
    share: float = SHARE
    policy: Policy = "kept"


PLAN: Final = (
    Scenario(120, 6.0),
    Scenario(120),
    Scenario(240),
    Scenario(500),
    Scenario(1000),
    Scenario(1000, share=0.5),
    Scenario(1000, share=1.0),
    Scenario(1000, policy="naive"),
)
"""PgBouncer uses one core, so larger tasks are not faster. All environments log in within two
seconds. With half a core or more the pooler keeps up with them, so a control would not fail."""


# The slow pooler


class Balancer:
    """The local cloud's load balancer, as a process, with one pooler task as its target."""

    def __init__(self, target_port: int) -> None:
        """Start it without a target: it rejects connections."""
        self.port = processes.free_port()
        module = "lambda_pg_cdk.local.pooler_service.balancer"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(self.port), str(target_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def __enter__(self) -> Self:
        """Register the task."""
        self.register("127.0.0.1")
        return self

    def __exit__(self, *_: object) -> None:
        """End it and its connections."""
        self._process.communicate()

    def register(self, *addresses: str) -> None:
        """Send new connections to these addresses; reject them if there are none."""
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101 - both are pipes
        self._process.stdin.write(json.dumps({"registered": addresses}).encode() + b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


class Brake:
    """Limits a process to a share of a core, like the quota of a Linux container.

    The process is stopped when it has used its share of a period, until the next period. What it
    used too much is subtracted from the next period; what it did not use is not saved. The quota
    counts processor time, so a process that waited for a processor still gets its share.
    """

    def __init__(self, share: float) -> None:
        """Take the share of a core; slow no process yet."""
        self._quota = share * PERIOD
        self._process: psutil.Process | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="brake")

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; the process continues at full speed."""
        self._ends.set()
        self._thread.join()

    def slow(self, process: psutil.Process) -> None:
        """Slow this process from now on."""
        self._process = process

    def _run(self) -> None:
        left = 0.0
        while not self._ends.is_set():
            if self._process is None:
                time.sleep(PERIOD)
            else:
                left = self._spend(self._process, min(self._quota, left + self._quota))

    def _spend(self, process: psutil.Process, quota: float) -> float:
        """Run a process for a period, or until it has used a quota; return the unused quota."""
        began, ends = seconds_of(process.pid), time.monotonic() + PERIOD
        left = quota
        while left > 0 and (now := time.monotonic()) < ends:
            time.sleep(min(ends - now, max(left, LOOK_AT_QUOTA)))
            left = quota - (seconds_of(process.pid) - began)
        if left <= 0:
            self._send(process, signal.SIGSTOP)
            time.sleep(max(0.0, ends - time.monotonic()))
            self._send(process, signal.SIGCONT)
        return left

    @staticmethod
    def _send(process: psutil.Process, number: signal.Signals) -> None:
        with suppress(psutil.NoSuchProcess):  # it was killed on purpose
            process.send_signal(number)


def pgbouncer_of(servers: Servers) -> psutil.Process:
    """Return the supervisor's PgBouncer; wait for its start."""
    supervisor = psutil.Process(servers.pooler.pid)
    processes.wait_until(lambda: bool(supervisor.children()), 30, "the start of PgBouncer")
    return supervisor.children()[0]


def settings_of(endpoint: Endpoint, port: int) -> Settings:
    """Return the settings of a client that connects to the pooler or its balancer."""
    return Settings(
        host="127.0.0.1",
        port=port,
        dbname=DATABASE,
        user=USER,
        password=endpoint.password,
        profile="pgbouncer",
        sslrootcert=endpoint.ca_file,
    )


@dataclass(frozen=True)
class Login:
    """The processor seconds that PgBouncer and a client spend on one login."""

    pooler: float
    client: float

    def alone(self, count: int, share: float) -> float:
        """Return the seconds that so many logins take when nothing else runs.

        The pooler has its share of a core. On AWS each client has its own processor; here clients
        and pooler share the machine's cores, which is the limit where the pooler's share is large.
        """
        here = (self.pooler + self.client) / (psutil.cpu_count() or 1)
        return count * max(self.pooler / share, here)


def measure_login(servers: Servers) -> Login:
    """Measure logins one after the other."""
    pgbouncer = pgbouncer_of(servers)
    db = Database(settings_of(servers.pgbouncer, servers.pgbouncer.port))
    db.execute("SELECT 1")
    before, began = seconds_of(pgbouncer.pid), time.process_time()
    for _ in range(LOGINS):
        db.close()
        db.execute("SELECT 1")
    client = time.process_time() - began
    db.close()
    return Login((seconds_of(pgbouncer.pid) - before) / LOGINS, client / LOGINS)


# Environments


def discard_logins() -> None:
    """Change this process's layer: it discards each login that a request did not finish."""
    connect = Connector.connect

    def connect_and_discard(self: Connector, *arguments: Any) -> Any:
        try:
            return connect(self, *arguments)
        finally:
            self.close()

    Connector.connect = connect_and_discard  # type: ignore[method-assign,assignment]
    _attempts.MOST = 1  # type: ignore[misc]
    _attempts.UNCONNECTED = _attempts.UNANSWERED = LONGEST  # type: ignore[misc]


class Shared:
    """Memory that all processes share: the end of the run, and each environment's times.

    `served` and `failed` are the last times, `first` the first time served since `back`. Times are
    time.monotonic(), the same in all processes; 0 is never.
    """

    def __init__(self, count: int) -> None:
        """Take the number of environments."""
        self.ends = CONTEXT.Value("b", 0, lock=False)
        self.back = CONTEXT.Value("d", 0, lock=False)
        self.first = CONTEXT.Array("d", count, lock=False)
        self.served = CONTEXT.Array("d", count, lock=False)
        self.failed = CONTEXT.Array("d", count, lock=False)


def run_environments(
    policy: Policy, settings: Settings, numbers: Sequence[int], shared: Shared
) -> None:
    """Run environments until the end of the run."""
    if policy == "naive":
        discard_logins()
    os.nice(NICENESS)
    threading.stack_size(512 * 1024)
    with ThreadPoolExecutor(len(numbers)) as threads:
        for each in [
            threads.submit(run_environment, number, settings, shared) for number in numbers
        ]:
            each.result()


def run_environment(number: int, settings: Settings, shared: Shared) -> None:
    """Send one request after the other, as one environment."""
    db: Database[TupleRow] = Database(settings)
    while not shared.ends.value:
        try:
            db.execute("SELECT 1", idempotent=True)
        except DatabaseUnavailableError:
            shared.failed[number] = time.monotonic()
        else:
            shared.served[number] = time.monotonic()
            if shared.back.value and not shared.first[number]:
                shared.first[number] = shared.served[number]
        time.sleep(max(REST, len(shared.served) / MOST_A_SECOND))
    db.close()


@contextmanager
def fleet(scenario: Scenario, settings: Settings) -> Iterator[Shared]:
    """Run environments in a few processes; yield when all of them were served once."""
    count = scenario.environments
    shared = Shared(count)
    workers = [
        CONTEXT.Process(
            target=run_environments,
            args=(scenario.policy, settings, range(first, count, PROCESSES), shared),
            daemon=True,
        )
        for first in range(min(PROCESSES, count))
    ]
    for worker in workers:
        worker.start()
    try:
        processes.wait_until(lambda: all(shared.served), LONGEST, "the first answers")
        yield shared
    finally:
        shared.ends.value = 1
        for worker in workers:
            worker.join(10)
            worker.kill()


# Recovery


class Machine:
    """Measures the use of this machine's processors from now on."""

    def __init__(self, pgbouncer: psutil.Process) -> None:
        """Start counting."""
        self._pooler = pgbouncer.pid
        self._clients = [child.pid for child in multiprocessing.active_children() if child.pid]
        self._began = time.monotonic()
        self._used = seconds_of(self._pooler)
        self._waited = self._waits()
        self._ours, self._busy = _of_our_processes(), busy_seconds()

    def _waits(self) -> dict[int, float]:
        pids = (self._pooler, *self._clients)
        return {pid: run_queue_seconds_of_threads(pid) for pid in pids}

    def columns(self) -> dict[str, float]:
        """Return the columns of a row; each but `busy` is a share of the time, 0 to 1.

        `used`: PgBouncer's share of a core. `busy`: how many times longer its work took because it
        waited for a core. `waited`: how long it waited, or how long the threads of one client
        process waited together. `others`: other programs' share of all processors.
        """
        seconds = time.monotonic() - self._began
        used = seconds_of(self._pooler) - self._used
        waits = {pid: waits - self._waited[pid] for pid, waits in self._waits().items()}
        ours, busy = _of_our_processes() - self._ours, busy_seconds() - self._busy
        return {
            "used": round(used / seconds, 2),
            "busy": round(1 + waits[self._pooler] / used, 1) if used else 1.0,
            "waited": round(min(1.0, max(waits.values()) / seconds), 2),
            "others": others_share(busy, ours, seconds),
        }


def _of_our_processes() -> float:
    """Return the processor seconds of this process and of all that it has started."""
    family = psutil.Process().children(recursive=True)
    return sum(seconds_of(process.pid) for process in (psutil.Process(), *family))


def measure_recovery(servers: Servers, scenario: Scenario, login: Login) -> dict[str, Any]:
    """Stop the pooler, restart it with its share of a core, and measure the recovery.

    The columns are in seconds. `recovered` counts from the moment the task is healthy until every
    environment was served and none fails any more, `half` until half of them were served; None
    where that does not happen in time. `promised` is the limit: GRACE plus TIMES `logins_alone`.
    The other columns are Machine's.
    """
    alone = login.alone(scenario.environments, scenario.share)
    promised = GRACE + TIMES * alone
    with (
        Balancer(servers.pooler.port) as balancer,
        Brake(scenario.share) as brake,
        fleet(scenario, settings_of(servers.pgbouncer, balancer.port)) as shared,
    ):
        time.sleep(CALM)
        gone = stop_pooler(servers, balancer)
        pgbouncer = start_pooler(servers, brake, gone + scenario.away)
        machine = Machine(pgbouncer)
        balancer.register("127.0.0.1")
        back = shared.back.value = time.monotonic()
        columns, recovered = watch(shared, machine, back + min(LONGEST, promised) + SERVED)
        served = sorted(first - back for first in shared.first if first)
    half = scenario.environments // 2
    return {
        "policy": scenario.policy,
        "environments": scenario.environments,
        "away": round(back - gone, 1),
        "login_ms": round(login.pooler * 1000, 2),
        "client_ms": round(login.client * 1000, 2),
        "share": scenario.share,
        **columns,
        "logins_alone": round(alone, 1),
        "promised": round(promised, 1),
        "half": round(served[half], 1) if len(served) > half else None,
        "recovered": recovered,
        "never_served": scenario.environments - len(served),
    }


START_SECONDS: Final = 2.5
"""Seconds from the start of a task until it is healthy."""


def stop_pooler(servers: Servers, balancer: Balancer) -> float:
    """Deregister and kill the pooler; return when (time.monotonic())."""
    balancer.register()
    servers.pooler.kill()
    return time.monotonic()


def start_pooler(servers: Servers, brake: Brake, healthy_at: float) -> psutil.Process:
    """Start the pooler so that it is healthy at about this time, and slow it; return PgBouncer."""
    time.sleep(max(0.0, healthy_at - START_SECONDS - time.monotonic()))
    servers.pooler.launch()
    pgbouncer = pgbouncer_of(servers)
    brake.slow(pgbouncer)
    processes.wait_until(servers.pooler.answers, 30, "a healthy pooler")
    return pgbouncer


def watch(shared: Shared, machine: Machine, until: float) -> tuple[dict[str, float], float | None]:
    """Wait until the fleet has recovered; return the machine's columns and the seconds it took.

    The columns end when every environment was served once. The seconds are None after `until`.
    """
    columns = None
    while time.monotonic() < until:
        time.sleep(LOOK)
        if all(shared.first):
            columns = columns or machine.columns()
            last = max(*shared.first, *shared.failed)
            if time.monotonic() > last + SERVED:
                return columns, round(last - shared.back.value, 1)
    return columns or machine.columns(), None


def missed(row: dict[str, Any]) -> Iterator[str]:
    """Name the promises that a row breaks."""
    name = (
        f"{row['environments']} environments, {row['away']:.0f} s without a pooler, "
        f"{row['share']:g} of a core"
    )
    recovered, promised = row["recovered"], row["promised"]
    in_time = recovered is not None and recovered <= promised
    took = "not at all" if recovered is None else f"{recovered:.1f} s after the fault"
    if row["policy"] == "kept" and not in_time:
        yield f"{name}: recovered {took}; the limit is {promised:.1f} s"
    if row["policy"] == "naive" and in_time:
        yield f"{name}: the control, which discards logins, recovered too ({took})"
    if row["used"] > row["share"] + SPARE:
        yield f"{name}: PgBouncer used {row['used']:g} of a core: the row proves nothing"


def is_measurable(row: dict[str, Any]) -> bool:
    """Whether pooler and clients had enough processor time, by the rule of `make storm`."""
    return bool(row["others"] < OTHERS or row["waited"] < WAITED)


def verdicts(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the broken promises, and those that could not be measured on this machine."""
    broken = [each for row in rows if is_measurable(row) for each in missed(row)]
    unmeasured = [
        f"{each}; other programs used {row['others']:.0%} of the processors, and the pooler or "
        f"clients waited for one {row['waited']:.0%} of the time"
        for row in rows
        if not is_measurable(row)
        for each in missed(row)
    ]
    return broken, unmeasured


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Render rows for a terminal."""
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plan, or one scenario and its control; exit code 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--environments", type=int, help="one scenario instead of all")
    parser.add_argument("--away", type=float, default=12.0, help="its seconds without a pooler")
    parser.add_argument("--share", type=float, default=SHARE, help="PgBouncer's share of a core")
    parser.add_argument("--queue", default="1", help="the pooler's query_wait_timeout")
    parser.add_argument(
        "--policy",
        choices=("kept", "naive"),
        help="run only the layer as it is (kept), or the control (naive)",
    )
    options = parser.parse_args(arguments)
    plan: Sequence[Scenario] = PLAN
    if options.environments:
        chosen = Scenario(options.environments, options.away, options.share)
        plan = (chosen, replace(chosen, policy="naive"))
    rows = []
    with running(cores()[1], MAX_CLIENT_CONN="5000", QUERY_WAIT_TIMEOUT=options.queue) as servers:
        login = measure_login(servers)
        for scenario in plan:
            if options.policy in {None, scenario.policy}:
                rows.append(measure_recovery(servers, scenario, login))
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    broken, unmeasured = verdicts(rows)
    if options.output is not None:
        result = {"rows": rows, "missed": broken, "unmeasured": unmeasured}
        options.output.write_text(json.dumps(result) + "\n")
    return conclude(broken, unmeasured)


if __name__ == "__main__":
    os.environ.pop("PGHOST", None)
    sys.exit(main())
