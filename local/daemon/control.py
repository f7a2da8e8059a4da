"""The daemon's control endpoint: loopback only, JSON in and out."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware
from botocore.exceptions import BotoCoreError, ClientError

from lambda_pg_cdk.local.daemon.parts import Faults, Parts
from lambda_pg_cdk.local.daemon.updates import NoAliasError
from lambda_pg_cdk.local.deployment.cdk import DeploymentError
from lambda_pg_cdk.local.deployment.deployed import Start
from lambda_pg_cdk.local.environments.account import UnknownFunctionError
from lambda_pg_cdk.local.environments.fleet import CodeError, ThrottledError
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.pooler_service.task import Task
from lambda_pg_cdk.local.servers.postgres import STOP_SIGNALS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_METADATA = "/v4/"
_MAX_BYTES = 12 * 1024 * 1024


def control_application(parts: Parts, key: str) -> web.Application:
    """Build the endpoint, for callers that have the cloud's key."""
    control = Control(parts)
    middlewares = [refuse_browsers, _demand(key), explain]
    app = web.Application(middlewares=middlewares, client_max_size=_MAX_BYTES)
    app.add_routes(
        [
            web.get("/status", control.status),
            web.get("/requests", control.requests),
            web.post("/functions/{folder}/environments", control.open),
            web.delete("/functions/{folder}/environments", control.end),
            web.post("/invoke/{name}", control.invoke),
            web.post("/reconcile", control.reconcile),
            web.post("/deploy", control.deploy),
            web.post("/functions/{folder}/code", control.update_code),
            web.post("/layer", control.update_layer),
            web.post("/pooler/{verb:start|stop|restart}", control.pooler),
            web.get(_METADATA + "{task}", control.container_metadata),
            web.get(_METADATA + "{task}/task", control.task_metadata),
            web.post("/postgres/{verb:start|stop|restart}", control.postgres),
            web.get("/wires", control.traffic),
            web.post("/wires/{wire}/{kind}", control.begin_fault),
            web.delete("/wires/{wire}/{kind}", control.end_fault),
            web.get("/functions/{folder}/environments", control.processes),
            web.put("/functions/{folder}/start", control.start_on_demand),
            web.post("/database", control.database),
        ]
    )
    return app


@web.middleware
async def refuse_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that a web page could send."""
    if reason := guard.refusal_of(request):
        return web.json_response({"error": reason}, status=403)
    return await handler(request)


def _demand(key: str) -> Middleware:
    """Make the check of the bearer token, which is the cloud's key.

    A task sends none when it reads its metadata, as on ECS: the address has its random id.
    """
    wanted = f"Bearer {key}".encode()

    @web.middleware
    async def demand(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path.startswith(_METADATA) or hmac.compare_digest(given, wanted):
            return await handler(request)
        reason = "the bearer token is missing or wrong: send `key` of this cloud's state.json"
        return web.json_response({"error": reason}, status=401)

    return demand


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors with their message."""
    try:
        return await handler(request)
    except UnknownFunctionError as error:
        return web.json_response({"error": str(error)}, status=404)
    except (KeyError, ValueError) as error:
        return web.json_response({"error": f"bad request: {error!r}"}, status=400)
    except (RuntimeError, LookupError, OSError, BotoCoreError, ClientError) as error:
        return web.json_response({"error": str(error)}, status=500)


