"""The long part of chaos: run it before a release.

It commits hundreds of thousands of single statements while the server crashes dozens of times, and
has fleets log in all at once at a pooler with a share of a core. Exit code 0 only if every promise
was kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.crashes import crash_under_commits
from benchmarks.chaos.crashes import shortfalls as lost_in_crashes
from benchmarks.chaos.run import Report
from benchmarks.conclusion import conclude
from benchmarks.machine import machine, packages
from benchmarks.servers import ROOT
from benchmarks.storm.run import SHARED_MACHINE
from benchmarks.tables import crashes_table, for_terminal, recovery_table
from lambda_pg_cdk.local.narrator import Narrator

CRASHES: Final = 10
"""In each of four rows, with PostgreSQL's default flushes."""
COMMITS: Final = 13_000
"""Before each crash: together more than 500,000."""
RECOVERY: Final = (sys.executable, "-m", "benchmarks.chaos.recovery", "--output")
"""Runs in another process, which has the layer on its path."""
LEAST_COMMITS: Final = 500_000
LEAST_CRASHES: Final = 40


def run(report: Report) -> dict[str, Any]:
    """Run everything and return the result."""
    rows, versions = crash_under_commits("default", crashes=CRASHES, commits=COMMITS, report=report)
    return {
        "machine": machine(),
        "versions": {**packages("psycopg"), **versions},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make chaos-long",
        "caveats": [SHARED_MACHINE],
        "crashes": rows,
        "recovery": recover(report),
    }


def recover(report: Report) -> dict[str, Any]:
    """Measure how fleets recover from an overload; return the rows and what they missed."""
    report("fleets of 120 to 1,000 log in after an outage; the pooler has 0.25 to 1 core")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "recovery.json"
        path = os.pathsep.join(map(str, (ROOT / "layer" / "python", ROOT)))
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run([*RECOVERY, str(output)], cwd=ROOT, env=environment, check=False)
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    rows = result["crashes"]
    broken = [*lost_in_crashes(rows), *result["recovery"]["missed"]]
    for what, least, seen in (
        ("commits", LEAST_COMMITS, sum(row["layer"]["acknowledged"] for row in rows)),
        ("crashes", LEAST_CRASHES, sum(row["crashes"] for row in rows)),
    ):
        if seen < least:
            broken.append(f"only {seen:,} {what}; at least {least:,} are needed")
    return broken


def main() -> int:
    """Run it and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    arguments = parser.parse_args()
    narrator, began = Narrator(), time.monotonic()
    result = run(narrator.note)
    result["seconds"] = round(time.monotonic() - began, 1)
    if arguments.output:
        arguments.output.write_text(json.dumps(result) + "\n")
    print(for_terminal(f"\n{crashes_table(result)}\n\n{recovery_table(result)}\n"))
    return conclude(shortfalls(result), result["recovery"]["unmeasured"])


if __name__ == "__main__":
    sys.exit(main())
