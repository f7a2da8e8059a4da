"""Serve the deployed API on loopback."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from lambda_pg_cdk.local.deployment.deployed import Api, Throttle
from lambda_pg_cdk.local.environments.fleet import ThrottledError
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.http_api import cors
from lambda_pg_cdk.local.http_api.authorizer import Authorizer, ForbiddenError, UnauthorizedError
from lambda_pg_cdk.local.http_api.events import (
    HttpRequest,
    HttpResponse,
    MalformedResponseError,
    build_event,
    read_response,
)
from lambda_pg_cdk.local.http_api.history import History
from lambda_pg_cdk.local.http_api.routes import Match, find_route
from lambda_pg_cdk.local.http_api.throttle import Bucket

MAX_REQUEST_BYTES = 10 * 1024 * 1024
MAX_EVENT_BYTES = 6 * 1024 * 1024
_HOP_HEADERS = {"connection", "keep-alive", "content-length", "transfer-encoding", "upgrade"}

Invoke = Callable[[str, bytes], Awaitable[Outcome]]


class HttpApi:
    """The front end: routes, authorizer, throttle and CORS of one deployed API."""

    def __init__(self, invoke: Invoke, session: aiohttp.ClientSession) -> None:
        self._invoke = invoke
        self._authorizer = Authorizer(session)
        self._api: Api | None = None
        self.history = History()
        self._buckets: dict[tuple[str, Throttle], Bucket] = {}

    def update(self, api: Api | None) -> None:
        """Serve what is deployed now; requests in flight keep their route."""
        self._api = api
        wanted = {(route.key, route.throttle) for route in (api.routes if api else ())}
        self._buckets = {key: self._buckets.get(key) or Bucket(key[1]) for key in wanted}

    def server(self) -> web.Server:
        """Return the handler of connections, for `create_server`."""
        return web.Server(self.handle, request_factory=_request, access_log=None)

    async def handle(self, received: web.BaseRequest) -> web.Response:
        """Answer one request; this is aiohttp's handler."""
        began = time.monotonic()
        if reason := guard.refusal_of(received, self._trusts):
            return web.json_response({"message": reason}, status=403)
        headers = {name.lower(): value for name, value in received.headers.items()}
        response = await self._answer(received, headers)
        self.history.add(response.status, time.monotonic() - began)
        extra = (
            cors.allowed_headers(self._api.cors, headers) if self._api and self._api.cors else []
        )
        answer = web.Response(status=response.status, body=response.body)
        answer.headers.popall("Content-Type", None)
        for name, value in [*response.headers, *extra]:
            if name not in _HOP_HEADERS:
                answer.headers.add(name, value)
        return answer

    def _trusts(self, origin: str) -> bool:
        """Tell whether the deployed API allows requests of pages of an origin."""
        return (
            self._api is not None
            and self._api.cors is not None
            and (cors.allows(self._api.cors, origin))
        )

    async def _answer(self, received: web.BaseRequest, headers: dict[str, str]) -> HttpResponse:
        api = self._api
        path, _, query = received.raw_path.partition("?")
        if api is None:
            return HttpResponse.message(404, "Not Found")
        if received.method == "OPTIONS" and api.cors and "origin" in headers:
            return cors.preflight(api.cors, headers)
        match = find_route(api.routes, received.method, path)
        if match is None:
            return HttpResponse.message(404, "Not Found")
        try:
            body = await received.read()
        except web.HTTPRequestEntityTooLarge:
            return HttpResponse.message(413, "Request Entity Too Large")
        request = HttpRequest(
            id=str(uuid.uuid4()),
            method=received.method,
            path=path,
            query=query,
            headers=list(received.headers.items()),
            body=body,
            source=received.remote or "",
        )
        response = await self._serve(request, api, match, headers.get("authorization"))
        return HttpResponse(
            response.status, [*response.headers, ("apigw-requestid", request.id)], response.body
        )

    async def _serve(
        self, request: HttpRequest, api: Api, match: Match, authorization: str | None
    ) -> HttpResponse:
        route, claims = match.route, None
        if route.authorizer is not None:
            try:
                claims = await self._authorizer.check(route.authorizer, route.scopes, authorization)
            except UnauthorizedError as error:
                challenge = ("www-authenticate", f'Bearer error="invalid_token" {error}'[:200])
                plain = challenge if authorization else ("www-authenticate", "Bearer")
                return HttpResponse.message(401, "Unauthorized", _one_line(plain))
            except ForbiddenError:
                return HttpResponse.message(403, "Forbidden")
        if not self._buckets[route.key, route.throttle].take():
            return HttpResponse.message(429, "Too Many Requests")
        event = json.dumps(build_event(request, api, match, claims)).encode()
        if len(event) > MAX_EVENT_BYTES:
            return HttpResponse.message(413, "Request Entity Too Large")
        return await self._integrate(match, event)

    async def _integrate(self, match: Match, event: bytes) -> HttpResponse:
        """Call the function; answer a failure as API Gateway does.

        503 if Lambda throttles or there is no answer in time, 500 if the function fails.
        """
        try:
            async with asyncio.timeout(match.route.timeout):
                outcome = await self._invoke(match.route.function, event)
        except (TimeoutError, ThrottledError):
            return HttpResponse.message(503, "Service Unavailable")
        if outcome.failure == "timeout":
            return HttpResponse.message(503, "Service Unavailable")
        if outcome.failure is not None:
            return HttpResponse.message(500, "Internal Server Error")
        try:
            return read_response(outcome.payload)
        except MalformedResponseError:
            return HttpResponse.message(500, "Internal Server Error")


def _request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: "asyncio.Task[None]"
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    limit = MAX_REQUEST_BYTES
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit)


def _one_line(header: tuple[str, str]) -> tuple[str, str]:
    return header[0], " ".join(header[1].split())
