"""A process of writers: each inserts one row per `run_transaction`, until its input ends.

It runs with the environment variables of a function. It prints the number of acknowledged rows
every few milliseconds, and at the end the summary of each writer, as a line of JSON. With
`--control` the writers trust `pg_xact_status` even after a crash of the server, as the layer once
did.
"""

import argparse
import json
import sys
import threading
import time
from typing import Any, Final

import psycopg
from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from lambda_pg._outcome import TransactionId
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

REST: Final = 0.05
"""Seconds that a writer waits after a failure."""
EVERY: Final = 0.02
"""Seconds between two printed counts."""


class Writer(threading.Thread):
    """Writes until `stop` is set, with its own `Database`, as an environment would."""

    def __init__(self, first: int, stop: threading.Event) -> None:
        """Take the number of the first row."""
        super().__init__(name=f"writer {first}")
        self.first, self.last = first, first - 1
        self.unknown: list[int] = []
        self.refused: list[int] = []
        self.failure: Exception | None = None
        self._db = Database.from_env()
        self._stop_writing = stop

    def run(self) -> None:
        """Write; an unexpected error ends the writer, and the process with a traceback."""
        try:
            while not self._stop_writing.is_set():
                self.last += 1
                self._write(self.last)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self.failure = error
        self._db.close()

    def _write(self, number: int) -> None:
        def work(connection: psycopg.Connection[TupleRow]) -> None:
            connection.execute("INSERT INTO commits VALUES (%s)", [number])

        try:
            self._db.run_transaction(work)
        except CommitOutcomeUnknownError:
            self.unknown.append(number)
        except DatabaseUnavailableError:
            self.refused.append(number)
            time.sleep(REST)

    @property
    def acknowledged(self) -> int:
        """About how many rows were acknowledged: the last one may be on its way."""
        return self.last - self.first - len(self.unknown) - len(self.refused)

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the first and last row, and of those not acknowledged."""
        rows = {"first": self.first, "last": self.last}
        return {**rows, "unknown": self.unknown, "refused": self.refused}


def trust(_: TransactionId, answer: PGresult) -> str | None:
    """Trust the server's answer, even after a crash."""
    status = answer.get_value(0, 0)
    return None if status is None else status.decode()


def main() -> None:
    """Write until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int, nargs="+", help="number of each writer's first row")
    parser.add_argument(
        "--control", action="store_true", help="trust the server even after a crash"
    )
    arguments = parser.parse_args()
    if arguments.control:
        TransactionId.status = trust  # type: ignore[assignment, method-assign]
    stop = threading.Event()
    writers = [Writer(first, stop) for first in arguments.first]
    for writer in writers:
        writer.start()
    threading.Thread(target=_await_end, args=(stop,), daemon=True).start()
    while not stop.wait(EVERY):
        print(sum(writer.acknowledged for writer in writers), flush=True)
    for writer in writers:
        writer.join()
        if writer.failure is not None:
            raise writer.failure
    print(json.dumps([writer.summary() for writer in writers]), flush=True)


def _await_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
