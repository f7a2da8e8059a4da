"""What `POST /sql` costs: calls of its handler, its cold start, and memory while it refuses.

Each call is a ratio to the same without the function: psycopg's bare connection. Connecting for
each request is the control: it must be slower.
"""

import argparse
import hashlib
import json
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.cost.cold_start import PROGRAMS, bare_interpreter
from benchmarks.cost.overhead import NOISE, UNREST
from benchmarks.machine import machine, packages
from benchmarks.servers import (
    DATABASE,
    LOGIN_ARN,
    ROOT,
    ROWS,
    Endpoint,
    Servers,
    cores,
    on_core,
    running,
)
from lambda_pg_cdk.layer.build import Target, build_layer

KEYS_ARN: Final = LOGIN_ARN.replace("login", "keys")
ROLE: Final = "reader"
MAX_BYTES: Final = 5_000_000

BASES: Final = {
    "lookup": "lookup: raw",
    "batch": "batch: ten lookups in a pipeline",
    "rows": "rows: fetch and json.dumps",
}
"""What the calls of a group are compared with."""

GOALS: Final = {
    "direct": {"lookup: POST /sql": 2.2, "batch: POST /sql": 1.5, "rows: POST /sql": 2.0},
    "pgbouncer": {"lookup: POST /sql": 2.0, "batch: POST /sql": 1.5, "rows: POST /sql": 2.0},
}
SAME: Final = "lookup: raw again"
CONTROL: Final = "lookup: a connection per request"
CONTROL_LOSES: Final = 3.0
COLD_GOAL: Final = 1.10
MEMORY_GOAL: Final = 4.0
"""Most memory while a result of 1 GB is refused, as a multiple of the limit of an answer."""

HEALTH: Final = "health"
COLD: Final = "sql"

METHOD: Final = (
    "Each run and path is one process; client, PostgreSQL and PgBouncer share one core. "
    "All rows use the same conninfo (TLS, verify-full); nothing is prepared. "
    "POST /sql is the function's handler with an event of the HTTP API: it finds the key, runs the "
    "statement between BEGIN and COMMIT with the reset of the session's state, and writes the "
    "answer as text; run_text is the layer's part of that. "
    "The flight's commands alone are what run_text sends for a lookup, by psycopg's interface to "
    "libpq and with nothing done to the answers: no client that sends them takes less. "
    "A lookup is one row of 10,000 by its primary key; raw is libpq's send_query_params and a "
    "wait, through psycopg. A batch is ten lookups in one transaction; its base is ten lookups in "
    "libpq's pipeline. The rows are all 10,000; their base is psycopg's fetchall and json.dumps. "
    "Each round measures {calls} lookups, {tens} batches and {many} answers of 10,000 rows, in "
    "random order. Ratios are medians over {rounds} rounds, to the base in the same round, then "
    "medians of the runs. "
    "Memory is by how much the process's peak grows, as a multiple of the limit of an answer: "
    "while 1 GB is refused, and while psycopg takes 50 MB, which is the control. "
    "A cold start is a new interpreter without installed packages, from before its spawn to the "
    "function's first answer, which needs its secrets; sql also reads its table of keys."
)
CAVEATS: Final = (
    "everything is on loopback; a real network adds time to every row, so all ratios get smaller",
    "client and server share one core",
    "API Gateway and Lambda's runtime client are not included",
)


def function(servers: Servers, endpoint: Endpoint, path: Sequence[Path]) -> dict[str, str]:
    """Return the environment variables of the function `sql`."""
    common = servers.function_environment(endpoint, path)
    return common | {
        "SQL_DATABASE": DATABASE,
        "SQL_ROLES": json.dumps({ROLE: servers.secret_arn}),
        "SQL_KEYS_SECRET_ARN": KEYS_ARN,
        "SQL_KEY_LIFETIME": "60",
        "SQL_MAX_ROWS": str(ROWS),
        "SQL_MAX_BYTES": str(MAX_BYTES),
        "SQL_MAX_STATEMENTS": "100",
        "SQL_MAX_REQUEST_BYTES": "1000000",
        "SQL_GZIP": "1",
        "LAMBDA_PG_CHECKOUT_TIMEOUT": "20",
    }


def one_run(
    servers: Servers, endpoint: Endpoint, arguments: argparse.Namespace, key: str, seed: int
) -> dict[str, Any]:
    """Measure all calls in one process."""
    plan = {
        "key": key,
        "rounds": arguments.rounds,
        "calls": arguments.calls,
        "seed": seed,
        "rows": ROWS,
    }
    path = [ROOT / "layer" / "python", ROOT / "functions" / "sql", ROOT]
    with on_core(cores()[0]):
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.cost.sql_calls"],
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=function(servers, endpoint, path),
        )
    if child.returncode:
        raise SystemExit(f"the run on the path {endpoint.path} failed:\n{child.stderr}")
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def run(servers: Servers, arguments: argparse.Namespace, key: str) -> dict[str, list[Any]]:
    """Measure both paths alternately, run by run."""
    runs: dict[str, list[Any]] = {path: [] for path in GOALS}
    for number in range(arguments.runs):
        for endpoint in servers.endpoints:
            found = one_run(servers, endpoint, arguments, key, seed=number)
            runs[endpoint.path].append(found)
            shown = (
                f"{name} {ratios.row(name, base_of(name), [found['times']], 'us')['ratio']:.3f}"
                for name in found["times"]
            )
            print(f"run {number + 1} {endpoint.path}: {'  '.join(shown)}", flush=True)
    return runs


def base_of(name: str) -> str:
    """Return the variant that another one is compared with."""
    return BASES[name.partition(":")[0]]


