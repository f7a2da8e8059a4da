"""The storm: many environments, each with its first request, at the same moment.

Without a pooler (the controls, which must fail), with a pooler and no layer, with others' pools,
and with layer and pooler, in one run. Then a steady load on fleets of 50 to 1,000, and the same
storm from a second load generator. A run whose controls do not fail has failed.
"""

import argparse
import json
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.conclusion import conclude
from benchmarks.machine import machine, others, packages
from benchmarks.servers import versions
from benchmarks.storm import second_driver
from benchmarks.storm.goals import VERDICTS, goals, ratios, shortfalls, unmeasured, verdict
from benchmarks.storm.limits import Calibration, Limits, calibrate
from benchmarks.storm.open_loop import OpenLoop
from benchmarks.storm.rows import Report, Row, Stage
from benchmarks.tables import whole_storm_table
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.deployment.cdk import merge
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.local.paths import another_state_dir

RUNS_IN_A_FUNCTION: Final = ("psycopg", "awslambdaric", "boto3")
PEERS: Final = ("psycopg_pool", "sqlalchemy")
"""Functions with a requirements.in of one line: the published package that they show."""

SHARED_MACHINE: Final = "load, functions, pooler and database share one machine and no network"
WHY: Final = "on AWS each environment has a processor of its own"
BUSY: Final = "other programs used {busy:.0f} % of the processors when the run began"
METHOD: Final = (
    "Every environment of a row gets its first request at the same moment; latencies are those "
    "of all requests, refused ones too. Where a second request is told, each environment got "
    "one more when all first ones had been answered. Ways through the pooler are measured three "
    "times by turns, and the run in the middle is shown. All rows but the baseline answer by "
    "the same frame (benchmarks/lookup) and differ in how they connect: lambda-pg is that frame "
    "with the layer, without Powertools. Functions without the layer read their secret at "
    "import, and restored environments share it; the layer reads it with its first connection. "
    "Every environment logs in. Server connections are all clients of the database, as "
    "PostgreSQL's own log has them, idle ones that the pooler keeps from the row before included. "
    "Processor seconds are those of the kernel's clock of each process, from the first request to "
    "the last answer; environments of all rows but the cold one are there before. Open loop: a "
    "Poisson process at half of the rate that 50 busy "
    "environments answer, on fleets whose connections are open, each request timed from the "
    "moment it was due, to the environment that has been idle for longest; who finds all of "
    "them busy waits; medians of the rounds, in which the sizes take turns. Second driver: both "
    "by turns, medians of their storms."
)
NO_NODE: Final = (
    "Node's serverless-postgres has no row: the local cloud restores environments by forking, as "
    "Node cannot; AWS's runtime client for it needs Node 22 and a compiler"
)

SMALL: Final[dict[str, dict[str, Any]]] = {
    "database": {"max_connections": 25, "other_connections": 4, "rotation": "single"},
    "pgbouncer": {"max_db_connections": 2},
}
"""A server for 25 connections, of which 4 are the pooler's: more do not fit the budget."""

HOME: Final = Path(__file__).resolve().parents[1] / "functions"


def plan(environments: int, cold: int) -> list[Row]:
    """Lay out the rows of the demo, on what the stage itself deploys: the control comes first."""
    return [
        Row("baseline", "baseline", environments, path="/baseline/users"),
        Row("lambda-pg", "users", environments, path="/users"),
        Row("lambda-pg-cold", "users", cold, "cold", path="/users"),
    ]


# The controls come first: the first large fleets of a cloud cost the functions more, as their forks
# map memory anew, which later ones use again.
BASELINE: Final = Row("baseline", "baseline", 500, path="/baseline/users")
OURS: Final = Row("lambda-pg", "lambda_pg", 500, again=True)
CONTROLS: Final = [BASELINE, Row("cached-direct", "cached_direct", 500)]
COMPARED: Final = [
    Row("connect-through-pooler", "connect_through_pooler", 500, again=True),
    Row("psycopg_pool", "psycopg_pool", 500, again=True),
    Row("sqlalchemy", "sqlalchemy", 500, again=True),
    OURS,
]
TURNS: Final = 3
"""How often each of these is measured, all of them by turns."""

RAW: Final = COMPARED[0]
"""What the limits are calibrated by, and what lambda-pg is held against."""

LARGEST: Final = 1000
OTHER_SIZES: Final = [
    *(Row("lambda-pg", "lambda_pg", size) for size in (50, 100, 200)),
    Row("lambda-pg-cold", "lambda_pg", 50, "cold"),
    Row("lambda-pg", "lambda_pg", LARGEST),
]
SMALL_PLAN: Final = [replace(OURS, again=False)]
DRIVERS_PLAN: Final = [(replace(OURS, again=False), 3), (BASELINE, 1)]
"""What is sent by both drivers, and how often by each."""


def set_up(cloud: LocalCloud, report: Report) -> Stage:
    """Make the user who is looked up, on a cloud that runs."""
    token = cloud.token(str(uuid.uuid4()))
    user = json.loads(call(cloud.url, "POST", "/users", token, {"name": "Ada"}).body)
    cloud.end_environments("users")  # its connection would count
    return Stage(cloud, token, user["id"], report)


