"""The pooler's service: what it does to its tasks, in which order; the tasks are the test's."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.deployment.deployed import PoolerService as Deployed
from lambda_pg_cdk.local.deployment.deployed import PoolerTask
from lambda_pg_cdk.local.pooler_service.failures import MAX_FAILED_STARTS
from lambda_pg_cdk.local.pooler_service.service import PoolerFailedError, PoolerService
from lambda_pg_cdk.local.pooler_service.task import Task

SECONDS = 20.0
ARN = "arn:aws:ecs:us-east-1:000000000000:service/cluster/pooler"
FAMILY = "arn:aws:ecs:us-east-1:000000000000:task-definition/pool:7"


class Pooler:
    """A port that listens, and answers as the test says."""

    def __init__(self, world: "World", task: str, address: str) -> None:
        """Belong to a test."""
        self._world = world
        self.task = task
        self.address = address
        self.port = world.port
        self.pid = 1
        self.admin_dsn = f"console of {address}"
        self.deaf = False  # to SIGTERM
        self._listener: socket.socket | None = None

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._listener is not None

    def launch(self) -> None:
        """Listen, unless the test has it fail."""
        self._world.say("launch", self.address)
        if self._world.failing:
            raise RuntimeError("canary of the start")
        self._listener = socket.create_server((self.address, self.port))

    def answers(self) -> bool:
        """Answer when the test lets it."""
        if not self.running:
            raise RuntimeError("it has ended")
        return self._world.healthy

    def terminate(self) -> None:
        """Drain in no time."""
        self._world.say("terminate", self.address)
        if not self.deaf:
            self.die()

    def kill(self) -> None:
        """End."""
        self._world.say("kill" if self.running else "collect", self.address)
        self.die()

    def die(self) -> None:
        """End by itself."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


