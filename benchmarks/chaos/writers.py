"""A process of writers: each inserts row after row, one `run_transaction` for each.

Its environment is a function's. It prints how many commits there were, again and again, and when
its input ends, as a line of JSON, what each writer was told. With `--control` the writers believe
`pg_xact_status` whatever has happened to the server meanwhile, as the layer once did.
"""

import argparse
import itertools
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Final

import psycopg
from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from lambda_pg._outcome import TransactionId
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

THREADS: Final = 8
REST: Final = 0.05
"""Seconds that a writer rests after a refusal."""
EVERY: Final = 0.02
"""Seconds between two counts."""
SPAN: Final = 1 << 40
"""Numbers that each writer has for its rows."""


@dataclass
class Told:
    """What one writer was told of its rows `first` to `last`: the rest of them is acknowledged."""

    first: int
    last: int
    unknown: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """How many rows have to be there, once each."""
        return self.last - self.first + 1 - len(self.unknown) - len(self.refused)


class Writer(threading.Thread):
    """Writes until `stop` is set, as an environment would: with a database for itself."""

    def __init__(self, first: int, stop: threading.Event) -> None:
        """Take the number of the first row."""
        super().__init__(name=f"writer {first}")
        self.told = Told(first, first - 1)
        self.failure: Exception | None = None
        self._db = Database.from_env()
        self._stop_writing = stop

    def run(self) -> None:
        """Write; what is not foreseen ends it, and the process with a traceback."""
        try:
            while not self._stop_writing.is_set():
                self.told.last += 1
                self._write(self.told.last)
        except Exception as error:  # noqa: BLE001  # the main thread raises it
            self.failure = error
        self._db.close()

    def _write(self, number: int) -> None:
        def work(connection: psycopg.Connection[TupleRow]) -> None:
            connection.execute("INSERT INTO commits VALUES (%s)", [number])

        try:
            self._db.run_transaction(work)
        except CommitOutcomeUnknownError:
            self.told.unknown.append(number)
        except DatabaseUnavailableError:
            self.told.refused.append(number)
            time.sleep(REST)


def believe(_: TransactionId, answer: PGresult) -> str | None:
    """Take the server's word, whatever has happened to it meanwhile."""
    status = answer.get_value(0, 0)
    return None if status is None else status.decode()


def main() -> None:
    """Write until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, required=True, help="number of the first row")
    parser.add_argument("--control", action="store_true", help="believe the server")
    arguments = parser.parse_args()
    if arguments.control:
        TransactionId.status = believe  # type: ignore[assignment, method-assign]
    stop = threading.Event()
    firsts = itertools.count(arguments.first, SPAN)
    writers = [Writer(first, stop) for first in itertools.islice(firsts, THREADS)]
    for writer in writers:
        writer.start()
    threading.Thread(target=_await_end, args=(stop,), daemon=True).start()
    while not stop.wait(EVERY):
        print(sum(writer.told.acknowledged for writer in writers), flush=True)
    for writer in writers:
        writer.join()
        if writer.failure is not None:
            raise writer.failure
    print(json.dumps([asdict(writer.told) for writer in writers]), flush=True)


def _await_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
