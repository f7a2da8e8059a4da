"""The API front end over a socket, with a function and an issuer of the test's own."""

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lambda_pg_cdk.local.deployment.deployed import Api, Cors, JwtAuthorizer, Route, Throttle
from lambda_pg_cdk.local.environments.fleet import ThrottledError
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.http_api.authorizer import Authorizer
from lambda_pg_cdk.local.http_api.history import History
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE, Issuer
from lambda_pg_cdk.local.http_api.server import HttpApi, server
from tests.support.front_end import serving
from tests.support.issuer import issuer_at

OPEN = Route("ANY /open", "f", "2.0", 5.0)
ONLY_GET = Route("GET /open", "f", "2.0", 5.0)
ASKING = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
"""What a browser sends with a preflight."""

Answer = tuple[int, dict[str, str], Any]
Function = Callable[[dict[str, Any]], Awaitable[Outcome]]


async def echo(event: dict[str, Any]) -> Outcome:
    """Return the event."""
    return Outcome(json.dumps({"statusCode": 200, "body": json.dumps(event)}).encode())


async def listen(server: web.Server, closing: list[web.ServerRunner]) -> str:
    """Serve on a free port."""
    runner = web.ServerRunner(server)
    closing.append(runner)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def send(session: aiohttp.ClientSession, request: dict[str, Any]) -> Answer:
    """Send one request."""
    async with session.request(**request) as response:
        text = await response.text()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, json.loads(text) if text else None


def ask(
    route: Route = OPEN,
    function: Function = echo,
    *,
    token: Callable[[Issuer], str] | None = None,
    times: int = 1,
    cors: Cors | None = None,
    more: tuple[Route, ...] = (),
    **request: Any,
) -> list[Answer]:
    """Deploy a route, and more without an authorizer; send requests one after the other."""

    async def work() -> list[Answer]:
        closing: list[web.ServerRunner] = []
        async with aiohttp.ClientSession() as session:

            async def documents(asked: web.BaseRequest) -> web.Response:
                found = {"openid-configuration": issuer.discovery, "jwks.json": issuer.jwks}
                return web.json_response(found[asked.path.rpartition("/")[2]]())

            issuer = issuer_at(await listen(web.Server(documents), closing))
            guard = JwtAuthorizer(issuer.url, (AUDIENCE,)) if token else None

            async def invoke(_name: str, event: bytes) -> Outcome:
                return await function(json.loads(event))

            api = HttpApi(invoke, Authorizer(session), History())
            routes = (replace(route, authorizer=guard), *more)
            api.update(Api("a", "$default", routes, cors))
            url = await listen(server(api.handle), closing)
            headers = dict(request.get("headers", {}))
            if token:
                headers["Authorization"] = f"Bearer {token(issuer)}"
            sent = {"method": "GET", "url": f"{url}/open", **request, "headers": headers}
            try:
                return [await send(session, sent) for _ in range(times)]
            finally:
                for runner in closing:
                    await runner.cleanup()

    return asyncio.run(work())


def test_a_token_without_the_routes_scope_is_403() -> None:
    """One of the scopes is enough; none is forbidden, not unauthorized."""
    scoped = replace(OPEN, scopes=("users.read", "users.write"))
    ((status, _, body),) = ask(scoped, token=lambda issuer: issuer.token("s", scope="other"))
    assert (status, body) == (403, {"message": "Forbidden"})
    ((status, _, body),) = ask(scoped, token=lambda issuer: issuer.token("s", scope="users.read x"))
    assert status == 200
    assert body["requestContext"]["authorizer"]["jwt"]["claims"]["sub"] == "s"


