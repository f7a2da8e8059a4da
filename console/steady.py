"""A steady load on the users API, which shows the effect of a fault."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import aiohttp

from lambda_pg_cdk.local.cloud import CloudError, LocalCloud
from lambda_pg_cdk.local.http.caller import call

REST = 0.25
"""Seconds between two requests."""
FUNCTION = "users"
MOST = 20
"""Requests in flight at the same time, and environments that are opened for them beforehand.

Cold starts take longer on a busy machine, and make it busier: the load would never recover.
"""
_PATIENCE = 35.0
_TOKEN_SECONDS = 86400


@dataclass(frozen=True)
class Visitor:
    """A caller with a token and a user."""

    token: str
    user: str

    @staticmethod
    def arrive(cloud: LocalCloud) -> "Visitor":
        """Create a user; raise `CloudError` if the API does not."""
        token = cloud.token(str(uuid.uuid4()), seconds=_TOKEN_SECONDS)
        answer = call(cloud.url, "POST", "/users", token, {"name": "Ada"})
        if answer.status != 201:
            raise CloudError(f"POST /users answered {answer.status}; must be 201")
        return Visitor(token, str(json.loads(answer.body)["id"]))


class SteadyLoad:
    """A few requests a second, which do not wait for earlier answers."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Send nothing yet."""
        self._cloud = cloud
        self._wanted = False
        self._task: asyncio.Task[None] | None = None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._paused = 0

    @property
    def on(self) -> bool:
        """Whether it is switched on."""
        return self._task is not None

    async def start(self) -> None:
        """Switch it on, unless it is switched off meanwhile; raise if no user can be created."""
        self._wanted = True
        await self._prepare()
        visitor = await asyncio.to_thread(Visitor.arrive, self._cloud)
        if self._wanted and self._task is None:
            self._task = asyncio.create_task(self._run(visitor))

    async def stop(self) -> None:
        """Switch it off; cancel requests in flight."""
        self._wanted = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Wait for the answers to requests in flight; send none until the block is left."""
        self._paused += 1
        try:
            await asyncio.gather(*self._in_flight, return_exceptions=True)
            yield
            if self.on:
                await self._prepare()
        finally:
            self._paused -= 1

    async def _prepare(self) -> None:
        await asyncio.to_thread(self._cloud.environments, FUNCTION, MOST)

    async def _run(self, visitor: Visitor) -> None:
        url = f"{self._cloud.url}/users/{visitor.user}"
        headers = {"Authorization": f"Bearer {visitor.token}"}
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            while True:
                if not self._paused and len(self._in_flight) < MOST:
                    request = asyncio.create_task(_ask(session, url))
                    self._in_flight.add(request)
                    request.add_done_callback(self._in_flight.discard)
                await asyncio.sleep(REST)


async def _ask(session: aiohttp.ClientSession, url: str) -> None:
    # The API counts its answers; without an answer there is nothing to count.
    with suppress(aiohttp.ClientError, TimeoutError):
        async with session.get(url) as response:
            await response.read()
