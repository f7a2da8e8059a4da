"""A lost answer to COMMIT, and a server that forgets the transaction's id before it is asked.

The backend is stopped before it reads COMMIT, and nothing of its transaction is on disk: a crash
forgets the id, and the next writers get it.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from lambda_pg import CommitOutcomeUnknownError, Database, Settings
from lambda_pg._outcome import SOUND, TransactionId
from psycopg.rows import TupleRow

from benchmarks.chaos.writers import trust
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.install.postgres_discovery import PostgresBinaries, find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import PASSWORD
from tests.support.load import Load, wait_for_each
from tests.support.postgres import CopiedPostgres
from tests.support.waiting import wait_until

PARAMETERS = {"wal_writer_delay": "10s", "checkpoint_timeout": "1h"}
"""Nothing but a commit or a checkpoint writes the log to disk."""


@dataclass
class Server:
    """A durable server behind a proxy, and what makes the same server of a copy."""

    postgres: Postgres
    network: FaultProxy
    db: Database[TupleRow]

    def superuser(self) -> psycopg.Connection[TupleRow]:
        """Connect past the proxy."""
        return psycopg.connect(self.postgres.superuser_dsn, autocommit=True)

    def others_write(self) -> None:
        """Use some transaction ids."""
        with self.superuser() as other:
            for number in range(100, 110):
                other.execute("INSERT INTO counter VALUES (%s)", [number])

    def rows(self) -> list[int]:
        """Return what the layer has written, as far as it is there."""
        with self.superuser() as admin:
            found = admin.execute("SELECT n FROM counter WHERE n < 100").fetchall()
        return [n for (n,) in found]


@pytest.fixture(params=SOUND)
def binaries(request: pytest.FixtureRequest) -> PostgresBinaries:
    """Each version whose word is taken."""
    found = find_postgres(request.param)
    assert found.major == request.param
    return found


class Templates:
    """A server of each version with a role and a table, made once: initdb takes seconds."""

    def __init__(self, folder: Path) -> None:
        """Begin with none."""
        self._folder = folder

    def copy(self, binaries: PostgresBinaries, target: Path) -> None:
        """Copy the folder of the server of a version, which was stopped in order."""
        template = self._folder / str(binaries.major)
        if not template.exists():
            self._make(CopiedPostgres(binaries, template, port=processes.free_port()))
        subprocess.run(["cp", "-a", str(template), str(target)], check=True)

    def _make(self, postgres: Postgres) -> None:
        try:
            postgres.start()
            with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
                admin.execute(f"CREATE ROLE layer_test LOGIN PASSWORD '{PASSWORD}'")
                admin.execute("CREATE TABLE counter (n int)")
                admin.execute("GRANT ALL ON counter TO layer_test")
        finally:
            postgres.stop("fast")


@pytest.fixture(scope="module")
def templates(short_folder: Path) -> Templates:
    """Servers to copy."""
    folder = short_folder / "templates"
    folder.mkdir(mode=0o711)
    return Templates(folder)


@pytest.fixture
def server(binaries: PostgresBinaries, templates: Templates) -> Iterator[Server]:
    """A server that has everything on disk, and a database of the layer's at its proxy."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    postgres = Postgres(binaries, folder / "pg", port=processes.free_port(), parameters=PARAMETERS)
    try:
        templates.copy(binaries, folder / "pg")
        postgres.start()
        with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
            admin.execute("CHECKPOINT")
        with FaultProxy("127.0.0.1", postgres.port) as network:
            settings = Settings(
                host="127.0.0.1",
                port=network.port,
                dbname="postgres",
                user="layer_test",
                password=PASSWORD,
                sslrootcert=postgres.ca_file,
                checkout_timeout=20,
            )
            running = Server(postgres, network, Database(settings))
            yield running
            running.db.close()
            running.postgres.stop("immediate")  # it may be another one by now
    finally:
        postgres.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def crash_at_once(server: Server, backend: int) -> None:
    """Crash the whole server; a stopped process would keep it waiting."""
    ended = threading.Timer(0.1, os.kill, [backend, signal.SIGKILL])
    ended.start()
    server.postgres.stop("immediate")
    ended.join()
    server.postgres.start()


def crash_of_one_backend(server: Server, backend: int) -> None:
    """Kill one backend: the server ends the others and recovers, without a new start."""
    with server.superuser() as witness:
        os.kill(backend, signal.SIGKILL)
        wait_until(lambda: not _lives(witness))
    wait_until(lambda: _answers(server))


def failover_to_a_lagging_copy(server: Server, backend: int) -> None:
    """Promote a standby that has nothing of the transaction; it was copied while all stood still.

    So it has the primary's statistics, and the same id is its next one.
    """
    os.kill(backend, signal.SIGKILL)
    promote_the_copy(server)


def _lives(connection: psycopg.Connection[TupleRow]) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def _answers(server: Server) -> bool:
    with suppress(psycopg.OperationalError):
        server.superuser().close()
        return True
    return False


