"""Read one thing again and again; whoever does not answer holds up nobody else."""

import sys
import threading
import time
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
Read_co = TypeVar("Read_co", covariant=True)
INTERVAL = 0.4
"""Seconds between two readings."""
AWAY_SECONDS = 4.0
"""Age from which a reading is not shown any more: what it was read from hangs, or is away.

In the middle of a storm the machine is so busy that answers take two seconds.
"""


class Reader(Protocol[Read_co]):
    """What can be read; it connects when it has to."""

    def read(self) -> Read_co:
        """Return what is so at this moment, or raise."""

    def close(self) -> None:
        """Let go of connections."""


class Probe(Generic[T]):
    """A reader on a thread of its own, which reads as long as `watched` is set."""

    def __init__(self, name: str, reader: Reader[T], watched: threading.Event) -> None:
        """Begin."""
        self.name = name
        self._reader = reader
        self._watched = watched
        self._ended = False
        self._latest: tuple[float, T] | None = None
        self._error = ""
        # A daemon: one that waits for a stopped server must not hold up the end of this process.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def latest(self) -> T | None:
        """Return the last reading; None where there is none or it is too old."""
        if self._latest is None:
            return None
        taken, value = self._latest
        return value if time.monotonic() - taken < AWAY_SECONDS else None

    def end(self) -> None:
        """Read no more."""
        self._ended = True

    def _run(self) -> None:
        while not self._ended:
            if not self._watched.is_set():
                self._reader.close()
                self._watched.wait()
                continue
            self._read()
            time.sleep(INTERVAL)
        self._reader.close()

    def _read(self) -> None:
        try:
            value = self._reader.read()
        except Exception as error:  # noqa: BLE001  # servers come and go here: it is tried again
            self._latest = None
            self._note(f"{type(error).__name__}: {error}")
            return
        self._latest = time.monotonic(), value
        self._error = ""

    def _note(self, error: str) -> None:
        if error != self._error:
            print(f"{self.name}: {error}", file=sys.stderr, flush=True)
            self._error = error
