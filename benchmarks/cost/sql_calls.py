"""One run of the calls of `POST /sql`, interleaved with what each is compared with.

benchmarks.cost.sql starts it as a process with the function's environment. It reads a plan as JSON
from stdin and prints, as JSON, the time of each variant in each round and the memory of a refusal.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from awslambdaric.lambda_context import LambdaContext
from lambda_pg import Database, Settings, _flight
from lambda_pg.text import Limits, Statement
from psycopg import generators, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from sql_http.environment import open_service
from sql_http.service import Service

LOOKUP: Final = "SELECT id, name FROM users WHERE id = $1"
LOOKUP_BODY: Final = f'{{"query": {json.dumps(LOOKUP)}, "params": ["'
END: Final = '"]}'
"""A body is text when it comes to the function: writing it as JSON is the client's time."""

ROWS: Final = "SELECT id, name FROM users ORDER BY id LIMIT 10000"
GIGABYTE: Final = "SELECT repeat('x', 100000) FROM generate_series(1, 10000)"
PART: Final = "SELECT repeat('x', 100000) FROM generate_series(1, 500)"
"""50 MB of it: more than the most memory that a refusal may take."""

BATCH: Final = 10
FUNCTION_SECONDS: Final = 25
INTERVAL: Final = 0.1
"""Seconds for which psycopg waits at once, as its connections do; with 0 it would not sleep."""

LIMITS: Final = Limits(rows=10_000, bytes=5_000_000)

RAW: Final = "lookup: raw"
PIPELINE: Final = "batch: ten lookups in a pipeline"
FETCH: Final = "rows: fetch and json.dumps"

Call = Callable[[int], object]


@dataclass(frozen=True)
class Plan:
    """What to measure: `calls` lookups in a round, and a tenth and a hundredth of the others."""

    key: str
    rounds: int
    calls: int
    seed: int
    rows: int


class Raw:
    """An open connection as libpq has it, without any protection."""

    def __init__(self, conninfo: str, ends: Sequence[bytes] = ()) -> None:
        """Connect; `ends` are the commands that follow the statement of a flight."""
        self._ends = ends
        self._connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
        self._pgconn = self._connection.pgconn

    def lookup(self, user: int) -> object:
        """Send one statement and wait for its row."""
        pgconn = self._pgconn
        pgconn.send_query_params(LOOKUP.encode(), [b"%d" % user])
        (result,) = waiting.wait(generators.execute(pgconn), pgconn.socket, INTERVAL)
        return result.get_value(0, 1)

    def pipeline(self, user: int) -> object:
        """Send ten statements in one write and wait for all rows."""
        return waiting.wait(self._ten(user), self._pgconn.socket, INTERVAL)

    def commands(self, user: int) -> object:
        """Send the commands of a lookup's flight, and only see that each has an answer."""
        return waiting.wait(self._flight(user), self._pgconn.socket, INTERVAL)

    def _flight(self, user: int) -> PQGen[None]:
        pgconn = self._pgconn
        pgconn.enter_pipeline_mode()
        pgconn.send_query_params(b"BEGIN", None)
        pgconn.send_query_params(LOOKUP.encode(), [b"%d" % user])
        for command in self._ends:
            pgconn.send_query_params(command, None)
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        for _ in range(len(self._ends) + 2):
            yield from generators.fetch_many(pgconn)
        yield from generators.fetch_many(pgconn)
        pgconn.exit_pipeline_mode()

    def _ten(self, user: int) -> PQGen[list[bytes | None]]:
        pgconn = self._pgconn
        pgconn.enter_pipeline_mode()
        for number in range(BATCH):
            pgconn.send_query_params(LOOKUP.encode(), [b"%d" % (user + number)])
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        found = []
        for _ in range(BATCH):
            (result,) = yield from generators.fetch_many(pgconn)
            found.append(result.get_value(0, 1))
        yield from generators.fetch_many(pgconn)
        pgconn.exit_pipeline_mode()
        return found

    def rows(self, _: int) -> object:
        """Fetch the rows and write them as JSON."""
        return json.dumps(self._connection.execute(ROWS).fetchall())


class Handler:
    """`POST /sql` of one environment, called as API Gateway's events call it."""

    def __init__(self, service: Service, key: str) -> None:
        self._service = service
        self._event = {
            "headers": {
                "neon-connection-string": key,
                "neon-raw-text-output": "true",
                "neon-array-mode": "true",
            },
            "requestContext": {"domainName": "127.0.0.1", "http": {"method": "POST"}},
        }
        deadline = int((time.time() + 10 * FUNCTION_SECONDS) * 1000)
        self._context = LambdaContext("benchmark", None, None, deadline)

    def post(self, body: str, status: int = 200) -> Any:
        """Answer a request."""
        event = {**self._event, "body": body}
        response = self._service.answer(event, self._context)
        if response["statusCode"] != status:
            raise SystemExit(f"POST /sql answered {response['statusCode']}: {response['body']}")
        return response

    def lookup(self, user: int) -> object:
        """Look up one user."""
        return self.post(f"{LOOKUP_BODY}{user}{END}")

    def batch(self, user: int) -> object:
        """Look up ten users in one transaction."""
        queries = [f"{LOOKUP_BODY}{user + each}{END}" for each in range(BATCH)]
        return self.post(f'{{"queries": [{",".join(queries)}]}}')

    def rows(self, _: int) -> object:
        """Read the rows."""
        return self.post(json.dumps({"query": ROWS}))


