"""All functions of the cloud's account: their fleets, and the version that takes requests."""

import asyncio
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from lambda_pg_cdk.local.deployment.deployed import Function, Start
from lambda_pg_cdk.local.environments.environment import State
from lambda_pg_cdk.local.environments.fleet import Fleet, ThrottledError
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.environments.launcher import LaunchContext

CONCURRENCY = 1000  # Lambda's default for an account
PRIVATE_BYTES: dict[Start, int] = {"cold": 64 * 1024 * 1024, "restored": 11 * 1024 * 1024}
"""Memory that an environment does not share, after its first request, with psycopg, boto3 and
Powertools. A restored one shares the pages that neither it nor its template has written to."""
_AT_LEAST = 20  # environments, even with little memory
_EXPIRY_INTERVAL = 1.0


class UnknownFunctionError(LookupError):
    """No function of that name or folder is deployed."""


class Account:
    """The fleets of all deployed functions.

    The name of a function means the version that its alias points to, or the newest code without
    an alias. Each other version that is called has a separate fleet, `name:version`.

    Large because the account's limits hold for all fleets together: what starts, ends or replaces
    environments of one looks at the others.
    """

    def __init__(
        self,
        context: LaunchContext,
        idle_seconds: float,
        start: Start = "restored",
        memory: int | None = None,
    ) -> None:
        """Take how requests `start` environments, and their memory in bytes (default: half)."""
        self._context = context
        self._idle_seconds = idle_seconds
        self._start: Start = start
        self._memory = psutil.virtual_memory().total // 2 if memory is None else memory
        self._fleets: dict[str, Fleet] = {}  # by `name` or `name:version`
        self._retired: list[Fleet] = []

    def running(self) -> int:
        """Count the environments of all functions."""
        return sum(map(len, self._everything()))

    def _everything(self) -> list[Fleet]:
        return [*self._fleets.values(), *self._retired]

    @property
    def limit(self) -> int:
        """How many environments requests can start: Lambda's limit, or fewer for lack of memory."""
        return min(CONCURRENCY, max(_AT_LEAST, self._memory // PRIVATE_BYTES[self._start]))

    def limit_reason(self) -> str | None:
        """Return the note for a limit by this machine's memory; None if Lambda's limit applies."""
        if self.limit == CONCURRENCY:
            return None
        return (
            f"at most {self.limit} environments at the same time, not {CONCURRENCY}: half of the "
            f"memory is {self._memory >> 20} MB, a {self._start} one needs "
            f"{PRIVATE_BYTES[self._start] >> 20} MB"
        )

    def _admit(self, start: Start) -> None:
        """Make room for an environment that starts for a request; raise `ThrottledError`.

        Idle environments do not count, as on AWS. If memory is missing, the longest idle one of
        all functions is ended.
        """
        fleets = self._everything()
        if sum(fleet.busy for fleet in fleets) >= CONCURRENCY:
            raise ThrottledError(f"all {CONCURRENCY} environments of the account are busy")
        size, held = PRIVATE_BYTES[start], Counter[Start]()
        for fleet in fleets:
            held.update(fleet.held)
        allowed = max(self._memory, _AT_LEAST * size)
        missing = sum(PRIVATE_BYTES[each] * n for each, n in held.items()) + size - allowed
        while missing > 0:
            fleet = min(fleets, key=lambda each: each.idle_since)
            if fleet.idle_since == math.inf:
                raise ThrottledError(
                    f"{held.total()} environments use all {allowed >> 20} MB of their memory, "
                    "and all are busy"
                )
            missing -= PRIVATE_BYTES[fleet.reclaim()]

    def functions(self) -> list[Function]:
        """Return each function as requests run it."""
        return [fleet.function for name, fleet in self._fleets.items() if ":" not in name]

    def counts(self) -> dict[str, int]:
        """Return how many environments of each function run, by folder."""
        counts: Counter[str] = Counter()
        for fleet in self._fleets.values():
            counts[fleet.function.folder] += len(fleet)
        return dict(counts)

    def states(self) -> dict[str, Counter[State]]:
        """Return how many environments of each function are in each state, by folder."""
        states: dict[str, Counter[State]] = {}
        for fleet in self._fleets.values():
            states.setdefault(fleet.function.folder, Counter()).update(fleet.states())
        return states

    def has(self, name: str) -> bool:
        """Tell whether there is a function of that name or folder."""
        return name in self._fleets or name in self.counts()

    def find(self, name: str) -> Fleet:
        """Return the fleet of a function, by its name or its folder."""
        if name in self._fleets:
            return self._fleets[name]
        for fleet in self._fleets.values():
            if fleet.function.folder == name:
                return fleet
        known = ", ".join(sorted(self.counts())) or "none"
        raise UnknownFunctionError(f"no function {name!r} is deployed; there are: {known}")

    async def invoke(self, name: str, event: bytes) -> Outcome:
        """Run one event in the version that is deployed now."""
        return await self.find(name).invoke(event)

    async def open(self, name: str, count: int, start: Start, *, spread: bool) -> list[int]:
        """Open environments of a function until `count` are idle."""
        return await self.find(name).open(count, start, spread=spread)

    def start_on_demand(self, name: str, start: Start) -> None:
        """Set how requests start environments of a function, until `end`."""
        self.find(name).start = start

    async def end(self, name: str) -> None:
        """End all environments of a function."""
        fleet = self.find(name)
        key = next(key for key, each in self._fleets.items() if each is fleet)
        self._fleets[key] = self._new(fleet.function)
        await fleet.close()

    async def update(self, function: Function, key: str = "") -> None:
        """Replace a function by what is deployed now; environments of an older version retire."""
        key = key or function.name
        old = self._fleets.get(key)
        if old is not None and old.function.fingerprint == function.fingerprint:
            old.update(function)
            return
        self._fleets[key] = self._tried_out(function) or self._new(function)
        if old is not None:
            self._retired.append(old)
            await old.retire()

    def _tried_out(self, function: Function) -> Fleet | None:
        """Take the fleet in which this version has been tried out, if there is one."""
        key = f"{function.name}:{function.version}"
        fleet = self._fleets.get(key)
        if fleet is None or fleet.function.fingerprint != function.fingerprint:
            return None
        fleet.update(function)
        return self._fleets.pop(key)

    async def try_out(self, function: Function) -> None:
        """Start an environment of a version before requests run it; raise `CodeError`."""
        key = f"{function.name}:{function.version}"
        self._fleets[key] = fleet = self._new(function)
        try:
            await fleet.try_out()
        except BaseException:
            del self._fleets[key]
            await fleet.close()
            raise

    def folders(self) -> set[Path]:
        """Return the code and the layers of everything that runs or may start."""
        functions = [fleet.function for fleet in self._everything()]
        return {path for each in functions for path in (each.code, *each.layers)}

    async def update_version(self, function: Function) -> str:
        """Add a version that is about to be called; return the name to invoke it by.

        During a deployment this is the newest code, while an alias still points to older code.
        """
        fleet = self._fleets.get(function.name)
        if fleet is not None and fleet.function.fingerprint == function.fingerprint:
            return function.name
        same = fleet is None or fleet.function.version == function.version
        key = function.name if same else f"{function.name}:{function.version}"
        await self.update(function, key)
        return key

    async def keep_only(self, names: Iterable[str]) -> None:
        """Retire the functions that are no longer deployed, and versions without an alias."""
        for name in set(self._fleets) - set(names):
            fleet = self._fleets.pop(name)
            self._retired.append(fleet)
            await fleet.retire()

    def _new(self, function: Function) -> Fleet:
        return Fleet(function, self._context, self._admit, self._start)

    async def expire(self) -> None:
        """End environments that have been idle for too long, for ever."""
        while True:
            await asyncio.sleep(_EXPIRY_INTERVAL)
            self._retired = [fleet for fleet in self._retired if len(fleet)]
            for fleet in self._fleets.values():
                await fleet.expire(self._idle_seconds)

    async def close(self) -> None:
        """End all environments."""
        for fleet in self._everything():
            await fleet.close()
