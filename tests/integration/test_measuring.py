"""The measurements of benchmarks, checked with known numbers."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from benchmarks.storm.accounting import (
    Usage,
    own_seconds,
    run_queue_seconds,
    seconds_of,
    server_seconds,
)
from benchmarks.storm.connections import ConnectionLog
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.postgres import CopiedPostgres
from tests.support.servers import DATABASE, MAJOR, MASTER, PoolerFixture
from tests.support.waiting import wait_until

WORK = "SELECT count(*) FROM (SELECT generate_series(1, 6000000)) AS numbers"


def status_of(postgres: Postgres, pooler: PoolerFixture) -> dict[str, Any]:
    """Describe servers as a cloud's status does."""
    address = pooler.process.address
    return {
        "postgres": {"dsn": postgres.dsn, "pid": postgres.pid},
        "pooler": {
            "port": pooler.process.port,
            "tasks": [{"address": address, "pid": pooler.process.pid}],
        },
    }


BURN = """
import sys, time
while time.process_time() < float(sys.argv[1]): pass
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def burning(count: int, seconds: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes that use this much processor time and then wait."""
    command = [sys.executable, "-S", "-E", "-c", BURN, str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running = [subprocess.Popen(command, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    try:
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def children_seconds() -> float:
    """Return what the kernel says of this process's children that have ended: in microseconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_many_short_processes_are_counted_exactly_and_ticks_lose_a_good_part() -> None:
    """With the kernel's clocks; /proc/PID/stat rounds each process's time down twice."""
    before = children_seconds()
    with burning(30, 0.024) as running:
        clocks = sum(seconds_of(process.pid) for process in running)
        times = [psutil.Process(process.pid).cpu_times() for process in running]
        ticks = sum(time.user + time.system for time in times)
    exact = children_seconds() - before
    assert 0.9 * exact < clocks <= exact  # the rest is their end
    assert ticks < 0.85 * exact


def test_a_process_that_has_ended_counts_until_it_is_collected() -> None:
    """And it is 0, not an error, for an ended process."""
    before = children_seconds()
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", "sum(range(1_000_000))"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    used = seconds_of(process.pid)
    process.wait()
    assert used == pytest.approx(children_seconds() - before, abs=1e-4)
    assert seconds_of(process.pid) == run_queue_seconds(process.pid) == 0.0


def test_this_process_and_its_ended_children_are_the_load() -> None:
    """A load generator in another process counts too."""
    before = own_seconds()
    with burning(1, 0.05):
        pass
    assert own_seconds() - before >= 0.05


def test_who_is_ready_and_has_no_processor_is_seen_waiting() -> None:
    """Two busy processes on one core wait for each other; a sleeping one does not wait."""
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    command = [sys.executable, "-S", "-E", "-c", spin]
    pair = [subprocess.Popen(command) for _ in range(2)]
    with burning(1, 0.0) as (sleeper,):
        idle = run_queue_seconds(sleeper.pid)
        try:
            wait_until(lambda: all(run_queue_seconds(one.pid) > 0.2 for one in pair), 60, "waits")
            assert run_queue_seconds(sleeper.pid) - idle < 0.1
        finally:
            for process in pair:
                process.kill()
                process.wait()


def work(postgres: Postgres) -> float:
    """Run a query in a new backend; return the processor seconds of that backend."""
    with psycopg.connect(postgres.dsn) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        connection.execute(WORK)
        used = seconds_of(backend.pid)
    psutil.wait_procs([backend], timeout=10)
    return used


def test_the_database_time_counts_backends_that_have_ended(postgres: Postgres) -> None:
    """The time of an ended backend counts exactly once."""
    assert postgres.pid is not None
    before = server_seconds(postgres.pid)
    used = work(postgres)
    assert used > 0.05
    # Those that have ended are cut to ticks, all at once; the server itself does something too.
    assert used - 0.03 < server_seconds(postgres.pid) - before < 1.8 * used


def test_the_database_time_counts_backends_that_run(postgres: Postgres) -> None:
    """Not only when they have ended."""
    assert postgres.pid is not None
    with psycopg.connect(postgres.dsn) as connection:
        before = server_seconds(postgres.pid)
        connection.execute(WORK)
        assert server_seconds(postgres.pid) - before > 0.05


def test_every_server_is_accounted_for(postgres: Postgres, pooler: PoolerFixture) -> None:
    """Logins cost PgBouncer, queries cost PostgreSQL, and there are no functions."""
    status = status_of(postgres, pooler)
    before = Usage.of(status, os.getpid())

    def logins_cost() -> bool:
        pooler.connect().close()
        return Usage.of(status, os.getpid()).cpu.since(before.cpu, load=0).pgbouncer >= 0.03

    wait_until(logins_cost, what="PgBouncer to use 0.03 s of processor time")
    work(postgres)
    after = Usage.of(status, os.getpid())
    used = after.cpu.since(before.cpu, load=0)
    assert used.pgbouncer >= 0.03
    assert used.postgresql > 0.05
    assert used.daemon > 0  # here it is this process
    assert after.waited_since(before).environment is None


@pytest.fixture(scope="module")
def quiet(short_folder: Path) -> Iterator[Postgres]:
    """A server for this test only."""
    server = CopiedPostgres(
        find_postgres(MAJOR), short_folder / "quiet", port=processes.free_port(), durable=False
    )
    try:
        server.start()
        server.create_master(*MASTER, DATABASE)
        yield server
    finally:
        server.stop()


def test_the_log_tells_how_many_connections_there_were_at_the_most(quiet: Postgres) -> None:
    """Short ones between two reads count too, and so do those from before."""
    with ExitStack() as kept:
        kept.enter_context(psycopg.connect(quiet.dsn))
        log = ConnectionLog(quiet.log)
        began = time.time()
        with ExitStack() as short:
            for _ in range(60):
                short.enter_context(psycopg.connect(quiet.dsn))
        kept.enter_context(psycopg.connect(quiet.dsn))
        wait_until(lambda: log.observed(began, time.time()).series[-1] == 2, 30, "two are left")
        seen = log.observed(began, time.time())
    assert seen.peak == 61


def test_a_connection_that_is_refused_is_not_counted_for_ever(quiet: Postgres) -> None:
    """It is authorised first; in the log only its FATAL ends it."""
    log = ConnectionLog(quiet.log)
    began = time.time()
    with ExitStack() as stack, suppress(psycopg.OperationalError):
        for _ in range(quiet.max_connections):
            stack.enter_context(psycopg.connect(quiet.dsn))
    assert "connection slots are reserved" in quiet.log.read_text()
    wait_until(lambda: log.observed(began, time.time()).series[-1] == 0, 30, "none is left")
    assert 90 <= log.observed(began, time.time()).peak <= quiet.max_connections


def test_a_crash_of_the_server_ends_every_connection(quiet: Postgres) -> None:
    """None of them logs a disconnection."""
    log = ConnectionLog(quiet.log)
    began = time.time()
    with ExitStack() as stack:
        lost = [stack.enter_context(psycopg.connect(quiet.dsn)) for _ in range(5)]
        os.kill(lost[0].info.backend_pid, signal.SIGKILL)
        wait_until(lambda: log.observed(began, time.time()).series[-1] == 0, 30, "none is left")
        for connection in lost:
            connection.close()
    assert log.observed(began, time.time()).peak == 5
