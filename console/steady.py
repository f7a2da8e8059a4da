"""A steady load on the users API, so that what a fault does can be seen."""

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
"""Requests on their way at the same time, and environments that are opened for them beforehand.

Cold starts take longer on a busy machine, and make it busier: the load would never get past them.
"""
_PATIENCE = 35.0
_TOKEN_SECONDS = 86400


@dataclass(frozen=True)
class Visitor:
    """Somebody with a token and a user of his own."""

    token: str
    user: str

    @staticmethod
    def arrive(cloud: LocalCloud) -> "Visitor":
        """Create a user; raise `CloudError` where the API does not answer."""
        token = cloud.token(str(uuid.uuid4()), seconds=_TOKEN_SECONDS)
        answer = call(cloud.url, "POST", "/users", token, {"name": "Ada"})
        if answer.status != 201:
            raise CloudError(f"POST /users was answered {answer.status}: no user to ask for")
        return Visitor(token, str(json.loads(answer.body)["id"]))


class SteadyLoad:
    """A few requests a second, whether or not the ones before have been answered."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Send nothing yet."""
        self._cloud = cloud
        self._wanted = False
        self._task: asyncio.Task[None] | None = None
        self._flying: set[asyncio.Task[None]] = set()
        self._paused = 0

    @property
    def on(self) -> bool:
        """Tell whether it is switched on."""
        return self._task is not None

    async def start(self) -> None:
        """Switch it on, unless it is switched off meanwhile; raise where no user can be created."""
        self._wanted = True
        await self._prepare()
        visitor = await asyncio.to_thread(Visitor.arrive, self._cloud)
        if self._wanted and self._task is None:
            self._task = asyncio.create_task(self._run(visitor))

    async def stop(self) -> None:
        """Switch it off; requests on their way are given up."""
        self._wanted = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Wait for the answers to what is on its way, and send nothing for the time of a block."""
        self._paused += 1
        try:
            await asyncio.gather(*self._flying, return_exceptions=True)
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
                if not self._paused and len(self._flying) < MOST:
                    request = asyncio.create_task(_ask(session, url))
                    self._flying.add(request)
                    request.add_done_callback(self._flying.discard)
                await asyncio.sleep(REST)


async def _ask(session: aiohttp.ClientSession, url: str) -> None:
    # The API counts what it answers; where there is none, there is nothing to count.
    with suppress(aiohttp.ClientError, TimeoutError):
        async with session.get(url) as response:
            await response.read()
