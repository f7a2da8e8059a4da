"""All functions of the cloud's account: the fleets, and which version of each takes requests."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from local.deployed import Function, Start
from local.environments.environment import Outcome, State
from local.environments.fleet import Fleet
from local.environments.launcher import Surroundings

_EXPIRY_INTERVAL = 1.0


class UnknownFunctionError(LookupError):
    """No function of that name or folder is deployed."""


class Account:
    """The fleets of all deployed functions.

    By its name a function is what its alias points at, or the newest code where it has none; any
    other version that is called by its number has a fleet of its own, as `name:version`.
    """

    def __init__(self, around: Surroundings, idle_seconds: float) -> None:
        self._around = around
        self._idle_seconds = idle_seconds
        self._fleets: dict[str, Fleet] = {}  # by `name` or `name:version`
        self._retired: list[Fleet] = []

    def running(self) -> int:
        """Count the environments of all functions."""
        return sum(map(len, [*self._fleets.values(), *self._retired]))

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

    async def end(self, name: str) -> None:
        """End all environments of a function."""
        fleet = self.find(name)
        key = next(key for key, each in self._fleets.items() if each is fleet)
        self._fleets[key] = self._new(fleet.function)
        await fleet.close()

    async def update(self, function: Function, key: str = "") -> None:
        """Let a function be what has been deployed; environments of an older version retire."""
        key = key or function.name
        old = self._fleets.get(key)
        if old is not None and old.function.fingerprint == function.fingerprint:
            old.update(function)
            return
        self._fleets[key] = self._new(function)
        if old is not None:
            self._retired.append(old)
            await old.retire()

    async def update_version(self, function: Function) -> str:
        """Take in a version that is about to be called; return the name to invoke it by.

        During a deployment that is the newest code, while an alias still points at older code.
        """
        fleet = self._fleets.get(function.name)
        if fleet is not None and fleet.function.fingerprint == function.fingerprint:
            return function.name
        same = fleet is None or fleet.function.version == function.version
        key = function.name if same else f"{function.name}:{function.version}"
        await self.update(function, key)
        return key

    async def keep_only(self, names: Iterable[str]) -> None:
        """Retire the functions that are no longer deployed, and versions that nobody serves."""
        for name in set(self._fleets) - set(names):
            fleet = self._fleets.pop(name)
            self._retired.append(fleet)
            await fleet.retire()

    def _new(self, function: Function) -> Fleet:
        count: Callable[[], int] = self.running
        return Fleet(function, self._around, count)

    async def expire(self) -> None:
        """End environments that have been idle for too long, for ever."""
        while True:
            await asyncio.sleep(_EXPIRY_INTERVAL)
            self._retired = [fleet for fleet in self._retired if len(fleet)]
            for fleet in self._fleets.values():
                fleet.expire(self._idle_seconds)

    async def close(self) -> None:
        """End all environments."""
        for fleet in [*self._fleets.values(), *self._retired]:
            await fleet.close()
