"""One task of the pooler's service."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from lambda_pg_cdk.local.deployment.deployed import PoolerService
from lambda_pg_cdk.local.pooler_service.rolling import State

_CONNECT_SECONDS = 2.0

OnThread = Callable[..., Awaitable[Any]]
"""Runs blocking work on the thread that starts servers, which must not end before them."""


class Pooler(Protocol):
    """What a task runs: a `Pooler` of local/servers/pgbouncer.py, or a fake in a test."""

    @property
    def address(self) -> str:
        """Where it listens."""

    @property
    def port(self) -> int:
        """On which port."""

    @property
    def running(self) -> bool:
        """Whether its process runs."""

    @property
    def pid(self) -> int | None:
        """Its process."""

    @property
    def admin_dsn(self) -> str:
        """Its console."""

    def launch(self) -> None:
        """Start it and return at once."""

    def answers(self) -> bool:
        """Tell whether its console answers; raise when it has ended."""

    def terminate(self) -> None:
        """Begin its drain."""

    def kill(self) -> None:
        """End and collect it."""


class Task:
    """One supervisor and its own address, from its start to its end."""

    def __init__(self, id: str, service: PoolerService, pooler: Pooler) -> None:  # noqa: A002 - ECS's word
        """Belong to the service as it was when the task was started."""
        self.id = id
        self.service = service
        self.pooler = pooler
        self.state: State = "PENDING"
        self.launched = asyncio.Event()
        self.hurried = asyncio.Event()  # it must end without the deregistration delay

    @property
    def deployment(self) -> str:
        """The deployment that it belongs to."""
        return self.service.deployment

    @property
    def address(self) -> str:
        """Its own address."""
        return self.pooler.address

    def healthy(self) -> bool:
        """Tell whether it can serve: the console answers, and the port takes connections."""
        if not self.pooler.answers():
            return False
        try:
            where = (self.pooler.address, self.pooler.port)
            socket.create_connection(where, _CONNECT_SECONDS).close()
        except OSError:
            return False
        return True

    async def end(self, on_thread: OnThread) -> None:
        """Drain it, and kill it after the stop timeout of its task definition."""
        if self.pooler.running:
            with suppress(ProcessLookupError):
                self.pooler.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.service.task.stop_timeout):
                while self.pooler.running:  # noqa: ASYNC110 - a process has no event
                    await asyncio.sleep(0.05)
        await on_thread(self.pooler.kill)

    def status(self, flows: int) -> dict[str, Any]:
        """Return what `status --json` prints of it."""
        running = self.state in {"RUNNING", "DEACTIVATING"} and self.pooler.running
        return {
            "id": self.id,
            "address": self.address,
            "state": self.state,
            "pid": self.pooler.pid,
            "admin_dsn": self.pooler.admin_dsn if running else None,
            "flows": flows,
        }

    def container(self) -> dict[str, Any]:
        """Return the container's metadata, as ECS's endpoint does."""
        network = {"NetworkMode": "awsvpc", "IPv4Addresses": [self.address]}
        return {
            "DockerId": self.id,
            "Name": "pgbouncer",
            "DesiredStatus": "RUNNING" if self.state in {"PENDING", "RUNNING"} else "STOPPED",
            "KnownStatus": self.state,
            "Networks": [network],
        }

    @property
    def arn(self) -> str:
        """Its name for ECS."""
        prefix = self.service.arn.split(":service/")[0]
        return f"{prefix}:task/{self.service.cluster}/{self.id}"

    def metadata(self) -> dict[str, Any]:
        """Return the task's metadata, as ECS's endpoint does."""
        family, _, revision = self.service.task.task_definition.rpartition("/")[2].partition(":")
        return {
            "Cluster": self.service.cluster,
            "TaskARN": self.arn,
            "Family": family,
            "Revision": revision,
            "DesiredStatus": self.container()["DesiredStatus"],
            "KnownStatus": self.state,
            "Containers": [self.container()],
        }
