"""What keys, ETags and the rest cost a write of `users`: in time and in round trips.

Each is a ratio to the same write before there were any. A key that is recorded in transactions
before and after the change is the control: it must take more round trips and more time.
"""

import argparse
import json
import secrets
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.cost.mutations_calls import APART, BEFORE, EVERYTHING, KEYED
from benchmarks.cost.overhead import UNREST
from benchmarks.machine import machine, packages
from benchmarks.servers import LOGIN_ARN, ROOT, Endpoint, Servers, cores, on_core, running
from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.migrations.roles import Login, Timeouts
from lambda_pg_cdk.migrations.run import migrate

APP_ARN: Final = LOGIN_ARN.replace("login", "app")
APP: Final = "app_bench"

SAME: Final = f"POST: {BEFORE}, again"
WHOLE: Final = f"PATCH: {EVERYTHING}"
CONTROL: Final = f"PATCH: {APART}"

GOAL: Final = 1.5
"""Highest ratio of a PATCH with everything to one before."""
MORE_TRIPS: Final = 2
"""Most round trips that a key adds to a write."""
CONTROL_LOSES: Final = 1.2
"""Lowest ratio of the control to a PATCH with everything."""
NOISE: Final = 0.03
"""Largest difference of the ratio of POST before to itself from 1."""

LATENCY: Final = 0.05
"""Seconds that each direction takes while round trips are counted: a call takes little besides."""

PREPARE: Final = """
CREATE TABLE users_before (LIKE users INCLUDING DEFAULTS INCLUDING INDEXES);
ALTER TABLE users_before DROP COLUMN version, ADD CHECK (char_length(name) BETWEEN 1 AND 200),
    ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON users_before TO lambda_pg_app
    USING (owner = (SELECT current_subject())) WITH CHECK (owner = (SELECT current_subject()));
GRANT SELECT, INSERT, UPDATE ON users_before TO lambda_pg_app;
CREATE TABLE keys_apart (owner uuid, id bytea, status int, body text, PRIMARY KEY (owner, id));
GRANT SELECT, INSERT, UPDATE ON keys_apart TO lambda_pg_app;
"""

METHOD: Final = (
    "Each run and path is one process; client, PostgreSQL and PgBouncer share one core. "
    "Each row is a handler that gets an event of the HTTP API: the function `users`, and before is "
    "a copy of its POST and PATCH without keys, versions and problem details, on a table without "
    "the trigger. All use TLS (verify-full). "
    "Everything is a new key and If-Match; a repeated request gets the stored answer; the control "
    "records the key in transactions before and after the PATCH of before. "
    "Each round measures {calls} calls of every row, in random order. Ratios are medians over "
    "{rounds} rounds, to before in the same round, then medians of the runs. "
    "Round trips are counted through a proxy that delays both directions: a call takes one delay "
    "for each."
)
CAVEATS: Final = (
    "everything is on loopback; on a network each round trip more weighs more",
    "client and server share one core, and PostgreSQL runs without fsync",
    "API Gateway and Lambda's runtime client are not included",
)


def prepare(servers: Servers, login: Login) -> None:
    """Apply the migrations, and add the tables of before and of the control."""
    owner = psycopg.connect(servers.postgres.dsn, autocommit=True)
    owner.execute("DROP TABLE users")
    limits = Timeouts(statement=10, lock=3, idle_in_transaction=30)
    migrate(owner, lambda: login, limits, patience=60.0)
    with psycopg.connect(servers.postgres.dsn, autocommit=True) as connection:
        connection.execute(PREPARE)


def child(servers: Servers, endpoint: Endpoint, port: int, **plan: int) -> ratios.Rounds:
    """Measure all rows in one process that connects to a port."""
    environment = servers.function_environment(endpoint, [ROOT / "layer" / "python", ROOT])
    environment |= {
        "PGPORT": str(port),
        "LAMBDA_PG_SECRET_ARN": APP_ARN,
        "LAMBDA_PG_CHECKOUT_TIMEOUT": "20",
        "POWERTOOLS_SERVICE_NAME": "benchmark",
        "POWERTOOLS_TRACE_DISABLED": "1",
    }
    with on_core(cores()[0]):
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.cost.mutations_calls"],
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment,
        )
    if process.returncode:
        raise SystemExit(f"the run on the path {endpoint.path} failed:\n{process.stderr}")
    times: ratios.Rounds = json.loads(process.stdout)
    return times


def round_trips(servers: Servers, endpoint: Endpoint) -> dict[str, int]:
    """Count the round trips of each row, by the delays that a call takes."""
    with FaultProxy("127.0.0.1", endpoint.port) as proxy, proxy.latency(LATENCY):
        times = child(servers, endpoint, proxy.port, rounds=3, calls=1, warm=2, seed=0)
    return {name: round(min(each) / (2 * LATENCY * 1e6)) for name, each in times.items()}


