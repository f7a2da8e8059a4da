"""Run the deployed ECS service: start, replace and stop the tasks of the pooler."""

import asyncio
import sys
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from lambda_pg_cdk.local.deployment.deployed import PoolerService as Deployed
from lambda_pg_cdk.local.pooler_service import rolling
from lambda_pg_cdk.local.pooler_service.failures import FailedStarts
from lambda_pg_cdk.local.pooler_service.rolling import Goal
from lambda_pg_cdk.local.pooler_service.task import OnThread, Pooler, Task

START_SECONDS = 60.0
LOOK_SECONDS = 0.1


class Front(Protocol):
    """The balancer in front of the tasks."""

    @property
    def running(self) -> bool:
        """Whether it runs."""

    async def register(self, addresses: list[str]) -> None:
        """Send new flows there."""

    async def flows(self) -> dict[str, int]:
        """Count the flows of each address."""


class Names(Protocol):
    """The registry in which clients look tasks up."""

    def register(self, service: Deployed, task: str, address: str) -> None:
        """Register a task."""

    def deregister(self, service: Deployed, task: str) -> None:
        """Deregister a task."""


NewPooler = Callable[[str, str, Deployed], Pooler]
"""Makes the pooler of a task, from the task's id, its address and its service."""


class PoolerFailedError(RuntimeError):
    """The tasks of a deployment do not start; has the reason of the last one."""