class Control:
    """The handlers, one for each route. Each calls the part that it is about.

    Large because the local cloud has so many routes, and each handler needs its parts.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def status(self, _request: web.Request) -> web.Response:
        parts = self._parts
        state = parts.state.state
        answered = parts.history.answered.items()
        return web.json_response(
            {
                "api_url": state.api_url,
                **parts.apis.status(),
                "aws_endpoint_url": state.aws_endpoint_url,
                "console_url": state.console_url,
                "postgres": parts.servers.database.status(),
                "pooler": await parts.pooler.status(),
                "functions": parts.account.counts(),
                "environments": parts.account.states(),
                "requests": {str(status): count for status, count in answered},
            }
        )

    async def requests(self, _request: web.Request) -> web.Response:
        """Return what the API has answered in each of the last seconds."""
        return web.json_response({"seconds": self._parts.history.seconds()})

    async def open(self, request: web.Request) -> web.Response:
        order = await request.json()
        start = _start(order.get("start", "restored"))
        began = time.perf_counter()
        folder = request.match_info["folder"]
        spread = order.get("spread", False) is True
        pids = await self._parts.account.open(folder, int(order["count"]), start, spread=spread)
        return web.json_response({"pids": pids, "seconds": time.perf_counter() - began})

    async def start_on_demand(self, request: web.Request) -> web.Response:
        start = _start((await request.json())["start"])
        self._parts.account.start_on_demand(request.match_info["folder"], start)
        return web.json_response({})

    async def end(self, request: web.Request) -> web.Response:
        await self._parts.account.end(request.match_info["folder"])
        return web.json_response({})

    async def processes(self, request: web.Request) -> web.Response:
        fleet = self._parts.account.find(request.match_info["folder"])
        return web.json_response({"pids": fleet.pids})

    async def invoke(self, request: web.Request) -> web.Response:
        """Run an event by a function's name or folder, or in the version of the query.

        The control plane names a version: its deployments need the newest code at this moment.
        """
        name, event = request.match_info["name"], await request.read() or b"{}"
        version, account = request.query.get("version"), self._parts.account
        try:
            if version is not None or not account.has(name):
                name = await self._parts.reconciler.prepare(name, version or "$LATEST")
            outcome = await account.invoke(name, event)
        except ThrottledError as error:
            return web.json_response({"throttled": str(error)})
        return web.json_response(_summary(outcome))

    async def reconcile(self, _request: web.Request) -> web.Response:
        """Look at the deployed stacks now, and answer when everything runs."""
        await self._parts.reconciler.settle()
        return web.json_response({})

    async def deploy(self, request: web.Request) -> web.StreamResponse:
        """Deploy again; send an empty line of JSON each second, then the result."""
        order = await request.json()
        app = Path(order["app"]) if order.get("app") else None
        deployments = self._parts.deployments
        work = asyncio.ensure_future(deployments.repeat(app, order.get("override")))
        response = web.StreamResponse()
        await response.prepare(request)
        result: dict[str, Any] = {"ok": True}
        try:
            while not (await asyncio.wait([work], timeout=1))[0]:
                await response.write(b"{}\n")
            await work
        except (DeploymentError, RuntimeError, OSError) as error:
            result = {"error": str(error)}
        await response.write(json.dumps(result).encode() + b"\n")
        return response

    async def update_code(self, request: web.Request) -> web.Response:
        """Run the code of a folder in one function; say why if it does not start or cannot."""
        code = Path((await request.json())["code"])
        try:
            await self._parts.deployments.update_code(request.match_info["folder"], code)
        except (NoAliasError, UnknownFunctionError) as error:
            return web.json_response({"needs_deployment": str(error)})
        except CodeError as error:
            return web.json_response({"refused": str(error)})
        return web.json_response({})

    async def update_layer(self, request: web.Request) -> web.Response:
        """Run the layer of a folder in all functions that have it."""
        layer = Path((await request.json())["layer"])
        try:
            functions = await self._parts.deployments.update_layer(layer)
        except CodeError as error:
            return web.json_response({"refused": str(error)})
        return web.json_response({"functions": functions})

    async def pooler(self, request: web.Request) -> web.Response:
        verb = request.match_info["verb"]
        if verb in {"stop", "restart"}:
            await self._parts.pooler.stop()
        if verb in {"start", "restart"}:
            await self._parts.pooler.start()
        return web.json_response({})

    async def container_metadata(self, request: web.Request) -> web.Response:
        """Answer as ECS's metadata endpoint does, to a task that asks about itself."""
        return web.json_response(self._task(request).container())

    async def task_metadata(self, request: web.Request) -> web.Response:
        return web.json_response(self._task(request).metadata())

    def _task(self, request: web.Request) -> Task:
        task = self._parts.pooler.task(request.match_info["task"])
        if task is None:
            raise web.HTTPNotFound
        return task

    async def postgres(self, request: web.Request) -> web.Response:
        how = request.query.get("how", "fast")
        if how not in STOP_SIGNALS:
            raise ValueError(f"how is {how!r}; must be one of {', '.join(STOP_SIGNALS)}")
        await self._parts.servers.database.change(request.match_info["verb"], how)
        return web.json_response({})

    async def database(self, request: web.Request) -> web.Response:
        """Answer the control plane's question for the address of a DB instance."""
        order = await request.json()
        database = self._parts.servers.database
        found = await database.provide(order["user"], order["password"], order["name"])
        return web.json_response(found)

    async def traffic(self, _request: web.Request) -> web.Response:
        """Count the connections of each wire, and the calls of Secrets Manager that failed."""
        accepted = await self._faults.wires.accepted()
        return web.json_response({**accepted, "secrets": self._faults.secrets.faulted_calls})

    async def begin_fault(self, request: web.Request) -> web.Response:
        wire, kind = request.match_info["wire"], request.match_info["kind"]
        if wire == "secrets":
            self._faults.secrets.begin(kind)
        else:
            await self._faults.wires.begin(wire, kind)
        return web.json_response({})

    async def end_fault(self, request: web.Request) -> web.Response:
        wire, kind = request.match_info["wire"], request.match_info["kind"]
        if wire == "secrets":
            self._faults.secrets.end(kind)
        else:
            await self._faults.wires.end(wire, kind)
        return web.json_response({})

    @property
    def _faults(self) -> Faults:
        if self._parts.servers.faults is None:
            raise LookupError(
                "this local cloud cannot make faults: start it with Options(wires=True)"
            )
        return self._parts.servers.faults


def _start(given: Any) -> Start:
    if given == "cold":
        return "cold"
    if given == "restored":
        return "restored"
    raise ValueError(f"start is {given!r}; must be 'cold' or 'restored'")


def _summary(outcome: Outcome) -> dict[str, Any]:
    failed = None if outcome.failure is None else "Unhandled"
    try:
        payload = json.loads(outcome.payload)
    except ValueError:
        payload = outcome.payload.decode(errors="replace")
    return {"payload": payload, "function_error": failed}
