"""The storm: many environments, each with its first request, at the same moment.

Once without a pooler (the baseline, which must fail) and once through layer and pooler (which
must not), in one run against one database. A run whose baseline does not fail has failed.
"""

import argparse
import json
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.load import Summary, fire, summarise
from benchmarks.machine import machine, packages
from benchmarks.report import storm_table
from benchmarks.sampler import BackendSampler
from benchmarks.servers import versions
from local.caller import call
from local.cloud import LocalCloud, NotRunningError
from local.narrator import Narrator

Report = Callable[[str], None]

CAUSES = (
    "sorry, too many clients already",
    "remaining connection slots are reserved",
    "connection timeout expired",
    "Connection refused",
    "Task timed out",
)


RUNS_IN_A_FUNCTION = ("psycopg", "aws-lambda-powertools", "awslambdaric", "boto3")
SHARED_MACHINE = "load, functions, pooler and database share one machine and no network"
WHY = "on AWS each environment has a processor of its own"


@dataclass(frozen=True)
class Row:
    """One line of the plan: which function, how many environments, how they start."""

    name: str
    function: str
    path: str
    environments: int
    start: Literal["restored", "cold"]


@dataclass(frozen=True)
class Result(Summary):
    """What became of one row."""

    name: str
    environments: int
    start: str
    peak_server_connections: int


def plan(environments: int, cold: int) -> list[Row]:
    """Lay out the rows: the control first, so that the pooler meets a server just stormed."""
    return [
        Row("baseline", "baseline", "/baseline/users", environments, "restored"),
        Row("lambda-pg", "users", "/users", environments, "restored"),
        Row("lambda-pg-cold", "users", "/users", cold, "cold"),
    ]


def run(cloud: LocalCloud, rows: list[Row], report: Report, command: str) -> dict[str, Any]:
    """Storm a running cloud with each row and return the whole result."""
    subject = str(uuid.uuid4())
    token = cloud.token(subject)
    status = cloud.status()
    user = json.loads(call(cloud.url, "POST", "/users", token, {"name": "Ada"}).body)
    dsn = status["postgres"]["dsn"]
    results = [storm(cloud, row, token, user["id"], dsn, report) for row in rows]
    servers = versions(dsn, status["pooler"]["admin_dsn"])
    return {
        "machine": machine(),
        "versions": {**packages(*RUNS_IN_A_FUNCTION), **servers},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "caveats": caveats(cloud),
        "max_connections": status["postgres"]["max_connections"],
        "budget": status["pooler"]["max_server_connections"],
        "rows": [asdict(result) for result in results],
    }


def storm(
    cloud: LocalCloud, row: Row, token: str, user_id: str, dsn: str, report: Report
) -> Result:
    """Open the environments of one row, fire, and count."""
    cloud.end_environments(row.function)
    log = FunctionLog(cloud.folder / "logs" / f"{row.function}.log")
    if row.start == "restored":
        report(f"{row.name}: opening {row.environments} environments")
        cloud.environments(row.function, row.environments, row.start)
    report(f"{row.name}: {row.environments} requests at once")
    with BackendSampler(dsn) as sampler:
        outcomes, seconds = fire(f"{cloud.url}{row.path}/{user_id}", token, row.environments)
    cloud.end_environments(row.function)
    summary = summarise(outcomes, seconds)
    if summary.failed:
        summary = replace(summary, failures=log.causes(summary))
    report(f"{row.name}: served {summary.served}, failed {summary.failed}, in {seconds:.1f} s")
    return Result(
        **asdict(summary),
        name=row.name,
        environments=row.environments,
        start=row.start,
        peak_server_connections=sampler.peak,
    )


class FunctionLog:
    """What a function logs from now on: the API's answers hide causes, as they should."""

    def __init__(self, path: Path) -> None:
        """Remember where the log ends."""
        self._path = path
        self._end = path.stat().st_size if path.exists() else 0

    def causes(self, summary: Summary) -> dict[str, int]:
        """Name the causes of failed requests; what the log does not explain keeps its status."""
        with self._path.open("rb") as log:
            log.seek(self._end)
            text = log.read().decode(errors="replace")
        counts = Counter(cause for line in text.splitlines() for cause in CAUSES if cause in line)
        explained = {cause: count for cause, count in counts.most_common() if count}
        if sum(explained.values()) == summary.failed:
            return explained
        return {**summary.failures}


def caveats(cloud: LocalCloud) -> list[str]:
    """Say what a reader has to know before comparing these numbers with others."""
    functions = cloud.client("lambda").list_functions()["Functions"]
    variables = [function["Environment"]["Variables"] for function in functions]
    timeout = next(
        v["LAMBDA_PG_CHECKOUT_TIMEOUT"] for v in variables if v.get("PGAPPNAME") == "users"
    )
    return [SHARED_MACHINE, f"the checkout timeout is {timeout} s here, not the default 3 s: {WHY}"]


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; none is a passed run."""
    broken = []
    for row in result["rows"]:
        if row["name"] == "baseline":
            if row["failed"] * 2 < row["requests"]:
                broken.append(
                    f"the baseline failed only {row['failed']} of {row['requests']} requests: "
                    "a control that does not lose proves nothing"
                )
            continue
        if row["failed"]:
            broken.append(f"{row['name']} failed {row['failed']} requests: {row['failures']}")
        if row["peak_server_connections"] > result["budget"]:
            broken.append(
                f"{row['name']} had {row['peak_server_connections']} server connections, "
                f"more than the budget of {result['budget']}"
            )
    return broken


def main() -> int:
    """Storm the running cloud, or one of its own; exit code 0 only if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=int, default=500, help="of the restored rows")
    parser.add_argument("--cold", type=int, default=50, help="environments of the cold row")
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    arguments = parser.parse_args()
    with running_or_new() as cloud:
        rows = plan(arguments.environments, arguments.cold)
        result = run(cloud, rows, report=Narrator().note, command="make storm")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{storm_table(result)}\n")
    return conclude(result)


def conclude(result: dict[str, Any]) -> int:
    """Print what was promised and did not hold; return the exit code."""
    broken = shortfalls(result)
    for promise in broken:
        print(f"FAILED: {promise}", file=sys.stderr)
    return 1 if broken else 0


@contextmanager
def running_or_new() -> Iterator[LocalCloud]:
    """Take the cloud that `make up` left running, or start one for the time of the storm."""
    cloud = LocalCloud()
    try:
        cloud.status()
    except NotRunningError:
        with LocalCloud(report=Narrator()) as cloud:
            yield cloud
    else:
        yield cloud


if __name__ == "__main__":
    sys.exit(main())
