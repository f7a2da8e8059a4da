"""Decide what an ECS service does next. No I/O: nothing here starts or stops a task."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Generic, Literal, Protocol, TypeVar

State = Literal["PENDING", "RUNNING", "DEACTIVATING", "STOPPING"]
"""ECS's terms: starting; takes new flows; takes no new flows; ends after its drain."""

FIRST_ADDRESS = IPv4Address("127.0.0.2")
LAST_ADDRESS = IPv4Address("127.0.0.254")
LONGEST_PAUSE = 30.0


class View(Protocol):
    """What a decision needs to know of a task."""

    @property
    def deployment(self) -> str:
        """The deployment that it belongs to."""

    @property
    def state(self) -> State:
        """Where it is in its life."""


T = TypeVar("T", bound=View)


@dataclass(frozen=True, slots=True)
class Goal:
    """How many tasks of which deployment there should be, and what may be missing meanwhile."""

    deployment: str
    desired: int
    minimum_percent: int
    maximum_percent: int

    @property
    def fewest(self) -> int:
        """How many have to run at any moment of a deployment; ECS rounds up."""
        return -(-self.desired * self.minimum_percent // 100)

    @property
    def most(self) -> int:
        """How many may start and run at any moment of a deployment; ECS rounds down."""
        return max(self.desired, self.desired * self.maximum_percent // 100)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """How many tasks to start now, and which to stop."""

    start: int
    stop: tuple[T, ...]


def next_change(tasks: Sequence[T], goal: Goal) -> Change[T]:
    """Decide what may be done now; `tasks` are in the order in which they were started.

    Ending tasks do not count, as on ECS: a task that drains for minutes does not delay new ones.
    """
    alive = [task for task in tasks if task.state in {"PENDING", "RUNNING"}]
    mine = [task for task in alive if task.deployment == goal.deployment]
    old = [task for task in alive if task.deployment != goal.deployment]
    missing = max(0, goal.desired - len(mine))
    room = max(0, goal.most - len(alive))
    stop = [task for task in old if task.state == "PENDING"]
    stop += _replaced([task for task in old if task.state == "RUNNING"], mine, goal, missing - room)
    return Change(min(missing, room), (*stop, *_superfluous(mine, goal.desired)))


def _replaced(old: list[T], mine: list[T], goal: Goal, short: int) -> list[T]:
    """Choose the older tasks to stop, replaced or in the way of new ones, while enough run."""
    ready = sum(task.state == "RUNNING" for task in mine)
    running = ready + len(old)
    wanted = max(running - goal.desired, short)
    return old[: max(0, min(wanted, running - goal.fewest))]


def _superfluous(mine: list[T], desired: int) -> list[T]:
    """Choose the tasks above the wanted number: first those not ready, then the newest."""
    newest_first = mine[::-1]
    ordered = sorted(newest_first, key=lambda task: task.state == "RUNNING")
    return ordered[: max(0, len(mine) - desired)]


def next_address(last: str, taken: Collection[str]) -> str:
    """Choose a loopback address; each is reused only after all the others.

    So a new task never has the address of the task that it replaces. Raises LookupError.
    """
    count = int(LAST_ADDRESS) - int(FIRST_ADDRESS) + 1
    start = int(IPv4Address(last)) - int(FIRST_ADDRESS) + 1 if last else 0
    for step in range(count):
        address = str(FIRST_ADDRESS + (start + step) % count)
        if address not in taken:
            return address
    raise LookupError(f"all {count} addresses from {FIRST_ADDRESS} to {LAST_ADDRESS} are taken")


def pause_after(failures: int) -> float:
    """Return how long to wait, in seconds, before a task is started after failed ones."""
    return 0.0 if failures == 0 else min(LONGEST_PAUSE, 0.5 * 2.0 ** (failures - 1))
