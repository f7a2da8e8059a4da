"""The environments of one function: scale out on demand, throttle, expire, retire."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from lambda_pg_cdk.local.deployment.deployed import Function, Start
from lambda_pg_cdk.local.environments.environment import Environment, State
from lambda_pg_cdk.local.environments.idle import IdleEnvironments
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.environments.launcher import (
    InitError,
    LaunchContext,
    Launcher,
    NoRoomError,
    TemplateLostError,
    UnfitError,
)

IDLE_SECONDS = 600.0  # AWS does not say; five to fifteen minutes have been seen
_STARTING_AT_ONCE: dict[Start, int] = {"cold": 2 * (os.cpu_count() or 1), "restored": 64}
"""A cold start needs a whole processor; forks need little and share their snapshot."""


class ThrottledError(Exception):
    """No environment is free and no other may start (Lambda: TooManyRequestsException, 429)."""


class CodeError(RuntimeError):
    """A new version of a function does not start; the text is its traceback."""

    def __init__(self, payload: bytes, code: Path) -> None:
        """Take the error in Lambda's format, or any text; name files relative to the code."""
        text = payload.decode(errors="replace")
        with suppress(ValueError, KeyError, TypeError):
            error = json.loads(payload)
            cause = f"{error['errorType']}: {error['errorMessage']}"
            text = "".join([*error.get("stackTrace", []), cause])
        super().__init__(text.replace(f"{code}/", ""))


