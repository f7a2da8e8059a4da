"""Faults that just fit into the checkout timeout fail nobody: docs/operations.md has the sums."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import Database, DatabaseUnavailableError, Settings
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.faults.proxy import Fault, FaultProxy, can_blackhole
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import settings_for
from tests.support.servers import SecretsService, pooler_in_tmp
from tests.support.wait_sums import CONNECT, IN_FLIGHT, SURVIVED

STEPS: Final = (-0.2, -0.1, 0.0)
"""Seconds that a fault lasts more than the longest one that fails nobody."""

TOO_LONG: Final = 3.4
"""Seconds of a fault that has to fail somebody: the control."""

CLIENTS: Final = 2
EVERY: Final = 0.05
TRIES: Final = 5
"""Of a step in which the machine was too busy for anybody to connect in time after the fault."""

TASKS: Final = Path("/proc/self/task")


@dataclass
class Line:
    """What a fault happens to: clients with a database each, and a plain one to measure with."""

    begin: Callable[[], Fault]
    databases: list[Database[TupleRow]]
    connect: Callable[[], object]
    """Connect without the layer; raises psycopg.OperationalError."""
    idempotent: bool = True
    """Whether a statement that may have run may run again."""
    returns: float = CONNECT
    """Seconds after the fault within which a plain client is served on a machine that is not
    overloaded."""


Lines = Callable[[], Any]


def ask(db: Database[TupleRow], ends: threading.Event, idempotent: bool) -> list[Exception]:
    """Send requests until told to stop; return the errors."""
    errors: list[Exception] = []
    while not ends.is_set():
        try:
            db.execute("SELECT 1", idempotent=idempotent)
        except psycopg.OperationalError as error:
            errors.append(error)
        time.sleep(EVERY)
    return errors


def queued() -> dict[str, float]:
    """Return the seconds that each thread of this process has waited for a processor (Linux)."""
    waits = {}
    for task in TASKS.iterdir() if TASKS.is_dir() else ():
        with suppress(OSError):  # it has ended
            waits[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return waits


def failed(line: Line, seconds: float) -> tuple[list[Exception], float]:
    """Let a fault happen; return what failed, and how long the machine needed after it.

    That is the seconds until a plain client was served, and any thread's wait for a processor.
    """
    ends = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as threads:
        asked = [threads.submit(ask, db, ends, line.idempotent) for db in line.databases]
        time.sleep(3 * EVERY)
        began = time.monotonic()
        with line.begin():
            time.sleep(max(0.0, began + seconds - time.monotonic()))
        ended, before = time.monotonic(), queued()
        while time.monotonic() < ended + 10:
            with suppress(psycopg.OperationalError):
                line.connect()
                break
            time.sleep(0.01)
        returned = time.monotonic()
        time.sleep(max(0.0, began + 3.2 - time.monotonic()))
        waited = max((t - before.get(task, t) for task, t in queued().items()), default=0.0)
        ends.set()
        errors = [error for each in asked for error in each.result()]
    return errors, returned - ended + waited


def require_survived(lines: Lines, seconds: float) -> None:
    """Check that a fault of so many seconds fails nobody, where the machine is fit to tell."""
    for _ in range(TRIES):
        with lines() as line:
            errors, returned = failed(line, seconds)
        if not errors or returned <= line.returns:
            break
    assert not errors, (
        f"a fault of {seconds:.1f} s, and {returned:.2f} s until a plain client was served"
    )


def require_failed(lines: Lines) -> None:
    """Check that a fault longer than the window fails somebody; repeat where no request met it."""
    for _ in range(TRIES):
        with lines() as line:
            errors, _returned = failed(line, TOO_LONG)
        if errors:
            break
    assert errors


def require_bound(lines: Lines, bound: float) -> None:
    """Check a fault's bound at steps of 0.1 s, and that it is one, all at the same time."""
    with ThreadPoolExecutor(len(STEPS) + 1) as threads:
        steps = [threads.submit(require_survived, lines, bound + step) for step in STEPS]
        control = threads.submit(require_failed, lines)
        for each in [*steps, control]:
            each.result()


