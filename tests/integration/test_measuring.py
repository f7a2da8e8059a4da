"""What benchmarks measure servers by, against numbers that are known."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any

import psutil
import psycopg
import pytest

from benchmarks.storm.accounting import CpuSeconds, seconds_of, server_seconds
from benchmarks.storm.sampler import Sampler
from local.postgres import Postgres
from tests.integration.servers import PoolerFixture

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


def work(postgres: Postgres) -> float:
    """Have a backend of its own compute; return its processor seconds, which end with it."""
    with psycopg.connect(postgres.dsn) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        connection.execute(WORK)
        used = seconds_of(backend)
    psutil.wait_procs([backend], timeout=10)
    return used


def test_the_database_time_counts_backends_that_have_ended(postgres: Postgres) -> None:
    """A backend's time does not vanish with it, nor is it counted twice."""
    assert postgres.pid is not None
    before = server_seconds(postgres.pid)
    used = work(postgres)
    assert used > 0.05
    # The kernel counts in ticks of 10 ms, and the server's own processes do something too.
    assert used - 0.05 < server_seconds(postgres.pid) - before < 1.8 * used


def test_the_database_time_counts_backends_that_run(postgres: Postgres) -> None:
    """Not only when they have ended."""
    assert postgres.pid is not None
    with psycopg.connect(postgres.dsn) as connection:
        before = server_seconds(postgres.pid)
        connection.execute(WORK)
        assert server_seconds(postgres.pid) - before > 0.05


def test_every_server_is_accounted_for(postgres: Postgres, pooler: PoolerFixture) -> None:
    """Logins cost PgBouncer, work costs PostgreSQL, and functions there are none."""
    status = status_of(postgres, pooler)
    before = CpuSeconds.of(status, os.getpid())
    deadline = time.monotonic() + 10
    while CpuSeconds.of(status, os.getpid()).since(before).pgbouncer < 0.03:
        assert time.monotonic() < deadline
        pooler.connect().close()
    work(postgres)
    used = CpuSeconds.of(status, os.getpid()).since(before)
    assert used.pgbouncer >= 0.03
    assert used.postgresql > 0.05
    assert used.functions == 0


def test_the_sampler_sees_as_many_connections_as_there_are(
    postgres: Postgres, pooler: PoolerFixture
) -> None:
    """Backends but its own, and clients at the pooler; a peak that has passed is kept."""
    with ExitStack() as stack:
        with Sampler(status_of(postgres, pooler)) as idle:
            time.sleep(0.1)
        with Sampler(status_of(postgres, pooler)) as sampler:
            time.sleep(0.1)
            with ExitStack() as short:
                for _ in range(12):
                    short.enter_context(psycopg.connect(postgres.dsn))
                time.sleep(0.1)
            for _ in range(7):
                stack.enter_context(pooler.connect())
            time.sleep(0.1)
    assert sampler.server.peak >= idle.server.peak + 12
    assert sampler.server.peak <= idle.server.peak + 12 + 7
    assert sampler.client.peak == idle.client.peak + 7 == max(sampler.client.series)
    assert sampler.client.series[0] == 0
    assert sampler.samples >= 6
    assert 0 < sampler.widest_gap_ms < 1000


def test_a_sampler_without_a_database_fails_the_run(
    postgres: Postgres, pooler: PoolerFixture
) -> None:
    """Not a peak of 0."""
    status = status_of(postgres, pooler)
    status["postgres"]["dsn"] = postgres.dsn_of("nobody", "wrong", "app")
    with pytest.raises(RuntimeError, match="the sampler has ended"):
        Sampler(status)
