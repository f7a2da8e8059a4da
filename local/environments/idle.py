"""The environments of one function that wait for an event."""

import math
from collections.abc import Iterator

from lambda_pg_cdk.local.environments.environment import Environment


class IdleEnvironments:
    """Idle environments in the order of their last use; the next event goes to the newest.

    With `spread` it goes to the oldest, so that all of them stay in use.
    """

    def __init__(self) -> None:
        self.spread = False
        self._environments: list[Environment] = []

    def __len__(self) -> int:
        return len(self._environments)

    def __iter__(self) -> Iterator[Environment]:
        return iter(tuple(self._environments))

    @property
    def since(self) -> float:
        """When the longest idle environment became idle; infinite if there is none."""
        return self._environments[0].idle_since if self._environments else math.inf

    def add(self, environment: Environment) -> None:
        """Add one that has just become idle."""
        self._environments.append(environment)

    def discard(self, environment: Environment) -> None:
        """Remove one that has ended, if it is there."""
        if environment in self._environments:
            self._environments.remove(environment)

    def take(self) -> Environment | None:
        """Remove and return the one that gets the next event; None if there is none."""
        while self._environments:
            environment = self._environments.pop(0 if self.spread else -1)
            if environment.idle:
                return environment
        return None

    def pop_oldest(self) -> Environment:
        """Remove and return the longest idle one; raise IndexError if there is none."""
        return self._environments.pop(0)

    def drop_ended(self) -> None:
        """Remove those that are no longer idle."""
        self._environments = [each for each in self._environments if each.idle]
