"""The servers that functions use: PostgreSQL, and what the tasks of the pooler run."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from lambda_pg_cdk.local.daemon.layout import Ports
from lambda_pg_cdk.local.daemon.progress import Progress
from lambda_pg_cdk.local.deployment.deployed import PoolerService
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary, find_pgbouncer
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.paths import shareable
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.local.servers.postgres import Postgres, PostgresError
from lambda_pg_cdk.stage.capacity import max_connections
from lambda_pg_cdk.stage.config import Config

T = TypeVar("T")


class ServerThread:
    """The thread that starts servers: the kernel ends them when the thread ends, so it stays."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "servers")

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run blocking work there, after what was asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def close(self) -> None:
        """End the thread, and every server that still runs."""
        self._executor.shutdown()


class Database:
    """The PostgreSQL server behind every deployed DB instance and cluster."""

    def __init__(
        self,
        thread: ServerThread,
        folder: Path,
        ports: Ports,
        settings: Config,
        progress: Progress,
    ) -> None:
        """Take the places and the stage's settings; nothing is started yet."""
        self._thread = thread
        self._folder = folder
        self._ports = ports
        self._settings = settings
        self._progress = progress
        self._postgres: Postgres | None = None

    async def start(self) -> None:
        """Find a PostgreSQL of the stage's version, or fetch one, and start it."""
        async with self._progress.step("PostgreSQL"):
            await self._thread.run(self._start)

    def _start(self) -> None:
        major = self._settings.database.major_version
        self._postgres = Postgres(
            find_postgres(major, report=self._progress.note),
            self._folder,
            port=self._ports.postgres,
            max_connections=max_connections(self._settings)[0],
            durable=False,
        )
        self._postgres.start()

    async def close(self) -> None:
        """Stop the server, also one whose start is still under way."""
        await self._thread.run(self._stop)

    def _stop(self) -> None:
        if self._postgres is not None:
            self._postgres.stop("fast")

    @property
    def _server(self) -> Postgres:
        if self._postgres is None:
            raise PostgresError("PostgreSQL has not been started yet")
        return self._postgres

    async def change(self, verb: str, how: str) -> None:
        """`start`, `stop` or `restart` the server; `how` is that of `Postgres.stop`."""
        if verb in {"stop", "restart"}:
            await self._thread.run(self._server.stop, how)
        if verb in {"start", "restart"} and not self._server.running:
            await self._thread.run(self._server.start)

    async def provide(self, user: str, password: str, name: str) -> dict[str, Any]:
        """Create or change the master user of a deployed database; return the address."""
        await self._thread.run(self._server.create_master, user, password, name or "postgres")
        return {"host": "127.0.0.1", "port": self._ports.database}

    def status(self) -> dict[str, Any]:
        """Return what `status --json` prints."""
        server = self._server
        found = {
            "port": server.port,
            "pid": server.pid,
            "max_connections": server.max_connections,
        }
        with suppress(PostgresError):  # nothing deployed has a database yet
            return {**found, "dsn": server.dsn}
        return found


class PoolerFactory:
    """Makes what a task of the pooler runs, from the environment of its task definition."""

    def __init__(
        self, folder: Path, variables: Mapping[str, str], control_url: str, progress: Progress
    ) -> None:
        """Take the variables of the AWS SDK and the endpoint that serves tasks' metadata."""
        self._folder = folder
        self._variables = variables
        self._control_url = control_url
        self._progress = progress
        self._binary: PgBouncerBinary | None = None

    async def find(self) -> None:
        """Find PgBouncer, or fetch it."""
        async with self._progress.step("PgBouncer"):
            self._binary = await asyncio.to_thread(find_pgbouncer, report=self._progress.note)

    def make(self, task: str, address: str, service: PoolerService) -> Pooler:
        """Make the pooler of a task, which is not started yet."""
        if self._binary is None:
            raise RuntimeError("PgBouncer has not been found yet")
        variables = {
            **service.task.variables,
            **self._variables,
            "ECS_CONTAINER_METADATA_URI_V4": f"{self._control_url}/v4/{task}",
        }
        folder = shareable(self._folder) / address.rpartition(".")[2]  # short, for its socket
        return Pooler(self._binary, folder, variables, address)
