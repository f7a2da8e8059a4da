"""A steady load of reads, transfers and notes on the deployed API; it records each request."""

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import Any, Final

import aiohttp

from benchmarks.chaos.ledger import ACCOUNTS, Kind, Outcome, Request

KINDS: Final[tuple[Kind, ...]] = ("read", "transfer", "read", "note")
PATIENCE: Final = 35.0
"""Seconds that a client waits for an answer: longer than the API does."""


_chance = SystemRandom()


class Client:
    """Sends requests to one API and records them in `requests`."""

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession) -> None:
        """Take the API, a bearer token and a session."""
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session = session
        self.requests: list[Request] = []
        self._began = time.monotonic()

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self._began

    async def read(self, rest: float = 0.0) -> None:
        """Read an account, then rest for some seconds."""
        await self._request("read", "", "GET", f"/ledger/accounts/{_account()}", None)
        await asyncio.sleep(rest)

    async def transfer(self, key: str | None = None, pause: float = 0.0) -> None:
        """Move an amount, under a new key or under a known one."""
        key = key or str(uuid.uuid4())
        source, target = _chance.sample(range(1, ACCOUNTS + 1), 2)
        order = {"key": key, "source": source, "target": target, "amount": 1, "pause": pause}
        await self._request("transfer", key, "POST", "/ledger/transfers", order)

    async def note(self) -> None:
        """Write a note."""
        text = str(uuid.uuid4())
        await self._request("note", text, "POST", "/ledger/notes", {"text": text})

    async def _request(self, kind: Kind, key: str, method: str, path: str, order: Any) -> None:
        started = self.now()
        status, retry_after, already = 0, False, False
        outcome: Outcome = "no answer"
        url, headers = self._url + path, self._headers
        try:
            async with self._session.request(method, url, json=order, headers=headers) as answer:
                status, retry_after = answer.status, "Retry-After" in answer.headers
                body = await answer.json(content_type=None)
            outcome = outcome_of(status, body)
            already = isinstance(body, dict) and body.get("new") is False
        except (aiohttp.ClientError, TimeoutError, ValueError):
            pass  # no answer, or one that is not the function's
        untimed = bool(order and order.get("pause"))
        seconds = self.now() - started
        self.requests.append(
            Request(kind, key, started, seconds, status, retry_after, outcome, untimed, already)
        )


def outcome_of(status: int, body: Any) -> Outcome:
    """Return the outcome that an answer reports; "no answer" if it reports none."""
    if status == 200:
        return "done"
    if status == 503 and isinstance(body, dict) and body.get("outcome") == "not done":
        return "not done"
    if status == 503 and isinstance(body, dict) and body.get("outcome") == "unknown":
        return "unknown"
    return "no answer"


class Load:
    """Clients in a background thread; each sends a request, waits for the answer, and rests."""

    def __init__(self, url: str, token: str, *, clients: int, rest: float) -> None:
        """Take the API, a token, the number of clients and their rest in seconds."""
        self._url = url
        self._token = token
        self._clients = clients
        self._rest = rest
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load")
        self._may_send = asyncio.Event()
        self._stopped = False
        self._sending = 0
        self._client: Client
        self._jobs: list[asyncio.Task[None]] = []

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return self._client.now()

    @property
    def requests(self) -> list[Request]:
        """All requests that have ended so far."""
        return list(self._client.requests)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Run the clients until the block ends; then wait for the last answers."""
        self._thread.start()
        try:
            self._wait(self._open())
            yield self
        finally:
            try:
                self._wait(self._close())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the clients until the block ends; wait for their answers first."""
        self._wait(self._pause())
        try:
            yield
        finally:
            self._wait(self._resume())

    def at_once(self, count: int, verb: Callable[[Client], Awaitable[None]]) -> None:
        """Send `count` extra requests at the same moment and wait for their answers."""
        self.begin(count, verb)()

    def begin(self, count: int, verb: Callable[[Client], Awaitable[None]]) -> Callable[[], None]:
        """Send `count` extra requests; return a function that waits for their answers."""

        async def send() -> None:
            await asyncio.gather(*(verb(self._client) for _ in range(count)))

        future = asyncio.run_coroutine_threadsafe(send(), self._loop)
        return lambda: future.result(2 * PATIENCE)

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * PATIENCE)

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=PATIENCE)
        )
        self._client = Client(self._url, self._token, self._session)
        self._may_send.set()
        self._jobs = [asyncio.create_task(self._serve(n)) for n in range(self._clients)]

    async def _close(self) -> None:
        self._stopped = True
        self._may_send.set()
        try:
            await asyncio.gather(*self._jobs)
        finally:
            await self._session.close()

    async def _pause(self) -> None:
        self._may_send.clear()
        while self._sending:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)

    async def _resume(self) -> None:
        self._may_send.set()

    async def _serve(self, offset: int) -> None:
        verbs: dict[Kind, Callable[[], Awaitable[None]]] = {
            "read": self._client.read,
            "transfer": self._client.transfer,
            "note": self._client.note,
        }
        for kind in itertools.islice(itertools.cycle(KINDS), offset, None):
            await self._may_send.wait()
            if self._stopped:
                return
            self._sending += 1
            try:
                await verbs[kind]()
            finally:
                self._sending -= 1
            await asyncio.sleep(self._rest * _chance.uniform(0.5, 1.5))


def _account() -> int:
    return _chance.randint(1, ACCOUNTS)
