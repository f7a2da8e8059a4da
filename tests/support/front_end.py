"""The front end of one API, over a socket, with a function of the test."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from lambda_pg_cdk.local.deployment.deployed import Api, Cors, Route
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.http_api.authorizer import Authorizer
from lambda_pg_cdk.local.http_api.history import History
from lambda_pg_cdk.local.http_api.server import HttpApi, server

Function = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def echo(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event."""
    return {"statusCode": 200, "body": json.dumps(event)}


@dataclass(frozen=True)
class Served:
    """A front end, where it is, and a client."""

    api: HttpApi
    server: web.Server
    url: str
    session: aiohttp.ClientSession


@asynccontextmanager
async def serving(
    *routes: Route, function: Function = echo, cors: Cors | None = None
) -> AsyncIterator[Served]:
    """Serve routes of one API on a free port."""

    async def invoke(_name: str, event: bytes) -> Outcome:
        return Outcome(json.dumps(await function(json.loads(event))).encode())

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        api = HttpApi(invoke, Authorizer(session), History())
        api.update(Api("a", "$default", routes, cors))
        served = server(api.handle)
        runner = web.ServerRunner(served)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        try:
            yield Served(api, served, f"http://127.0.0.1:{runner.addresses[0][1]}", session)
        finally:
            await runner.cleanup()
