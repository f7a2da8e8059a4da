"""A steady load on fleets of several sizes: what a request costs as the fleet grows.

Open loop: requests are due at random moments that were drawn before, also if earlier ones have no
answer yet. The latency of a request counts from the moment it was due.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import aiohttp

from benchmarks.storm.accounting import Waits
from benchmarks.storm.meter import Meter
from benchmarks.storm.rows import Stage
from lambda_pg_cdk.local.http.load import Outcome, Summary, session, summarise, timed_request

FUNCTION: Final = "lambda_pg"
SIZES: Final = (50, 500, 1000)
ROUNDS: Final = 3
SECONDS: Final = 7.0
"""Seconds of load for each size in each round."""

TRIAL_SECONDS: Final = 5.0
WARMING: Final = 50
"""Concurrent first requests while environments get their connections."""

WARMINGS: Final = 3
"""Attempts to give every environment a connection before the measurement."""


@dataclass(frozen=True)
class Measure(Summary):
    """One size in one round. `rate` is the number of answers per second."""

    environments: int
    round: int
    rate: float
    cpu_ms: dict[str, float]
    """Milliseconds of processor time for each request."""
    environments_at_end: int
    """Must be `environments`, or another size was measured."""
    peak_server_connections: int
    waits: Waits
    others: float
    """The share of all processors that other programs used (0 to 1)."""
    seconds: float


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw the moments of a Poisson process: independent callers, `rate` per second."""
    chance = random.Random(seed)  # noqa: S311 - arrivals, not a secret
    moments: list[float] = []
    at = chance.expovariate(rate)
    while at < seconds:
        moments.append(at)
        at += chance.expovariate(rate)
    return moments


def arrive(
    url: str, token: str, moments: Sequence[float], environments: int
) -> tuple[list[Outcome], float]:
    """Send a request at each moment; return the outcomes and the seconds until the last answer.

    A request waits here while every environment is busy, and this wait counts. Otherwise the cloud
    would start another environment, as AWS does, and another size would be measured.
    """

    async def run() -> tuple[list[Outcome], float]:
        free = asyncio.Semaphore(environments)

        async def request(client: aiohttp.ClientSession, due: float) -> Outcome:
            async with free:
                return await timed_request(client, url, due)

        async with session(token) as client:
            began = time.perf_counter()
            requests = []
            for moment in moments:
                await asyncio.sleep(began + moment - time.perf_counter())
                requests.append(asyncio.create_task(request(client, began + moment)))
            return list(await asyncio.gather(*requests)), time.perf_counter() - began

    return asyncio.run(run())


def keep_busy(url: str, token: str, callers: int, seconds: float) -> tuple[list[Outcome], float]:
    """Run callers that send their next request when the last one is answered."""

    async def call(client: aiohttp.ClientSession, ending: float) -> list[Outcome]:
        found = []
        while (now := time.perf_counter()) < ending:
            found.append(await timed_request(client, url, now))
        return found

    async def run() -> tuple[list[Outcome], float]:
        async with session(token) as client:
            began = time.perf_counter()
            loops = (call(client, began + seconds) for _ in range(callers))
            lists = await asyncio.gather(*loops)
            return list(itertools.chain(*lists)), time.perf_counter() - began

    return asyncio.run(run())


