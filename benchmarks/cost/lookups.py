"""One run of the lookups: the same statement in every way, interleaved in short rounds.

benchmarks.cost.overhead starts it as a process with a function's environment. It reads a plan as
JSON from stdin and prints the time of each variant in each round as JSON.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from awslambdaric.lambda_context import LambdaContext
from lambda_pg import Database
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

LOOKUP: Final = "SELECT id, name FROM users WHERE id = %s"
SET_CLAIMS: Final = (
    "SELECT set_config('request.jwt.claims', %s, true),"
    " set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true)"
)
CLAIMS: Final = {"sub": "7c9e6679-7425-40de-944b-e07fc1f90ae7", "role": "member"}
CLAIMS_TEXT: Final = json.dumps(CLAIMS)
FUNCTION_SECONDS: Final = 25
EXPENSIVE_CALLS: Final = 4
"""Calls per round of a variant that connects each time; the others make `calls`."""

Event = dict[str, int]
Found = tuple[Any, ...] | None
Handler = Callable[[Event, LambdaContext], Found]
Batch = Callable[[Sequence[Event], LambdaContext], None]


@dataclass(frozen=True)
class Plan:
    """What to measure; `only` names variants in addition to raw, and an empty list means all."""

    rows: int
    rounds: int
    calls: int
    seed: int
    only: list[str]


def batch(handler: Handler) -> Batch:
    """Call a handler with each event, as the runtime client does."""

    def call(events: Sequence[Event], context: LambdaContext) -> None:
        for event in events:
            handler(event, context)

    return call


def variants(db: Database[Any], conninfo: str, stack: ExitStack) -> dict[str, Batch]:
    """Make every variant: a handler that looks up the row that its event names."""
    traced_db = traced(stack)

    def lookup(event: Event, _: LambdaContext) -> Found:
        return db.execute(LOOKUP, (event["id"],)).fetchone()

    def lookup_traced(event: Event, _: LambdaContext) -> Found:
        return traced_db.execute(LOOKUP, (event["id"],)).fetchone()

    def lookup_with_claims(event: Event, _: LambdaContext) -> Found:
        return db.execute(LOOKUP, (event["id"],), claims=CLAIMS).fetchone()

    bind = db.bind_lambda_context
    return {
        "raw": batch(raw(connect(conninfo, stack))),
        "raw again": batch(raw(connect(conninfo, stack))),
        "lambda-pg": bind(batch(lookup)),
        "lambda-pg, invocation and all": batch(bind(lookup)),
        "lambda-pg without deadline": batch(lookup),
        "lambda-pg traced": traced_db.bind_lambda_context(batch(lookup_traced)),
        "raw in a transaction": batch(raw_in_transaction(connect(conninfo, stack))),
        "psycopg_pool": batch(pooled(open_pool(conninfo, stack))),
        "psycopg_pool in autocommit": batch(pooled(open_pool(conninfo, stack, autocommit=True))),
        "psycopg_pool with check": batch(pooled(open_pool(conninfo, stack, check=True))),
        "connect per request": batch(connecting(conninfo)),
        "claims: lambda-pg": batch(bind(lookup_with_claims)),
        "claims: raw in a transaction": batch(raw_with_claims(connect(conninfo, stack))),
    }


def traced(stack: ExitStack) -> Database[Any]:
    """Make a Database whose spans an SDK records and drops.

    OpenTelemetry is loaded only here, so tracing is off for the other variants.
    """
    from opentelemetry import trace  # noqa: PLC0415 - loaded only here
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - loaded only here
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415 - loaded only here
        SimpleSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Nowhere(SpanExporter):
        def export(self, _: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Nowhere()))
    stack.callback(provider.shutdown)
    trace.set_tracer_provider(provider)
    database = Database.from_env()
    del sys.modules["opentelemetry.trace"]
    return database


def connect(conninfo: str, stack: ExitStack) -> psycopg.Connection[Any]:
    """Open a connection as the layer does: autocommit, nothing prepared."""
    return stack.enter_context(psycopg.connect(conninfo, autocommit=True, prepare_threshold=None))


def open_pool(
    conninfo: str, stack: ExitStack, *, autocommit: bool = False, check: bool = False
) -> ConnectionPool[Any]:
    """Open a pool of one connection, with psycopg_pool's defaults otherwise."""
    pool: ConnectionPool[Any] = ConnectionPool(
        conninfo,
        min_size=1,
        open=False,
        kwargs={"prepare_threshold": None, "autocommit": autocommit},
        check=ConnectionPool.check_connection if check else None,
    )
    stack.enter_context(pool)
    pool.wait()
    return pool


