"""Lines for stdout and stderr. A reader that stops reading blocks nothing.

Without this, a log driver that hangs would stop everything: the pipe to it fills, then that of
PgBouncer, which waits in `write` and serves no client.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque

# What waits for a reader at most: some thousand lines of PgBouncer's log.
MOST_BYTES = 1_000_000


class Output:
    """Lines for a file descriptor; lines over the limit are dropped and counted."""

    def __init__(self, descriptor: int, most: int = MOST_BYTES) -> None:
        """Start a thread that writes; keep at most `most` bytes for a slow reader."""
        self._descriptor = descriptor
        self._most = most
        self._lines: deque[bytes] = deque()
        self._bytes = 0  # waiting, or being written
        self._dropped = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._write_forever, daemon=True).start()

    def put(self, line: bytes) -> None:
        """Add a complete line, with its line break; return at once."""
        with self._changed:
            if self._bytes + len(line) > self._most:
                self._dropped += 1
                return
            self._report_dropped()
            self._add(line)

    def finish(self, seconds: float) -> None:
        """Wait until everything is written, at most for some seconds."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._bytes and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        self._changed.notify_all()

    def _report_dropped(self) -> None:
        """Write how many lines are missing, where they are missing."""
        if self._dropped:
            self._add(b"%d lines were dropped: nobody read them in time\n" % self._dropped)
            self._dropped = 0

    def _write_forever(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                line = self._lines.popleft()
            self._write(line)
            with self._changed:
                self._bytes -= len(line)
                if not self._lines:
                    self._report_dropped()
                self._changed.notify_all()

    def _write(self, line: bytes) -> None:
        """Write a line, as one piece where the kernel takes it so."""
        with contextlib.suppress(OSError):  # the reader has gone
            while line:
                line = line[os.write(self._descriptor, line) :]


class LogHandler(logging.Handler):
    """Sends log records to an output."""

    def __init__(self, output: Output) -> None:
        """Keep the output."""
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._output.put(f"{self.format(record)}\n".encode())
