"""The end of an overload: a whole fleet logs in at once, at a pooler with a quarter of a core.

PgBouncer is killed, its clients go on asking, and it comes back slowed down by SIGSTOP and SIGCONT.
As behind a load balancer, clients reach it when its task is healthy; from then the seconds are
counted until every environment is served. `naive` is the control: it throws away
the logins that a request has no time to finish, as connection pools do, and has to fail the goal.

An environment is a thread with a Database, in one of a few processes: a thread costs a fiftieth of
a forked environment, and nothing here depends on what else an environment has. They are all of one
password, given in the settings, so that nothing but the pooler is in their way.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import psutil
from lambda_pg import Database, DatabaseUnavailableError, Settings, _attempts
from lambda_pg._connector import Connector
from psycopg.rows import TupleRow

from benchmarks.servers import DATABASE, USER, Endpoint, Servers, cores, running
from local import processes
from local.fault_proxy import FaultProxy

Policy = Literal["kept", "naive"]

SHARE: Final = 0.25
"""Of a core, for PgBouncer: the smallest task."""
PERIOD: Final = 0.1
"""Seconds in which it runs once and rests once, as under Linux's quota for containers."""
PROCESSES: Final = 4
CONTEXT: Final = multiprocessing.get_context("spawn")
REST: Final = 0.5
"""Seconds between two requests of an environment: 120 of them send 230 a second."""
MOST_A_SECOND: Final = 480
"""Requests of all environments: more than that a quarter of a core does not serve at its best."""
LOGINS: Final = 100
"""Logins that are measured for what one costs the pooler."""
CALM: Final = 1.0
"""Seconds of service before the fault."""
SERVED: Final = 3.0
"""Seconds without a failure after which an overload is over."""
LOOK: Final = 0.25
"""Seconds between two looks whether it is."""
LONGEST: Final = 120.0
"""Seconds after which nothing is waited for any more."""
GRACE: Final = 2.0
TIMES: Final = 2.0
"""The promise: all are served so many seconds after the fault, and so many times what their logins
take the pooler when nothing else is to be done."""

SCENARIOS: Final[tuple[tuple[int, float], ...]] = (
    (120, 6.0),
    (120, 12.0),
    (240, 12.0),
    (500, 12.0),
    (1000, 12.0),
)
"""Environments, and seconds without a pooler."""


# A slow pooler


class Brake:
    """Let a process run for a share of the time."""

    def __init__(self, share: float) -> None:
        """Hold nothing yet."""
        self._share = share
        self._held: psutil.Process | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="brake")

    def __enter__(self) -> "Brake":
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; the process runs on."""
        self._ends.set()
        self._thread.join()

    def hold(self, process: psutil.Process | None) -> None:
        """Slow this process from now on, or none."""
        self._held = process

    def _run(self) -> None:
        while not self._ends.is_set():
            held = self._held
            self._send(held, signal.SIGSTOP)
            time.sleep(PERIOD * (1 - self._share))
            self._send(held, signal.SIGCONT)
            time.sleep(PERIOD * self._share)

    @staticmethod
    def _send(process: psutil.Process | None, number: signal.Signals) -> None:
        try:
            if process is not None:
                process.send_signal(number)
        except psutil.NoSuchProcess:
            pass  # it was killed on purpose


def pgbouncer_of(servers: Servers) -> psutil.Process:
    """Wait for the supervisor's PgBouncer, and return it."""
    supervisor = psutil.Process(servers.pooler.pid)
    processes.wait_until(lambda: bool(supervisor.children()), 30, "the start of PgBouncer")
    return supervisor.children()[0]


def settings_of(endpoint: Endpoint, port: int) -> Settings:
    """Say where the pooler is, or what stands before it."""
    return Settings(
        host="127.0.0.1",
        port=port,
        dbname=DATABASE,
        user=USER,
        password=endpoint.password,
        profile="pgbouncer",
        sslrootcert=endpoint.ca_file,
    )


def login_cost(servers: Servers) -> float:
    """Measure the processor seconds that PgBouncer spends on one login."""
    pgbouncer = pgbouncer_of(servers)
    db = Database(settings_of(servers.pgbouncer, servers.pgbouncer.port))
    db.execute("SELECT 1")
    before = sum(pgbouncer.cpu_times()[:2])
    for _ in range(LOGINS):
        db.close()
        db.execute("SELECT 1")
    db.close()
    return (sum(pgbouncer.cpu_times()[:2]) - before) / LOGINS


# Environments


def throw_away() -> None:
    """Make the layer of this process one that keeps no login: one socket, one second, and again."""
    connect = Connector.connect

    def connect_and_forget(self: Connector, *arguments: Any) -> Any:
        try:
            return connect(self, *arguments)
        finally:
            self.close()

    Connector.connect = connect_and_forget  # type: ignore[method-assign,assignment]
    _attempts.MOST = 1  # type: ignore[misc]
    _attempts.UNCONNECTED = _attempts.UNANSWERED = LONGEST  # type: ignore[misc]


class Shared:
    """What all processes see: whether it is over, and when each environment was served and failed.

    Times are time.monotonic(), the same in all processes; 0 is never.
    """

    def __init__(self, count: int) -> None:
        """Begin: nobody was served yet."""
        self.ends = CONTEXT.Value("b", 0, lock=False)
        self.served = CONTEXT.Array("d", count, lock=False)
        self.failed = CONTEXT.Array("d", count, lock=False)


def serve(policy: Policy, settings: Settings, numbers: Sequence[int], shared: Shared) -> None:
    """Run environments until it is over."""
    if policy == "naive":
        throw_away()
    threading.stack_size(512 * 1024)
    with ThreadPoolExecutor(len(numbers)) as threads:
        for each in [threads.submit(ask, number, settings, shared) for number in numbers]:
            each.result()