def run(cloud: LocalCloud, rows: list[Row], report: Report, command: str) -> dict[str, Any]:
    """Storm a running cloud with each row and return the whole result.

    The control comes first among the rows, and first requests of its function, which connects by
    raw psycopg, tell the limits. They are deployed where what is deployed is shorter.
    """
    stage = set_up(cloud, report)
    deployed = Limits.deployed(cloud)
    most = max(row.environments for row in rows)
    found = calibrate(stage, rows[0], most, deployed)
    report(str(found))
    if found.limits.checkout > deployed.checkout:
        deploy(cloud, found, report)
    result = described(cloud, command) | {"calibration": asdict(found)}
    result |= {"caveats": caveats(found), "rows": [asdict(stage.storm(row)) for row in rows]}
    return concluded(result)


def run_all(report: Report, seed: int) -> dict[str, Any]:
    """Start a cloud, and a small one after it, and measure everything."""
    busy = others()
    began = time.monotonic()
    with own_cloud({}, report) as cloud:
        stage = set_up(cloud, report)
        found = calibrate(stage, RAW, LARGEST, Limits.deployed(cloud))
        report(str(found))
        deploy(cloud, found, report)
        rows = [stage.storm(row) for row in CONTROLS]
        rows += stage.by_turns(COMPARED, TURNS)
        rows += [stage.storm(row) for row in OTHER_SIZES]
        loop = OpenLoop(stage, seed).run()
        drivers = second_driver.compare(stage, DRIVERS_PLAN)
        result = described(cloud, "make storm") | {"seed": seed, "calibration": asdict(found)}
    with own_cloud(merge(found.limits.override, SMALL), report) as cloud:
        stage = set_up(cloud, report)
        rows += [stage.storm(row) for row in SMALL_PLAN]
    result["caveats"] = [*caveats(found), BUSY.format(busy=busy), NO_NODE]
    result["method"] = METHOD
    result["versions"] |= peers() | {"locust": second_driver.version()}
    result |= {"rows": [asdict(row) for row in rows], "planned": planned()}
    result |= {"open_loop": loop, "second_driver": drivers}
    result["seconds"] = round(time.monotonic() - began, 1)
    return concluded(result)


def concluded(result: dict[str, Any]) -> dict[str, Any]:
    """Add the ratios, the goals, and what these come to."""
    found = goals(result)
    return result | {
        "ratios": ratios(result["rows"]),
        "goals": [asdict(goal) for goal in found],
        "verdict": verdict(found),
    }


def deploy(cloud: LocalCloud, calibration: Calibration, report: Report) -> None:
    """Give a running cloud the limits of a calibration, beside what it was started with."""
    report("deploying these limits")
    cloud.deploy(override=merge(cloud.options.override, calibration.limits.override))


def peers() -> dict[str, str]:
    """Name the versions that the peers' functions are deployed with."""
    pins = [(HOME / peer / "requirements.in").read_text().strip() for peer in PEERS]
    return {name: version for name, _, version in (pin.partition("==") for pin in pins)}


def planned() -> list[dict[str, Any]]:
    """List what has to be in the result of a whole run."""
    small = SMALL["database"]["max_connections"]
    full = [*CONTROLS, *COMPARED, *OTHER_SIZES]
    rows = [*((row, 100) for row in full), *((row, small) for row in SMALL_PLAN)]
    return [
        {
            "name": row.name,
            "environments": row.environments,
            "start": row.start,
            "max_connections": limit,
        }
        for row, limit in rows
    ]


@contextmanager
def own_cloud(override: Mapping[str, Any], report: Report) -> Iterator[LocalCloud]:
    """Start a cloud in a folder of its own: one that `make up` left running is not touched."""
    report("starting a local cloud and deploying the app to it")
    options = Options(entry="benchmarks.app", override=override, bound=True)
    with LocalCloud(another_state_dir(), options) as cloud:
        yield cloud


def described(cloud: LocalCloud, command: str) -> dict[str, Any]:
    """Say where, when and with what a result was measured."""
    status = cloud.status()
    servers = versions(status["postgres"]["dsn"], status["pooler"]["admin_dsn"])
    return {
        "machine": machine(),
        "versions": {**packages(*RUNS_IN_A_FUNCTION), **servers},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "max_connections": status["postgres"]["max_connections"],
        "budget": status["pooler"]["max_server_connections"],
    }


def caveats(calibration: Calibration) -> list[str]:
    """Say what a reader has to know before comparing these numbers with others."""
    return [SHARED_MACHINE, f"{calibration}: {WHY}"]


def main() -> int:
    """Measure on separate clouds; exit code 0 only if every promise held, 3: not measurable."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--seed", type=int, default=20, help="of the open loop's arrivals")
    arguments = parser.parse_args()
    result = run_all(Narrator().note, arguments.seed)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{whole_storm_table(result)}\n")
    code = conclude(shortfalls(result), unmeasured(result))
    print(f"{VERDICTS[result['verdict']]}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
