"""The end of an overload: a whole fleet logs in at once, at a pooler with a quarter of a core.

PgBouncer is killed, its clients go on asking, it comes back slowed down by SIGSTOP and SIGCONT, and
the seconds are counted until every environment is served. `naive` is the control: it throws away
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
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil
from lambda_pg import Database, DatabaseUnavailableError, Settings, _attempts
from lambda_pg._connector import Connector
from psycopg.rows import TupleRow

from benchmarks.servers import DATABASE, USER, Endpoint, Servers, cores, running
from local import processes

Policy = Literal["kept", "naive"]

SHARE: Final = 0.25
"""Of a core, for PgBouncer: the stage `dev`."""
PERIOD: Final = 0.1
"""Seconds in which it runs once and rests once, as under Linux's quota for containers."""
PROCESSES: Final = 4
CONTEXT: Final = multiprocessing.get_context("spawn")
REST: Final = 0.05
"""Seconds between two requests of an environment."""
LOGINS: Final = 100
"""Logins that are measured for what one costs the pooler."""
CALM: Final = 1.0
"""Seconds of service before the fault."""
SERVED: Final = 3.0
"""Seconds without a failure after which an overload is over."""
LONGEST: Final = 60.0
"""Seconds after which it counts as one that does not end."""
GRACE: Final = 2.0
TIMES: Final = 2.0
"""The promise: all are served so many seconds after the fault, and so many times what their logins
take the pooler when nothing else is to be done."""

SCENARIOS: Final[tuple[tuple[int, float], ...]] = ((120, 6.0), (120, 12.0), (240, 12.0))
"""Environments, and seconds without a pooler."""


@dataclass(frozen=True)
class Answer:
    """One request: when it began and ended (time.monotonic(), the same in all processes)."""

    environment: int
    began: float
    ended: float
    served: bool


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


def listens(port: int) -> bool:
    """Tell whether a port takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def settings_of(endpoint: Endpoint) -> Settings:
    """Say where the pooler is."""
    return Settings(
        host="127.0.0.1",
        port=endpoint.port,
        dbname=DATABASE,
        user=USER,
        password=endpoint.password,
        profile="pgbouncer",
        sslrootcert=endpoint.ca_file,
    )


def login_cost(servers: Servers) -> float:
    """Measure the processor seconds that PgBouncer spends on one login."""
    pgbouncer = pgbouncer_of(servers)
    db = Database(settings_of(servers.pgbouncer))
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


def serve(
    policy: Policy,
    settings: Settings,
    numbers: Sequence[int],
    shared: "Shared",
    answers: "multiprocessing.Queue[list[Answer]]",
) -> None:
    """Run environments until told to stop; put their answers into the queue."""
    if policy == "naive":
        throw_away()
    threading.stack_size(512 * 1024)
    with ThreadPoolExecutor(len(numbers)) as threads:
        told = [threads.submit(ask, number, settings, shared) for number in numbers]
        answers.put([answer for each in told for answer in each.result()])


def ask(number: int, settings: Settings, shared: "Shared") -> list[Answer]:
    """Be one environment: one request after the other."""
    db: Database[TupleRow] = Database(settings)
    answers = []
    while not shared.ends.value:
        began = time.monotonic()
        try:
            db.execute("SELECT 1", idempotent=True)
        except DatabaseUnavailableError:
            served = False
        else:
            served = shared.served[number] = True
        answers.append(Answer(number, began, time.monotonic(), served))
        time.sleep(REST)
    db.close()
    return answers


class Shared:
    """What all processes see: whether it is over, and which environments were served."""

    def __init__(self, count: int) -> None:
        """Begin: nobody was served yet."""
        self.ends = CONTEXT.Value("b", 0, lock=False)
        self.served = CONTEXT.Array("b", count, lock=False)


@contextmanager
def fleet(policy: Policy, count: int, settings: Settings) -> Iterator[list[Answer]]:
    """Run environments in a few processes, all of them served once.

    The list has their answers after the block.
    """
    shared = Shared(count)
    answers: multiprocessing.Queue[list[Answer]] = CONTEXT.Queue()
    workers = [
        CONTEXT.Process(
            target=serve,
            args=(policy, settings, range(first, count, PROCESSES), shared, answers),
            daemon=True,
        )
        for first in range(min(PROCESSES, count))
    ]
    for worker in workers:
        worker.start()
    found: list[Answer] = []
    try:
        processes.wait_until(lambda: all(shared.served), LONGEST, "the first answers")
        yield found
        shared.ends.value = 1
        for _ in workers:
            found += answers.get(timeout=LONGEST)
    finally:
        for worker in workers:
            worker.terminate() if not found else worker.join()


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

    Times are seconds. `recovered` counts from the pooler's first listen to the end of the last
    request that failed, or to the last environment's first success; None where that did not happen
    within `LONGEST`.
    """
    cost = login_cost(servers) if cost is None else cost
    alone = environments * cost / share
    promised = GRACE + TIMES * alone
    wait = min(LONGEST, promised + SERVED)
    pooler = servers.pooler
    settings = settings_of(servers.pgbouncer)
    with Brake(share) as brake, fleet(policy, environments, settings) as answers:
        time.sleep(CALM)
        pooler.kill()
        gone = time.monotonic()
        time.sleep(max(0.0, away - START_SECONDS))
        pooler.launch()
        pgbouncer = pgbouncer_of(servers)
        brake.hold(pgbouncer)
        processes.wait_until(lambda: listens(pooler.port), 30, "the pooler's port")
        back = time.monotonic()
        before = sum(pgbouncer.cpu_times()[:2])
        time.sleep(wait)
        used = sum(pgbouncer.cpu_times()[:2]) - before
    brake.hold(None)
    processes.wait_until(pooler.answers, 30, "PgBouncer")
    return {
        "policy": policy,
        "environments": environments,
        "away": round(back - gone, 1),
        "login_ms": round(cost * 1000, 1),
        "share": share,
        "used_share": round(used / wait, 2),
        "logins_alone": round(alone, 1),
        "promised": round(promised, 1),
        **recovery(answers, environments, gone, back, back + wait),
    }


