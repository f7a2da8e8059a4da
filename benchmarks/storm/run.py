"""The storm: many environments get their first request at the same moment.

One run has rows without a pooler (the controls, which must fail), with a pooler and no layer, with
other pools, and with layer and pooler. A steady load on fleets of 50 to 1,000 follows, then the
same storm from a second load generator. If a control does not fail, the run fails.
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
from benchmarks.machine import machine, others, packages_in_a_function
from benchmarks.servers import versions
from benchmarks.storm import second_driver
from benchmarks.storm.goals import VERDICTS, goals, ratios, shortfalls, unmeasured, verdict
from benchmarks.storm.limits import Calibration, Limits, calibrate
from benchmarks.storm.open_loop import OpenLoop
from benchmarks.storm.rows import Report, Row, Stage
from benchmarks.tables import for_terminal, storm_table
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.deployment.cdk import merge
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.local.paths import another_state_dir

PEERS: Final = ("psycopg_pool", "sqlalchemy")
"""Functions of other packages; the one line of their requirements.in names the package."""

SHARED_MACHINE: Final = "load, functions, pooler and database share one machine and no network"
WHY: Final = "on AWS each environment has its own processor"
BUSY: Final = "other programs used {busy:.0f} % of the processors at the start"
METHOD: Final = (
    "All environments of a row get their first request at the same moment. "
    "Latencies include failed requests. "
    "Where there is a second request, each environment got it after all first ones were answered. "
    "Rows through the pooler with 500 environments are measured three times, each time in another "
    "order; the run with the middle median is shown. "
    "All rows but the baseline share their code (benchmarks/lookup) and differ in how they "
    "connect; lambda-pg is that code with the layer, without Powertools. "
    "Functions without the layer read their secret at import, and restored environments share it; "
    "the layer reads it with its first connection. "
    "Every environment logs in. "
    "Server connections are all clients in PostgreSQL's log, including idle ones that the pooler "
    "kept from the row before. "
    "Processor time is the kernel's count for each process, from the first request to the last "
    "answer; environments of all rows but the cold one exist before. "
    "Open loop: requests are due at random moments (a Poisson process) at half of the rate that 50 "
    "busy environments answer, on fleets whose connections are open; a latency counts from the "
    "moment the request was due; a request goes to the environment that was idle longest and waits "
    "while all are busy; each round measures every size, and medians of the rounds are shown. "
    "Second driver: storms of both drivers alternate, and medians are shown."
)
NO_NODE: Final = (
    "Node's serverless-postgres has no row: the local cloud forks environments, which Node cannot "
    "do, and AWS's runtime client for Node needs Node 22 and a compiler"
)

SMALL: Final[dict[str, dict[str, Any]]] = {
    "database": {"max_connections": 25, "other_connections": 4, "rotation": "single"},
    "pgbouncer": {"max_db_connections": 2},
    "sql": {"enabled": False},
}
"""A server with 25 connections; the budget leaves 4 of them to the pooler."""

HOME: Final = Path(__file__).resolve().parents[1] / "functions"


def plan(environments: int, cold: int) -> list[Row]:
    """List the rows of the demo, on the stage's own functions; the control comes first."""
    return [
        Row("baseline", "baseline", environments, path="/baseline/users"),
        Row("lambda-pg", "users", environments, path="/users"),
        Row("lambda-pg-cold", "users", cold, "cold", path="/users"),
    ]


BASELINE: Final = Row("baseline", "baseline", 500, path="/baseline/users")
OURS: Final = Row("lambda-pg", "lambda_pg", 500, again=True)
CONTROLS: Final = [BASELINE, Row("cached-direct", "cached_direct", 500)]
"""They come first: the first large fleets of a cloud cost more, because their forks map memory that
later ones use again."""

COMPARED: Final = [
    Row("connect-through-pooler", "connect_through_pooler", 500, again=True),
    Row("psycopg_pool", "psycopg_pool", 500, again=True),
    Row("sqlalchemy", "sqlalchemy", 500, again=True),
    OURS,
]
TURNS: Final = 3
"""How often each of these rows is measured."""

