"""Run one local cloud: own its servers, its environments and its front ends."""

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import uvloop
from aiohttp import web
from yarl import URL

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.control_plane import protocol as changes
from lambda_pg_cdk.local.control_plane.ministack import ControlPlane
from lambda_pg_cdk.local.control_plane.secrets_front import SecretsFront
from lambda_pg_cdk.local.control_plane.signatures import presign
from lambda_pg_cdk.local.daemon.control import control_application
from lambda_pg_cdk.local.daemon.progress import Progress
from lambda_pg_cdk.local.deployed import Deployed
from lambda_pg_cdk.local.deployed import PoolerService as DeployedPooler
from lambda_pg_cdk.local.deployment import STAGE, Cdk, merge
from lambda_pg_cdk.local.environments.account import Account
from lambda_pg_cdk.local.environments.launcher import Surroundings
from lambda_pg_cdk.local.faults.wires import Wires
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE, Issuer
from lambda_pg_cdk.local.http_api.server import HttpApi
from lambda_pg_cdk.local.install import bytecode, installed
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary, find_pgbouncer
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.inventory import Inventory
from lambda_pg_cdk.local.json_process import JsonProcess
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.local.paths import shareable
from lambda_pg_cdk.local.pooler_service.cloud_map import CloudMap
from lambda_pg_cdk.local.pooler_service.front import Front
from lambda_pg_cdk.local.pooler_service.service import PoolerService
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.local.servers.postgres import Postgres, PostgresError
from lambda_pg_cdk.local.state import MARK, State, sdk_variables
from lambda_pg_cdk.stage.capacity import max_connections
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load

T = TypeVar("T")
_WATCH_SECONDS = 1.0
_CHANGES_LIFETIME = timedelta(minutes=1)
_BACKLOG = 4096  # a storm's connections come at once