def variants(service: Service, plan: Plan) -> dict[str, tuple[Call, int]]:
    """Make every variant, with its calls in a round."""
    db = Database(Settings.from_env())
    conninfo = conninfo_of(db)
    raw, again, handler = Raw(conninfo), Raw(conninfo), Handler(service, plan.key)
    commands = Raw(conninfo, ends_of(os.environ["LAMBDA_PG_PROFILE"]))

    def flight(user: int) -> object:
        return db.run_text([Statement(LOOKUP, [str(user)])], limits=LIMITS)

    def connecting(user: int) -> object:
        return Raw(conninfo).lookup(user)

    one, ten, many = plan.calls, plan.calls // 10, max(1, plan.calls // 100)
    return {
        RAW: (raw.lookup, one),
        "lookup: raw again": (again.lookup, one),
        "lookup: the flight's commands alone": (commands.commands, one),
        "lookup: run_text": (flight, one),
        "lookup: POST /sql": (handler.lookup, one),
        "lookup: a connection per request": (connecting, max(2, one // 50)),
        PIPELINE: (raw.pipeline, ten),
        "batch: POST /sql": (handler.batch, ten),
        FETCH: (raw.rows, many),
        "rows: POST /sql": (handler.rows, many),
    }


def conninfo_of(db: Database[TupleRow]) -> str:
    """Return how a Database connects."""
    with db.connection() as connection:
        info = connection.info
        return make_conninfo("", password=info.password, **info.get_parameters())


def ends_of(profile: str) -> list[bytes]:
    """Return the commands that follow a read in its flight."""
    if profile == "direct":
        return [b"COMMIT", *(each.text for each in _flight.DISCARD)]
    return [
        f"SELECT {_flight.UNLOCK}".encode(),
        *(each.text for each in _flight.KEPT_BY_ROLLBACK),
        _flight.COMMIT_AND_RESET.text,
        *(each.text for each in _flight.RESET),
        b"SET application_name TO 'benchmark'",
        _flight.UTF8.text,
        b"COMMIT",
    ]


def measure(calls: Mapping[str, tuple[Call, int]], plan: Plan) -> dict[str, list[float]]:
    """Time every variant in each round, in random order; return microseconds per call.

    The first round warms up and does not count. All variants of a round look up the same rows.
    """
    chance = random.Random(plan.seed)  # noqa: S311 - an order, not a secret
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(plan.rounds + 1):
        users = [chance.randint(1, plan.rows - BATCH) for _ in range(plan.calls)]
        for name in chance.sample(list(calls), len(calls)):
            call, count = calls[name]
            taken = per_call(call, users[:count])
            if number:
                times[name].append(taken)
    return times


def per_call(call: Call, users: Sequence[int]) -> float:
    """Call with each user; return the microseconds for each."""
    started = time.perf_counter_ns()
    for user in users:
        call(user)
    return (time.perf_counter_ns() - started) / len(users) / 1000


def refused_memory(service: Service, key: str) -> int:
    """Return by how many bytes the peak grows while a result of 1 GB is refused.

    Comes first in the process: later, memory that was freed before would be used again.
    """
    handler = Handler(service, key)
    handler.lookup(7)
    before = peak()
    handler.post(json.dumps({"query": GIGABYTE}), status=507)
    return peak() - before


def accepted_memory(conninfo: str) -> int:
    """Return the same while psycopg alone takes a small part of it: the control."""
    with psycopg.connect(conninfo) as connection:
        before = peak()
        connection.execute(PART)
        return peak() - before


def peak() -> int:
    """Return the most memory that this program has had, in bytes.

    Not by getrusage: Linux counts there what the process had before it executed this program.
    """
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    (found,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(found.split()[1]) * 1024


@contextmanager
def silent() -> Iterator[None]:
    """Discard the log, which Lambda would take from a pipe."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123 - a device
        yield


def main() -> None:
    """Run the plan from stdin."""
    plan = Plan(**json.load(sys.stdin))
    service = open_service(os.environ)
    with silent():
        refused = refused_memory(service, plan.key)
        accepted = accepted_memory(conninfo_of(Database(Settings.from_env())))
        times = measure(variants(service, plan), plan)
    json.dump({"times": times, "refused_bytes": refused, "accepted_bytes": accepted}, sys.stdout)


if __name__ == "__main__":
    main()
