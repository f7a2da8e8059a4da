"""The API front end: sizes, bytes that stay as they are, and many requests at once."""

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import aiohttp
import pytest

from lambda_pg_cdk.local.deployment.deployed import Api, Route
from tests.support.front_end import serving

OPEN = Route("ANY /{path+}", "f", "2.0", 5.0)
HEAD = {"Host": "", "Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "test", "X": ""}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine."""
    return asyncio.run(work)


@pytest.mark.parametrize(
    ("beyond", "status"), [(0, 200), (1, 431), (200_000, 431)], ids=["full", "over", "far over"]
)
@pytest.mark.parametrize("part", ["path", "header"])
def test_the_request_line_and_the_headers_have_10_240_bytes(
    beyond: int, status: int, part: str
) -> None:
    """One of them may have nearly all; no function sees a request with more."""

    async def ask() -> tuple[int, str]:
        async with serving(OPEN) as served:
            headers = {**HEAD, "Host": served.url.removeprefix("http://")}
            used = len("GET /x HTTP/1.1") + sum(len(f"{n}: {v}") for n, v in headers.items())
            more = "a" * (10_240 - used + beyond)
            if part == "header":
                headers["X"] = more
            url = f"{served.url}/x{more if part == 'path' else ''}"
            async with served.session.get(url, headers=headers) as response:
                return response.status, await response.text()

    found, text = run(ask())
    assert found == status, text
    if status == 431:
        assert json.loads(text) == {"message": "Request Header Fields Too Large"}


def test_a_compressed_answer_goes_through_unchanged() -> None:
    """The function's bytes arrive, and a client that decompresses gets the text."""
    packed = gzip.compress(b"a" * 1000, mtime=0)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}

    async def function(_event: dict[str, Any]) -> dict[str, Any]:
        body = base64.b64encode(packed).decode()
        return {"statusCode": 200, "headers": headers, "body": body, "isBase64Encoded": True}

    async def ask() -> tuple[bytes, bytes]:
        async with serving(OPEN, function=function) as served:
            async with served.session.get(f"{served.url}/x") as raw:
                assert raw.headers["content-encoding"] == "gzip"
                assert int(raw.headers["content-length"]) == len(packed)
                as_sent = await raw.read()
            async with aiohttp.request("GET", f"{served.url}/x") as usual:
                return as_sent, await usual.read()

    assert run(ask()) == (packed, b"a" * 1000)


def test_a_compressed_request_reaches_the_function_as_it_was_sent() -> None:
    """API Gateway does not decompress; the event has the bytes, in base64."""
    packed = gzip.compress(b'{"a": 1}', mtime=0)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    async def ask() -> Any:
        async with (
            serving(OPEN) as served,
            served.session.post(f"{served.url}/x", data=packed, headers=headers) as response,
        ):
            return await response.json(content_type=None)

    event = run(ask())
    assert event["isBase64Encoded"]
    assert base64.b64decode(event["body"]) == packed


def test_300_requests_at_once_over_kept_connections_are_answered() -> None:
    """Twice over the same connections: no request is lost, none answered by another's answer."""

    async def function(event: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"statusCode": 200, "body": event["rawPath"]}

    async def ask() -> int:
        async with serving(OPEN, function=function) as served:

            async def one(path: str) -> None:
                async with served.session.get(f"{served.url}{path}") as response:
                    assert (response.status, await response.text()) == (200, path)

            for _ in range(2):
                await asyncio.gather(*(one(f"/{number}") for number in range(300)))
            return len(served.server.connections)

    assert run(ask()) == 300


def test_a_request_in_flight_survives_a_deployment_that_removes_its_route() -> None:
    """It was matched before: it is answered as before."""

    async def ask() -> int:
        async with serving(OPEN) as served:

            async def body() -> AsyncIterator[bytes]:
                yield b"a"
                await asyncio.sleep(0.05)
                served.api.update(Api("a", "$default", ()))
                yield b"b"

            async with served.session.post(f"{served.url}/x", data=body()) as response:
                return response.status

    assert run(ask()) == 200
