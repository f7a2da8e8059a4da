"""The same storm from another load generator: Locust, in its own virtual environment."""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.storm.rows import Driver, Result, Row, Stage, our_driver
from lambda_pg_cdk.local.http.load import Outcome, Summary, summarise
from lambda_pg_cdk.local.install.installed import environment_python

HERE: Final = Path(__file__).resolve().parent / "locust"
SECONDS: Final = 90.0
NAMES: Final = ("requests", "served", "failed", "p50_ms", "p95_ms", "p99_ms", "max_ms")


def python() -> Path:
    """Return the interpreter that has Locust, installed on first use."""
    return environment_python("locust", HERE / "requirements.txt")


def version() -> str:
    """Name Locust's version."""
    folder = next(python().parent.parent.glob("lib/*/site-packages/locust-*.dist-info"))
    return Distribution.at(folder).version


def locust(url: str, token: str, count: int) -> Summary:
    """Send `count` requests at the same moment from Locust; return the summary of its outcomes."""
    address = urlsplit(url)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "outcomes.json"
        variables = {
            "STORM_TOKEN": token,
            "STORM_PATH": address.path,
            "STORM_OUTPUT": str(output),
        }
        done = subprocess.run(
            [*_command(count), "--host", f"{address.scheme}://{address.netloc}"],
            cwd=folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode or not output.exists():
            raise RuntimeError(f"Locust failed:\n{done.stderr[-2000:]}")
        outcomes = outcomes_of(json.loads(output.read_text()))
        return summarise(outcomes, max(outcome.seconds for outcome in outcomes))


def _command(count: int) -> list[str]:
    locustfile = str(HERE / "locustfile.py")
    users = ["--users", str(count), "--spawn-rate", str(count)]
    return [str(python()), "-m", "locust", "--locustfile", locustfile, "--headless", *users]


def outcomes_of(found: Sequence[tuple[int, float]]) -> list[Outcome]:
    """Read Locust's outcomes: status and milliseconds."""
    return [
        Outcome(status, milliseconds / 1000, "" if status == 200 else str(status))
        for status, milliseconds in found
    ]


DRIVERS: Final[dict[str, Driver]] = {"ours": our_driver, "locust": locust}


def compare(stage: Stage, plan: Sequence[tuple[Row, int]]) -> dict[str, Any]:
    """Storm each row this often from both drivers alternately, each time with new environments."""
    found = []
    for row, times in plan:
        runs: dict[str, list[Result]] = {name: [] for name in DRIVERS}
        for _ in range(times):
            for name, driver in DRIVERS.items():
                stage.report(f"second driver: {row.name} from {name}")
                runs[name].append(stage.storm(row, driver))
        found.append(
            {
                "name": row.name,
                "environments": row.environments,
                **{name: median_of(results) for name, results in runs.items()},
                "runs": {name: list(map(summary, results)) for name, results in runs.items()},
            }
        )
    return {"name": "Locust", "version": version(), "rows": found}


def summary(result: Result) -> dict[str, Any]:
    """Return what a driver and the API counted in one storm."""
    counted = asdict(result)
    answered = result.answered
    return {
        **{name: counted[name] for name in NAMES},
        "api_served": answered.get("200", 0),
        "api_failed": sum(answered.values()) - answered.get("200", 0),
    }


def median_of(results: Sequence[Result]) -> dict[str, float]:
    """Return the medians of several storms."""
    counted = [asdict(result) for result in results]
    return {name: round(statistics.median(one[name] for one in counted), 1) for name in NAMES}
