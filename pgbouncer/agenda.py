"""What the supervisor's one thread does next: events, and duties that are due at a time."""

import math
import queue
import signal
import time

# How long to wait for an event at most: nothing may be due, and a queue takes no infinity.
LONGEST_WAIT = 3600.0
SIGNALS = {
    signal.SIGTERM: "stop",
    signal.SIGINT: "stop",
    signal.SIGHUP: "look",
    signal.SIGCHLD: "child",
}


class Agenda:
    """Events of all threads and of signals, and the time of each duty."""

    def __init__(self, *duties: str) -> None:
        """Name the duties; none of them is due."""
        # A queue whose put() may interrupt its own get(): signal handlers run in between.
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.due = dict.fromkeys(duties, math.inf)
        """The time, by the monotonic clock, at which each duty is due."""
        self.stopping = False
        """Whether the supervisor has to stop."""

    def take_signals(self) -> None:
        """Turn signals into events from now on."""
        for number, event in SIGNALS.items():
            signal.signal(number, lambda *_, event=event: self.put(event))

    def put(self, event: str) -> None:
        """Add an event, from any thread. One that has a duty's name makes the duty due."""
        self._events.put(event)

    def wait(self, seconds: float) -> str | None:
        """Wait for an event, at most for some seconds, and return it."""
        try:
            event = self._events.get(timeout=min(max(seconds, 0), LONGEST_WAIT))
        except queue.Empty:
            return None
        if event == "stop":
            self.stopping = True
        elif event in self.due:
            self.due[event] = time.monotonic()
        return event

    def wait_for_duty(self) -> str | None:
        """Wait until a duty is due, or for an event, which is returned."""
        return self.wait(min(self.due.values()) - time.monotonic())

    def is_due(self, duty: str) -> bool:
        """Tell whether a duty has to be performed now."""
        return not self.stopping and time.monotonic() >= self.due[duty]