class Daemon:
    """One local cloud."""

    def __init__(self, folder: Path, options: Options, progress: Progress) -> None:
        self.folder = folder
        self.options = options
        self.progress = progress
        self.stopping = asyncio.Event()
        self.override = dict(options.override)
        self.app = options.app
        self.account: Account
        self.postgres: Postgres
        self.pooler: PoolerService
        self._issuer: Issuer
        self._api: HttpApi
        self._cdk: Cdk
        self._inventory: Inventory
        self._state: State
        self._pgbouncer: PgBouncerBinary
        self._ports = _ports(options)
        self._key = secrets.token_hex(32)
        self._control_plane = ControlPlane(
            folder / "control-plane", self._ports["aws"], self._ports["secrets"], self._key
        )
        self._front = Front(
            folder / "balancer.log", self._ports["balancer"], target_port=self._ports["pooler"]
        )
        self._secrets: SecretsFront
        self._session: aiohttp.ClientSession
        self._function_endpoint = f"http://127.0.0.1:{self._ports['aws']}"
        self._fronts: list[int] = []  # ports that lead to the control plane
        self._wires = self._new_wires() if options.wires else None
        self._console = JsonProcess("lambda_pg_cdk.console", [str(folder)], folder / "console.log")
        self._following: asyncio.Task[None] | None = None
        self._reconciling = asyncio.Lock()
        self._deploying = asyncio.Lock()
        self._signature = ""
        # The kernel ends servers with the thread that started them, so that thread has to stay.
        self._thread = ThreadPoolExecutor(1, "servers")

    # Life

    async def run(self) -> None:
        """Serve until `stopping` is set; everything is ended on the way out."""
        async with aiohttp.ClientSession() as session:
            self._session = session
            runners = await self._open_front_ends(session)
            try:
                await self._until_stopped(self._start())
                if self.options.console:
                    answer = await self._console.ask({})
                    self._state = replace(self._state, console_url=answer["url"])
                self._announce(ready=True)
                self.progress.ready()
                await self._until_stopped(self._serve())
            finally:
                await self._close(runners)

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            await task
            return
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        raise asyncio.CancelledError("stopped")

    async def _start(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_postgres())
            group.create_task(self._find_pgbouncer())
            group.create_task(self._find_runtime())
            deployment = [self._synth()] if self.options.deploy else []
            for step in deployment:
                group.create_task(step)
            await self._start_control_plane()
            if self.options.deploy:
                await self._step("cdk bootstrap", self._cdk.bootstrap())
        self._following = asyncio.create_task(self.pooler.run())
        if self.options.deploy:
            await self._step("cdk deploy --all", self._cdk.deploy(self.app))
            await self._step("functions, API and pooler", self.run_what_is_deployed())

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.account.expire())
            group.create_task(self._watch())
            await self.stopping.wait()

    async def _open_front_ends(self, session: aiohttp.ClientSession) -> list[web.ServerRunner]:
        runners, urls = [], []
        if self._wires is not None:
            await self._wires.start()
            self._secrets = SecretsFront(self._function_endpoint, session)
            runner, self._function_endpoint = await _listen(
                web.ServerRunner(web.Server(self._secrets.handle))
            )
            runners.append(runner)
            self._fronts = [runner.addresses[0][1]]
        region = self._region()
        self.account = Account(
            self._surroundings(region), self.options.idle_seconds, self.options.start
        )
        if bound := self.account.bound_told():
            self.progress.note(bound)
        self._api = HttpApi(self.account.invoke, session)
        for server in (web.Server(self._serve_issuer), self._api.server()):
            runner, url = await _listen(web.ServerRunner(server))
            runners.append(runner)
            urls.append(url)
        control = web.AppRunner(control_application(self, self._key), access_log=None)
        runner, control_url = await _listen(control)
        self._issuer = Issuer.create(urls[0])
        self._issuer.save(self.folder / "issuer.pem")
        settings = self._config()
        endpoint = f"http://127.0.0.1:{self._ports['aws']}"
        self._state = State(
            mark=os.environ[MARK],
            guardian=os.getppid(),
            daemon=os.getpid(),
            key=self._key,
            control_url=control_url,
            api_url=urls[1],
            issuer_url=urls[0],
            aws_endpoint_url=endpoint,
            region=settings.region,
            ready=False,
        )
        self._announce(ready=False)
        cdk_folder = self.folder / "cdk"
        cdk_folder.mkdir(mode=0o700)
        account = settings.account or "000000000000"
        self._cdk = Cdk(cdk_folder, endpoint, account, settings.region, self._key)
        code = self.folder / "code"
        code.mkdir(mode=0o700)
        self._inventory = Inventory(endpoint, settings.region, self._key, code)
        names = CloudMap(endpoint, settings.region, self._key)
        self.pooler = PoolerService(self._front, names, self._new_pooler, self._on_thread)
        await self._front.start()
        return [*runners, runner]

    def _announce(self, *, ready: bool) -> None:
        self._state = replace(self._state, ready=ready)
        self._state.save(self.folder)

    async def _close(self, runners: list[Any]) -> None:
        await self._console.close()
        for runner in runners:
            await runner.cleanup()
        await self.account.close()
        if self._following is not None:
            self._following.cancel()
        await self.pooler.close()
        await self._on_thread(self._stop_servers)
        await self._front.close()
        if self._wires is not None:
            await self._wires.close()
        await self._control_plane.close()
        self._thread.shutdown()

    def _stop_servers(self) -> None:
        self.pooler.kill()
        if hasattr(self, "postgres"):
            self.postgres.stop("fast")

    async def _on_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _step(self, name: str, work: Awaitable[T]) -> T:
        async with self.progress.step(name):
            return await work

    # Parts

    def _config(self) -> Config:
        context = json.loads((self.app / "cdk.json").read_text())["context"]
        asked = {**context, "stage": STAGE, "override": json.dumps(self._full_override())}
        return load(asked.get)

    def _region(self) -> str:
        context = json.loads((self.app / "cdk.json").read_text())["context"]
        return str(merge(context["stages"][STAGE], self.override)["region"])

    def _full_override(self) -> dict[str, Any]:
        """Name the addresses of this cloud; what the caller asked for comes on top."""
        mine = {
            "pgbouncer": {"endpoint_host": "127.0.0.1", "port": self._ports["pooler"]},
            "database": {"ca_file": str(self.folder / "postgres" / "ca.pem")},
            "identity": {"issuer": self._issuer.url, "audience": [AUDIENCE]},
        }
        return merge(mine, self.override)

    def _surroundings(self, region: str) -> Surroundings:
        temporary = self.folder / "tmp"
        temporary.mkdir(mode=0o700)
        variables = {**self._sdk_variables(region), MARK: os.environ[MARK]}
        return Surroundings(self.folder / "runtime", temporary, self.folder / "logs", variables)

    def _sdk_variables(self, region: str) -> dict[str, str]:
        """Lead functions and pooler to the control plane: with wires through `SecretsFront`."""
        variables = sdk_variables(self._function_endpoint, region, self._key)
        if self._wires is None:
            port = self._ports["secrets"]
            variables["AWS_ENDPOINT_URL_SECRETS_MANAGER"] = f"http://127.0.0.1:{port}"
        return variables

    async def _find_runtime(self) -> None:
        folder = await self._step(
            "Lambda's runtime: awslambdaric, boto3", asyncio.to_thread(installed.runtime_folder)
        )
        (self.folder / "runtime").symlink_to(folder)

    async def _find_pgbouncer(self) -> None:
        find = asyncio.to_thread(find_pgbouncer, report=self.progress.note)
        self._pgbouncer = await self._step("PgBouncer", find)

    async def _start_postgres(self) -> None:
        await self._step("PostgreSQL", self._on_thread(self._run_postgres))

    def _run_postgres(self) -> None:
        settings = self._config().database
        binaries = find_postgres(settings.major_version, report=self.progress.note)
        self.postgres = Postgres(
            binaries,
            self.folder / "postgres",
            port=self._ports["postgres"],
            max_connections=max_connections(self._config())[0],
            durable=False,
        )
        self.postgres.start()

    async def _start_control_plane(self) -> None:
        async with self.progress.step("control plane: MiniStack"):
            await self._control_plane.start(
                self._cdk.account, self._cdk.region, self._state.control_url, self._fronts
            )

    async def _serve_issuer(self, request: web.BaseRequest) -> web.Response:
        if reason := guard.refusal_of(request):
            return web.json_response({"error": reason}, status=403)
        documents: Mapping[str, Callable[[], Any]] = {
            "/.well-known/openid-configuration": self._issuer.discovery,
            "/.well-known/jwks.json": self._issuer.jwks,
        }
        document = documents.get(request.path)
        return web.json_response(document()) if document else web.Response(status=404)

    # Deployments

    async def _synth(self) -> None:
        await self._step(
            "cdk synth", self._cdk.synth(self.app, self.options.entry, self._full_override())
        )
        await asyncio.to_thread(bytecode.keep)

    async def deploy(
        self, app: Path | None = None, override: Mapping[str, Any] | None = None
    ) -> None:
        """Synthesise and deploy again; raises `DeploymentError`. What has rolled back is served."""
        async with self._deploying:
            self.app = app or self.app
            self.override = dict(self.override if override is None else override)
            await self._synth()
            try:
                await self._step("cdk deploy --all", self._cdk.deploy(self.app))
            finally:
                await self._step("functions, API and pooler", self.run_what_is_deployed())

    async def provide_database(self, user: str, password: str, name: str) -> dict[str, Any]:
        """Have the local PostgreSQL be a deployed DBInstance; return its address."""
        await self._on_thread(self.postgres.create_master, user, password, name or "postgres")
        return {"host": "127.0.0.1", "port": self._ports["database"]}

    async def invoke_version(self, name: str, version: str, event: bytes) -> Any:
        """Run an event for the control plane, in a version as it is at this moment."""
        qualifier = None if version == "$LATEST" else version
        function = await asyncio.to_thread(self._inventory.function, name, qualifier)
        return await self.account.invoke(await self.account.update_version(function), event)

    async def run_what_is_deployed(self) -> None:
        """Look at the deployed stacks, and wait for the pooler's tasks."""
        await self.reconcile()
        await self.pooler.settle()

    async def reconcile(self) -> None:
        """Run what is deployed now: functions and API at once; the pooler gets there by itself."""
        async with self._reconciling:
            signature = await asyncio.to_thread(self._inventory.signature)
            deployed: Deployed = await asyncio.to_thread(self._inventory.read)
            for function in deployed.functions:
                await self.account.update(function)
            await self.account.keep_only(function.name for function in deployed.functions)
            self._api.update(deployed.api)
            self.pooler.follow(deployed.pooler)
            self._signature = signature

    def _new_pooler(self, task: str, address: str, service: DeployedPooler) -> Pooler:
        """Make a task of the pooler: its environment is the deployed task definition's."""
        variables = {
            **service.task.variables,
            **self._sdk_variables(self._cdk.region),
            "ECS_CONTAINER_METADATA_URI_V4": f"{self._state.control_url}/v4/{task}",
        }
        # Short, for its socket.
        folder = shareable(self.folder / "pooler") / address.rpartition(".")[2]
        return Pooler(self._pgbouncer, folder, variables, address)

    async def postgres_do(self, verb: str, how: str) -> None:
        """Start, stop or restart the database; `how` is that of `Postgres.stop`."""
        if verb in {"stop", "restart"}:
            await self._on_thread(self.postgres.stop, how)
        if verb in {"start", "restart"} and not self.postgres.running:
            await self._on_thread(self.postgres.start)

    # Faults

    def _new_wires(self) -> Wires:
        hops = {"pooler": ("pooler", "balancer"), "database": ("database", "postgres")}
        ports = {
            wire: (self._ports[port], self._ports[server]) for wire, (port, server) in hops.items()
        }
        return Wires(self.folder / "wires.log", ports)

    async def begin_fault(self, wire: str, kind: str) -> None:
        """Begin a fault on a hop (`pooler`, `database`) or of Secrets Manager (`secrets`)."""
        wires = self._wires_or_raise()
        if wire == "secrets":
            self._secrets.begin(kind)
        else:
            await wires.begin(wire, kind)

    async def end_fault(self, wire: str, kind: str) -> None:
        """End a fault, if it is there."""
        wires = self._wires_or_raise()
        if wire == "secrets":
            self._secrets.end(kind)
        else:
            await wires.end(wire, kind)

    async def traffic(self) -> dict[str, int]:
        """Count the connections of each hop, and the calls of Secrets Manager that failed."""
        accepted = await self._wires_or_raise().accepted()
        return {**accepted, "secrets": self._secrets.struck}

    def _wires_or_raise(self) -> Wires:
        if self._wires is None:
            raise LookupError("this local cloud was started without wires: it knows no such faults")
        return self._wires

    async def _watch(self) -> None:
        """Follow changes that others make, with the CDK command line or the AWS APIs.

        It looks when the control plane has been asked for a change, and then every second until
        no stack is in the middle of one.
        """
        known, settled = 0, False
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                if settled:
                    known = await self._changes(known)
                settled = not self._deploying.locked() and await self._look()
            except Exception as error:  # noqa: BLE001  # it is tried again in a second
                settled = False
                print(f"reconcile: {error!r}", file=sys.stderr, flush=True)

    async def _changes(self, known: int) -> int:
        """Wait until the control plane has counted another change, or for a minute."""
        url = f"http://127.0.0.1:{self._ports['aws']}{changes.PATH}?known={known}"
        signed = presign(url, self._key, self._cdk.region, _CHANGES_LIFETIME)
        async with self._session.get(URL(signed, encoded=True)) as response:
            response.raise_for_status()
            return int((await response.json())["count"])

    async def _look(self) -> bool:
        """Run what is deployed now where that has changed; False in the middle of a change."""
        signature = await asyncio.to_thread(self._inventory.signature)
        if "_IN_PROGRESS" in signature:
            return False
        if signature != self._signature:
            await self.reconcile()
        return True

    async def status(self) -> dict[str, Any]:
        """Return what `status --json` prints."""
        known = {
            "api_url": self._state.api_url,
            "aws_endpoint_url": self._state.aws_endpoint_url,
            "console_url": self._state.console_url,
        }
        with suppress(Exception):
            return {
                **known,
                "postgres": self._database(),
                "pooler": await self.pooler.status(),
                "functions": self.account.counts(),
                "environments": self.account.states(),
                "requests": {str(status): n for status, n in self._api.history.answered.items()},
            }
        return known

    def _database(self) -> dict[str, Any]:
        found = {
            "port": self.postgres.port,
            "pid": self.postgres.pid,
            "max_connections": self.postgres.max_connections,
        }
        with suppress(PostgresError):  # nothing deployed has a database yet
            return {**found, "dsn": self.postgres.dsn}
        return found

    def requests(self) -> dict[str, Any]:
        """Return what the API has answered in each of the last seconds."""
        return {"seconds": self._api.history.seconds()}


