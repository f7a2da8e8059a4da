"""The daemon's control endpoint: loopback only, JSON in and out."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Middleware
from botocore.exceptions import BotoCoreError, ClientError

from lambda_pg_cdk.local.deployed import Start
from lambda_pg_cdk.local.deployment import DeploymentError
from lambda_pg_cdk.local.environments.account import UnknownFunctionError
from lambda_pg_cdk.local.environments.fleet import ThrottledError
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.pooler_service.task import Task
from lambda_pg_cdk.local.servers.postgres import STOP_SIGNALS

if TYPE_CHECKING:
    from lambda_pg_cdk.local.daemon.main import Daemon

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_METADATA = "/v4/"
_MAX_BYTES = 12 * 1024 * 1024


def control_application(daemon: "Daemon", key: str) -> web.Application:
    """Build the endpoint of a daemon, for callers that have the cloud's key."""
    control = Control(daemon)
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
    """Refuse what a web page could send here."""
    if reason := guard.refusal_of(request):
        return web.json_response({"error": reason}, status=403)
    return await handler(request)


def _demand(key: str) -> Middleware:
    """Make the check of the bearer token, which is the cloud's key.

    A task that asks for its metadata has none, as on ECS: its random id is in the address.
    """
    wanted = f"Bearer {key}".encode()

    @web.middleware
    async def demand(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path.startswith(_METADATA) or hmac.compare_digest(given, wanted):
            return await handler(request)
        said = "no bearer token, or not this cloud's: `key` of its state.json is the one to send"
        return web.json_response({"error": said}, status=401)

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
    """The handlers."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon

    async def status(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._daemon.status())

    async def requests(self, _request: web.Request) -> web.Response:
        """Tell what the API has answered in each second of the last minutes."""
        return web.json_response(self._daemon.requests())

    async def open(self, request: web.Request) -> web.Response:
        order = await request.json()
        start = _start(order.get("start", "restored"))
        began = time.perf_counter()
        folder = request.match_info["folder"]
        spread = order.get("spread", False) is True
        pids = await self._daemon.account.open(folder, int(order["count"]), start, spread=spread)
        return web.json_response({"pids": pids, "seconds": time.perf_counter() - began})

    async def start_on_demand(self, request: web.Request) -> web.Response:
        start = _start((await request.json())["start"])
        self._daemon.account.start_on_demand(request.match_info["folder"], start)
        return web.json_response({})

    async def end(self, request: web.Request) -> web.Response:
        await self._daemon.account.end(request.match_info["folder"])
        return web.json_response({})

    async def invoke(self, request: web.Request) -> web.Response:
        """Run an event by a function's name or folder, or in the version that is asked for.

        The control plane asks for one: its deployments want the newest code, as it then is.
        """
        name, event = request.match_info["name"], await request.read() or b"{}"
        version = request.query.get("version")
        try:
            if version is None and self._daemon.account.has(name):
                outcome = await self._daemon.account.invoke(name, event)
            else:
                outcome = await self._daemon.invoke_version(name, version or "$LATEST", event)
        except ThrottledError as error:
            return web.json_response({"throttled": str(error)})
        return web.json_response(_told(outcome))

    async def reconcile(self, _request: web.Request) -> web.Response:
        """Look at the deployed stacks now, and answer when everything runs."""
        await self._daemon.run_what_is_deployed()
        return web.json_response({})

    async def deploy(self, request: web.Request) -> web.StreamResponse:
        """Deploy again, and report while it goes on: a line for every second, then the result."""
        order = await request.json()
        app = Path(order["app"]) if order.get("app") else None
        work = asyncio.ensure_future(self._daemon.deploy(app, order.get("override")))
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

    async def pooler(self, request: web.Request) -> web.Response:
        verb = request.match_info["verb"]
        if verb in {"stop", "restart"}:
            await self._daemon.pooler.stop()
        if verb in {"start", "restart"}:
            await self._daemon.pooler.start()
        return web.json_response({})

    async def container_metadata(self, request: web.Request) -> web.Response:
        """Answer as ECS's metadata endpoint does, to a task that asks about itself."""
        return web.json_response(self._task(request).container())

    async def task_metadata(self, request: web.Request) -> web.Response:
        task = self._task(request)
        return web.json_response(task.metadata(self._daemon.pooler.arn_of(task)))

    def _task(self, request: web.Request) -> Task:
        task = self._daemon.pooler.task(request.match_info["task"])
        if task is None:
            raise web.HTTPNotFound
        return task

    async def postgres(self, request: web.Request) -> web.Response:
        how = request.query.get("how", "fast")
        if how not in STOP_SIGNALS:
            raise ValueError(f"how is {how!r}, it can be {', '.join(STOP_SIGNALS)}")
        await self._daemon.postgres_do(request.match_info["verb"], how)
        return web.json_response({})

    async def traffic(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._daemon.traffic())

    async def begin_fault(self, request: web.Request) -> web.Response:
        await self._daemon.begin_fault(request.match_info["wire"], request.match_info["kind"])
        return web.json_response({})

    async def end_fault(self, request: web.Request) -> web.Response:
        await self._daemon.end_fault(request.match_info["wire"], request.match_info["kind"])
        return web.json_response({})

    async def processes(self, request: web.Request) -> web.Response:
        fleet = self._daemon.account.find(request.match_info["folder"])
        return web.json_response({"pids": fleet.pids})

    async def database(self, request: web.Request) -> web.Response:
        """Answer the control plane's question for the address of a DBInstance."""
        order = await request.json()
        found = await self._daemon.provide_database(order["user"], order["password"], order["name"])
        return web.json_response(found)


def _start(given: Any) -> Start:
    if given == "cold":
        return "cold"
    if given == "restored":
        return "restored"
    raise ValueError(f"start is {given!r}, it can be 'cold' or 'restored'")


def _told(outcome: Outcome) -> dict[str, Any]:
    failed = {None: None, "handled": "Unhandled"}.get(outcome.failure, "Unhandled")
    try:
        payload = json.loads(outcome.payload)
    except ValueError:
        payload = outcome.payload.decode(errors="replace")
    return {"payload": payload, "function_error": failed}