class PoolerService:
    """The tasks of the service: `follow`, `stop` and `start` set the goal of `run`."""

    def __init__(
        self, front: Front, names: Names, new_pooler: NewPooler, on_thread: OnThread
    ) -> None:
        """Take what a task needs; nothing runs before `run`."""
        self._front = front
        self._names = names
        self._new_pooler = new_pooler
        self._on_thread = on_thread
        self._deployed: Deployed | None = None
        self._stopped = False  # by `stop`: no task runs, whatever is deployed
        self._tasks: list[Task] = []
        self._last_address = ""
        self._failed_starts = FailedStarts()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()

    # What is wanted

    def follow(self, deployed: Deployed | None) -> None:
        """Set the deployed service as the goal; the tasks follow."""
        before, self._deployed = self._deployed, deployed
        if (before and before.deployment) != (deployed and deployed.deployment):
            self._failed_starts.clear()
        self._look_again()

    async def settle(self) -> None:
        """Wait until exactly the wanted tasks run, and no other; raise `PoolerFailedError`."""
        self._look_again()
        await self._settled.wait()
        if self._failed_starts.too_many and not self._stopped:
            raise PoolerFailedError(self._failed_starts.latest)

    async def stop(self) -> None:
        """End all tasks now, each with its drain, and start none until `start`."""
        self._stopped = True
        for task in self._tasks:
            task.hurried.set()
        await self.settle()

    async def start(self) -> None:
        """Start the tasks again; raise LookupError if no pooler is deployed."""
        if self._deployed is None:
            raise LookupError("no pooler is deployed")
        self._stopped = False
        self._failed_starts.clear()
        await self.settle()

    def _look_again(self) -> None:
        self._settled.clear()
        self._wake.set()

    # What is there

    @property
    def settled(self) -> bool:
        """Tell whether exactly the wanted tasks run."""
        wanted = None if self._stopped else self._deployed
        if wanted is None:
            return not self._tasks
        return len(self._tasks) == wanted.desired and all(
            task.state == "RUNNING" and task.deployment == wanted.deployment for task in self._tasks
        )

    def task(self, id: str) -> Task | None:  # noqa: A002 - ECS's word
        """Return a task by its id."""
        return next((task for task in self._tasks if task.id == id), None)

    async def status(self) -> dict[str, Any] | None:
        """Return what is deployed and what runs; None without a deployed service."""
        deployed = self._deployed
        if deployed is None:
            return None
        flows: dict[str, int] = {}
        with suppress(RuntimeError, TimeoutError):
            flows = await self._front.flows()
        tasks = [task.status(flows.get(task.address, 0)) for task in self._tasks]
        return {
            "host": "127.0.0.1",
            "port": deployed.task.port,
            "admin_dsn": next((t["admin_dsn"] for t in tasks if t["state"] == "RUNNING"), None),
            "max_server_connections": deployed.task.server_connections * deployed.desired,
            "service": deployed.arn,
            "desired": deployed.desired,
            "stable": self.settled,
            "failure": self._failed_starts.latest or None,
            "tasks": tasks,
        }

    # How it gets there

    async def run(self) -> None:
        """Start and stop tasks until they are as wanted, for ever."""
        while True:
            self._wake.clear()
            try:
                await self._advance()
            except Exception as error:  # noqa: BLE001 - retried in a moment
                _report("pooler", error)
            if self.settled or self._failed_starts.too_many:
                self._settled.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()

    async def close(self) -> None:
        """Start and drain no more tasks; `kill` ends those that still run."""
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def kill(self) -> None:
        """End all tasks without a drain."""
        for task in self._tasks:
            task.pooler.kill()

    async def _advance(self) -> None:
        if not self._front.running:
            await self._balance()
        for task in [t for t in self._tasks if t.state == "RUNNING" and not t.pooler.running]:
            self._failed_starts.add(f"task {task.id} on {task.address} ended unexpectedly")
            self._retire(task, delay=0.0)
        wanted = None if self._stopped else self._deployed
        if wanted is None:
            for task in [t for t in self._tasks if t.state in {"PENDING", "RUNNING"}]:
                self._retire(task, task.service.deregistration_delay)
            return
        change = rolling.next_change(self._tasks, _goal(wanted))
        for task in change.stop:
            self._retire(task, wanted.deregistration_delay)
        if self._failed_starts.pause_over:
            for _ in range(change.start):
                self._do(self._bring_up(self._new(wanted)))

    def _new(self, service: Deployed) -> Task:
        taken = {task.address for task in self._tasks}
        self._last_address = rolling.next_address(self._last_address, taken)
        id_ = uuid.uuid4().hex
        task = Task(id_, service, self._new_pooler(id_, self._last_address, service))
        self._tasks.append(task)
        return task

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.ensure_future(work)
        self._jobs.add(job)
        job.add_done_callback(self._done)

    def _done(self, job: "asyncio.Task[None]") -> None:
        self._jobs.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            _report("pooler", error)
        self._wake.set()

    async def _bring_up(self, task: Task) -> None:
        """Start a task, and send it flows when it is healthy."""
        try:
            try:
                await self._on_thread(task.pooler.launch)
            finally:
                task.launched.set()
            async with asyncio.timeout(START_SECONDS):
                while task.state == "PENDING" and not await asyncio.to_thread(task.healthy):  # noqa: ASYNC110 - another process has no event
                    await asyncio.sleep(0.05)
        except Exception as error:  # noqa: BLE001 - after any error the task has not started
            if task.state == "PENDING":
                what = "it does not answer" if isinstance(error, TimeoutError) else error
                self._failed_starts.add(f"task {task.id} on {task.address} did not start: {what}")
                self._retire(task, delay=0.0)
            return
        if task.state == "PENDING":
            await asyncio.to_thread(self._names.register, task.service, task.id, task.address)
            if task.state != "PENDING":  # retired meanwhile, maybe before it was registered
                await asyncio.to_thread(self._names.deregister, task.service, task.id)
                return
            task.state = "RUNNING"
            await self._balance()
            self._failed_starts.clear()

    def _retire(self, task: Task, delay: float) -> None:
        """Send a task no new flows from now on, and end it after the deregistration delay."""
        if task.state not in {"PENDING", "RUNNING"}:  # it is ending already
            return
        if task.state == "PENDING":  # it never had flows
            delay = 0.0
        task.state = "DEACTIVATING"
        self._do(self._take_down(task, delay))

    async def _take_down(self, task: Task, delay: float) -> None:
        """End a task: no new flows, the deregistration delay, the drain, then SIGKILL."""
        try:
            await self._balance()
        except (OSError, RuntimeError) as error:
            # A balancer that does not answer is restarted; the task has to end anyway.
            print(f"pooler: {error!r}", file=sys.stderr, flush=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await task.hurried.wait()
        task.state = "STOPPING"
        await task.launched.wait()
        await asyncio.to_thread(self._names.deregister, task.service, task.id)
        await task.end(self._on_thread)
        self._tasks.remove(task)
        await self._balance()

    async def _balance(self) -> None:
        await self._front.register([t.address for t in self._tasks if t.state == "RUNNING"])


def _goal(wanted: Deployed) -> Goal:
    return Goal(wanted.deployment, wanted.desired, wanted.minimum_percent, wanted.maximum_percent)


def _report(what: str, error: BaseException) -> None:
    print(f"{what}: {error!r}", file=sys.stderr, flush=True)
