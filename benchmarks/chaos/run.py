"""Chaos: faults under a steady load, and a ledger that shows whether anything was lost.

Each fault is a row: clients send reads, transfers and notes through the deployed API before,
during and after the fault. Then an audit compares the database with the answers of all clients. A
control without the layer must fail during outages. A random sequence of faults follows; its seed
is printed. Exit code 0 only if every goal was met.
"""

import argparse
import http.client
import json
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.chaos.crashes import Flush, crash_under_commits
from benchmarks.chaos.crashes import shortfalls as lost_in_crashes
from benchmarks.chaos.goals import Effects, Goal, Measures, columns, measure, misses
from benchmarks.chaos.ledger import WRONG, Request, audit, open_books, read_books
from benchmarks.chaos.steady import Client, Load
from benchmarks.conclusion import conclude
from benchmarks.machine import machine, packages_in_a_function
from benchmarks.servers import versions
from benchmarks.storm.connections import ConnectionLog, most_within
from benchmarks.storm.run import SHARED_MACHINE
from benchmarks.tables import chaos_table, for_terminal
from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.faults import catalogue as faults
from lambda_pg_cdk.local.faults.catalogue import FAULTS, Fault
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.paths import another_state_dir

Report = Callable[[str], None]
Wait = Callable[[], None]
"""Waits for the extra load to end."""

CHECKOUT_TIMEOUT: Final = 3
CLIENTS: Final = 12
CONTROLS: Final = 8
REST: Final = 0.12
ENVIRONMENTS: Final = 24
CALM: Final = 1.5
"""Seconds of load before a fault."""
AFTER: Final = 4.0
"""Seconds of load after a fault."""
REPEATED: Final = 5
"""Acknowledged transfers that are repeated with their keys at the end of a row."""
HERD: Final = 200
HERD_CLIENTS: Final = 60
SECONDS_BETWEEN: Final = 1.5
"""Seconds between two faults of the random sequence."""
LONGEST_DRAWN: Final = 4.0
COMMITS: Final[dict[Flush, int]] = {"default": 1500, "delayed": 150}
"""Commits before each crash of the server."""
MOST_SECONDS: Final = 600.0
"""Longest run, including the start of the cloud."""

SETTINGS: Final[dict[str, Any]] = {
    "functions": {"checkout_timeout": CHECKOUT_TIMEOUT, "timeout": 25},
    "database": {"max_connections": 150},
    "pgbouncer": {"query_wait_timeout": 1, "max_db_connections": 20},
    "sql": {"enabled": False},
}
"""Queue and checkout timeouts are the product's; a storm's are longer. The function timeout is
longer, so that a function that was frozen for PgBouncer's idle_transaction_timeout can end. A user
has 10 server connections in each task: slow transfers leave some for the load."""

NO_MACHINE_CRASH: Final = (
    "PostgreSQL runs without fsync, except while it crashes under commits; no row crashes the "
    "machine"
)

SINGLE: Final[dict[str, Any]] = {
    **SETTINGS,
    "database": {**SETTINGS["database"], "rotation": "single"},
}

EVERY_ROW: Final = Goal()


@dataclass(frozen=True)
class Trial:
    """A row of the plan: a fault, its goal, and an extra load.

    `pause_load`: the load pauses during the fault, so that every connection is idle; the first
    request of each environment after the fault is a note. `extra_load` starts before the fault.
    `count_connects`: client connections are counted.
    """

    fault: Fault
    goal: Goal = EVERY_ROW
    pause_load: bool = False
    extra_load: Callable[[LocalCloud, Load], Wait] | None = None
    count_connects: bool = False


# Extra loads


def slow_transfers(cloud: LocalCloud, load: Load) -> Wait:
    """Begin transfers that pause for 2 s between their statements."""
    cloud.environments("ledger", ENVIRONMENTS)
    wait = load.begin(8, lambda client: client.transfer(pause=2.0))
    time.sleep(0.5)
    return wait


