"""Keep the environments of one function: scale out on demand, throttle, expire, retire."""

import asyncio
import functools
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import psutil

from local.deployed import Function, Start
from local.environments.environment import Environment, Outcome, State
from local.environments.launcher import Launcher, LogFile, Surroundings

ACCOUNT_CONCURRENCY = 1000  # Lambda's default for an account
COLD_BYTES = 64 * 1024 * 1024  # of a cold environment with psycopg, boto3 and Powertools
IDLE_SECONDS = 600.0  # AWS does not say; five to fifteen minutes have been seen


@functools.cache
def account_concurrency() -> int:
    """Return how many environments may be started for requests, within half of the memory.

    Restored ones, opened beforehand, share their memory and are not bounded here.
    """
    return min(ACCOUNT_CONCURRENCY, max(20, psutil.virtual_memory().total // 2 // COLD_BYTES))


class ThrottledError(Exception):
    """No environment is free and none may be started (Lambda: TooManyRequestsException, 429)."""


class Fleet:
    """All environments that run one version of one function."""

    def __init__(
        self, function: Function, around: Surroundings, running: Callable[[], int]
    ) -> None:
        self.function = function
        self._running = running  # environments in the whole account
        self._launcher = Launcher(function, around)
        self._idle: list[Environment] = []  # in the order of their last use
        self._spread = False  # the one used last is used next
        self._all: set[Environment] = set()
        self._retired = False

    def __len__(self) -> int:
        return len(self._all)

    @property
    def pids(self) -> list[int]:
        """The processes of all environments."""
        return [environment.pid for environment in self._all if environment.pid is not None]

    def states(self) -> Counter[State]:
        """Count the environments in each state."""
        return Counter(environment.state for environment in self._all)

    async def invoke(self, event: bytes) -> Outcome:
        """Run one event in a free environment, or in a new cold one; raise `ThrottledError`."""
        environment = self._take_idle() or await self._start_for_request()
        if isinstance(environment, Outcome):
            return environment
        outcome = await environment.invoke(event, self.function.arn, self.function.timeout)
        if outcome.failure is not None:
            self._log(outcome)
        return outcome

    def _take_idle(self) -> Environment | None:
        while self._idle:
            environment = self._idle.pop(0 if self._spread else -1)
            if environment.idle:
                return environment
        return None

    async def _start_for_request(self) -> "Environment | Outcome":
        reserved = self.function.reserved_concurrency
        if reserved is not None and len(self._all) >= reserved:
            raise ThrottledError(f"{self.function.folder}: all {reserved} reserved are busy")
        if self._running() >= account_concurrency():
            raise ThrottledError(
                f"all {account_concurrency()} environments of the account are busy"
            )
        environment = self._new("cold")
        try:
            await self._launcher.start(environment)
        except OSError as error:
            environment.kill()
            return Outcome.failed("init", "Runtime.InitError", str(error))
        return environment

    def _new(self, start: Start) -> Environment:
        environment = Environment(start, self._became_idle, self._ended)
        self._all.add(environment)
        return environment

    def _became_idle(self, environment: Environment) -> None:
        if self._retired:
            environment.kill()
        else:
            self._idle.append(environment)

    def _ended(self, environment: Environment) -> None:
        self._all.discard(environment)
        if environment in self._idle:
            self._idle.remove(environment)

    async def open(self, count: int, start: Start, *, spread: bool = False) -> list[int]:
        """Open environments until `count` are idle; return the process ids of the new ones.

        With `spread`, from now on requests go to the one that has been idle for longest: all of
        them stay in use.
        """
        self._spread = spread
        self._idle = [environment for environment in self._idle if environment.idle]
        fresh = [self._new(start) for _ in range(count - len(self._idle))]
        # A cold start is all processor; forks are not, and their snapshot is shared.
        width = asyncio.Semaphore(2 * (os.cpu_count() or 1) if start == "cold" else 64)
        try:
            async with asyncio.TaskGroup() as group:
                for environment in fresh:
                    group.create_task(self._open_one(environment, width))
        except ExceptionGroup as errors:
            for environment in fresh:
                environment.kill()
            raise RuntimeError(f"{self.function.folder}: {errors.exceptions[0]}") from errors
        return [environment.pid for environment in fresh if environment.pid is not None]

    async def _open_one(self, environment: Environment, width: asyncio.Semaphore) -> None:
        async with width:
            await self._launcher.start(environment)
            await environment.ready

    def expire(self, idle_seconds: float = IDLE_SECONDS) -> None:
        """End environments that have been idle for too long."""
        for environment in list(self._idle):
            if time.monotonic() - environment.idle_since > idle_seconds:
                environment.kill()

    async def close(self) -> None:
        """End every environment now, and wait until their processes are gone."""
        self._retired = True
        ending = list(self._all)
        for environment in ending:
            environment.kill()
        for environment in ending:
            await environment.over.wait()
        await self._launcher.close()  # last: it waits for them

    async def retire(self) -> None:
        """End idle environments now, and each busy one when it has answered."""
        self._retired = True
        for environment in list(self._idle):
            environment.kill()
        await self._launcher.close()

    def update(self, function: Function) -> None:
        """Take over what applies to running environments: reserved concurrency."""
        self.function = function

    def _log(self, outcome: Outcome) -> None:
        if outcome.failure == "handled":  # awslambdaric has written that itself
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = f"{now} {outcome.failure}: {outcome.payload.decode(errors='replace')}\n"
        log: LogFile = self._launcher.open_log()
        with log as descriptor:
            os.write(descriptor, text.encode())
