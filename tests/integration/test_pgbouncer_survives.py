"""What the supervisor does where PgBouncer hangs, and where log, disk or secrets let it down."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.pgbouncer.configuration import LISTEN_BACKLOG
from lambda_pg_cdk.pgbouncer.pulse import usage_of
from lambda_pg_cdk.pgbouncer.session import startup_message
from lambda_pg_cdk.pgbouncer.settings import Settings
from lambda_pg_cdk.pgbouncer.supervisor import open_files
from lambda_pg_cdk.stage.task import healthy_command
from tests.support.servers import (
    DATABASE,
    PoolerFixture,
    SecretsService,
    answer,
    create_login,
    logs_in,
    pgbouncer_of,
)
from tests.support.waiting import wait_until

HUNG_SECONDS = 5.0
"""By when the supervisor has ended a PgBouncer that hangs."""
BUSY_MACHINE = 10.0
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, prlimit or GNU find")


# Hangs


@on_linux
def test_a_stopped_pgbouncer_is_ended(pooler: PoolerFixture) -> None:
    """The supervisor ends it and then itself, so that ECS starts another task."""
    pgbouncer_of(pooler).suspend()
    assert pooler.process.wait(HUNG_SECONDS + BUSY_MACHINE) == 128 + signal.SIGKILL
    assert "PgBouncer hangs: no answer" in pooler.log
    assert "(process state T)" in pooler.log


def test_a_short_stop_ends_nothing(pooler: PoolerFixture) -> None:
    """A second and a half is survived by waiting."""
    child = pgbouncer_of(pooler)
    with pooler.connect() as client:
        child.suspend()
        time.sleep(1.5)
        child.resume()
        assert answer(client) == 1
    assert pgbouncer_of(pooler) == child


def test_a_database_that_does_not_answer_ends_no_pooler(new_pooler: PoolerFixture) -> None:
    """Only the console is asked: during a failover every pooler stays."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pooler = new_pooler.start(DATABASE_PORT=str(silent.getsockname()[1]))
        with pytest.raises(psycopg.OperationalError), pooler.connect() as client:
            answer(client)
        time.sleep(HUNG_SECONDS)
    assert pooler.process.running
    assert "hangs" not in pooler.log


@on_linux
def test_a_pgbouncer_that_is_only_busy_is_not_ended(new_pooler: PoolerFixture) -> None:
    """A storm of logins on a part of a core keeps its console silent for longer than a hang."""
    pooler = new_pooler.start(QUERY_WAIT_TIMEOUT="5")
    assert logs_in(pooler)
    with (
        psycopg.connect(
            pooler.process.admin_dsn, autocommit=True, prepare_threshold=None
        ) as console,
        storm_of_logins(pooler, 300),
        share_of_a_core(pgbouncer_of(pooler), 0.003, 0.5),
    ):
        silence = longest_silence(console, HUNG_SECONDS)
    assert silence >= HUNG_SECONDS, "the storm was too small to prove anything"
    assert pooler.process.running
    assert "hangs" not in pooler.log
    wait_until(lambda: logs_in(pooler), 15, "a login")


@contextmanager
def storm_of_logins(pooler: PoolerFixture, clients: int) -> Iterator[None]:
    """Have clients log in, each again and again."""
    stop = threading.Event()

    def log_in() -> None:
        while not stop.is_set():
            logs_in(pooler)

    with concurrent.futures.ThreadPoolExecutor(clients) as threads:
        for _ in range(clients):
            threads.submit(log_in)
        try:
            yield
        finally:
            stop.set()


@contextmanager
def share_of_a_core(process: psutil.Process, run: float, cycle: float) -> Iterator[None]:
    """Let a process run for some seconds out of each cycle; a child of this one stops it."""
    spawn = multiprocessing.get_context("spawn")
    starving = spawn.Process(target=starve, args=(process.pid, run, cycle), daemon=True)
    starving.start()
    try:
        yield
    finally:
        starving.kill()
        starving.join()
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def starve(pid: int, run: float, cycle: float) -> None:
    """Stop a process, and let it run for some seconds out of each cycle.

    A stopped process does not count as one that waits for a core, as a throttled one does: where
    other programs have the core in its seconds, it looks idle. So a process that has used no clock
    tick for a second runs on until it has used one, or has nothing to do.
    """
    used, since = usage_of(pid), time.monotonic()
    while used:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(cycle - run)
        os.kill(pid, signal.SIGCONT)
        time.sleep(run)
        while (now := usage_of(pid)) and now.ticks == used.ticks and now.state == "R":
            if time.monotonic() - since < 1:
                break
            time.sleep(0.001)
        if now and now.ticks != used.ticks:
            used, since = now, time.monotonic()


def longest_silence(console: psycopg.Connection, seconds: float) -> float:
    """Ask the console until an answer takes so many seconds; return the longest it took."""
    longest = 0.0
    until = time.monotonic() + 120
    while longest < seconds and time.monotonic() < until:
        began = time.monotonic()
        console.execute("SHOW VERSION")
        longest = max(longest, time.monotonic() - began)
    return longest