class OpenLoop:
    """The measurement on one stage."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._seed = seed
        self._url = f"{stage.cloud.url}/storm/{FUNCTION}/{stage.user_id}"

    def run(
        self, sizes: Sequence[int] = SIZES, rounds: int = ROUNDS, seconds: float = SECONDS
    ) -> dict[str, Any]:
        """Measure every size in each round and return the result."""
        throughput = self.throughput(sizes[0])
        rate = round(throughput / 2, 1)
        self._stage.report(
            f"open loop: {sizes[0]} environments answer {throughput:.0f} requests/s; the load is "
            f"half of that, seed {self._seed}"
        )
        measures = [
            self.measure(size, number, rate, seconds) for number in range(rounds) for size in sizes
        ]
        found = [of_size(size, measures) for size in sizes]
        return {
            "throughput_rps": throughput,
            "offered_rps": rate,
            "seed": self._seed,
            "seconds": seconds,
            "sizes": found,
            "growth": growth(found),
            "measures": [asdict(measure) for measure in measures],
        }

    def throughput(self, size: int) -> float:
        """Measure the requests per second of a fleet in which every environment is busy."""
        self._stage.cloud.end_environments(FUNCTION)
        self._fill(size)
        outcomes, seconds = keep_busy(self._url, self._stage.token, size, TRIAL_SECONDS)
        return summarise(outcomes, seconds).throughput_rps

    def measure(self, size: int, number: int, rate: float, seconds: float) -> Measure:
        """Send the load to a fleet of this size; a fleet that is too large is replaced."""
        self._fill(size)
        moments = schedule(rate, seconds, self._seed + number)
        meter = Meter(self._stage.cloud)
        outcomes, taken = arrive(self._url, self._stage.token, moments, size)
        used = meter.read()
        summary = summarise(outcomes, taken)
        self._stage.report(
            f"open loop: {size} environments, round {number + 1}: p50 {summary.p50_ms} ms"
        )
        return Measure(
            **asdict(summary),
            environments=size,
            round=number + 1,
            rate=round(len(outcomes) / taken, 1),
            cpu_ms={
                name: round(1000 * spent / len(outcomes), 3)
                for name, spent in asdict(used.cpu).items()
            },
            environments_at_end=used.after["functions"][FUNCTION],
            peak_server_connections=used.server.peak,
            waits=used.waits,
            others=used.others,
            seconds=round(taken, 3),
        )

    def _fill(self, size: int) -> None:
        """Open environments up to a size and give each its connection."""
        cloud = self._stage.cloud
        if cloud.status()["functions"][FUNCTION] > size:
            cloud.end_environments(FUNCTION)
        cloud.environments(FUNCTION, size, spread=True)
        for _ in range(WARMINGS):
            if all(one.served for one in warm(self._url, self._stage.token, size)):
                return
        self._stage.report(f"open loop: some of {size} environments have no connection yet")


def warm(url: str, token: str, count: int) -> list[Outcome]:
    """Send `count` requests, a few at once; spread over the fleet, each environment gets one."""

    async def run() -> list[Outcome]:
        width = asyncio.Semaphore(WARMING)

        async def one(client: aiohttp.ClientSession) -> Outcome:
            async with width:
                return await timed_request(client, url, time.perf_counter())

        async with session(token) as client:
            return list(await asyncio.gather(*(one(client) for _ in range(count))))

    return asyncio.run(run())


def of_size(size: int, measures: Sequence[Measure]) -> dict[str, Any]:
    """Return the medians over the rounds of one size, and the sum of failures.

    `waits`, `others` and `seconds` are those of the round with the most failures.
    """
    rounds = [measure for measure in measures if measure.environments == size]
    worst = max(rounds, key=lambda measure: measure.failed)
    names = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "rate")
    medians = {
        name: round(statistics.median(getattr(m, name) for m in rounds), 2) for name in names
    }
    return {
        "environments": size,
        "requests": sum(measure.requests for measure in rounds),
        "failed": sum(measure.failed for measure in rounds),
        **medians,
        "cpu_ms": {
            name: round(statistics.median(measure.cpu_ms[name] for measure in rounds), 3)
            for name in rounds[0].cpu_ms
        },
        "environments_at_end": max(measure.environments_at_end for measure in rounds),
        "peak_server_connections": max(m.peak_server_connections for m in rounds),
        "waits": asdict(worst.waits),
        "others": worst.others,
        "seconds": worst.seconds,
    }


def growth(sizes: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Relate each size to the first one: latency and processor time of a request."""
    first, totals = sizes[0], [sum(size["cpu_ms"].values()) for size in sizes]
    return [
        {
            "environments": size["environments"],
            "p50": round(size["p50_ms"] / first["p50_ms"], 2),
            "p99": round(size["p99_ms"] / first["p99_ms"], 2),
            "cpu": round(total / totals[0], 2),
        }
        for size, total in zip(sizes, totals, strict=True)
    ]