def test_what_it_answers_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer, with its status and how long it took."""
    counted: list[tuple[int, bool]] = []

    def note(_history: History, status: int, seconds: float) -> None:
        counted.append((status, seconds > 0))

    monkeypatch.setattr(History, "add", note)
    limited = replace(OPEN, throttle=Throttle(rate=0.001, burst=1))
    ask(limited, times=2)
    assert counted == [(200, True), (429, True)]


def test_a_deployment_replaces_the_routes_that_were_found() -> None:
    """The same request gets the route of each moment."""
    served: list[tuple[int, str | None]] = []

    async def invoke(_name: str, event: bytes) -> Outcome:
        return await echo(json.loads(event))

    async def work() -> None:
        async with aiohttp.ClientSession() as session:
            api, closing = HttpApi(invoke, Authorizer(session), History()), list[web.ServerRunner]()
            request = {"method": "GET", "url": f"{await listen(server(api.handle), closing)}/open"}
            for routes in ((), (OPEN,), (OPEN, ONLY_GET), ()):
                api.update(Api("a", "$default", routes))
                status, _, body = await send(session, request)
                served.append((status, body.get("routeKey")))
            await closing[0].cleanup()

    asyncio.run(work())
    assert served == [(404, None), (200, OPEN.key), (200, ONLY_GET.key), (404, None)]


def test_requests_over_the_limit_are_429() -> None:
    """The burst passes, the next one does not."""
    limited = replace(OPEN, throttle=Throttle(rate=0.001, burst=2))
    assert [status for status, _, _ in ask(limited, times=3)] == [200, 200, 429]


async def throttled(_event: dict[str, Any]) -> Outcome:
    """Fail as Lambda does when reserved concurrency is used up."""
    raise ThrottledError("busy")


async def slow(_event: dict[str, Any]) -> Outcome:
    """Take longer than the integration waits."""
    await asyncio.sleep(30)
    raise AssertionError


def failing(outcome: Outcome) -> Function:
    """Make a function with an outcome."""

    async def function(_event: dict[str, Any]) -> Outcome:
        return outcome

    return function


SECRET = Outcome.failed("handled", "ValueError", "canary")


@pytest.mark.parametrize(
    ("function", "status", "message"),
    [
        (throttled, 503, "Service Unavailable"),
        (slow, 503, "Service Unavailable"),
        (failing(replace(SECRET, failure="timeout")), 503, "Service Unavailable"),
        (failing(SECRET), 500, "Internal Server Error"),
        (failing(replace(SECRET, failure="exit")), 500, "Internal Server Error"),
        (failing(Outcome(b'{"statusCode": "canary"}')), 500, "Internal Server Error"),
    ],
    ids=["throttled", "integration timeout", "function timeout", "error", "exit", "malformed"],
)
def test_failures_get_api_gateways_answer(function: Function, status: int, message: str) -> None:
    """None of the function's own words reaches the client."""
    ((got, _, body),) = ask(replace(OPEN, timeout=0.2), function)
    assert (got, body) == (status, {"message": message})


def test_a_request_of_more_than_10_mb_is_413() -> None:
    """Refused before a function sees it; so is an event of more than 6 MB."""
    for size in (11 * 1024 * 1024, 7 * 1024 * 1024):
        ((status, _, _),) = ask(method="POST", data=io.BytesIO(b"a" * size))
        assert status == 413


def test_cors_is_answered_by_the_api_itself() -> None:
    """A preflight reaches no function; other answers carry the origin."""
    cors = Cors(origins=("https://a.example",), methods=("GET",), headers=("x",))
    asked: dict[str, Any] = {"cors": cors, "headers": ASKING}
    ((status, headers, _),) = ask(ONLY_GET, throttled, method="OPTIONS", **asked)
    assert (status, headers["access-control-allow-methods"]) == (204, "GET")
    ((_, headers, _),) = ask(ONLY_GET, **asked)
    assert headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.parametrize(("key", "wants"), [("GET /open", False), ("ANY /open", True)])
def test_a_route_for_any_method_takes_preflights_before_the_api_does(key: str, wants: bool) -> None:
    """Its authorizer too: a preflight has no token. An OPTIONS route beside it is the remedy."""
    cors = Cors(origins=("https://a.example",), methods=("GET",), headers=("x",))
    guarded = replace(OPEN, key=key)
    asked: dict[str, Any] = {"cors": cors, "headers": ASKING, "method": "OPTIONS"}
    ((status, headers, _),) = ask(guarded, token=lambda _: "", **asked)
    assert (status, headers["access-control-allow-methods"]) == (401 if wants else 204, "GET")
    ((status, headers, _),) = ask(
        guarded, by_function, token=lambda _: "", more=(PREFLIGHT,), **asked
    )
    assert (status, headers["access-control-allow-methods"]) == (200, "GET")


