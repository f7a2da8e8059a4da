"""Limits in seconds that are longer here, because all environments share the machine's cores.

On AWS each environment has its own processor, and the product's limits apply. Here the last of 500
first requests waits until the others are done. How long depends on the machine and on what else it
runs. So a calibration times first requests of raw psycopg, and the limits follow from their time.
They nest: queue < checkout < function < API.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Self

import psycopg

from benchmarks.storm.rows import Row, Stage
from lambda_pg_cdk.local.cloud import LocalCloud

REQUESTS: Final = 50
"""Timed first requests of raw psycopg: fewer than connection slots, so that none fails."""

MARGIN: Final = 2.0
"""How many times longer a storm may take than predicted: the machine's load may change."""

MOST_QUEUE, MOST_CHECKOUT, MOST_FUNCTION = 5, 20, 25
"""The largest values that a stage allows; the API's timeout is 29 s."""

AFTER_CHECKOUT: Final = 3
"""Seconds that a function has for its answer after the checkout timeout."""


@dataclass(frozen=True)
class Limits:
    """The pooler's queue, the checkout timeout and the functions' timeout, in seconds."""

    queue: int
    checkout: int
    function: int

    @classmethod
    def deployed(cls, cloud: LocalCloud) -> Self:
        """Read the deployed limits of the API's functions and of the pooler."""
        functions = cloud.client("lambda").list_functions()["Functions"]
        found = next(
            one for one in functions if one["Environment"]["Variables"].get("PGAPPNAME") == "users"
        )
        variables = found["Environment"]["Variables"]
        checkout = int(variables["LAMBDA_PG_CHECKOUT_TIMEOUT"])
        return cls(queue_seconds(cloud), checkout, int(found["Timeout"]))

    def raised(self, seconds: float) -> "Limits":
        """Raise the limits so that a wait of so many seconds fits, as far as a stage allows it."""
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
            # It has to be longer than the checkout timeout, and gets no request of a storm.
            "sql": {"timeout": MOST_FUNCTION},
        }


@dataclass(frozen=True)
class Calibration:
    """The time of first requests of raw psycopg, and the limits that follow.

    `needed`: the predicted seconds of the plan's largest storm. `most`: the longest wait that a
    stage allows; if `needed` is longer, failures prove nothing.
    """

    requests: int
    seconds: float
    environments: int
    needed: float
    limits: Limits
    most: int = MOST_CHECKOUT

    def __str__(self) -> str:
        """Return it as a sentence."""
        limits = self.limits
        return (
            f"{self.requests} concurrent first requests of raw psycopg took {self.seconds:.1f} s, "
            f"so {self.environments} need about {self.needed:.0f} s; limits here: pooler queue "
            f"{limits.queue} s, checkout {limits.checkout} s, function {limits.function} s"
        )


def calibrate(stage: Stage, raw: Row, environments: int, deployed: Limits) -> Calibration:
    """Time first requests of raw psycopg; return the limits for a storm of `environments`."""
    row = Row("calibration", raw.function, REQUESTS, path=raw.path)
    seconds = stage.storm(row).max_ms / 1000
    return calibrated(REQUESTS, seconds, environments, deployed)


def calibrated(requests: int, seconds: float, environments: int, deployed: Limits) -> Calibration:
    """Extrapolate the time of a few requests to many; no limit gets shorter than deployed."""
    needed = seconds * environments / requests
    return Calibration(
        requests,
        round(seconds, 3),
        environments,
        round(needed, 2),
        deployed.raised(MARGIN * needed),
    )


def queue_seconds(cloud: LocalCloud) -> int:
    """Return the query_wait_timeout of a pooler task."""
    dsn = cloud.status()["pooler"]["admin_dsn"]
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as console:
        rows = console.execute("SHOW CONFIG").fetchall()
    return next(int(row[1]) for row in rows if row[0] == "query_wait_timeout")
