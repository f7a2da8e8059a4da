"""Poll one source; a source that does not answer does not delay the others."""

import sys
import threading
import time
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
Read_co = TypeVar("Read_co", covariant=True)
INTERVAL = 0.4
"""Seconds between two readings."""
AWAY_SECONDS = 4.0
"""Age from which a reading is no longer shown: its source hangs, or is not running.

During a storm answers may take two seconds, since the machine is busy.
"""


class Reader(Protocol[Read_co]):
    """A source of readings; it connects when needed."""

    def read(self) -> Read_co:
        """Return the current reading, or raise."""

    def close(self) -> None:
        """Close connections."""


class Probe(Generic[T]):
    """A reader on a separate thread, which reads while `watched` is set."""

    def __init__(self, name: str, reader: Reader[T], watched: threading.Event) -> None:
        """Begin."""
        self.name = name
        self._reader = reader
        self._watched = watched
        self._ended = False
        self._latest: tuple[float, T] | None = None
        self._error = ""
        # A daemon thread: while it waits for a stopped server, this process must be able to end.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def latest(self) -> T | None:
        """Return the last reading; None if there is none or it is too old."""
        if self._latest is None:
            return None
        taken, value = self._latest
        return value if time.monotonic() - taken < AWAY_SECONDS else None

    def end(self) -> None:
        """Stop reading."""
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
        except Exception as error:  # noqa: BLE001 - servers stop and start: retried
            self._latest = None
            self._note(f"{type(error).__name__}: {error}")
            return
        self._latest = time.monotonic(), value
        self._error = ""

    def _note(self, error: str) -> None:
        if error != self._error:
            print(f"{self.name}: {error}", file=sys.stderr, flush=True)
            self._error = error