RAW: Final = COMPARED[0]
"""The row that calibrates the limits, and that lambda-pg is compared with."""

LARGEST: Final = 1000
OTHER_SIZES: Final = [
    *(Row("lambda-pg", "lambda_pg", size) for size in (50, 100, 200)),
    Row("lambda-pg-cold", "lambda_pg", 50, "cold"),
    Row("lambda-pg", "lambda_pg", LARGEST),
]
SMALL_PLAN: Final = [replace(OURS, again=False)]
DRIVERS_PLAN: Final = [(replace(OURS, again=False), 3), (BASELINE, 1)]
"""Rows of the second driver, and how often each driver sends them."""


def set_up(cloud: LocalCloud, report: Report) -> Stage:
    """Create the user to look up, on a running cloud."""
    token = cloud.token(str(uuid.uuid4()))
    user = json.loads(call(cloud.url, "POST", "/users", token, {"name": "Ada"}).body)
    cloud.end_environments("users")  # its connection would count
    return Stage(cloud, token, user["id"], report)


def run(cloud: LocalCloud, rows: list[Row], report: Report, command: str) -> dict[str, Any]:
    """Storm a running cloud with each row and return the whole result.

    The first row is the control. First requests of its function, which uses raw psycopg, calibrate
    the limits, which are deployed if they are longer than the deployed ones.
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
    """Measure everything on a new cloud, then the rows of a small server on another one."""
    busy = others()
    began = time.monotonic()
    with own_cloud({}, report) as cloud:
        stage = set_up(cloud, report)
        found = calibrate(stage, RAW, LARGEST, Limits.deployed(cloud))
        report(str(found))
        deploy(cloud, found, report)
        rows = [stage.storm(row) for row in CONTROLS]
        rows += stage.interleaved(COMPARED, TURNS)
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
    """Add the ratios, the goals and the verdict."""
    found = goals(result)
    return result | {
        "ratios": ratios(result["rows"]),
        "goals": [asdict(goal) for goal in found],
        "verdict": verdict(found),
    }


def deploy(cloud: LocalCloud, calibration: Calibration, report: Report) -> None:
    """Deploy the limits of a calibration to a running cloud, and keep its other overrides."""
    report("deploying these limits")
    cloud.deploy(override=merge(cloud.options.override, calibration.limits.override))


def peers() -> dict[str, str]:
    """Return the package versions of the peers' functions."""
    pins = [(HOME / peer / "requirements.in").read_text().strip() for peer in PEERS]
    return {name: version for name, _, version in (pin.partition("==") for pin in pins)}


def planned() -> list[dict[str, Any]]:
    """List the rows that the result of a whole run must have."""
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
    """Start a separate cloud; one that `make up` left running is not touched."""
    report("starting a local cloud and deploying the app to it")
    options = Options(entry="benchmarks.app", override=override, bound=True)
    with LocalCloud(another_state_dir(), options) as cloud:
        yield cloud


def described(cloud: LocalCloud, command: str) -> dict[str, Any]:
    """Describe where, when and with which versions a result was measured."""
    status = cloud.status()
    servers = versions(status["postgres"]["dsn"], status["pooler"]["admin_dsn"])
    return {
        "machine": machine(),
        "versions": {**packages_in_a_function(), **servers},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "max_connections": status["postgres"]["max_connections"],
        "budget": status["pooler"]["max_server_connections"],
    }


def caveats(calibration: Calibration) -> list[str]:
    """Return the caveats of a result with this calibration."""
    return [SHARED_MACHINE, f"{calibration}; {WHY}"]


def main() -> int:
    """Measure; exit code 0 if every goal was met, 3 if not measurable on this machine, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--seed", type=int, default=20, help="of the open loop's arrivals")
    arguments = parser.parse_args()
    result = run_all(Narrator().note, arguments.seed)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{for_terminal(storm_table(result))}\n")
    code = conclude(shortfalls(result), unmeasured(result))
    print(f"{VERDICTS[result['verdict']]}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
