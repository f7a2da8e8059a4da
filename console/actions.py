"""The actions of the console: a storm, a steady load, a fault."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lambda_pg_cdk.console.steady import SteadyLoad, Visitor
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.faults.catalogue import FAULTS, Fault
from lambda_pg_cdk.local.http.load import FunctionLog, Summary, fire, summarise

REQUESTS = (50, 100, 200, 500)
_KEPT = 50  # activities
_SHOWN = 300  # characters of an error

Kind = Literal["storm", "fault"]


class BusyError(RuntimeError):
    """Another one is running."""


@dataclass(frozen=True)
class Target:
    """A target of storms."""

    title: str
    function: str
    path: str


TARGETS = {
    "lambda-pg": Target("the users API, through lambda-pg", "users", "/users"),
    "baseline": Target("the baseline, without a pooler", "baseline", "/baseline/users"),
}


@dataclass
class Activity:
    """One storm or fault; times are milliseconds since the epoch."""

    id: int
    kind: Kind
    name: str
    title: str
    began: int
    state: Literal["running", "ended", "failed"] = "running"
    ended: int | None = None
    detail: str = ""
    result: dict[str, Any] | None = None


class Actions:
    """Storms, faults and the steady load of one cloud: one storm and one fault at a time."""

    def __init__(self, cloud: LocalCloud, changed: Callable[[], None]) -> None:
        """Call `changed` after every change."""
        self._cloud = cloud
        self._changed = changed
        self._load = SteadyLoad(cloud)
        self._activities: deque[Activity] = deque(maxlen=_KEPT)
        self._running: dict[Kind, asyncio.Task[None]] = {}
        self._count = 0

    def summary(self) -> dict[str, Any]:
        """Return the state of the load, and current and past activities, oldest first."""
        return {"load": self._load.on, "activities": [asdict(each) for each in self._activities]}

    def storm(self, name: str, requests: int) -> None:
        """Start a storm; raise `BusyError`, KeyError or ValueError."""
        target = TARGETS[name]
        if requests not in REQUESTS:
            raise ValueError(f"requests is {requests}; must be one of {REQUESTS}")
        title = f"{requests} requests to {target.title}"
        self._begin("storm", name, title, lambda each: self._storm(each, target, requests))

    def fault(self, name: str) -> None:
        """Begin a fault; raise `BusyError` or KeyError."""
        fault = {each.name: each for each in FAULTS}[name]
        self._begin("fault", name, fault.title, lambda _: self._fault(fault))

    async def switch_load(self, *, on: bool) -> None:
        """Switch the steady load."""
        await (self._load.start() if on else self._load.stop())
        self._changed()

    async def close(self) -> None:
        """Switch the load off and wait until all activities have ended."""
        await self._load.stop()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _begin(
        self, kind: Kind, name: str, title: str, work: Callable[[Activity], Awaitable[None]]
    ) -> None:
        if kind in self._running:
            raise BusyError(f"A {kind} is running. Wait until it has ended.")
        self._count += 1
        activity = Activity(self._count, kind, name, title, _now())
        self._activities.append(activity)
        self._running[kind] = asyncio.create_task(self._follow(activity, work))
        self._changed()

    async def _follow(
        self, activity: Activity, work: Callable[[Activity], Awaitable[None]]
    ) -> None:
        try:
            await work(activity)
        except Exception as error:  # noqa: BLE001 - the page shows it
            activity.state = "failed"
            activity.detail = f"{type(error).__name__}: {error}"[:_SHOWN]
        else:
            activity.state = "ended"
            activity.detail = ""
        activity.ended = _now()
        del self._running[activity.kind]
        self._changed()

    async def _fault(self, fault: Fault) -> None:
        await asyncio.to_thread(fault.run, self._cloud)

    async def _storm(self, activity: Activity, target: Target, requests: int) -> None:
        cloud = self._cloud
        visitor = await asyncio.to_thread(Visitor.arrive, cloud)
        log = FunctionLog(cloud.folder / "logs" / f"{target.function}.log")
        async with self._load.paused():
            self._say(activity, f"opening {requests} restored environments")
            await asyncio.to_thread(cloud.end_environments, target.function)
            try:
                await asyncio.to_thread(cloud.environments, target.function, requests)
                self._say(activity, f"{requests} requests are in flight")
                url = f"{cloud.url}{target.path}/{visitor.user}"
                outcomes, seconds = await asyncio.to_thread(fire, url, visitor.token, requests)
            finally:
                await asyncio.to_thread(cloud.end_environments, target.function)
        activity.result = asdict(_explained(summarise(outcomes, seconds), log))

    def _say(self, activity: Activity, detail: str) -> None:
        activity.detail = detail
        self._changed()


def _explained(summary: Summary, log: FunctionLog) -> Summary:
    return replace(summary, failures=log.causes(summary)) if summary.failed else summary


def _now() -> int:
    return int(time.time() * 1000)