def run(servers: Servers, arguments: argparse.Namespace) -> dict[str, list[ratios.Rounds]]:
    """Measure both paths alternately, run by run."""
    runs: dict[str, list[ratios.Rounds]] = {each.path: [] for each in servers.endpoints}
    rounds, calls = arguments.rounds, arguments.calls
    for number in range(arguments.runs):
        for endpoint in servers.endpoints:
            found = child(
                servers, endpoint, endpoint.port, rounds=rounds, calls=calls, warm=50, seed=number
            )
            runs[endpoint.path].append(found)
            shown = (f"{name} {row['ratio']:.3f}" for name, row in rows([found]).items())
            print(f"run {number + 1} {endpoint.path}: {'  '.join(shown)}", flush=True)
    return runs


def base_of(name: str) -> str:
    """Return the row that another one is compared with."""
    return f"{name.partition(':')[0]}: {BEFORE}"


def rows(runs: Sequence[ratios.Rounds]) -> dict[str, dict[str, Any]]:
    """Build the row of each variant of one path."""
    return {name: ratios.row(name, base_of(name), runs, "us") for name in runs[0]}


def result_of(
    runs: Mapping[str, Sequence[ratios.Rounds]], trips: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Return the rows of each path with their round trips, and how busy the machine was."""
    return {
        "goal": GOAL,
        "more_trips": MORE_TRIPS,
        "unrest": {
            path: round(
                statistics.median(ratios.unrest(each[f"PATCH: {BEFORE}"]) for each in of_path), 3
            )
            for path, of_path in runs.items()
        },
        "rows": [
            {**row, "path": path, "round_trips": trips[path][name]}
            for path, of_path in runs.items()
            for name, row in rows(of_path).items()
        ],
    }


def shortfalls(result: Mapping[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    broken = []
    for path, unrest in result["unrest"].items():
        found = {row["name"]: row for row in result["rows"] if row["path"] == path}
        problems = [*_slow(found, result["goal"]), *_trips(found, result["more_trips"])]
        if unrest > UNREST:
            problems.append(
                f"PATCH before took {unrest} times its quiet rounds: another program uses this "
                "machine, which makes every ratio smaller"
            )
        broken += [f"{path}: {problem}" for problem in problems]
    return broken


def _slow(found: Mapping[str, Any], goal: float) -> list[str]:
    """Name the rows that take too long, and a control or a base that proves nothing."""
    problems = []
    whole = found[WHOLE]["ratio"]
    if whole > goal:
        problems.append(f"{WHOLE} took {whole} times PATCH before; the limit is {goal}")
    control = round(found[CONTROL]["ratio"] / whole, 3)
    if control < CONTROL_LOSES:
        problems.append(
            f"{CONTROL} took only {control} times {WHOLE}: a control that is not slower proves "
            "nothing"
        )
    if abs(found[SAME]["ratio"] - 1) > NOISE:
        problems.append(
            f"POST before took {found[SAME]['ratio']} times itself: the machine is too noisy"
        )
    return problems


def _trips(found: Mapping[str, Any], more: int) -> list[str]:
    """Name the rows that take more round trips than are promised."""
    trips = {name: row["round_trips"] for name, row in found.items()}
    limits = {
        "POST: plain": trips[f"POST: {BEFORE}"],
        "PATCH: plain": trips[f"PATCH: {BEFORE}"],
        "PATCH: with If-Match": trips["PATCH: plain"],
        f"POST: {KEYED}": trips["POST: plain"] + more,
        f"PATCH: {KEYED}": trips["PATCH: plain"] + more,
        WHOLE: trips["PATCH: plain"] + more,
    }
    problems = [
        f"{name} took {trips[name]} round trips; the limit is {limit}"
        for name, limit in limits.items()
        if trips[name] > limit
    ]
    if trips[CONTROL] <= limits[WHOLE]:
        problems.append(
            f"{CONTROL} took only {trips[CONTROL]} round trips: a control within the limit proves "
            "nothing"
        )
    return problems


def main() -> int:
    """Measure; exit code 0 only if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--runs", type=int, default=5, help="processes for each path")
    parser.add_argument("--rounds", type=int, default=40, help="of each run")
    parser.add_argument("--calls", type=int, default=50, help="of each row in a round")
    arguments = parser.parse_args()
    login = Login(APP, secrets.token_urlsafe(24))
    known = {APP_ARN: {"username": login.name, "password": login.password}}
    users = f"{LOGIN_ARN},{APP_ARN}"
    with running(core=cores()[0], secrets=known, USER_SECRET_ARNS=users) as servers:
        prepare(servers, login)
        trips: dict[str, dict[str, int]] = {}
        for endpoint in servers.endpoints:
            trips[endpoint.path] = round_trips(servers, endpoint)
        result = {
            "machine": machine(),
            "versions": {
                **packages("psycopg", "aws-lambda-powertools", "pydantic"),
                **servers.versions,
            },
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make bench",
            "method": METHOD.format(calls=arguments.calls, rounds=arguments.rounds),
            "runs": arguments.runs,
            "caveats": list(CAVEATS),
            **result_of(run(servers, arguments), trips),
        }
    for row in result["rows"]:
        print(
            f"{row['path']:10} {row['name']:40} {row['median_us']:9.1f} µs {row['ratio']:7.3f} "
            f"{row['round_trips']:3} round trips"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