def _ports(options: Options) -> dict[str, int]:
    """Choose where everything listens; with wires there are two ports more, behind theirs."""
    aws, secrets_, postgres, pooler, *wired = processes.free_ports(6)
    ports = {"aws": aws, "secrets": secrets_, "postgres": postgres, "pooler": pooler}
    balancer, database = wired if options.wires else (pooler, postgres)
    return {**ports, "balancer": balancer, "database": database}


async def _listen(runner: Any) -> tuple[Any, str]:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@asynccontextmanager
async def _leash(descriptor: int, daemon: Daemon) -> AsyncIterator[None]:
    """Stop the cloud when the process that started it ends, until it is ready or for ever."""
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(descriptor)
        if daemon.options.bound or not daemon.progress.finished:
            daemon.stopping.set()

    loop.add_reader(descriptor, gone)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


async def serve(folder: Path, options: Options, leash: int) -> int:
    """Run a cloud in `folder`; return the exit code."""
    progress = Progress()
    daemon = Daemon(folder, options, progress)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, daemon.stopping.set)
    async with _leash(leash, daemon):
        try:
            await daemon.run()
        except asyncio.CancelledError:
            return 0
        except BaseExceptionGroup as group:
            progress.fail(_first(group))
            raise
        except Exception as error:
            progress.fail(error)
            raise
    return 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    processes.raise_open_files_limit()
    os.environ.setdefault(MARK, secrets.token_hex(8))
    sys.exit(uvloop.run(serve(Path(sys.argv[1]), Options.parse(sys.argv[2]), int(sys.argv[3]))))