def raw(connection: psycopg.Connection[Any]) -> Handler:
    """Use an open connection, without any protection: the lowest cost."""

    def lookup(event: Event, _: LambdaContext) -> Found:
        return connection.execute(LOOKUP, (event["id"],)).fetchone()

    return lookup


def raw_in_transaction(connection: psycopg.Connection[Any]) -> Handler:
    """Wrap the statement in a transaction, as psycopg does without autocommit."""

    def lookup(event: Event, _: LambdaContext) -> Found:
        with connection.transaction():
            return connection.execute(LOOKUP, (event["id"],)).fetchone()

    return lookup


def raw_with_claims(connection: psycopg.Connection[Any]) -> Handler:
    """Set the claims in a psycopg transaction: four round trips."""

    def lookup(event: Event, _: LambdaContext) -> Found:
        with connection.transaction():
            connection.execute(SET_CLAIMS, (CLAIMS_TEXT,))
            return connection.execute(LOOKUP, (event["id"],)).fetchone()

    return lookup


def pooled(pool: ConnectionPool[Any]) -> Handler:
    """Use psycopg_pool as its documentation shows it."""

    def lookup(event: Event, _: LambdaContext) -> Found:
        with pool.connection() as connection:
            found: Found = connection.execute(LOOKUP, (event["id"],)).fetchone()
            return found

    return lookup


def connecting(conninfo: str) -> Handler:
    """Connect for each request."""

    def lookup(event: Event, _: LambdaContext) -> Found:
        with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
            return connection.execute(LOOKUP, (event["id"],)).fetchone()

    return lookup


def measure(batches: Mapping[str, Batch], plan: Plan) -> dict[str, list[float]]:
    """Time every variant in each round, in random order; return microseconds per call.

    The first round warms up and does not count. All variants of a round look up the same rows.
    """
    chance = random.Random(plan.seed)  # noqa: S311 - an order, not a secret
    times: dict[str, list[float]] = {name: [] for name in batches}
    for number in range(plan.rounds + 1):
        events = [{"id": chance.randint(1, plan.rows)} for _ in range(plan.calls)]
        for name in chance.sample(list(batches), len(batches)):
            few = name == "connect per request"
            taken = per_call(batches[name], events[:EXPENSIVE_CALLS] if few else events)
            if number:
                times[name].append(taken)
    return times


def per_call(run: Batch, events: Sequence[Event]) -> float:
    """Run a batch; return the microseconds for each of its events."""
    deadline = int((time.time() + FUNCTION_SECONDS) * 1000)
    context = LambdaContext("benchmark", None, None, deadline)
    started = time.perf_counter_ns()
    run(events, context)
    return (time.perf_counter_ns() - started) / len(events) / 1000


def main() -> None:
    """Run the plan from stdin."""
    plan = Plan(**json.load(sys.stdin))
    db = Database.from_env()
    with db.connection() as connection:  # the others connect with the same parameters
        info = connection.info
        conninfo = make_conninfo("", password=info.password, **info.get_parameters())
    with ExitStack() as stack:
        chosen = variants(db, conninfo, stack)
        if plan.only:
            chosen = {name: chosen[name] for name in dict.fromkeys(["raw", *plan.only])}
        json.dump(measure(chosen, plan), sys.stdout)


if __name__ == "__main__":
    main()
