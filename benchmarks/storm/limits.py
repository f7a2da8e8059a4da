"""Limits in seconds that a local cloud has only because all its environments share the cores.

On AWS each environment has its own processor, and the product's limits stand. Here the last of
500 first requests waits until the others have had theirs, for as long as this machine needs, with
whatever else it does at the moment. So before our rows run, first requests of raw psycopg are timed
under that load, and the limits follow from it. They nest: queue < checkout < function < API.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Self

import psycopg

from benchmarks.storm.rows import Row, Stage
from lambda_pg_cdk.local.cloud import LocalCloud

REQUESTS: Final = 50
"""First requests of raw psycopg that are timed: fewer than there are slots, so that none fails."""

MARGIN: Final = 2.0
"""How much longer a storm may take than those requests foretell: the load may change meanwhile."""

MOST_QUEUE, MOST_CHECKOUT, MOST_FUNCTION = 5, 20, 25
"""The largest values that a stage's settings allow; the API gives up after 29 s."""

AFTER_CHECKOUT: Final = 3
"""Seconds that a function has for its answer when the wait for a connection has ended."""


@dataclass(frozen=True)
class Limits:
    """The pooler's queue, the checkout timeout and the functions' timeout, in seconds."""

    queue: int
    checkout: int
    function: int

    @classmethod
    def deployed(cls, cloud: LocalCloud) -> Self:
        """Read what is deployed for the API's functions, and at the pooler."""
        functions = cloud.client("lambda").list_functions()["Functions"]
        found = next(
            one for one in functions if one["Environment"]["Variables"].get("PGAPPNAME") == "users"
        )
        variables = found["Environment"]["Variables"]
        checkout = int(variables["LAMBDA_PG_CHECKOUT_TIMEOUT"])
        return cls(queue_seconds(cloud), checkout, int(found["Timeout"]))

    def raised(self, seconds: float) -> "Limits":
        """Let a wait of so many seconds end within these limits, as far as they can be raised."""
        checkout = min(max(self.checkout, ceil(seconds)), MOST_CHECKOUT)
        return Limits(
            queue=min(max(self.queue, ceil(seconds)), MOST_QUEUE),
            checkout=checkout,
            function=min(max(self.function, checkout + AFTER_CHECKOUT), MOST_FUNCTION),
        )

    @property
    def override(self) -> dict[str, Any]:
        """The settings of a stage that have these limits."""
        return {
            "functions": {"checkout_timeout": self.checkout, "timeout": self.function},
            "pgbouncer": {"query_wait_timeout": self.queue},
        }


@dataclass(frozen=True)
class Calibration:
    """What first requests of raw psycopg took, and the limits that follow.

    `needed` is how long the largest storm of the plan would take by that, and `most` the longest
    that a stage's settings can let a request wait: where more is needed, what fails is no proof.
    """

    requests: int
    seconds: float
    environments: int
    needed: float
    limits: Limits
    most: int = MOST_CHECKOUT

    def __str__(self) -> str:
        """Say it in a sentence."""
        limits = self.limits
        return (
            f"{self.requests} first requests of raw psycopg took {self.seconds:.1f} s at once when "
            f"the run began, so {self.environments} need about {self.needed:.0f} s: the pooler's "
            f"queue is {limits.queue} s, the checkout timeout {limits.checkout} s and the "
            f"functions' timeout {limits.function} s here"
        )


def calibrate(stage: Stage, raw: Row, environments: int, deployed: Limits) -> Calibration:
    """Time first requests of raw psycopg, and find the limits for a storm of `environments`."""
    row = Row("calibration", raw.function, REQUESTS, path=raw.path)
    seconds = stage.storm(row).max_ms / 1000
    return calibrated(REQUESTS, seconds, environments, deployed)


def calibrated(requests: int, seconds: float, environments: int, deployed: Limits) -> Calibration:
    """Extend what some requests took to many; no limit becomes shorter than what is deployed."""
    needed = seconds * environments / requests
    return Calibration(
        requests,
        round(seconds, 3),
        environments,
        round(needed, 2),
        deployed.raised(MARGIN * needed),
    )


def queue_seconds(cloud: LocalCloud) -> int:
    """Ask a task of the pooler for its query_wait_timeout."""
    dsn = cloud.status()["pooler"]["admin_dsn"]
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as console:
        rows = console.execute("SHOW CONFIG").fetchall()
    return next(int(row[1]) for row in rows if row[0] == "query_wait_timeout")
