"""Fire requests at the same moment and keep what became of each."""

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True)
class Outcome:
    """One request: its status (0 when no answer came), its duration and what was wrong."""

    status: int
    seconds: float
    cause: str

    @property
    def served(self) -> bool:
        """Tell whether the caller got what it asked for."""
        return self.status == 200


@dataclass(frozen=True)
class Summary:
    """What a row of a table says of many outcomes; times are milliseconds."""

    requests: int
    served: int
    failed: int
    failures: dict[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    throughput_rps: float


def fire(url: str, token: str, count: int, *, timeout: float = 60.0) -> tuple[list[Outcome], float]:
    """Send `count` requests at once; return their outcomes and the seconds until the last."""
    return asyncio.run(_fire(url, token, count, timeout))


async def _fire(url: str, token: str, count: int, patience: float) -> tuple[list[Outcome], float]:
    async with session(token, patience) as client:
        started = time.perf_counter()
        requests = (timed_request(client, url, time.perf_counter()) for _ in range(count))
        outcomes = await asyncio.gather(*requests)
        return outcomes, time.perf_counter() - started


def session(token: str, patience: float = 60.0) -> aiohttp.ClientSession:
    """Make a client without a limit of connections, for one caller of the API."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=patience),
        headers={"Authorization": f"Bearer {token}"},
    )


async def timed_request(client: aiohttp.ClientSession, url: str, due: float) -> Outcome:
    """Send one request; its duration counts from `due`, a moment of `time.perf_counter`."""
    try:
        async with client.get(url) as response:
            body = await response.text()
            cause = "" if response.status == 200 else f"{response.status} {body[:80]}"
            return Outcome(response.status, time.perf_counter() - due, cause)
    except (aiohttp.ClientError, TimeoutError) as error:
        return Outcome(0, time.perf_counter() - due, type(error).__name__)


def summarise(outcomes: list[Outcome], seconds: float) -> Summary:
    """Count and rank; the latencies are those of all requests, failed ones too."""
    times = sorted(outcome.seconds * 1000 for outcome in outcomes)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    failed = [outcome for outcome in outcomes if not outcome.served]
    return Summary(
        requests=len(outcomes),
        served=len(outcomes) - len(failed),
        failed=len(failed),
        failures=dict(Counter(outcome.cause for outcome in failed).most_common()),
        p50_ms=round(cuts[49], 1),
        p95_ms=round(cuts[94], 1),
        p99_ms=round(cuts[98], 1),
        max_ms=round(times[-1], 1),
        throughput_rps=round((len(outcomes) - len(failed)) / seconds, 1),
    )
