"""Watch how many backends PostgreSQL runs while a benchmark goes on."""

import threading
from types import TracebackType
from typing import Self

import psycopg

INTERVAL = 0.02
"""Seconds between two samples."""

COUNT = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


class BackendSampler:
    """Sample the client backends, the sampler's own excluded, from a thread of its own.

    It connects before the load does and as a superuser: a full server would refuse it later.
    """

    def __init__(self, dsn: str) -> None:
        """Connect at once; nothing is sampled before the `with` block."""
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backend-sampler")
        self._error: psycopg.Error | None = None
        self.peak = 0
        self.samples = 0

    def __enter__(self) -> Self:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; a sampler that failed on the way makes the run fail."""
        self._stop.set()
        self._thread.join()
        self._connection.close()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.wait(INTERVAL):
                row = self._connection.execute(COUNT).fetchone()
                self.peak = max(self.peak, row[0] if row else 0)
                self.samples += 1
        except psycopg.Error as error:
            self._error = error