class World:
    """What a service is given, which notes what it is asked for.

    Large because a service is given that much.
    """

    def __init__(self) -> None:
        """Begin with everything in order."""
        self.port = processes.free_port()
        self.healthy = True
        self.failing = False
        self.said: list[tuple[str, str]] = []
        self.registered: list[str] = []
        self.sizes: list[int] = []  # how many were registered, after each change
        self.names: dict[str, str] = {}
        self.naming = threading.Event()  # clear: Cloud Map takes its time
        self.naming.set()
        self.asked: list[str] = []
        self.running = False  # the balancer
        self.silent = False  # it does not answer once
        self.poolers: list[Pooler] = []
        self.service = PoolerService(self, Names(self), self.new, self.on_thread)

    def say(self, what: str, whom: str) -> None:
        """Note an event."""
        self.said.append((what, whom))

    async def register(self, addresses: list[str]) -> None:
        """Be the balancer, unless the test has it fail."""
        if self.silent:
            self.silent = False
            raise TimeoutError("canary of the balancer")
        self.running = True
        for address in set(addresses) ^ set(self.registered):
            self.say("register" if address in addresses else "deregister", address)
        self.registered = addresses
        self.sizes.append(len(addresses))

    async def flows(self) -> dict[str, int]:
        """Have three flows for each target."""
        return dict.fromkeys(self.registered, 3)

    def new(self, task: str, address: str, _service: Deployed) -> Pooler:
        """Make what a task runs."""
        self.poolers.append(Pooler(self, task, address))
        return self.poolers[-1]

    async def on_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run it here."""
        return work(*arguments)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(SECONDS):
            while not condition():  # noqa: ASYNC110 - the service tells nobody
                await asyncio.sleep(0.01)

    def order(self, address: str) -> list[str]:
        """Return what happened to one task."""
        return [what for what, whom in self.said if whom == address]

    def tasks(self) -> list[Task]:
        """Return the tasks that there are."""
        found = [self.service.task(pooler.task) for pooler in self.poolers]
        return [task for task in found if task is not None]


class Names:
    """Cloud Map."""

    def __init__(self, world: World) -> None:
        """Belong to a test."""
        self._world = world

    def register(self, service: Deployed, task: str, address: str) -> None:
        """Note a name."""
        assert service.registries == ("srv-1",)
        self._world.asked.append(task)
        assert self._world.naming.wait(SECONDS)
        self._world.names[task] = address
        self._world.say("name", address)

    def deregister(self, _service: Deployed, task: str) -> None:
        """Forget a name."""
        if (address := self._world.names.pop(task, None)) is not None:
            self._world.say("forget", address)


def deployed(deployment: str = "one", desired: int = 2, **more: Any) -> Deployed:
    """Return a deployed service."""
    variables = {"LISTEN_PORT": "1", "MAX_DB_CONNECTIONS": "20"}
    task = PoolerTask(FAMILY, variables, stop_timeout=0.3)
    made = Deployed(ARN, deployment, task, desired, 100, 200, 0.3, ("srv-1",))
    return replace(made, **more)


def with_world(story: Callable[[World], Awaitable[None]]) -> None:
    """Run a test with a service that is at work."""

    async def play() -> None:
        world = World()
        running = asyncio.create_task(world.service.run())
        try:
            async with asyncio.timeout(SECONDS):
                await story(world)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await world.service.close()
            world.service.kill()

    asyncio.run(play())


def test_the_server_connections_of_both_names_of_the_database_count() -> None:
    """`/sql` has separate bounds, which come in addition."""
    service = deployed()
    assert service.task.server_connections == 20
    variables = {**service.task.variables, "SQL_MAX_DB_CONNECTIONS": "4"}
    assert replace(service.task, variables=variables).server_connections == 24


def test_flows_come_only_to_healthy_tasks() -> None:
    """Until a task answers it is known to nobody; then the balancer and Cloud Map have it."""

    async def story(world: World) -> None:
        world.healthy = False
        world.service.follow(deployed())
        await world.until(lambda: all(p.running for p in world.poolers) and bool(world.poolers))
        assert (world.registered, world.names) == ([], {})
        assert not world.service.settled
        world.healthy = True
        await world.service.settle()
        assert world.registered == ["127.0.0.2", "127.0.0.3"]
        assert sorted(world.names.values()) == world.registered
        status = await world.service.status()
        assert status is not None
        assert status["admin_dsn"] == "console of 127.0.0.2"
        assert (status["max_server_connections"], status["stable"]) == (40, True)
        assert [(t["address"], t["state"], t["flows"]) for t in status["tasks"]] == [
            ("127.0.0.2", "RUNNING", 3),
            ("127.0.0.3", "RUNNING", 3),
        ]

    with_world(story)


def test_a_new_deployment_replaces_every_task_in_order() -> None:
    """An old one goes for each new one that takes flows: there are never fewer than wanted."""

    async def story(world: World) -> None:
        world.service.follow(deployed())
        await world.service.settle()
        world.said.clear()
        world.sizes.clear()
        world.service.follow(deployed("two"))
        await world.service.settle()
        assert world.registered == ["127.0.0.4", "127.0.0.5"]
        assert sorted(world.names.values()) == world.registered
        for new in world.registered:
            assert world.order(new) == ["launch", "name", "register"]
        for old in ("127.0.0.2", "127.0.0.3"):
            assert world.order(old) == ["deregister", "forget", "terminate", "collect"]
        assert min(world.sizes) == 2

    with_world(story)


def test_a_task_drains_for_the_deregistration_delay_before_it_is_told_to_end() -> None:
    """Meanwhile it runs, takes no new flows, and the service is not settled."""

    async def story(world: World) -> None:
        world.service.follow(deployed())
        await world.service.settle()
        world.service.follow(deployed(desired=1, deregistration_delay=60.0))
        await world.until(lambda: world.registered == ["127.0.0.2"])
        assert world.poolers[1].running
        assert [task.state for task in world.tasks()] == ["RUNNING", "DEACTIVATING"]
        assert not world.service.settled
        assert ("terminate", "127.0.0.3") not in world.said

    with_world(story)


def test_a_task_that_ends_by_itself_is_replaced() -> None:
    """On another address; the other one stays, and nobody is sent to the dead one."""

    async def story(world: World) -> None:
        world.service.follow(deployed())
        await world.service.settle()
        world.poolers[0].die()
        await world.until(lambda: world.registered == ["127.0.0.3", "127.0.0.4"])
        await world.service.settle()
        assert sorted(world.names.values()) == world.registered
        assert world.order("127.0.0.3") == ["launch", "name", "register"]

    with_world(story)


def test_tasks_that_do_not_start_leave_the_old_ones_alone() -> None:
    """After some tries the deployment counts as failed, with the reason; the next one can work."""

    async def story(world: World) -> None:
        world.service.follow(deployed())
        await world.service.settle()
        world.failing = True
        world.service.follow(deployed("broken"))
        with pytest.raises(PoolerFailedError, match="canary of the start"):
            await world.service.settle()
        assert world.registered == ["127.0.0.2", "127.0.0.3"]
        assert sum(what == "launch" for what, _ in world.said) >= MAX_FAILED_STARTS
        status = await world.service.status()
        assert status is not None
        assert "canary of the start" in status["failure"]
        world.failing = False
        world.service.follow(deployed("mended"))
        await world.service.settle()
        assert {task.deployment for task in world.tasks()} == {"mended"}
        status = await world.service.status()
        assert status is not None
        assert status["failure"] is None

    with_world(story)


def test_stop_ends_all_tasks_at_once_until_start() -> None:
    """Without the deregistration delay; what is deployed meanwhile runs from `start` on."""

    async def story(world: World) -> None:
        world.service.follow(deployed(deregistration_delay=600.0))
        await world.service.settle()
        await world.service.stop()
        assert (world.registered, world.names, world.tasks()) == ([], {}, [])
        assert {what for what, _ in world.said} >= {"terminate", "collect"}
        world.service.follow(deployed("two", 1))
        await world.service.settle()
        assert world.tasks() == []
        await world.service.start()
        assert [task.deployment for task in world.tasks()] == ["two"]

    with_world(story)


def test_stop_does_not_wait_for_a_task_that_drains_already() -> None:
    """It is hurried as well."""

    async def story(world: World) -> None:
        world.service.follow(deployed(deregistration_delay=600.0))
        await world.service.settle()
        world.service.follow(deployed(desired=1, deregistration_delay=600.0))
        await world.until(lambda: len(world.registered) == 1)
        await world.service.stop()
        assert world.tasks() == []

    with_world(story)


def test_a_task_that_does_not_end_is_killed_after_its_patience() -> None:
    """The task definition says how long it has, as ECS's stopTimeout."""

    async def story(world: World) -> None:
        world.service.follow(deployed(desired=1))
        await world.service.settle()
        world.poolers[0].deaf = True
        await world.service.stop()
        assert world.order("127.0.0.2")[-2:] == ["terminate", "kill"]

    with_world(story)