@pytest.fixture
def direct(postgres: Postgres, settings: Settings) -> Lines:
    """Lines to the server itself."""

    @contextmanager
    def make() -> Iterator[tuple[FaultProxy, list[Database[TupleRow]], Callable[[], object]]]:
        with FaultProxy("127.0.0.1", postgres.port) as network, ExitStack() as ended:
            own = replace(settings, port=network.port)
            databases = [Database[TupleRow](own) for _ in range(CLIENTS)]
            for db in databases:
                ended.callback(db.close)
                db.execute("SELECT 1")
            dsn = (
                f"host=127.0.0.1 port={network.port} user={own.user} password={own.password} "
                f"dbname=postgres sslmode=require connect_timeout=2"
            )
            yield network, databases, lambda: psycopg.connect(dsn).close()

    return make


def test_refusals_and_resets_of_the_pooler(direct: Lines) -> None:
    """No pooler, or nobody who listens: the kernel refuses at once."""

    @contextmanager
    def lines() -> Iterator[Line]:
        with direct() as (network, databases, connect):

            def begin() -> Fault:
                fault: Fault = network.refuse()
                network.reset()
                return fault

            yield Line(begin, databases, connect)

    require_bound(lines, SURVIVED["refused"])


@pytest.mark.skipif(not can_blackhole(), reason="needs Linux's socket filters")
def test_lost_packets_while_environments_connect(direct: Lines) -> None:
    """No answer to a SYN."""

    @contextmanager
    def lines() -> Iterator[Line]:
        with direct() as (network, databases, connect):

            def begin() -> Fault:
                fault: Fault = network.blackhole()
                network.reset()
                return fault

            yield Line(begin, databases, connect)

    require_bound(lines, SURVIVED["lost"])


@pytest.mark.skipif(not can_blackhole(), reason="needs Linux's socket filters")
def test_lost_packets_of_statements_in_flight(direct: Lines) -> None:
    """TCP sends them again in time, and nothing has to run twice."""

    @contextmanager
    def lines() -> Iterator[Line]:
        with direct() as (network, databases, connect):
            yield Line(network.blackhole, databases, connect, idempotent=False)

    require_bound(lines, IN_FLIGHT)


def test_no_secrets_for_new_environments(
    direct: Lines,
    secrets_service: SecretsService,
    secrets_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Secrets Manager refuses while environments start."""
    del secrets_environment
    port = int(secrets_service.url.rpartition(":")[2])
    with direct() as (_, databases, _), FaultProxy("127.0.0.1", port) as network:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{network.port}")
        old = databases[0]._settings
        arn = secrets_service.create({"username": old.user or "", "password": old.password or ""})
        for seconds in (SURVIVED["refused"], TOO_LONG):
            new = replace(old, user=None, password=None, secret_arn=arn)
            fresh = [Database[TupleRow](new) for _ in databases]
            with network.refuse() as fault, ThreadPoolExecutor(CLIENTS) as threads:
                timer = threading.Timer(seconds, fault.end)
                timer.start()
                errors = list(threads.map(first_error, fresh))
                timer.join()
            for db in fresh:
                db.close()
            assert any(errors) == (seconds == TOO_LONG), errors


def first_error(db: Database[TupleRow]) -> Exception | None:
    """Send the first request of an environment."""
    try:
        db.execute("SELECT 1")
    except DatabaseUnavailableError as error:
        return error
    return None


def test_no_database_behind_the_pooler(
    postgres: Postgres,
    secrets_service: SecretsService,
    pgbouncer_binary: PgBouncerBinary,
    secrets_environment: None,
) -> None:
    """The pooler is refused, refuses by itself for a moment, and looks again."""
    del secrets_environment

    @contextmanager
    def lines() -> Iterator[Line]:
        with (
            pooler_in_tmp(pgbouncer_binary, postgres, secrets_service) as pooler,
            FaultProxy("127.0.0.1", postgres.port) as network,
            ExitStack() as ended,
        ):
            pooler.start(DATABASE_PORT=str(network.port), QUERY_WAIT_TIMEOUT="1")
            databases = [Database[TupleRow](settings_for(pooler)) for _ in range(CLIENTS)]
            for db in databases:
                ended.callback(db.close)
                db.execute("SELECT 1")

            def begin() -> Fault:
                fault = network.refuse()
                network.reset()
                return fault

            def connect() -> None:
                with pooler.connect() as connection:
                    connection.execute("SELECT 1")

            yield Line(begin, databases, connect, returns=3 - SURVIVED["no database"])

    require_bound(lines, SURVIVED["no database"])