def test_an_api_with_cors_ignores_the_functions_cors_headers() -> None:
    """Each header is sent once, and it is the API's: browsers reject two."""
    cors = Cors(origins=("https://a.example",), methods=("GET",), headers=("x",))
    own = {"access-control-allow-origin": "*", "access-control-max-age": "9", "x-own": "1"}

    async def function(_event: dict[str, Any]) -> dict[str, Any]:
        return {"statusCode": 200, "headers": own}

    async def found(method: str, headers: dict[str, str]) -> dict[str, list[str]]:
        async with serving(OPEN, function=function, cors=cors) as served:
            url = f"{served.url}/open"
            async with served.session.request(method, url, headers=headers) as response:
                names = {name.lower() for name in response.headers}
                return {name: response.headers.getall(name) for name in names}

    for method in ("GET", "OPTIONS"):
        headers = asyncio.run(found(method, ASKING))
        assert headers["access-control-allow-origin"] == ["https://a.example"]
        assert "access-control-max-age" not in headers
        assert "x-own" in headers
    assert not any(name.startswith("access-") for name in asyncio.run(found("GET", {})))


PREFLIGHT = Route("OPTIONS /open", "preflight", "2.0", 5.0)
PAGE = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}


async def by_function(event: dict[str, Any]) -> Outcome:
    """Answer the preflight as a function with CORS headers does."""
    headers = {"access-control-allow-origin": "https://a.example"}
    return Outcome(json.dumps({"statusCode": 200, "headers": headers, "body": '"f"'}).encode())


@pytest.mark.parametrize("method", ["POST", "ANY"])
def test_an_options_route_answers_beside_a_route_with_an_authorizer(method: str) -> None:
    """A preflight has no token: the function answers it, and the other route wants one."""
    guarded = replace(OPEN, key=f"{method} /open")
    asked: dict[str, Any] = {"more": (PREFLIGHT,), "headers": PAGE}
    ((status, headers, body),) = ask(
        guarded, by_function, token=lambda _: "", method="OPTIONS", **asked
    )
    assert (status, body) == (200, "f")
    assert headers["access-control-allow-origin"] == "https://a.example"
    ((status, _, _),) = ask(guarded, token=lambda _: "", method="POST", **asked)
    assert status == 401
    ((status, _, _),) = ask(
        guarded, by_function, token=lambda issuer: issuer.token("s"), method="POST", **asked
    )
    assert status == 200


def test_pages_may_ask_only_where_a_function_or_the_api_decides() -> None:
    """ANY matches OPTIONS too, but nothing says that its function knows of pages."""
    ((status, _, body),) = ask(OPEN, by_function, method="POST", headers=PAGE)
    assert (status, "Origin" in body["message"]) == (403, True)
    elsewhere = replace(PREFLIGHT, key="OPTIONS /other")
    ((status, _, _),) = ask(OPEN, by_function, more=(elsewhere,), method="POST", headers=PAGE)
    assert status == 403
    foreign = {**PAGE, "Host": "evil.example"}
    ((status, _, _),) = ask(OPEN, by_function, more=(PREFLIGHT,), method="POST", headers=foreign)
    assert status == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "https://b.example"}, 403),
        ({"Origin": "https://a.example", "Host": "evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
    ids=["program", "configured page", "other page", "foreign name", "image of a page"],
)
def test_pages_of_configured_origins_may_ask_and_no_others(
    headers: dict[str, str], status: int
) -> None:
    """Without a configuration no page may; the function does not run for a page that may not."""
    cors = Cors(origins=("https://a.example",), methods=("GET",), headers=("x",))
    ((found, told, _),) = ask(cors=cors, headers=headers)
    assert (found, "access-control-allow-origin" in told) == (
        status,
        status == 200 and "Origin" in headers,
    )
    if "Origin" in headers:
        ((found, _, body),) = ask(headers=headers)
        assert (found, "must" in body["message"]) == (403, True)


@pytest.mark.parametrize("given", ["", "Bearer nonsense"])
def test_a_refused_token_is_explained_as_api_gateway_does(given: str) -> None:
    """Without one the header has no error; the body never says more."""

    async def work() -> tuple[int, str, Any]:
        guarded = replace(OPEN, authorizer=JwtAuthorizer("http://127.0.0.1:1", (AUDIENCE,)))
        async with serving(guarded) as served:
            headers = {"Authorization": given} if given else {}
            async with served.session.get(f"{served.url}/open", headers=headers) as response:
                challenge = response.headers["www-authenticate"]
                return response.status, challenge, await response.json()

    status, challenge, body = asyncio.run(work())
    assert (status, body) == (401, {"message": "Unauthorized"})
    form = r'Bearer( scope="" error="invalid_token" error_description="[^"]+")?'
    assert re.fullmatch(form, challenge)
    assert ("error" in challenge) == bool(given)