def promote_the_copy(server: Server) -> None:
    """Replace the primary, which is gone, by the standby that was copied."""
    copy = server.postgres.folder.parent / "copy"
    standby = Postgres(server.postgres.binaries, copy, port=server.postgres.port)
    server.postgres.stop("immediate")
    standby.start()
    with psycopg.connect(standby.superuser_dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_promote()")
    server.postgres = standby


def copy_at_rest(server: Server) -> None:
    """Copy the server while it is stopped, as a standby."""
    postgres = server.postgres
    server.db.close()
    postgres.stop("fast")
    copy = postgres.folder.parent / "copy"
    subprocess.run(["cp", "-a", str(postgres.folder), str(copy)], check=True)
    signal_file = copy / "data" / "standby.signal"
    signal_file.touch()
    processes.own(signal_file, processes.service_account())
    postgres.start()


def lose_the_answer(server: Server, disaster: Callable[[Server, int], None]) -> Exception | None:
    """Write one row, and have the disaster before COMMIT is read; return the layer's error."""
    backends: list[int] = []
    sent = threading.Event()

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        row = connection.execute(
            "INSERT INTO counter VALUES (1) RETURNING pg_backend_pid()"
        ).fetchone()
        assert row is not None
        backends.append(row[0])
        os.kill(row[0], signal.SIGSTOP)
        opened.enter_context(server.network.on_client_data(lambda _: sent.set()))

    with ExitStack() as opened, ThreadPoolExecutor(1) as thread:
        writing = thread.submit(server.db.run_transaction, work)
        assert sent.wait(20), "COMMIT was not sent"
        with server.network.refuse():
            server.network.reset()
            disaster(server, backends[0])
            server.others_write()
        error = writing.exception()
    assert len(backends) == 1 or error is None
    assert isinstance(error, Exception | None)
    return error


DISASTERS = [crash_at_once, crash_of_one_backend, failover_to_a_lagging_copy]


@pytest.mark.parametrize("disaster", DISASTERS)
def test_nothing_is_called_committed_by_a_server_that_has_forgotten_it(
    server: Server, disaster: Callable[[Server, int], None]
) -> None:
    """The outcome is not certain, and the error has what is needed to see why."""
    if disaster is failover_to_a_lagging_copy:
        copy_at_rest(server)
    with server.superuser() as admin:
        before = admin.execute("SELECT pg_postmaster_start_time() AT TIME ZONE 'UTC'").fetchone()
    error = lose_the_answer(server, disaster)
    assert isinstance(error, CommitOutcomeUnknownError), error
    assert server.rows() == []
    assert before is not None
    assert str(error.incarnation).startswith(str(before[0]))
    with server.superuser() as admin:
        told = admin.execute("SELECT pg_xact_status(%s::xid8)", [error.xid]).fetchone()
    assert told == ("committed",), "the id was not given to another writer: this proves nothing"


@pytest.mark.parametrize("disaster", DISASTERS)
def test_the_word_of_such_a_server_would_lose_the_write(
    server: Server,
    disaster: Callable[[Server, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: a layer that believes it returns a result whose row is not there."""
    if disaster is failover_to_a_lagging_copy:
        copy_at_rest(server)
    monkeypatch.setattr(TransactionId, "status", trust)
    assert lose_the_answer(server, disaster) is None
    assert server.rows() == []


ONE_VERSION = pytest.mark.parametrize("binaries", [17], indirect=True)


@ONE_VERSION
def test_a_reset_of_the_statistics_costs_certainty_and_no_write(server: Server) -> None:
    """An administrator's reset looks like a crash: the outcome is reported as unknown."""

    def reset_statistics(server: Server, backend: int) -> None:
        with server.superuser() as admin:
            admin.execute("SELECT pg_stat_reset_shared('bgwriter')")
        os.kill(backend, signal.SIGCONT)

    error = lose_the_answer(server, reset_statistics)
    assert isinstance(error, CommitOutcomeUnknownError)


@ONE_VERSION
def test_a_server_that_has_not_crashed_is_believed(server: Server) -> None:
    """The answer alone was lost: the result is returned, and the row is there once."""

    def go_on(_: Server, backend: int) -> None:
        os.kill(backend, signal.SIGCONT)

    assert lose_the_answer(server, go_on) is None
    assert server.rows() == [1]


class Reads(Load):
    """Reads that may be repeated, nearly always one of them at work."""

    def _request(self) -> None:
        self._db.execute("SELECT 1 FROM pg_sleep(0.05)", idempotent=True)


class Units(Load):
    """Units of work that each write another row."""

    def __init__(self, db: Database[TupleRow]) -> None:
        """Begin with no row."""
        super().__init__(db)
        self._next = 1000
        self.acknowledged: list[int] = []

    def _request(self) -> None:
        self._next += 1
        number = self._next
        self._db.run_transaction(
            lambda connection: connection.execute("INSERT INTO counter VALUES (%s)", [number])
        )
        self.acknowledged.append(number)


@ONE_VERSION
def test_work_goes_on_after_a_failover_to_a_lagging_standby(server: Server) -> None:
    """Reads that may be repeated and units of work wait for it, and what follows is there once.

    What was acknowledged before and had not reached the standby is lost with the primary, and the
    layer cannot know it: synchronous replication is the server's to give.
    """
    copy_at_rest(server)
    reader, writer = (Database(replace(server.db._settings)) for _ in range(2))
    reads, units = Reads(reader), Units(writer)
    with reads, units:
        wait_for_each([reads, units], 10)
        with server.network.refuse():
            server.network.reset()
            promote_the_copy(server)
            before = list(units.acknowledged)
        read, written = reads.served, len(before)
        wait_until(lambda: reads.served > read + 10 and len(units.acknowledged) > written + 10)
    for db in (reader, writer):
        db.close()
    assert not reads.errors
    assert [type(error) for error in units.errors] in ([], [CommitOutcomeUnknownError])
    with server.superuser() as admin:
        rows = [n for (n,) in admin.execute("SELECT n FROM counter WHERE n > 1000 ORDER BY n")]
    assert rows == units.acknowledged[written:]
    assert before, "nothing was acknowledged before: this proves nothing"