class Fleet:
    """All environments that run one version of one function.

    `start` is the way an environment starts. `admit` is called with it before a request starts one,
    and may refuse that by `ThrottledError`.

    Large because an environment changes between starting, idle, busy and ended here only.
    """

    def __init__(
        self,
        function: Function,
        context: LaunchContext,
        admit: Callable[[Start], None],
        start: Start = "restored",
    ) -> None:
        self.function = function
        self.start = start
        self._admit = admit
        self._launcher = Launcher(function, context)
        self._idle = IdleEnvironments()
        self._all: set[Environment] = set()
        self.held: Counter[Start] = Counter()
        """How many environments hold memory, by how they were started."""
        self._leaving: set[Environment] = set()  # reclaimed, and not ended yet
        self._starting: set[asyncio.Task[None]] = set()
        self._width = {start: asyncio.Semaphore(n) for start, n in _STARTING_AT_ONCE.items()}
        self._retired = False
        self._last_start = time.monotonic()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def pids(self) -> list[int]:
        """The processes of all environments."""
        return [environment.pid for environment in self._all if environment.pid is not None]

    def states(self) -> Counter[State]:
        """Count the environments in each state."""
        return Counter(environment.state for environment in self._all)

    @property
    def busy(self) -> int:
        """How many environments run an event, or start for one."""
        return len(self._all) - len(self._idle) - len(self._leaving)

    @property
    def idle_since(self) -> float:
        """When the longest idle environment became idle; infinite if none is idle."""
        return self._idle.since

    def reclaim(self) -> Start:
        """End the longest idle environment; return how it was started."""
        environment = self._idle.pop_oldest()
        self._leaving.add(environment)
        self.held[environment.start] -= 1
        environment.kill()
        return environment.start

    async def invoke(self, event: bytes) -> Outcome:
        """Run one event in a free environment, or in a new one; raise `ThrottledError`.

        An event that did not begin, because the template process was lost or no snapshot is
        possible, gets another environment once.
        """
        try:
            outcome = await self._invoke(event)
        except (TemplateLostError, UnfitError):
            outcome = await self._invoke(event)
        if outcome.failure not in {None, "handled"}:  # awslambdaric logs handled errors itself
            message = outcome.payload.decode(errors="replace")
            self._launcher.write_log(f"{outcome.failure}: {message}")
        return outcome

    async def _invoke(self, event: bytes) -> Outcome:
        environment = self._idle.take() or self._start_for_request()
        return await environment.invoke(event, self.function.arn, self.function.timeout)

    def _start_for_request(self) -> Environment:
        reserved = self.function.reserved_concurrency
        if reserved is not None and self.busy >= reserved:
            folder = self.function.folder
            raise ThrottledError(f"{folder}: all {reserved} reserved environments are busy")
        self._admit(self.start)
        environment = self._new(self.start)
        # A separate task: as on AWS it starts even if the caller stops waiting for it.
        task = asyncio.create_task(self._bring_up(environment))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)  # of a task that is cancelled
        return environment

    async def _bring_up(self, environment: Environment) -> None:
        """Start an environment; an error becomes the outcome of the event that it starts for."""
        try:
            await self._open_one(environment)
        except InitError as error:
            environment.fail_init(error.payload)
        except OSError as error:
            failed = Outcome.failed("init", "Runtime.InitError", str(error))
            environment.fail_init(failed.payload)
        except NoRoomError as error:
            environment.give_up(ThrottledError(str(error)))
        except UnfitError as error:
            if self.start == "restored":
                self.start = "cold"
                self._launcher.write_log(f"starts cold from now on: {error}")
            environment.give_up(error)
        except Exception as error:  # noqa: BLE001 - the caller gets it
            environment.give_up(error)
        # Not by the task's callback: two that end in one turn of the loop would see each other.
        self._starting.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        if self._retired and not self._starting:
            await self._launcher.close()

    def _new(self, start: Start) -> Environment:
        self._last_start = time.monotonic()
        environment = Environment(start, self._became_idle, self._ended)
        self._all.add(environment)
        self.held[start] += 1
        return environment

    def _became_idle(self, environment: Environment) -> None:
        if self._retired:
            environment.kill()
        else:
            self._idle.add(environment)

    def _ended(self, environment: Environment) -> None:
        self._all.discard(environment)
        if environment in self._leaving:
            self._leaving.remove(environment)
        else:
            self.held[environment.start] -= 1
        self._idle.discard(environment)

    async def open(self, count: int, start: Start, *, spread: bool = False) -> list[int]:
        """Open environments until `count` are idle; return the process ids of the new ones.

        With `spread`, requests go to the longest idle one from now on: all of them stay in use.
        """
        self._idle.spread = spread
        self._idle.drop_ended()
        fresh = [self._new(start) for _ in range(count - len(self._idle))]
        try:
            async with asyncio.TaskGroup() as group:
                for environment in fresh:
                    group.create_task(self._open_one(environment))
        except ExceptionGroup as errors:
            for environment in fresh:
                environment.kill()
            raise RuntimeError(f"{self.function.folder}: {errors.exceptions[0]}") from errors
        return [environment.pid for environment in fresh if environment.pid is not None]

    async def try_out(self) -> None:
        """Start one environment, which stays; raise `CodeError` if the code does not start."""
        environment = self._new(self.start)
        await self._bring_up(environment)
        if environment.ended and environment.start != self.start:  # it has no snapshot
            environment = self._new(self.start)
            await self._bring_up(environment)
        try:
            await environment.ready
        except RuntimeError as error:
            text = environment.init_error or str(error).encode()
            raise CodeError(text, self.function.code) from None

    async def _open_one(self, environment: Environment) -> None:
        if environment.start == "restored":
            await self._launcher.snapshot()  # before it counts as starting
        async with self._width[environment.start]:
            await self._launcher.start(environment)
            await environment.ready

    async def expire(self, idle_seconds: float = IDLE_SECONDS) -> None:
        """End environments that have been idle for too long, and an unused template."""
        now = time.monotonic()
        for environment in self._idle:
            if now - environment.idle_since > idle_seconds:
                environment.kill()
        if not self._all and now - self._last_start > idle_seconds:
            await self._launcher.close()

    async def close(self) -> None:
        """End every environment now, and wait until their processes have ended."""
        self._retired = True
        starting = list(self._starting)
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        ending = list(self._all)
        for environment in ending:
            environment.kill()
        for environment in ending:
            await environment.over.wait()
        await self._launcher.close()  # last: it waits for them

    async def retire(self) -> None:
        """End idle environments now, and each busy one when it has answered."""
        self._retired = True
        for environment in self._idle:
            environment.kill()
        if not self._starting:  # the last one that starts ends the template
            await self._launcher.close()

    def update(self, function: Function) -> None:
        """Apply changes that need no new environments: reserved concurrency."""
        self.function = function