START_SECONDS: Final = 1.5
"""What a supervisor needs until PgBouncer listens: it is started so much before the end."""


def recovery(
    answers: Sequence[Answer], environments: int, gone: float, back: float, end: float
) -> dict[str, Any]:
    """Return what the answers say of an overload that began at `back` and was watched to `end`."""
    before = [each for each in answers if gone - 1 < each.ended < gone]
    first: dict[int, float] = {}
    for each in sorted(answers, key=lambda answer: answer.ended):
        if each.served and each.ended > back:
            first.setdefault(each.environment, each.ended)
    after = [each for each in answers if back < each.ended < end]
    failed = [each.ended for each in after if not each.served]
    last = max([*first.values(), *failed], default=back)
    over = len(first) == environments and last < end - SERVED / 2
    return {
        "served_before": len(before),
        "first": round(min(first.values(), default=end) - back, 1),
        "recovered": round(last - back, 1) if over else None,
        "never_served": environments - len(first),
        "failed_at_the_end": sum(ended > end - 1 for ended in failed),
        "served_at_the_end": sum(each.served and each.ended > end - 1 for each in after),
    }


def goals(result: dict[str, Any]) -> list[str]:
    """Return what a result of `main` did not hold, one sentence each."""
    missed = []
    for row in result["rows"]:
        name = f"{row['environments']} environments, {row['away']:.0f} s without a pooler"
        recovered = row["recovered"]
        in_time = recovered is not None and recovered <= row["promised"]
        took = "not" if recovered is None else f"{recovered:.1f} s after the fault"
        if row["policy"] == "kept" and not in_time:
            missed.append(f"{name}: recovered {took}; promised are {row['promised']:.1f} s")
    controls = [row for row in result["rows"] if row["policy"] == "naive"]
    if controls and all(
        row["recovered"] is not None and row["recovered"] <= row["promised"] for row in controls
    ):
        missed.append("the control, which throws logins away, recovered too: nothing is shown")
    return missed


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Render rows for a terminal."""
    names = [name for name in rows[0] if name != "share"]
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
    parser.add_argument("--policy", choices=("kept", "naive"), help="only this one")
    options = parser.parse_args(arguments)
    scenarios = [(options.environments, options.away)] if options.environments else SCENARIOS
    plan: list[tuple[Policy, int, float]] = [("kept", *scenario) for scenario in scenarios]
    plan.append(("naive", *scenarios[-1]))
    rows = []
    with running(cores()[1], MAX_CLIENT_CONN="5000", QUERY_WAIT_TIMEOUT="1") as servers:
        cost = login_cost(servers)
        for policy, environments, away in plan:
            if options.policy in {None, policy}:
                rows.append(measure_recovery(servers, environments, away, policy=policy, cost=cost))
                print(json.dumps(rows[-1]), flush=True)
        result = {"versions": servers.versions, "rows": rows}
    print(table(rows))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    missed = goals(result)
    for each in missed:
        print(f"missed: {each}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    os.environ.pop("PGHOST", None)
    sys.exit(main())
