"""Chaos: faults under a steady load, and a ledger that shows whether anything was lost.

One row for each fault: reads, transfers and notes through the deployed API while it comes and goes,
then an audit that compares the database with what every client was told. A control without the
layer has to fail meanwhile, and a random sequence from a printed seed follows. Exit code 0 only if
every goal held.
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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.chaos.crashes import Flush, crash_under_commits
from benchmarks.chaos.crashes import shortfalls as lost_in_crashes
from benchmarks.chaos.goals import Goal, Measures, measure, misses
from benchmarks.chaos.ledger import WRONG, Request, audit, open_books, read_books
from benchmarks.chaos.steady import Client, Load
from benchmarks.conclusion import conclude
from benchmarks.machine import machine, packages
from benchmarks.servers import versions
from benchmarks.storm.connections import ConnectionLog, most_within
from benchmarks.storm.run import RUNS_IN_A_FUNCTION, SHARED_MACHINE
from benchmarks.tables import chaos_table
from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.faults import catalogue as faults
from lambda_pg_cdk.local.faults.catalogue import FAULTS, Fault
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.paths import another_state_dir

Report = Callable[[str], None]
Wait = Callable[[], None]
"""Waits for the end of what clients have begun besides the load."""

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
"""Acknowledged transfers that are sent again with their keys at the end of a row."""
HERD: Final = 200
HERD_CLIENTS: Final = 60
SECONDS_BETWEEN: Final = 1.5
"""Rest between two faults of the random sequence."""
LONGEST_DRAWN: Final = 4.0
COMMITS: Final[dict[Flush, int]] = {"default": 1500, "delayed": 150}
"""Before each crash of the server under commits."""
MOST_SECONDS: Final = 600.0
"""Of the whole run, the cloud's start included."""

SETTINGS: Final[dict[str, Any]] = {
    "functions": {"checkout_timeout": CHECKOUT_TIMEOUT, "timeout": 25},
    "database": {"max_connections": 150},
    "pgbouncer": {"query_wait_timeout": 1, "max_db_connections": 20},
}
"""The product's own timeouts in the queue and at checkout: a storm's are longer. A function has
more time, as one that was frozen for PgBouncer's idle_transaction_timeout has to end. In a task a
user has 10 server connections, so that slow transfers leave some for the load."""

NO_MACHINE_CRASH: Final = (
    "PostgreSQL runs without fsync, but for the commits under its crashes; no row has a crash of "
    "the machine"
)

SINGLE: Final[dict[str, Any]] = {
    **SETTINGS,
    "database": {**SETTINGS["database"], "rotation": "single"},
}


EVERY_ROW: Final = Goal()


@dataclass(frozen=True)
class Trial:
    """A row of the plan: a fault, what is promised, and what clients do besides the load.

    `held`: the load rests while the fault happens, so that every connection is idle, and the first
    request of every environment after it is a note. `besides` is begun before the fault. `watched`:
    connections are counted.
    """

    fault: Fault
    goal: Goal = EVERY_ROW
    held: bool = False
    besides: Callable[[LocalCloud, Load], Wait] | None = None
    watched: bool = False


# What clients do besides


def slow_transfers(cloud: LocalCloud, load: Load) -> Wait:
    """Begin transfers that take 2 s between their statements."""
    cloud.environments("ledger", ENVIRONMENTS)
    wait = load.begin(8, lambda client: client.transfer(pause=2.0))
    time.sleep(0.5)
    return wait


