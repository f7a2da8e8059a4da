"""Serve the page, the stream of samples, and the buttons."""

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from lambda_pg_cdk.console.actions import REQUESTS, TARGETS, Actions, BusyError
from lambda_pg_cdk.console.watch import Watch, message
from lambda_pg_cdk.local.cloud import CloudError, LocalCloud, NotRunningError
from lambda_pg_cdk.local.faults.catalogue import FAULTS
from lambda_pg_cdk.local.http import guard

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PAGE = Path(__file__).with_name("page")
FILES = {
    "/": "index.html",
    **{f"/{name}": name for name in ("app.js", "chart.js", "style.css", "icon.svg")},
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MAX_BYTES = 4096


class Server:
    """The console of the cloud in a folder, below a random path.

    The path is the key: other accounts of the machine can reach the port, but do not know the path.
    """

    def __init__(self, cloud: LocalCloud) -> None:
        """Take the cloud; nothing is watched yet."""
        self.path = f"/{secrets.token_hex(16)}"
        self.watch = Watch(cloud)
        self.actions = Actions(cloud, self._publish)

    def application(self) -> web.Application:
        """Build the application."""
        middlewares = [_refuse_strangers(self.path), explain]
        app = web.Application(middlewares=middlewares, client_max_size=_MAX_BYTES)
        app.on_response_prepare.append(_protect)
        app.add_routes([web.get(self.path + path, _file(name)) for path, name in FILES.items()])
        app.add_routes(
            [
                web.get(f"{self.path}/stream", self.stream),
                web.post(f"{self.path}/storms", self.storm),
                web.post(f"{self.path}/faults", self.fault),
                web.post(f"{self.path}/load", self.load),
            ]
        )
        return app

    def _publish(self) -> None:
        self.watch.publish("activity", self.actions.summary())

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Send the last minutes, then each sample and each change, as server-sent events."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with self.watch.watching() as queue, suppress(ConnectionError):
            await response.write(message("history", self._history()))
            while (text := await queue.get()) is not None:
                await response.write(text)
        return response

    def _history(self) -> dict[str, Any]:
        return {
            "samples": list(self.watch.samples),
            "activity": self.actions.summary(),
            "targets": {name: target.title for name, target in TARGETS.items()},
            "counts": REQUESTS,
            "faults": [{"name": each.name, "title": each.title} for each in FAULTS],
        }

    async def storm(self, request: web.Request) -> web.Response:
        """Start a storm: `{"target": …, "requests": …}`."""
        order = await request.json()
        self.actions.storm(order["target"], order["requests"])
        return web.json_response({}, status=202)

    async def fault(self, request: web.Request) -> web.Response:
        """Begin a fault: `{"name": …}`."""
        self.actions.fault((await request.json())["name"])
        return web.json_response({}, status=202)

    async def load(self, request: web.Request) -> web.Response:
        """Switch the steady load: `{"on": …}`."""
        await self.actions.switch_load(on=(await request.json())["on"] is True)
        return web.json_response({}, status=202)


def _refuse_strangers(path: str) -> Middleware:
    """Make the check that refuses other pages, forms, and requests without the path."""

    @web.middleware
    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        if reason := guard.refusal_of(request):
            return _refusal(403, reason)
        first = request.path[: len(path)]
        if not hmac.compare_digest(first.encode(), path.encode()):
            return _refusal(403, "this is not the console's address: `make status` prints it")
        if request.method == "POST" and "Origin" not in request.headers:
            return _refusal(403, "only the console's page may send this request")
        if request.method == "POST" and request.content_type != "application/json":
            return _refusal(415, "the body must be JSON")
        return await handler(request)

    return refuse


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors with their message."""
    try:
        return await handler(request)
    except BusyError as error:
        return _refusal(409, str(error))
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        return _refusal(400, f"bad request: {error!r}")
    except (CloudError, NotRunningError, OSError) as error:
        return _refusal(503, f"The cloud refused or does not answer: {error}")


def _refusal(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def _file(name: str) -> Handler:
    async def serve(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / name)

    return serve


async def _protect(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
