"""The slots of pools, which bound their connections, and the threads that wait for one."""

import threading
import weakref
from typing import Protocol, TypeVar

from lambda_pg._clock import monotonic
from lambda_pg._errors import CheckoutTimeoutError
from lambda_pg._events import Events
from lambda_pg._stats import Stats

Idle = TypeVar("Idle")


class Sharer(Protocol):
    """A pool, as the others that share its slots see it."""

    @property
    def size(self) -> int:
        """Connections that are open or being opened."""

    @property
    def idle_since(self) -> float | None:
        """The wall clock's time since which it has an idle connection; None if it has none."""

    def close_oldest(self) -> None:
        """Close the connection that has been idle for longest, if there is still one."""

    def held_by(self, thread: int) -> int:
        """Count the connections that a thread has."""


class SharedSlots:
    """The slots of one Database, or of several, which then keep within `count` together.

    Several Databases in one environment, one for each login, take `slots=SharedSlots(2)`. Where all
    slots are taken, the connection that has been idle for longest is closed, whichever Database
    has it.
    """

    def __init__(self, count: int) -> None:
        """Have `count` free slots. Raises ValueError if there is none."""
        if count < 1:
            raise ValueError(f"SharedSlots({count}): there must be at least one slot")
        self.count = count
        self._pools: weakref.WeakSet[Sharer] = weakref.WeakSet()
        self.reset()

    def reset(self) -> None:
        """Have no thread waiting, as at the start and in a forked child."""
        # Entered itself, not by the condition: no signal handler can come between lock and block.
        self.lock = threading.RLock()
        self.freed = threading.Condition(self.lock)
        self.waiting = 0
        """Threads that wait for a slot."""

    def join(self, pool: Sharer) -> None:
        """Let a pool share them."""
        self._pools.add(pool)

    def has_room(self) -> bool:
        """Tell whether a slot is free; free one that only an idle connection has."""
        while sum(pool.size for pool in self._pools) >= self.count:
            idle = {since: pool for pool in self._pools if (since := pool.idle_since) is not None}
            if not idle:
                return False
            idle[min(idle)].close_oldest()
        return True

    def has_idle(self) -> bool:
        """Tell whether any pool has an idle connection."""
        return any(pool.idle_since is not None for pool in self._pools)

    def held_by(self, thread: int) -> int:
        """Count the connections that a thread has."""
        return sum(pool.held_by(thread) for pool in self._pools)

    def notify(self) -> None:
        """Wake a thread that waits."""
        with self.lock:
            self.freed.notify()


class Slot:
    """One place in the pool: taken until it is freed, or until nothing refers to it any more.

    An exception from a signal handler may come between any two steps of a checkout or a return.
    A slot that was lost that way becomes free by itself.
    """

    def __init__(self, slots: "Slots") -> None:
        """Take a place."""
        self._slots = weakref.ref(slots)
        self.is_free = False

    def __del__(self) -> None:
        """Free the place of a connection that was dropped and not returned."""
        slots = self._slots()
        if slots is not None and not self.is_free:
            slots.note_abandoned()


class Slots:
    """The slots that one pool has taken; threads that find none free wait in their order."""

    def __init__(self, shared: SharedSlots, stats: Stats, events: Events) -> None:
        """Have taken none of the shared ones."""
        self.shared = shared
        self._stats = stats
        self._events = events
        self.reset()

    def reset(self) -> None:
        """Have taken none, as at the start and in a forked child."""
        # No WeakSet: an exception in its own callback would leave the dead ones counted.
        self._taken: list[weakref.ref[Slot]] = []
        self.abandoned = 0
        """Slots that became free by themselves since the last reclaim."""

    @property
    def taken(self) -> list[Slot]:
        """The slots of connections that are open or being opened."""
        slots = [reference() for reference in self._taken]
        return [slot for slot in slots if slot is not None and not slot.is_free]

    @property
    def most(self) -> int:
        """How many it has taken at most: some may be free by now."""
        return len(self._taken)

    def take(self) -> Slot | None:
        """Take a slot, if one is free and no thread waits for it."""
        with self.shared.lock:
            return None if self.shared.waiting else self._take_free()

    def wait(
        self, idle: list[Idle], until: float, timeout: float
    ) -> tuple[Idle | None, Slot | None]:
        """Wait for one of `idle`, or for a slot, until the time.monotonic() `until`.

        Raises CheckoutTimeoutError, which names the `timeout` in seconds.
        """
        began = monotonic()
        shared = self.shared
        with shared.lock:
            in_time, is_first = True, not shared.waiting  # the others wait in their order
            self._stats.requests_queued += 1
            self._events.mark("wait_for_slot")
            shared.waiting += 1  # before the look: a return appends first, and then looks at this
            try:
                while True:
                    if is_first and (found := pop(idle)) is not None:
                        return found, None
                    if is_first and (slot := self._take_free()) is not None:
                        return None, slot
                    if not in_time:  # after a last look: a notice may have come too late to wake
                        raise CheckoutTimeoutError(
                            f"all {shared.count} slots of the pool stayed taken for {timeout:.1f} s"
                        )
                    in_time = shared.freed.wait(max(0.0, until - monotonic()))
                    is_first = True
            finally:
                shared.waiting -= 1
                if shared.waiting and shared.has_idle():
                    shared.freed.notify()  # the thread that was woken has not taken it
                self._stats.requests_wait_ms += (monotonic() - began) * 1000

    def _take_free(self) -> Slot | None:
        if not self.shared.has_room():
            return None
        slot = Slot(self)
        self._taken = [*map(weakref.ref, self.taken), weakref.ref(slot)]
        return slot

    def free(self, slot: object) -> None:
        """Free a slot, where it is one."""
        if isinstance(slot, Slot):
            with self.shared.lock:
                slot.is_free = True
                self.shared.freed.notify()

    def note_abandoned(self) -> None:
        """Note that a slot became free by itself."""
        self.abandoned += 1
        if self.shared.waiting:
            self.shared.notify()


def pop(idle: list[Idle]) -> Idle | None:
    """Take the last of a list; None where it is empty, perhaps since a moment."""
    try:
        return idle.pop()
    except IndexError:
        return None