def herd(cloud: LocalCloud, load: Load) -> Wait:
    """Have hundreds of environments hold a connection, then clients who ask all of them in turn."""
    step = 50
    for _ in range(HERD // step):  # the newest are taken first
        idle = len(cloud.processes("ledger")) - CLIENTS
        cloud.environments("ledger", idle + step)
        load.at_once(step, lambda client: client.transfer(pause=0.3))
    cloud.environments("ledger", 1, spread=True)  # from now on the longest idle serves

    async def patient(client: Client) -> None:
        until = client.now() + faults.POOLER_AWAY.seconds + AFTER
        while client.now() < until:
            await client.read(rest=1.0)

    return load.begin(HERD_CLIENTS, patient)


# The plan

BLACKHOLE_LATE: Final = 3.0
"""Seconds until the layer gives up a connection whose packets are lost (its tcp_user_timeout)."""

QUEUE_LATE: Final = 0.5
"""PgBouncer looks at its queue three times a second: a query_wait_timeout of 1 s takes a third more
at worst, and the last attempt may begin at the end of the checkout timeout."""

HUNG_LATE: Final = 5.0
"""Seconds until the supervisor has ended a PgBouncer that hangs: a statement that one had taken is
without an answer until then, and no client can tell whether it ran."""

RESTARTS: Final = (faults.RESTARTED, faults.CRASHED)

SILENCE: Final = 0.8

CUT: Final = 3
"""Functions' connections opened anew that show that connections were cut. One or two can come by
chance, when more environments are at work at once than before: after a stall even five."""

ROTATED_ROW: Final = Goal(nobody_fails=True, new_clients=CUT, ended_backends=1)

GOALS: Final[dict[str, Goal]] = {
    "pooler-task-hangs": Goal(answer_late=HUNG_LATE, new_clients=CUT, replaced=1),
    "pooler-replaced": Goal(nobody_fails=True, known=True, new_clients=CUT),
    "backends-killed": Goal(ended_backends=1),
    "postgres-restarted": Goal(restarted=1, ended_backends=1),
    "postgres-crashed": Goal(crash=True, restarted=1, ended_backends=1),
    "postgres-away": Goal(restarted=1),
    "rotation": ROTATED_ROW,
    "pooler-reset": Goal(new_clients=CUT),
    "answers-lost": Goal(new_clients=faults.RESETS),
    "database-reset": Goal(ended_backends=1),
    "secrets-slow": Goal(nobody_fails=True, known=True, struck=1),
    "secrets-failing": Goal(known=True, struck=1),
    "secrets-throttling": Goal(known=True, struck=1),
    "pool-full": Goal(known=True),
    "pool-full-long": Goal(known=True, answer_late=QUEUE_LATE),
    "frozen-in-transaction": Goal(nobody_fails=True, known=True, held_up=3),
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
"""Faults that leave nobody who serves: a row has to show a gap of `SILENCE` times their length."""
BESIDES: Final = {"frozen-in-transaction": slow_transfers}
IDLE: Final = Trial(
    replace(faults.POOLER_RESET, name="idle-connections-lost", title="idle connections reset"),
    Goal(nobody_fails=True, known=True, new_clients=CUT),
    held=True,
)
ATTEMPTS: Final = 8
"""Connects of one client in one second: the layer's pauses, 25, 50, 100, 200 and then 250 ms on
average, make seven attempts of a request's first second, and no second has more."""
BUDGET: Final = 20
"""Server connections of both tasks in the stage `local`: in the second in which the tasks start
again, each is opened once at most, however many clients come."""
STAMPEDE: Final = Trial(
    replace(
        faults.POOLER_AWAY,
        name="herd",
        title=f"no pooler for 4 s, all of {HERD} environments come back",
    ),
    Goal(
        gap=SILENCE * faults.POOLER_AWAY.seconds,
        back=HERD,
        client_connects=ATTEMPTS * (HERD_CLIENTS + CLIENTS),
        server_connects=BUDGET,
    ),
    besides=herd,
    watched=True,
)
ROTATION_SINGLE: Final = Trial(
    replace(faults.ROTATED, name="rotation-single", title="the same, with a single user"),
    ROTATED_ROW,
)


def trial(fault: Fault) -> Trial:
    """Return a fault's row."""
    gap = SILENCE * fault.seconds if fault.name in SILENT else 0.0
    goal = replace(GOALS.get(fault.name, EVERY_ROW), gap=gap)
    return Trial(fault, goal, besides=BESIDES.get(fault.name))


def plan() -> list[Trial]:
    """Lay out the rows that follow those with the control beside them."""
    controlled = (*RESTARTS, faults.OUTAGE)
    return [*(trial(fault) for fault in FAULTS if fault not in controlled), IDLE, STAMPEDE]


# A row


class Chaos:
    """Rows on a running cloud."""

    def __init__(self, cloud: LocalCloud, report: Report) -> None:
        """Take a cloud of `options()`; open its environments."""
        self._cloud = cloud
        self._report = report
        self._dsn = cloud.status()["postgres"]["dsn"]
        self._token = cloud.token(str(uuid.uuid4()), seconds=7200)

    def run(self, trial: Trial) -> dict[str, Any]:
        """Run one row and return it: its measures, and what it promised and did not hold."""
        fault = trial.fault
        measures = self._measured(trial, lambda: fault.run(self._cloud))
        if trial.besides is herd:
            self._cloud.end_environments("ledger")  # no other could start beside so many
        return self._told(fault.name, fault.title, trial.goal, measures)

    def sequence(self, seed: int, count: int) -> dict[str, Any]:
        """Run faults that a seed draws, one after the other, in one row."""
        drawn = draw(seed, count)
        self._report(f"random sequence, seed {seed}: {', '.join(fault.name for fault in drawn)}")

        def run() -> None:
            for fault in drawn:
                fault.run(self._cloud)
                time.sleep(SECONDS_BETWEEN)

        name, title = "random", f"{count} faults drawn by seed {seed}"
        goal = Goal(nobody_fails=True, crash=faults.CRASHED in drawn)
        measures = self._measured(Trial(Fault(name, title, 0, lambda _: nullcontext())), run)
        return {**self._told(name, title, goal, measures), "faults": [f.name for f in drawn]}

    def _measured(self, trial: Trial, run: Callable[[], None]) -> Measures:
        open_books(self._dsn)
        self._cloud.environments("ledger", ENVIRONMENTS)
        load = Load(self._cloud.url, self._token, clients=CLIENTS, rest=REST)
        connects, logins = Connects(self._cloud), ConnectionLog.of(self._cloud)
        struck = self._cloud.traffic()["secrets"]
        with load.running():
            time.sleep(CALM)
            wait = trial.besides(self._cloud, load) if trial.besides else None
            with load.held() if trial.held else nullcontext(), connects.counted(trial.watched):
                before = Servers.seen(self._cloud)
                began = load.now()
                run()
                ended = load.now()
                load.at_once(ENVIRONMENTS if trial.held else 0, Client.note)
                time.sleep(AFTER if trial.watched else 0)
            time.sleep(0 if trial.watched else AFTER)
            end = load.now()
            after = Servers.seen(self._cloud)
            back = client_connections(self._cloud) if trial.watched else 0
            if wait is not None:
                wait()
        requests = load.requests
        findings = audit(requests, read_books(self._dsn))
        repeats = self._repeat(requests, began)
        again = audit([*requests, *repeats], read_books(self._dsn))
        wrong = {name: max(getattr(findings, name), getattr(again, name)) for name in WRONG}
        planned = trial.fault.seconds
        measures = measure(
            requests, findings, fault=(began, ended), end=end, planned=planned, repeats=repeats
        )
        return replace(
            measures,
            **wrong,
            new_clients=after.clients - before.clients,
            ended_backends=len(before.backends - after.backends),
            restarted=int(before.started != after.started),
            replaced=len(after.tasks - before.tasks),
            back=back,
            struck=self._cloud.traffic()["secrets"] - struck,
            client_connects=connects.most(),
            server_connects=most_within(logins.logins(), 1.0),
        )

    def _repeat(self, requests: list[Request], began: float) -> list[Request]:
        """Send transfers of unknown outcome again with their keys, and a few acknowledged ones.

        Those are the first that were acknowledged after the fault began.
        """
        transfers = [request for request in requests if request.kind == "transfer"]
        keys = [r.key for r in transfers if r.outcome in {"unknown", "no answer"}]
        done = [r for r in transfers if r.outcome == "done" and r.ended >= began]
        keys += [r.key for r in sorted(done, key=lambda each: each.ended)[:REPEATED]]
        load = Load(self._cloud.url, self._token, clients=0, rest=REST)
        with load.running():
            for key in keys:
                load.at_once(1, partial(_again, key=key))
        return load.requests

    def _told(self, name: str, title: str, goal: Goal, row: Measures) -> dict[str, Any]:
        missed = misses(row, goal, CHECKOUT_TIMEOUT)
        failed = row.failed_reads + row.failed_writes + row.failed_notes
        self._report(
            f"{name}: {row.requests} requests, {failed} failed, {row.unknown_notes} unknown, "
            f"{row.lost} lost, {row.duplicated} duplicated, longest gap {row.longest_gap:.1f} s"
        )
        for promise in missed:
            self._report(f"{name}: MISSED {promise}")
        return {
            "name": name,
            "title": title,
            **{key: _rounded(value) for key, value in asdict(row).items()},
            "goal": asdict(goal),
            "missed": missed,
        }


async def _again(client: Client, key: str) -> None:
    await client.transfer(key)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def draw(seed: int, count: int) -> list[Fault]:
    """Draw faults that do not take long."""
    short = [fault for fault in FAULTS if fault.seconds < LONGEST_DRAWN]
    return random.Random(seed).sample(short, count)  # noqa: S311  # it draws faults


@dataclass(frozen=True)
class Servers:
    """What shows that a fault has happened: when PostgreSQL started, and who is connected.

    `backends` are the process ids of the application's, `clients` the connections that functions
    have opened so far, `tasks` the ids of the pooler's tasks that run.
    """

    started: datetime
    backends: frozenset[int]
    clients: int
    tasks: frozenset[str]

    @classmethod
    def seen(cls, cloud: LocalCloud) -> "Servers":
        """Look now."""
        query = (
            "SELECT pg_postmaster_start_time(), array(SELECT pid FROM pg_stat_activity"
            " WHERE usename LIKE 'lambda_pg_user%')"
        )
        status = cloud.status()
        with psycopg.connect(status["postgres"]["dsn"], autocommit=True) as admin:
            ((started, backends),) = admin.execute(query).fetchall()
        tasks = {task["id"] for task in status["pooler"]["tasks"] if task["state"] == "RUNNING"}
        return cls(started, frozenset(backends), cloud.traffic()["pooler"], frozenset(tasks))


def client_connections(cloud: LocalCloud) -> int:
    """Count the client connections that all tasks of the pooler have, without their consoles'."""
    count = 0
    for task in cloud.status()["pooler"]["tasks"]:
        dsn = task["admin_dsn"]
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as console:
            rows = console.execute("SHOW CLIENTS").fetchall()
        count += sum("app" in row for row in rows)
    return count


class Connects:
    """How many client connections come to the pooler: the wire's own count, ten times a second."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Count nothing yet."""
        self._cloud = cloud
        self._samples: list[tuple[float, int]] = []
        self._stop = threading.Event()

    @contextmanager
    def counted(self, wanted: bool) -> Iterator[None]:
        """Count until the block is left, if `wanted`: also what comes right before its end."""
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
            counting.result()  # raises what has ended it
        self._look()

    def most(self) -> int:
        """Return the most connections within a second: between two looks rather more than less."""
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
    """Read through the function without layer and pooler meanwhile; gives its answers' statuses.

    The status of a request without an answer is 0.
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
        for function in ("baseline", "users"):  # or a fault of Secrets Manager would meet them too
            cloud.end_environments(function)


def failures(statuses: list[int]) -> int:
    """Count the control's requests that were not served."""
    return sum(status != 200 for status in statuses)


# The whole


def run(cloud: LocalCloud, seed: int, count: int, report: Report, command: str) -> dict[str, Any]:
    """Run the whole plan on a cloud of `options()` and return its result."""
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
        "versions": {**packages(*RUNS_IN_A_FUNCTION), **servers},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "caveats": [
            SHARED_MACHINE,
            NO_MACHINE_CRASH,
        ],
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
    """Name every promise that this result breaks; none is a passed run."""
    broken = [f"{row['name']}: {promise}" for row in result["rows"] for promise in row["missed"]]
    broken += lost_in_crashes(result["crashes"])
    broken += [
        f"the control did not fail during {what}: the faults prove nothing"
        for what, failed in result["control"]["during"].items()
        if not failed
    ]
    if result["seconds"] > MOST_SECONDS:
        broken.append(f"the run took {result['seconds']:.0f} s, more than {MOST_SECONDS:.0f}")
    return broken


def options() -> Options:
    """Return what a cloud for chaos is started with."""
    return Options(bound=True, entry="benchmarks.app", override=SETTINGS, wires=True)


def main() -> int:
    """Run the plan on a cloud of its own; exit code 0 only if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of the random sequence; drawn when left out")
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
    print(f"\n{chaos_table(result)}\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