def result_of(runs: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return the rows of each path, how busy the machine was, and the memory of a refusal."""
    return {
        "goals": GOALS,
        "unrest": {
            path: round(
                statistics.median(ratios.unrest(run["times"][BASES["lookup"]]) for run in of_path),
                3,
            )
            for path, of_path in runs.items()
        },
        "rows": [
            {
                **ratios.row(name, base_of(name), [run["times"] for run in of_path], "us"),
                "path": path,
            }
            for path, of_path in runs.items()
            for name in of_path[0]["times"]
        ],
        "refused": {
            path: round(max(run["refused_bytes"] for run in of_path) / MAX_BYTES, 2)
            for path, of_path in runs.items()
        },
        "accepted": {
            path: round(min(run["accepted_bytes"] for run in of_path) / MAX_BYTES, 2)
            for path, of_path in runs.items()
        },
    }


def cold_starts(
    servers: Servers, arguments: argparse.Namespace, key: str, folder: Path
) -> dict[str, Any]:
    """Start both functions in turn; return the milliseconds of each, and their ratio."""
    layer, python = build_layer(Target.interpreter()) / "python", bare_interpreter(folder)
    chance = random.Random(0)  # noqa: S311 - an order, not a secret
    times: dict[str, list[float]] = {HEALTH: [], COLD: []}
    for number in range(arguments.starts + 1):
        for name in chance.sample(list(times), len(times)):
            variables = function(servers, servers.pgbouncer, [layer, ROOT / "functions" / name])
            taken = start(python, name, variables | {"BENCHMARK_KEY": key})
            if number:
                times[name].append(taken)
    return {
        **{f"{name}_ms": round(statistics.median(each), 1) for name, each in times.items()},
        "ratio": round(ratios.paired_ratio(times[COLD], times[HEALTH]), 3),
        "starts": arguments.starts,
    }


def start(python: str, name: str, variables: dict[str, str]) -> float:
    """Start a program on the client's core; return the milliseconds to its first answer."""
    with on_core(cores()[0]):
        began = time.monotonic_ns()
        child = subprocess.run(
            [python, str(PROGRAMS / f"{name}.py")],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
    said = json.loads(child.stdout.splitlines()[-1]) if child.returncode == 0 else {}
    if said.get("row") != 200:
        raise SystemExit(f"the function {name} failed:\n{child.stdout}{child.stderr}")
    return (int(said["finished"]) - began) / 1e6


def shortfalls(result: Mapping[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    broken = []
    for path, goals in result["goals"].items():
        found = {row["name"]: row["ratio"] for row in result["rows"] if row["path"] == path}
        broken += [
            f"{path}: {name} took {found[name]} times its base; the limit is {goal}"
            for name, goal in goals.items()
            if found[name] > goal
        ]
        if found[CONTROL] < CONTROL_LOSES:
            broken.append(
                f"{path}: {CONTROL} took only {found[CONTROL]} times raw: "
                "a control that is not slower proves nothing"
            )
        if abs(found[SAME] - 1) > NOISE:
            broken.append(f"{path}: raw took {found[SAME]} times raw: the machine is too noisy")
        if result["unrest"][path] > UNREST:
            broken.append(
                f"{path}: raw took {result['unrest'][path]} times its quiet rounds: another "
                "program uses this machine, which makes every ratio smaller"
            )
        if result["refused"][path] > MEMORY_GOAL:
            broken.append(
                f"{path}: a refused result took {result['refused'][path]} times the limit of an "
                f"answer as memory; the limit is {MEMORY_GOAL}"
            )
        if result["accepted"][path] <= MEMORY_GOAL:
            broken.append(
                f"{path}: psycopg took 50 MB of rows with {result['accepted'][path]} times the "
                "limit of an answer as memory: a control that takes no more proves nothing"
            )
    if result["cold_start"]["ratio"] > COLD_GOAL:
        broken.append(
            f"the cold start took {result['cold_start']['ratio']} times that of {HEALTH}; the "
            f"limit is {COLD_GOAL}"
        )
    return broken


def new_key() -> tuple[str, dict[str, Any]]:
    """Return a connection string, and the table that knows its key."""
    secret = secrets.token_urlsafe(32)
    entry = {"hash": hashlib.sha256(secret.encode()).hexdigest(), "role": ROLE}
    return f"postgresql://bench:{secret}@127.0.0.1/{DATABASE}", {"keys": {"bench": entry}}


def main() -> int:
    """Measure; exit code 0 only if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--runs", type=int, default=5, help="processes for each path")
    parser.add_argument("--rounds", type=int, default=40, help="of each run")
    parser.add_argument("--calls", type=int, default=100, help="lookups in a round")
    parser.add_argument("--starts", type=int, default=40, help="cold starts of each function")
    arguments = parser.parse_args()
    key, table = new_key()
    one_core = running(core=cores()[0], secrets={KEYS_ARN: table})
    with one_core as servers, tempfile.TemporaryDirectory() as folder:
        result = {
            "machine": machine(),
            "versions": {**packages("psycopg"), **servers.versions},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make bench",
            "method": METHOD.format(
                calls=arguments.calls,
                tens=arguments.calls // 10,
                many=max(1, arguments.calls // 100),
                rounds=arguments.rounds,
            ),
            "runs": arguments.runs,
            "caveats": list(CAVEATS),
            **result_of(run(servers, arguments, key)),
            "cold_start": cold_starts(servers, arguments, key, Path(folder)),
        }
    for row in result["rows"]:
        print(f"{row['path']:10} {row['name']:34} {row['median_us']:10.1f} µs {row['ratio']:8.3f}")
    print(f"cold start {result['cold_start']}")
    print(f"memory: refused {result['refused']}, accepted {result['accepted']}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