def ask(number: int, settings: Settings, shared: Shared) -> None:
    """Be one environment: one request after the other."""
    db: Database[TupleRow] = Database(settings)
    while not shared.ends.value:
        try:
            db.execute("SELECT 1", idempotent=True)
        except DatabaseUnavailableError:
            shared.failed[number] = time.monotonic()
        else:
            shared.served[number] = time.monotonic()
        time.sleep(max(REST, len(shared.served) / MOST_A_SECOND))
    db.close()


@contextmanager
def fleet(policy: Policy, count: int, settings: Settings) -> Iterator[Shared]:
    """Run environments in a few processes, from when all of them were served once."""
    shared = Shared(count)
    workers = [
        CONTEXT.Process(
            target=serve,
            args=(policy, settings, range(first, count, PROCESSES), shared),
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


# What happens


def measure_recovery(
    servers: Servers,
    environments: int,
    away: float,
    *,
    policy: Policy = "kept",
    share: float = SHARE,
    cost: float | None = None,
) -> dict[str, Any]:
    """Take the pooler away for some seconds, bring it back slowed down, and measure the end.

    Times are seconds. `recovered` counts from when the task is healthy until every environment was
    served and none fails any more; None where that does not happen in time. `promised` is `GRACE`
    and `TIMES` the processor time of all logins at the pooler's share of a core, times `busy`: how
    much longer the pooler's work took because others use this machine, from the kernel's count of
    its waits for a processor.
    """
    cost = login_cost(servers) if cost is None else cost
    alone = environments * cost / share
    pooler = servers.pooler
    with (
        FaultProxy("127.0.0.1", pooler.port) as balancer,
        Brake(share) as brake,
        fleet(policy, environments, settings_of(servers.pgbouncer, balancer.port)) as shared,
    ):
        time.sleep(CALM)
        with balancer.refuse():
            balancer.reset()
            pooler.kill()
            gone = time.monotonic()
            time.sleep(max(0.0, away - START_SECONDS))
            pooler.launch()
            pgbouncer = pgbouncer_of(servers)
            brake.hold(pgbouncer)
            processes.wait_until(pooler.answers, 30, "a healthy pooler")
        back = time.monotonic()
        all_served, busy, promised = None, 1.0, GRACE + TIMES * alone
        while True:
            time.sleep(LOOK)
            now = time.monotonic()
            if all_served is None:
                busy = business(pgbouncer)
                promised = GRACE + TIMES * alone * busy
                if min(shared.served) > back:
                    all_served = now
            last = max(all_served or 0.0, *shared.failed)
            over = all_served is not None and now > last + SERVED
            if over or now > back + min(LONGEST, promised + SERVED):
                break
        used = sum(pgbouncer.cpu_times()[:2]) / (now - back)
        left = sum(served < back for served in shared.served)
    return {
        "policy": policy,
        "environments": environments,
        "away": round(back - gone, 1),
        "login_ms": round(cost * 1000, 1),
        "share": share,
        "busy": round(busy, 1),
        "used": round(used, 2),
        "logins_alone": round(alone, 1),
        "promised": round(promised, 1),
        "recovered": round(last - back, 1) if over else None,
        "never_served": left,
    }


START_SECONDS: Final = 2.5
"""What a task needs until it is healthy: it is started so much before the end."""


def business(process: psutil.Process) -> float:
    """Return how many times longer than on an idle machine the work of a process has taken."""
    waited = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
    used = sum(process.cpu_times()[:2])
    return 1 + waited / used if used else 1.0


def goals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the rows did not hold, one sentence each."""
    missed = []
    for row in rows:
        name = f"{row['environments']} environments, {row['away']:.0f} s without a pooler"
        recovered = row["recovered"]
        in_time = recovered is not None and recovered <= row["promised"]
        took = "not at all" if recovered is None else f"{recovered:.1f} s after the fault"
        if row["policy"] == "kept" and not in_time:
            missed.append(f"{name}: recovered {took}; promised are {row['promised']:.1f} s")
        if row["policy"] == "naive" and in_time:
            missed.append(f"{name}: the control, which throws logins away, recovered too ({took})")
    return missed


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
    """Run the scenarios, the control last; exit code 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="file for the result, as JSON")
    parser.add_argument("--environments", type=int, help="one scenario instead of all")
    parser.add_argument("--away", type=float, default=12.0, help="its seconds without a pooler")
    parser.add_argument("--share", type=float, default=SHARE, help="of a core, for PgBouncer")
    parser.add_argument("--queue", default="1", help="the pooler's query_wait_timeout")
    parser.add_argument("--policy", choices=("kept", "naive"), help="only this one")
    options = parser.parse_args(arguments)
    scenarios = [(options.environments, options.away)] if options.environments else SCENARIOS
    plan: list[tuple[Policy, int, float]] = [("kept", *scenario) for scenario in scenarios]
    plan.append(("naive", *scenarios[-1]))
    rows = []
    with running(cores()[1], MAX_CLIENT_CONN="5000", QUERY_WAIT_TIMEOUT=options.queue) as servers:
        cost = login_cost(servers)
        for policy, environments, away in plan:
            if options.policy in {None, policy}:
                rows.append(
                    measure_recovery(
                        servers, environments, away, policy=policy, share=options.share, cost=cost
                    )
                )
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    missed = goals(rows)
    if options.output is not None:
        options.output.write_text(json.dumps({"rows": rows, "missed": missed}) + "\n")
    for each in missed:
        print(f"missed: {each}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    os.environ.pop("PGHOST", None)
    sys.exit(main())