@on_linux
def test_the_containers_health_check_sees_a_supervisor_that_hangs(pooler: PoolerFixture) -> None:
    """The command of the task definition, on the file that the supervisor renews."""

    def healthy() -> bool:
        command = healthy_command(str(pooler.process.run_dir))
        return subprocess.run(["sh", "-c", command], check=False).returncode == 0

    wait_until(healthy, 10, "a healthy container")
    time.sleep(12)  # longer than the file may be old: it is renewed
    assert healthy()
    supervisor = psutil.Process(pooler.process.pid)
    supervisor.suspend()
    try:
        wait_until(lambda: not healthy(), 30, "the container to be unhealthy")
    finally:
        supervisor.resume()
    wait_until(healthy, 10, "a healthy container again")


# The log


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_log_that_nobody_reads_stops_nobody(new_pooler: PoolerFixture) -> None:
    """Thousands of lines later clients are served, secrets are read, and the drain is in order."""
    with unread_log(new_pooler):
        pooler = new_pooler.start()
        for _ in range(4000):
            be_refused(pooler)
        assert logs_in(pooler)
        pooler.rotate_password("the-next-password")
        wait_until(lambda: logs_in(pooler), 15, "a login with the new password")
        assert pooler.process.stop() == 0


@contextmanager
def unread_log(pooler: PoolerFixture) -> Iterator[None]:
    """Have a pipe as the pooler's log, which holds 64 kB until somebody reads it."""
    log = pooler.folder / "pgbouncer.log"
    pooler.folder.mkdir(mode=0o711)
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield
    finally:
        pooler.stop()
        os.close(reader)
        log.unlink()  # nobody must wait for what is in it


def be_refused(pooler: PoolerFixture) -> None:
    """Come without TLS, which PgBouncer notes in a line or two."""
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", pooler.port), timeout=15) as client,
    ):
        client.sendall(startup_message(pooler.login.name, DATABASE, "refused"))
        client.recv(1000)


# The disk


@on_linux
def test_a_disk_without_space_at_a_rotation_ends_nothing(new_pooler: PoolerFixture) -> None:
    """The old files stay in use; when there is space again, the new password is taken soon."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.3")
    old = pooler.login.password
    supervisor = pooler.process.pid
    assert supervisor is not None
    files = [pooler.process.run_dir / name for name in ("users.txt", "certificate.pem")]
    before = [path.read_text() for path in files]
    with pooler.connect() as client:
        with files_bounded(supervisor):
            pooler.service.put(
                pooler.login.arn, {"username": pooler.login.name, "password": "the-next-password"}
            )
            time.sleep(3)  # several looks, and more than one try to write
            assert pooler.process.running
            assert [path.read_text() for path in files] == before
            assert answer(client) == 1
        wait_until(lambda: "the-next-password" in files[0].read_text(), 10, "the new password")
        assert answer(client) == 1
    assert old not in files[0].read_text()
    assert list(pooler.process.run_dir.glob("*.new")) == []
    wait_until(lambda: "users or certificate have changed" in pooler.log, 10, "the reload")


@contextmanager
def files_bounded(pid: int) -> Iterator[None]:
    """Let a process write no byte to any file: each try fails as on a full disk."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


# Secrets


def test_a_death_is_seen_while_the_secrets_service_is_silent(new_pooler: PoolerFixture) -> None:
    """The look at the secrets takes twelve seconds to give up; the task ends at once."""
    service = SecretsService()
    new_pooler.login = create_login(new_pooler.postgres, service, "separate")
    leaf = service.create(new_pooler.certificate_content("127.0.0.1"))
    new_pooler.start(
        **service.environment,
        USER_SECRET_ARNS=new_pooler.login.arn,
        CERTIFICATE_SECRET_ARN=leaf,
        REFRESH_INTERVAL="0.2",
    )
    port = int(service.url.rpartition(":")[2])
    service.stop()
    with socket.create_server(("127.0.0.1", port)) as silent:
        silent.settimeout(15)
        look, _ = silent.accept()
        with look:
            began = time.monotonic()
            pgbouncer_of(new_pooler).kill()
            assert new_pooler.process.wait(20) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 3


# Open files


@on_linux
def test_a_burst_of_logins_leaves_descriptors(new_pooler: PoolerFixture) -> None:
    """Of what the supervisor asks for, a whole backlog of logins and all clients leave some.

    Without a free one, PgBouncer takes no connection for five seconds.
    """
    few = {"MAX_CLIENT_CONN": "50"}
    limit = open_files(Settings.from_env(new_pooler.environment | few))
    burst = 50 + LISTEN_BACKLOG
    if processes.raise_open_files_limit() < max(limit, burst + 200):
        pytest.skip("this machine lets a process open too few files")
    bounded = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *new_pooler.binary.command)
    new_pooler.binary = replace(new_pooler.binary, command=bounded)
    pooler = new_pooler.start(**few)
    with ExitStack() as opened:
        for _ in range(burst):
            opened.enter_context(socket.create_connection(("127.0.0.1", pooler.port), timeout=15))
        wait_until(lambda: connections_of(pooler) >= burst, 15, "all connections to be accepted")
    assert "accept() failed" not in pooler.log
    wait_until(lambda: logs_in(pooler), 10, "a login")


def connections_of(pooler: PoolerFixture) -> int:
    """Count the files that PgBouncer has open; stop where it says that there are no more."""
    assert "accept() failed" not in pooler.log
    return len(list(Path(f"/proc/{pgbouncer_of(pooler).pid}/fd").iterdir()))
