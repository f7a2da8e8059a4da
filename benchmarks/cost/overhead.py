"""What the layer costs: a warm lookup through it, as a ratio to the same on a raw connection.

Real servers, TLS, and everything on one core. psycopg_pool is the control: it must be slower.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.machine import machine, packages
from benchmarks.servers import ROOT, ROWS, Endpoint, Servers, cores, on_core, running

MEASURED: Final = "lambda-pg"
CONTROL: Final = "psycopg_pool"
SAME: Final = "raw again"
TRACED: Final = "lambda-pg traced"
GOALS: Final = {
    "direct": {"median": 1.08, "every_run": 1.10},
    "pgbouncer": {"median": 1.03, "every_run": 1.05},
}
CONTROL_LOSES: Final = 1.5
TRACED_LOSES: Final = 1.1
"""Lowest ratio of the traced row to lambda-pg: below it the traced row makes no spans, or lambda-pg
makes some although tracing is off."""
NOISE: Final = 0.015
"""Largest difference of the ratio of raw to itself from 1; above it the machine is too noisy."""
UNREST: Final = 1.25
"""Highest ratio of raw's median to its quiet rounds; above it the machine is too busy."""

METHOD: Final = (
    "Each run and path is one process; client, PostgreSQL and PgBouncer share one core. "
    "All rows use the same conninfo (TLS, verify-full), statement and parameters; nothing is "
    "prepared. "
    "Each row is a Lambda handler that looks up one row of 10,000 by its primary key. "
    "Each round measures {calls} calls of every variant ({few} if each call connects), in random "
    "order. "
    "Ratios are medians over {rounds} rounds, to raw in the same round, then medians of the runs. "
    "lambda-pg is checkout, lookup and return, with a bound deadline and tracing off; 'invocation "
    "and all' also binds an invocation for each lookup; 'traced' makes a span of each statement "
    "with OpenTelemetry's SDK and drops it; 'raw again' is raw on a second connection and shows "
    "the noise. "
    "psycopg_pool has one connection, and its defaults otherwise."
)
CAVEATS: Final = (
    "everything is on loopback; a real network adds time to every row, so all ratios get smaller",
    "client and server share one core; on two cores a lookup takes about twice as long",
)


def run(servers: Servers, arguments: argparse.Namespace) -> dict[str, list[ratios.Rounds]]:
    """Measure both paths alternately, run by run."""
    runs: dict[str, list[ratios.Rounds]] = {path: [] for path in arguments.paths}
    for number in range(arguments.runs):
        for endpoint in servers.endpoints:
            if endpoint.path in runs:
                rounds = _one_run(servers, endpoint, arguments, seed=number)
                runs[endpoint.path].append(rounds)
                _show(number, endpoint.path, rounds)
    return runs


def result_of(runs: dict[str, list[ratios.Rounds]]) -> dict[str, Any]:
    """Return the rows of each path, and how busy the machine was."""
    return {
        "goals": {path: GOALS[path] for path in runs},
        "unrest": {
            path: round(statistics.median(ratios.unrest(run["raw"]) for run in of_path), 3)
            for path, of_path in runs.items()
        },
        "rows": [
            {**row, "path": path}
            for path, of_path in runs.items()
            for row in ratios.rows("raw", of_path, "us")
        ],
    }


def _one_run(
    servers: Servers, endpoint: Endpoint, arguments: argparse.Namespace, seed: int
) -> ratios.Rounds:
    plan = {
        "rows": ROWS,
        "rounds": arguments.rounds,
        "calls": arguments.calls,
        "seed": seed,
        "only": arguments.only,
    }
    with on_core(cores()[0]):
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.cost.lookups"],
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=servers.function_environment(endpoint, [ROOT / "layer" / "python", ROOT]),
        )
    if child.returncode:
        raise SystemExit(f"the run on the path {endpoint.path} failed:\n{child.stderr}")
    times: ratios.Rounds = json.loads(child.stdout)
    return times


def _show(number: int, path: str, rounds: ratios.Rounds) -> None:
    shown = "  ".join(
        f"{name} {row['ratio']:.3f}"
        for name in rounds
        for row in [ratios.row(name, "raw", [rounds], "us")]
        if name in {MEASURED, SAME, CONTROL}
    )
    print(f"run {number + 1} {path}: {shown}", flush=True)


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    broken = []
    for path, goal in result["goals"].items():
        found = {row["name"]: row for row in result["rows"] if row["path"] == path}
        if MEASURED in found:
            broken += _over_goal(found[MEASURED], goal, path)
        if CONTROL in found and found[CONTROL]["ratio"] < CONTROL_LOSES:
            broken.append(
                f"{path}: {CONTROL} took only {found[CONTROL]['ratio']} times raw: "
                "a control that is not slower proves nothing"
            )
        if {MEASURED, TRACED} <= found.keys():
            slower = found[TRACED]["ratio"] / found[MEASURED]["ratio"]
            if slower < TRACED_LOSES:
                broken.append(
                    f"{path}: {TRACED} took only {slower:.3f} times {MEASURED}: "
                    "a control that is not slower proves nothing"
                )
        if SAME in found and abs(found[SAME]["ratio"] - 1) > NOISE:
            broken.append(
                f"{path}: raw took {found[SAME]['ratio']} times raw: the machine is too noisy"
            )
        if result["unrest"][path] > UNREST:
            broken.append(
                f"{path}: raw took {result['unrest'][path]} times its quiet rounds: another "
                "program uses this machine, which makes every ratio smaller"
            )
    return broken


def _over_goal(row: dict[str, Any], goal: dict[str, float], path: str) -> list[str]:
    broken = []
    if row["ratio"] > goal["median"]:
        broken.append(
            f"{path}: lambda-pg took {row['ratio']} times raw; the limit is {goal['median']}"
        )
    if max(row["ratios"]) > goal["every_run"]:
        broken.append(
            f"{path}: a run of lambda-pg took {max(row['ratios'])} times raw; the limit is "
            f"{goal['every_run']}"
        )
    return broken


def main() -> int:
    """Measure; exit code 0 only if the goals are met."""
    arguments = parse(sys.argv[1:])
    with running(core=cores()[0]) as servers:
        result = {
            "machine": machine(),
            "versions": {
                **packages("psycopg", "psycopg-pool", "awslambdaric", "opentelemetry-sdk"),
                **servers.versions,
            },
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make bench",
            "method": METHOD.format(calls=arguments.calls, rounds=arguments.rounds, few=4),
            "runs": arguments.runs,
            "caveats": list(CAVEATS),
            **result_of(run(servers, arguments)),
        }
    for row in result["rows"]:
        print(f"{row['path']:10} {row['name']:32} {row['median_us']:9.1f} µs {row['ratio']:8.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--runs", type=int, default=5, help="processes for each path")
    parser.add_argument("--rounds", type=int, default=100, help="of each run")
    parser.add_argument("--calls", type=int, default=200, help="of each variant in a round")
    parser.add_argument(
        "--only", type=_names, default=[], help="variants in addition to raw, comma-separated"
    )
    parser.add_argument("--paths", type=_names, default=list(GOALS), help="direct,pgbouncer")
    return parser.parse_args(words)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
