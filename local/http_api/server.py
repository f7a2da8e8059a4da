"""Serve one deployed API on loopback."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from aiohttp import web

from lambda_pg_cdk.local.deployment.deployed import Api, Route, Throttle
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

MAX_HEAD_BYTES = 10_240
"""Of the request line and all headers, names and values: a quota of HTTP APIs."""
MAX_REQUEST_BYTES = 10 * 1024 * 1024
MAX_EVENT_BYTES = 6 * 1024 * 1024
_READ_BYTES = 1024 * 1024  # of one header or line: more is no HTTP for aiohttp, which answers 400
_READ_HEADERS = 10_000
_REMEMBERED_ROUTES = 256
_HOP_HEADERS = {"connection", "keep-alive", "content-length", "transfer-encoding", "upgrade"}

Invoke = Callable[[str, bytes], Awaitable[Outcome]]


class HttpApi:
    """The front end: routes, authorizer, throttle and CORS of one deployed API."""

    def __init__(self, invoke: Invoke, authorizer: Authorizer, history: History) -> None:
        """Take what calls functions, checks tokens and counts answers; no API is deployed yet."""
        self._invoke = invoke
        self._authorizer = authorizer
        self._history = history
        self._api: Api | None = None
        self._find = _finder(())
        self._buckets: dict[tuple[str, Throttle], Bucket] = {}

    def update(self, api: Api | None) -> None:
        """Serve what is deployed now; requests in flight keep their route."""
        self._api = api
        self._find = _finder(api.routes if api else ())
        wanted = {(route.key, route.throttle) for route in (api.routes if api else ())}
        self._buckets = {key: self._buckets.get(key) or Bucket(key[1]) for key in wanted}

    async def handle(self, received: web.BaseRequest) -> web.Response:
        """Answer one request to the API's own port; this is aiohttp's handler."""
        if reason := guard.refusal_of(received, self.trusts(received)):
            return refused(reason)
        return await self.answer(received)

    async def answer(self, received: web.BaseRequest) -> web.Response:
        """Answer one request that the guard has let through."""
        began = time.monotonic()
        headers = {name.lower(): value for name, value in received.headers.items()}
        response = await self._respond(received, headers)
        self._history.add(response.status, time.monotonic() - began)
        answer = web.Response(status=response.status, body=response.body)
        answer.headers.popall("Content-Type", None)
        for name, value in response.headers:
            if name not in _HOP_HEADERS:
                answer.headers.add(name, value)
        return answer

    def trusts(self, received: web.BaseRequest) -> Callable[[str], bool]:
        """Return what tells whether pages of an origin may send this request.

        The API's CORS configuration decides. Without one, the function behind a route
        `OPTIONS /path` answers preflight requests for that path, so it decides.
        """
        api, path, find = self._api, received.raw_path.partition("?")[0], self._find

        def allowed(origin: str) -> bool:
            if api is None:
                return False
            if api.cors is not None:
                return cors.allows(api.cors, origin)
            match = find("OPTIONS", path)
            return match is not None and match.route.key.startswith("OPTIONS ")

        return allowed

    async def _respond(self, received: web.BaseRequest, headers: dict[str, str]) -> HttpResponse:
        api = self._api
        if _head_bytes(received) > MAX_HEAD_BYTES:
            return HttpResponse.message(431, "Request Header Fields Too Large")
        if api is None:
            return HttpResponse.message(404, "Not Found")
        if api.cors is None:
            return await self._follow_route(received, api, headers)
        method, path = received.method, received.raw_path.partition("?")[0]
        # A route that takes OPTIONS comes first, also ANY and `$default` with their authorizer.
        if method == cors.PREFLIGHT and self._find(method, path) is None:
            return cors.preflight(api.cors, headers)
        response = await self._follow_route(received, api, headers)
        return cors.applied(api.cors, method, headers, response)

    async def _follow_route(
        self, received: web.BaseRequest, api: Api, headers: dict[str, str]
    ) -> HttpResponse:
        path, _, query = received.raw_path.partition("?")
        match = self._find(received.method, path)
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
                challenge = _challenge(str(error)) if authorization else "Bearer"
                return HttpResponse.message(401, "Unauthorized", ("www-authenticate", challenge))
            except ForbiddenError:
                return HttpResponse.message(403, "Forbidden")
        bucket = self._buckets.get((route.key, route.throttle))  # none: a deployment removed it
        if bucket is not None and not bucket.take():
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


def _finder(routes: Sequence[Route]) -> Callable[[str, str], Match | None]:
    """Return what finds the route of a method and a path; a storm asks for the same again."""
    return lru_cache(maxsize=_REMEMBERED_ROUTES)(partial(find_route, routes))


def server(handle: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> web.Server:
    """Return the handler of connections, for `create_server`.

    Bodies stay as they arrive, also compressed ones. The limits are far above API Gateway's, so
    that its own answer is sent. A peer on loopback cannot vanish, so no keep-alive looks for it.
    """
    return web.Server(
        handle,
        request_factory=_request,
        access_log=None,
        tcp_keepalive=False,
        auto_decompress=False,
        max_line_size=_READ_BYTES,
        max_field_size=_READ_BYTES,
        max_headers=_READ_HEADERS,
    )


def refused(reason: str) -> web.Response:
    """Return the answer to a request that the guard refuses."""
    return web.json_response({"message": reason}, status=403)


def _head_bytes(received: web.BaseRequest) -> int:
    """Count the request line and the headers as they arrived, without the ends of lines."""
    line = f"{received.method} {received.raw_path} HTTP/1.1"
    headers = received.raw_headers
    return len(line) + sum(len(name) + len(b": ") + len(value) for name, value in headers)


def _request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: "asyncio.Task[None]"
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    limit = MAX_REQUEST_BYTES
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit)


def _challenge(reason: str) -> str:
    """Say what is wrong with a token, in the form of API Gateway's header."""
    text = " ".join(reason.replace('"', "'").split())
    return f'Bearer scope="" error="invalid_token" error_description="{text[:150]}"'
