"""Send requests at the same moment and record the outcome of each."""

import asyncio
import re
import statistics
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import uvloop

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH: Final = re.compile(rb"(?mi)^content-length: (\d+)\r?$")

CAUSES: Final = (
    "sorry, too many clients already",
    "remaining connection slots are reserved",
    "query_wait_timeout",
    "client_login_timeout",
    "server closed the connection unexpectedly",
    "connection timeout expired",
    "Connection refused",
    "Task timed out",
)
"""Causes of failures in a function's log; the first match in a line counts."""

UNEXPLAINED: Final = "not explained in the log"


@dataclass(frozen=True)
class Outcome:
    """One request: its status (0 when no answer came), its duration and its error."""

    status: int
    seconds: float
    cause: str

    @property
    def served(self) -> bool:
        """Whether the caller got its data."""
        return self.status == 200


@dataclass(frozen=True)
class Summary:
    """The numbers of a table's row; times are milliseconds."""

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
    return uvloop.run(_fire(url, token, count, timeout))


async def _fire(url: str, token: str, count: int, patience: float) -> tuple[list[Outcome], float]:
    parts = urlsplit(url)
    path = urlunsplit(("", "", parts.path, parts.query, ""))
    fields = {"Host": parts.netloc, "Authorization": f"Bearer {token}", "Connection": "close"}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    message = "\r\n".join([*lines, "", ""]).encode()
    address = parts.hostname or "", parts.port or 80
    started = time.perf_counter()
    requests = (_send_once(address, message, patience, started) for _ in range(count))
    outcomes = await asyncio.gather(*requests)
    return outcomes, time.perf_counter() - started


class _Exchange(asyncio.Protocol):
    """One request and its answer over a new connection, which the server closes."""

    def __init__(self, message: bytes, over: asyncio.Future[None]) -> None:
        self.answer = bytearray()
        self._message = message
        self.over = over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._message)

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, exc: Exception | None) -> None:
        if self.over.done():  # nobody waits any more
            return
        if exc is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(exc)


async def _send_once(
    address: tuple[str, int], message: bytes, patience: float, due: float
) -> Outcome:
    """Send one request over a new connection, which costs far less than aiohttp's client.

    Its duration counts from `due`, a moment of `time.perf_counter`.
    """
    loop = asyncio.get_running_loop()
    exchange = _Exchange(message, loop.create_future())
    try:
        async with asyncio.timeout(patience):
            transport, _ = await loop.create_connection(lambda: exchange, *address)
            with closing(transport):
                await exchange.over
    except (OSError, TimeoutError) as error:
        return Outcome(0, time.perf_counter() - due, type(error).__name__)
    return _outcome(bytes(exchange.answer), time.perf_counter() - due)


def _outcome(answer: bytes, seconds: float) -> Outcome:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, length = _STATUS.match(head), _LENGTH.search(head)
    if status is None or length is None or int(length[1]) != len(body):
        return Outcome(0, seconds, "half an answer")
    code = int(status[1])
    cause = "" if code == 200 else f"{code} {body[:80].decode(errors='replace')}"
    return Outcome(code, seconds, cause)


def session(token: str, patience: float = 60.0) -> aiohttp.ClientSession:
    """Make a client of the API for one token, without a limit of connections."""
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
    """Count and rank; the latencies include those of failed requests."""
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


class FunctionLog:
    """New lines of a function's log, which has the causes: the API's answers hide them."""

    def __init__(self, path: Path) -> None:
        """Remember where the log ends."""
        self._path = path
        self._end = path.stat().st_size if path.exists() else 0

    def causes(self, summary: Summary) -> dict[str, int]:
        """Return the causes of failed requests; those of the answers if the log does not match."""
        added = self._path.read_bytes()[self._end :] if self._path.exists() else b""
        text = added.decode(errors="replace")
        named = (next((c for c in CAUSES if c in line), "") for line in text.splitlines())
        counts = Counter(filter(None, named))
        if not 0 < counts.total() <= summary.failed:
            return {**summary.failures}
        counts[UNEXPLAINED] = summary.failed - counts.total()
        return {cause: count for cause, count in counts.most_common() if count}
