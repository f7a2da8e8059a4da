"""The slots of a pool, which bound its connections, and the threads that wait for one."""

import threading
import weakref
from typing import TypeVar

from lambda_pg._clock import monotonic
from lambda_pg._errors import CheckoutTimeoutError
from lambda_pg._events import Events
from lambda_pg._stats import Stats

Idle = TypeVar("Idle")


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
    """Bound the connections of one pool; threads that find none free wait in their order."""

    def __init__(self, count: int, stats: Stats, events: Events) -> None:
        """Have `count` free slots."""
        self.count = count
        self._stats = stats
        self._events = events
        self.reset()

    def reset(self) -> None:
        """Have every slot free and no thread waiting, as at the start and in a forked child."""
        # Entered itself, not by the condition: no signal handler can come between lock and block.
        self._lock = threading.RLock()
        self._freed = threading.Condition(self._lock)
        self.waiting = 0
        """Threads that wait for a slot."""
        # No WeakSet: an exception in its own callback would leave the dead ones counted.
        self._taken: list[weakref.ref[Slot]] = []
        self.abandoned = 0
        """Slots that became free by themselves since the last reclaim."""

    @property
    def taken(self) -> list[Slot]:
        """The slots of connections that are open or being opened."""
        slots = [reference() for reference in self._taken]
        return [slot for slot in slots if slot is not None and not slot.is_free]

    def take(self) -> Slot | None:
        """Take a slot, if one is free and no thread waits for it."""
        with self._lock:
            return None if self.waiting else self._take_free()

    def wait(
        self, idle: list[Idle], until: float, timeout: float
    ) -> tuple[Idle | None, Slot | None]:
        """Wait for one of `idle`, or for a slot, until the time.monotonic() `until`.

        Raises CheckoutTimeoutError, which names the `timeout` in seconds.
        """
        began = monotonic()
        with self._lock:
            in_time, is_first = True, not self.waiting  # the others wait in their order
            self._stats.requests_queued += 1
            self._events.mark("wait_for_slot")
            self.waiting += 1  # before the look: a return appends first, and then looks at this
            try:
                while True:
                    if is_first and (found := pop(idle)) is not None:
                        return found, None
                    if is_first and (slot := self._take_free()) is not None:
                        return None, slot
                    if not in_time:  # after a last look: a notice may have come too late to wake
                        raise CheckoutTimeoutError(
                            f"all {self.count} slots of the pool stayed taken for {timeout:.1f} s"
                        )
                    in_time = self._freed.wait(max(0.0, until - monotonic()))
                    is_first = True
            finally:
                self.waiting -= 1
                if self.waiting and idle:  # the thread that was woken has not taken it
                    self._freed.notify()
                self._stats.requests_wait_ms += (monotonic() - began) * 1000

    def _take_free(self) -> Slot | None:
        taken = self.taken
        if len(taken) >= self.count:
            return None
        slot = Slot(self)
        self._taken = [*map(weakref.ref, taken), weakref.ref(slot)]
        return slot

    def free(self, slot: object) -> None:
        """Free a slot, where it is one."""
        if isinstance(slot, Slot):
            with self._lock:
                slot.is_free = True
                self._freed.notify()

    def note_abandoned(self) -> None:
        """Note that a slot became free by itself."""
        self.abandoned += 1
        if self.waiting:
            self.notify()

    def notify(self) -> None:
        """Wake a thread that waits."""
        with self._lock:
            self._freed.notify()


def pop(idle: list[Idle]) -> Idle | None:
    """Take the last of a list; None where it is empty, perhaps since a moment."""
    try:
        return idle.pop()
    except IndexError:
        return None