def test_without_a_deployed_service_nothing_runs() -> None:
    """Its tasks end in order when it is deleted, and `start` has nothing to start."""

    async def story(world: World) -> None:
        world.service.follow(deployed())
        await world.service.settle()
        world.service.follow(None)
        await world.service.settle()
        assert (world.tasks(), world.registered) == ([], [])
        assert await world.service.status() is None
        with pytest.raises(LookupError, match="no pooler is deployed"):
            await world.service.start()

    with_world(story)


def test_a_task_that_is_not_wanted_any_more_need_not_get_ready() -> None:
    """The number was lowered while it was starting."""

    async def story(world: World) -> None:
        world.healthy = False
        world.service.follow(deployed(desired=2))
        await world.until(lambda: len(world.poolers) == 2 and all(p.running for p in world.poolers))
        world.service.follow(deployed(desired=0))
        await world.service.settle()
        assert (world.tasks(), world.names) == ([], {})
        assert not any(pooler.running for pooler in world.poolers)

    with_world(story)


def test_a_task_that_is_retired_while_it_gets_its_name_keeps_neither() -> None:
    """Cloud Map would have named it for ever, and the service would have taken it for running."""

    async def story(world: World) -> None:
        world.naming.clear()
        world.service.follow(deployed(desired=1))
        await world.until(lambda: bool(world.asked))
        (task,) = world.tasks()
        world.service.follow(deployed(desired=0))
        await world.service.settle()
        world.naming.set()
        await world.until(lambda: "forget" in world.order(task.address))
        assert world.names == {}
        assert task.state == "STOPPING"
        assert "register" not in world.order(task.address)

    with_world(story)


def test_a_task_that_is_retired_twice_ends_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The second time there is nothing left to do, and nothing to complain about."""

    async def story(world: World) -> None:
        world.service.follow(deployed(desired=1))
        await world.service.settle()
        (task,) = world.tasks()
        world.service.follow(deployed(desired=0))
        await world.until(lambda: task.state == "DEACTIVATING")
        world.service._retire(task, delay=0.0)
        await world.until(lambda: not world.service._jobs)
        assert world.order(task.address)[-3:] == ["forget", "terminate", "collect"]
        assert world.order(task.address).count("terminate") == 1
        assert world.tasks() == []

    with_world(story)
    assert capsys.readouterr().err == ""


def test_a_task_ends_though_the_balancer_does_not_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It learns of the targets again later; otherwise the task would stay for ever."""

    async def story(world: World) -> None:
        world.service.follow(deployed(desired=2))
        await world.service.settle()
        world.silent = True
        world.service.follow(deployed(desired=1))
        await world.until(lambda: len(world.tasks()) == 1)
        await world.until(lambda: not world.service._jobs)

    with_world(story)
    assert "canary of the balancer" in capsys.readouterr().err


def test_a_balancer_that_died_learns_its_targets_again() -> None:
    """The next look finds out."""

    async def story(world: World) -> None:
        world.service.follow(deployed())
        await world.service.settle()
        world.running, world.registered = False, []
        await world.until(lambda: world.registered == ["127.0.0.2", "127.0.0.3"])

    with_world(story)


def test_a_task_can_ask_where_it_is() -> None:
    """As ECS's metadata endpoint tells it: its address, its task and its definition."""

    async def story(world: World) -> None:
        world.service.follow(deployed(desired=1))
        await world.service.settle()
        (task,) = world.tasks()
        assert task.container()["Networks"][0]["IPv4Addresses"] == ["127.0.0.2"]
        told = task.metadata()
        prefix = "arn:aws:ecs:us-east-1:000000000000:task/cluster/"
        assert told["TaskARN"] == f"{prefix}{task.id}"
        assert (told["Cluster"], told["Family"], told["Revision"]) == ("cluster", "pool", "7")
        assert told["Containers"] == [task.container()]

    with_world(story)
