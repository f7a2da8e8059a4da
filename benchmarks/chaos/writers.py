"""A process of writers: each inserts row after row, one `run_transaction` for each.

Its environment is a function's. It prints how many rows were acknowledged, again and again, and
when its input ends, as a line of JSON, what each writer was told. With `--control` the writers
believe `pg_xact_status` whatever has happened to the server meanwhile, as the layer once did.
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
"""Seconds that a writer rests after a refusal."""
EVERY: Final = 0.02
"""Seconds between two counts."""


class Writer(threading.Thread):
    """Writes until `stop` is set, as an environment would: with a database for itself."""

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
        """Write; what is not foreseen ends it, and the process with a traceback."""
        try:
            while not self._stop_writing.is_set():
                self.last += 1
                self._write(self.last)
        except Exception as error:  # noqa: BLE001  # the main thread raises it
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
        """How many rows were, about: the last one is on its way."""
        return self.last - self.first - len(self.unknown) - len(self.refused)

    def told(self) -> dict[str, Any]:
        """Say what became of rows `first` to `last`; all but these were acknowledged."""
        rows = {"first": self.first, "last": self.last}
        return {**rows, "unknown": self.unknown, "refused": self.refused}


def believe(_: TransactionId, answer: PGresult) -> str | None:
    """Take the server's word, whatever has happened to it meanwhile."""
    status = answer.get_value(0, 0)
    return None if status is None else status.decode()


def main() -> None:
    """Write until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int, nargs="+", help="number of each writer's first row")
    parser.add_argument("--control", action="store_true", help="believe the server")
    arguments = parser.parse_args()
    if arguments.control:
        TransactionId.status = believe  # type: ignore[assignment, method-assign]
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
    print(json.dumps([writer.told() for writer in writers]), flush=True)


def _await_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