def herd(cloud: LocalCloud, load: Load) -> Wait:
    """Open a connection in each of hundreds of environments, then send requests to all of them."""
    step = 50
    for _ in range(HERD // step):  # the newest are taken first
        idle = len(cloud.processes("ledger")) - CLIENTS
        cloud.environments("ledger", idle + step)
        load.at_once(step, lambda client: client.transfer(pause=0.3))
    cloud.environments("ledger", 1, spread=True)  # from now on the one that was idle longest

    async def read_until_the_end(client: Client) -> None:
        until = client.now() + faults.POOLER_AWAY.seconds + AFTER
        while client.now() < until:
            await client.read(rest=1.0)

    return load.begin(HERD_CLIENTS, read_until_the_end)


# The plan

BLACKHOLE_LATE: Final = 3.0
"""Seconds until the layer closes a connection that loses packets (its tcp_user_timeout)."""

QUEUE_LATE: Final = 0.5
"""PgBouncer checks its queue three times a second, so a query_wait_timeout of 1 s can take a third
of a second longer. The last attempt may begin at the end of the checkout timeout."""

HUNG_LATE: Final = 5.0
"""Seconds until the supervisor has ended a PgBouncer that hangs. Until then a statement that it had
accepted has no answer."""

RESTARTS: Final = (faults.RESTARTED, faults.CRASHED)

SILENCE: Final = 0.8

CUT: Final = 3
"""New connections of functions that show that connections were cut. One or two can come by chance,
when more environments are busy at once than before; after a stall even five."""

ROTATED_ROW: Final = Goal(no_failures=True, least=Effects(new_clients=CUT, ended_backends=1))

GOALS: Final[dict[str, Goal]] = {
    "pooler-task-hangs": Goal(answer_late=HUNG_LATE, least=Effects(new_clients=CUT, replaced=1)),
    "pooler-replaced": Goal(no_failures=True, known=True, least=Effects(new_clients=CUT)),
    "backends-killed": Goal(least=Effects(ended_backends=1)),
    "postgres-restarted": Goal(least=Effects(restarted=1, ended_backends=1)),
    "postgres-crashed": Goal(crash=True, least=Effects(restarted=1, ended_backends=1)),
    "postgres-away": Goal(least=Effects(restarted=1)),
    "rotation": ROTATED_ROW,
    "pooler-reset": Goal(least=Effects(new_clients=CUT)),
    "answers-lost": Goal(least=Effects(new_clients=faults.RESETS)),
    "database-reset": Goal(least=Effects(ended_backends=1)),
    "secrets-slow": Goal(no_failures=True, known=True, least=Effects(faulted_calls=1)),
    "secrets-failing": Goal(known=True, least=Effects(faulted_calls=1)),
    "secrets-throttling": Goal(known=True, least=Effects(faulted_calls=1)),
    "pool-full": Goal(known=True),
    "pool-full-long": Goal(known=True, answer_late=QUEUE_LATE),
    "frozen-in-transaction": Goal(
        no_failures=True, known=True, held_up_fail=True, least=Effects(held_up=3)
    ),
    "pooler-blackhole": Goal(answer_late=BLACKHOLE_LATE),
}
SILENT: Final = {
    "pooler-away",
    "pooler-stall",
    "pooler-blackhole",
    "postgres-away",
    "database-stall",
    "database-blackhole",
    "pool-full",
    "pool-full-long",
}
"""Faults during which no request succeeds for at least `SILENCE` times their length."""
EXTRA_LOADS: Final = {"frozen-in-transaction": slow_transfers}
IDLE: Final = Trial(
    replace(faults.POOLER_RESET, name="idle-connections-lost", title="idle connections reset"),
    Goal(no_failures=True, known=True, least=Effects(new_clients=CUT)),
    pause_load=True,
)
ATTEMPTS: Final = 8
"""Connects of one client in one second. The layer pauses 25, 50, 100, 200 and then 250 ms on
average, so a request makes seven attempts in its first second and no more in any other."""
BUDGET: Final = 20
"""Server connections of both tasks in the stage `local`. When the tasks start, each connection is
opened at most once, however many clients connect."""
STAMPEDE: Final = Trial(
    replace(
        faults.POOLER_AWAY,
        name="herd",
        title=f"no pooler for 4 s, all of {HERD} environments come back",
    ),
    Goal(
        gap=SILENCE * faults.POOLER_AWAY.seconds,
        least=Effects(back=HERD),
        client_connects=ATTEMPTS * (HERD_CLIENTS + CLIENTS),
        server_connects=BUDGET,
    ),
    extra_load=herd,
    count_connects=True,
)
ROTATION_SINGLE: Final = Trial(
    replace(faults.ROTATED, name="rotation-single", title="the same, with a single user"),
    ROTATED_ROW,
)


def trial(fault: Fault) -> Trial:
    """Return the row of a fault."""
    gap = SILENCE * fault.seconds if fault.name in SILENT else 0.0
    goal = replace(GOALS.get(fault.name, EVERY_ROW), gap=gap)
    return Trial(fault, goal, extra_load=EXTRA_LOADS.get(fault.name))


def plan() -> list[Trial]:
    """List the rows that run without the control."""
    controlled = (*RESTARTS, faults.OUTAGE)
    return [*(trial(fault) for fault in FAULTS if fault not in controlled), IDLE, STAMPEDE]


# A row


class Chaos:
    """Runs rows on a running cloud."""

    def __init__(self, cloud: LocalCloud, report: Report) -> None:
        """Take a cloud that was started with `options()`."""
        self._cloud = cloud
        self._report = report
        self._dsn = cloud.status()["postgres"]["dsn"]
        self._token = cloud.token(str(uuid.uuid4()), seconds=7200)

    def run(self, trial: Trial) -> dict[str, Any]:
        """Run one row; return its measures, its goal and what it missed."""
        fault = trial.fault
        measures = self._measured(trial, lambda: fault.run(self._cloud))
        if trial.extra_load is herd:
            self._cloud.end_environments("ledger")  # so many leave no room for others
        return self._summary(fault.name, fault.title, trial.goal, measures)

    def sequence(self, seed: int, count: int) -> dict[str, Any]:
        """Draw faults by a seed and run them one after the other, in one row."""
        drawn = draw(seed, count)
        self._report(f"random sequence, seed {seed}: {', '.join(fault.name for fault in drawn)}")

        def run() -> None:
            for fault in drawn:
                fault.run(self._cloud)
                time.sleep(SECONDS_BETWEEN)

        name, title = "random", f"{count} faults drawn by seed {seed}"
        goal = Goal(no_failures=True, crash=faults.CRASHED in drawn)
        measures = self._measured(Trial(Fault(name, title, 0, lambda _: nullcontext())), run)
        return {**self._summary(name, title, goal, measures), "faults": [f.name for f in drawn]}

    def _measured(self, trial: Trial, run: Callable[[], None]) -> Measures:
        open_books(self._dsn)
        self._cloud.environments("ledger", ENVIRONMENTS)
        load = self._load(CLIENTS)
        connects, logins = Connects(self._cloud), ConnectionLog.of(self._cloud)
        pause = load.paused() if trial.pause_load else nullcontext()
        with load.running():
            time.sleep(CALM)
            wait = trial.extra_load(self._cloud, load) if trial.extra_load else None
            with pause, connects.counted(trial.count_connects):
                before = Servers.seen(self._cloud)
                began = load.now()
                run()
                ended = load.now()
                load.at_once(ENVIRONMENTS if trial.pause_load else 0, Client.note)
                time.sleep(AFTER if trial.count_connects else 0)
            time.sleep(0 if trial.count_connects else AFTER)
            end = load.now()
            after = Servers.seen(self._cloud)
            back = client_connections(self._cloud) if trial.count_connects else 0
            if wait is not None:
                wait()
        fault, planned = (began, ended), trial.fault.seconds
        measures = self._audited(load.requests, fault=fault, end=end, planned=planned)
        return replace(
            measures,
            effects=replace(measures.effects, back=back, **after.changes_since(before)),
            client_connects=connects.most(),
            server_connects=most_within(logins.logins(), 1.0),
        )

    def _load(self, clients: int) -> Load:
        return Load(self._cloud.url, self._token, clients=clients, rest=REST)

    def _audited(
        self, requests: list[Request], *, fault: tuple[float, float], end: float, planned: float
    ) -> Measures:
        """Audit before and after the repeats, and report the larger count of each finding."""
        findings = audit(requests, read_books(self._dsn))
        repeats = self._repeat(requests, fault[0])
        again = audit([*requests, *repeats], read_books(self._dsn))
        wrong = {name: max(getattr(findings, name), getattr(again, name)) for name in WRONG}
        found = replace(findings, **wrong)
        return measure(requests, found, fault=fault, end=end, planned=planned, repeats=repeats)

    def _repeat(self, requests: list[Request], began: float) -> list[Request]:
        """Repeat transfers of unknown outcome with their keys, and a few acknowledged ones.

        The latter are the first that were acknowledged after the fault began.
        """
        transfers = [request for request in requests if request.kind == "transfer"]
        keys = [r.key for r in transfers if r.outcome in {"unknown", "no answer"}]
        done = [r for r in transfers if r.outcome == "done" and r.ended >= began]
        keys += [r.key for r in sorted(done, key=lambda each: each.ended)[:REPEATED]]
        load = self._load(clients=0)
        with load.running():
            for key in keys:
                load.at_once(1, partial(_transfer, key=key))
        return load.requests

    def _summary(self, name: str, title: str, goal: Goal, row: Measures) -> dict[str, Any]:
        missed = misses(row, goal, CHECKOUT_TIMEOUT)
        answers, findings = row.answers, row.findings
        failed = answers.failed_reads + answers.failed_writes + answers.failed_notes
        self._report(
            f"{name}: {answers.requests} requests, {failed} failed, {answers.unknown_notes} notes "
            f"of unknown outcome, {findings.lost} lost, {findings.duplicated} duplicated, longest "
            f"gap {row.times.longest_gap:.1f} s"
        )
        for promise in missed:
            self._report(f"{name}: MISSED {promise}")
        return {
            "name": name,
            "title": title,
            **{key: _rounded(value) for key, value in columns(row).items()},
            "goal": columns(goal),
            "missed": missed,
        }


async def _transfer(client: Client, key: str) -> None:
    await client.transfer(key)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def draw(seed: int, count: int) -> list[Fault]:
    """Draw short faults, each at most once."""
    short = [fault for fault in FAULTS if fault.seconds < LONGEST_DRAWN]
    return random.Random(seed).sample(short, count)  # noqa: S311 - it draws faults


@dataclass(frozen=True)
class Servers:
    """What shows that a fault has happened.

    `started`: when PostgreSQL started. `backends`: process ids of the application's backends.
    `clients`: the number of connections that functions have opened so far. `secrets`: the number
    of faulted calls of Secrets Manager so far. `tasks`: ids of the running pooler tasks.
    """

    started: datetime
    backends: frozenset[int]
    clients: int
    secrets: int
    tasks: frozenset[str]

    @classmethod
    def seen(cls, cloud: LocalCloud) -> "Servers":
        """Read the current state of a cloud."""
        query = (
            "SELECT pg_postmaster_start_time(), array(SELECT pid FROM pg_stat_activity"
            " WHERE usename LIKE 'lambda_pg_user%')"
        )
        status = cloud.status()
        with psycopg.connect(status["postgres"]["dsn"], autocommit=True) as admin:
            ((started, backends),) = admin.execute(query).fetchall()
        tasks = {task["id"] for task in status["pooler"]["tasks"] if task["state"] == "RUNNING"}
        traffic = cloud.traffic()
        return cls(
            started, frozenset(backends), traffic["pooler"], traffic["secrets"], frozenset(tasks)
        )

    def changes_since(self, before: "Servers") -> dict[str, int]:
        """Return the fields of Effects that have changed since then."""
        return {
            "new_clients": self.clients - before.clients,
            "ended_backends": len(before.backends - self.backends),
            "restarted": int(before.started != self.started),
            "replaced": len(self.tasks - before.tasks),
            "faulted_calls": self.secrets - before.secrets,
        }


def client_connections(cloud: LocalCloud) -> int:
    """Count the client connections of all pooler tasks, except those to their admin consoles."""
    count = 0
    for task in cloud.status()["pooler"]["tasks"]:
        dsn = task["admin_dsn"]
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as console:
            rows = console.execute("SHOW CLIENTS").fetchall()
        count += sum("app" in row for row in rows)
    return count


class Connects:
    """Counts new client connections to the pooler: reads the wire's counter ten times a second."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Take a cloud with wires."""
        self._cloud = cloud
        self._samples: list[tuple[float, int]] = []
        self._stop = threading.Event()

    @contextmanager
    def counted(self, wanted: bool) -> Iterator[None]:
        """Count until the block ends, if `wanted`; the last read comes after the end."""
        if not wanted:
            yield
            return
        self._look()
        with ThreadPoolExecutor(1, "connects") as executor:
            counting = executor.submit(self._run)
            try:
                yield
            finally:
                self._stop.set()
            counting.result()  # raises the error that ended it
        self._look()

    def most(self) -> int:
        """Return the most connections within a second; between two reads it may be too high."""
        counts, found = self._samples, 0
        for place, (at, count) in enumerate(counts):
            later = next((n for then, n in counts[place:] if then >= at + 1.0), counts[-1][1])
            found = max(found, later - count)
        return found

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self._look()

    def _look(self) -> None:
        count = self._cloud.traffic()["pooler"]
        self._samples.append((time.monotonic(), count))


# The control


@contextmanager
def control(cloud: LocalCloud) -> Iterator[list[int]]:
    """Read through the function without layer and pooler until the block ends.

    Yields the statuses of its answers; the status of a request without an answer is 0.
    """
    token = cloud.token(str(uuid.uuid4()))
    user = json.loads(call(cloud.url, "POST", "/users", token, {"name": "Ada"}).body)
    cloud.environments("baseline", CONTROLS)
    statuses: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(REST):
            try:
                answer = call(cloud.url, "GET", f"/baseline/users/{user['id']}", token)
                statuses.append(answer.status)
            except (OSError, http.client.HTTPException):
                statuses.append(0)

    threads = [threading.Thread(target=read, name="control") for _ in range(CONTROLS)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for function in ("baseline", "users"):  # a fault of Secrets Manager would hit them too
            cloud.end_environments(function)


def failures(statuses: list[int]) -> int:
    """Count the failed requests of the control."""
    return sum(status != 200 for status in statuses)


# The whole run


def run(cloud: LocalCloud, seed: int, count: int, report: Report, command: str) -> dict[str, Any]:
    """Run the whole plan on a cloud that was started with `options()`; return the result."""
    chaos = Chaos(cloud, report)
    rows = []
    with control(cloud) as restarts:
        rows += [chaos.run(trial(each)) for each in RESTARTS]
    with control(cloud) as outage:
        rows.append(chaos.run(trial(faults.OUTAGE)))
    rows += [chaos.run(each) for each in plan()]
    rows.append(chaos.sequence(seed, count))
    report("deploying the other strategy of rotation")
    cloud.deploy(override=SINGLE)
    rows.append(Chaos(cloud, report).run(ROTATION_SINGLE))
    status = cloud.status()
    servers = versions(status["postgres"]["dsn"], status["pooler"]["admin_dsn"])
    return {
        "machine": machine(),
        "versions": {**packages_in_a_function(), **servers},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "caveats": [SHARED_MACHINE, NO_MACHINE_CRASH],
        "seed": seed,
        "checkout_timeout": CHECKOUT_TIMEOUT,
        "environments": ENVIRONMENTS,
        "clients": CLIENTS,
        "control": {
            "name": "a connection per request, straight to PostgreSQL, "
            "while it is restarted twice and away for 10 s",
            "requests": len(restarts) + len(outage),
            "failed": failures(restarts) + failures(outage),
            "during": {"two restarts": failures(restarts), "the outage": failures(outage)},
        },
        "rows": rows,
    }


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    broken = [f"{row['name']}: {promise}" for row in result["rows"] for promise in row["missed"]]
    broken += lost_in_crashes(result["crashes"])
    broken += [
        f"the control did not fail during {what}: the faults prove nothing"
        for what, failed in result["control"]["during"].items()
        if not failed
    ]
    if result["seconds"] > MOST_SECONDS:
        broken.append(f"the run took {result['seconds']:.0f} s; the limit is {MOST_SECONDS:.0f} s")
    return broken


def options() -> Options:
    """Return the options of a cloud for chaos."""
    return Options(bound=True, entry="benchmarks.app", override=SETTINGS, wires=True)


def main() -> int:
    """Run the plan on a new cloud; exit code 0 only if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of the random sequence; drawn if omitted")
    parser.add_argument("--count", type=int, default=5, help="faults in the random sequence")
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    arguments = parser.parse_args()
    seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    narrator, began = Narrator(), time.monotonic()
    narrator.note(f"seed {seed}")
    with LocalCloud(another_state_dir(), options(), report=narrator) as cloud:
        result = run(cloud, seed, arguments.count, narrator.note, f"make chaos (seed {seed})")
    result["crashes"] = [
        row
        for flush, commits in COMMITS.items()
        for row in crash_under_commits(flush, crashes=1, commits=commits, report=narrator.note)[0]
    ]
    result["seconds"] = round(time.monotonic() - began, 1)
    if arguments.output:
        arguments.output.write_text(json.dumps(result) + "\n")
    print(f"\n{for_terminal(chaos_table(result))}\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
