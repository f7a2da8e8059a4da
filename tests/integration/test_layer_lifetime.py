"""How long connections live: ages, clocks, snapshots, forks and threads."""

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
import pytest
import snapshot_restore_py
from awslambdaric.lambda_runtime_hooks_runner import run_after_restore, run_before_snapshot
from lambda_pg import ConfigurationError, Database, DatabaseUnavailableError, Settings
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.clocks import Clock
from tests.support.context import Context
from tests.support.layer import APPLICATION, PASSWORD, Admin, Open, in_child, kill_backends, scalar
from tests.support.recorder import Recorder, socket_of
from tests.support.servers import SecretsService
from tests.support.waiting import wait_until

# Python 3.12 warns of any fork of a process with threads; the layer must bear it.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DAY: Final = 86400.0


def pid_of(db: Database[TupleRow]) -> int:
    """Tell which backend serves."""
    pid = scalar(db, "SELECT pg_backend_pid()")
    assert isinstance(pid, int)
    return pid


def backends(admin: Admin) -> set[int]:
    """List the layer's backends."""
    rows = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s", [APPLICATION]
    ).fetchall()
    return {row[0] for row in rows}


# Ages


def with_execute(db: Database[TupleRow]) -> int:
    """Ask with a statement."""
    return pid_of(db)


def with_claims(db: Database[TupleRow]) -> int:
    """Ask with claims."""
    row = db.execute("SELECT pg_backend_pid()", claims={"sub": "a"}).fetchone()
    assert row is not None
    return int(row[0])


def with_connection(db: Database[TupleRow]) -> int:
    """Look at the connection, without asking."""
    with db.connection() as connection:
        return connection.info.backend_pid


def with_transaction(db: Database[TupleRow]) -> int:
    """Ask in a transaction."""
    with db.transaction() as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def with_run_transaction(db: Database[TupleRow]) -> int:
    """Ask in a unit of work."""
    return db.run_transaction(lambda connection: connection.info.backend_pid)


VERBS: Final = [with_execute, with_claims, with_connection, with_transaction, with_run_transaction]


@pytest.mark.parametrize("fate", ["untouched", "killed"])
@pytest.mark.parametrize("verb", VERBS)
def test_after_a_day_of_silence_the_connection_is_another_one(
    db: Database[TupleRow],
    admin: Admin,
    clock: Clock,
    verb: Callable[[Database[TupleRow]], int],
    fate: str,
) -> None:
    """A frozen environment wakes up: the first caller does not see what became of the old one."""
    clock.govern(db)
    before = pid_of(db)
    if fate == "killed":
        kill_backends(admin)
    clock.shift += DAY
    after = verb(db)
    assert after != before
    wait_until(lambda: backends(admin) == {after})
    assert pid_of(db) == after
    stats = db.stats()
    assert stats["connections_num"] == 2
    assert stats["connections_lost"] == (fate == "killed")


def test_a_connection_is_replaced_at_the_end_of_its_lifetime(
    open_database: Open, clock: Clock
) -> None:
    """However busy it is; the end is a matter of chance, so that a fleet's do not coincide."""
    db = clock.govern(open_database(max_lifetime=1000))
    pid = pid_of(db)
    for _ in range(39):
        clock.shift += 20
        assert pid_of(db) == pid
    clock.shift += 221
    assert pid_of(db) != pid


def test_lifetimes_differ(open_database: Open, clock: Clock) -> None:
    """Up to a fifth is taken off."""
    db = clock.govern(open_database(max_lifetime=1000))
    began = clock()
    ends = []
    for _ in range(10):
        with db.connection() as connection:
            ends.append(connection.lease.expires_at - began)  # type: ignore[attr-defined]
        db.close()
    assert all(800 <= end <= 1000 + clock() - began for end in ends)
    assert max(ends) - min(ends) > 10


@pytest.mark.parametrize("idle_check_after", [5, 30, 900])
def test_a_connection_idle_for_too_long_is_replaced_without_being_asked(
    open_database: Open, clock: Clock, idle_check_after: float
) -> None:
    """A load balancer may have dropped it without a word."""
    db = clock.govern(open_database(max_idle=20, idle_check_after=idle_check_after))
    pid = pid_of(db)
    clock.shift += 19
    assert pid_of(db) == pid
    clock.shift += 21
    assert pid_of(db) != pid


def test_a_connection_idle_for_a_while_is_asked_first(
    open_database: Open, clock: Clock, postgres: Postgres, tmp_path: Path
) -> None:
    """One round trip more, once, and only then."""
    with Recorder(socket_of(postgres), tmp_path) as recorder:
        db = open_database(port=recorder.port, sslrootcert=recorder.ca_file, idle_check_after=20)
        clock.govern(db)
        db.execute("SELECT 1")
        recorder.clear()
        clock.shift += 19
        db.execute("SELECT 2")
        assert recorder.round_trips() == 1
        clock.shift += 21
        db.execute("SELECT 3")
        assert recorder.round_trips() == 3
        db.execute("SELECT 4")
        assert recorder.round_trips() == 4
        db.close()


@pytest.mark.parametrize("fate", ["untouched", "killed"])
def test_a_clock_that_is_set_back_does_no_harm(
    db: Database[TupleRow], admin: Admin, clock: Clock, fate: str
) -> None:
    """Everything is younger than it seems, and what is dead is seen at a look."""
    clock.govern(db)
    before = pid_of(db)
    if fate == "killed":
        kill_backends(admin)
    clock.shift -= DAY
    after = pid_of(db)
    assert (after == before) is (fate == "untouched")
    with db.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    clock.shift += DAY
    assert pid_of(db) != before


def test_a_database_that_nobody_has_any_more_takes_its_connections_along(
    settings: Settings, admin: Admin
) -> None:
    """Without a warning: nobody closes the one of a function, or of a test."""
    db: Database[TupleRow] = Database(settings)
    pid_of(db)
    del db
    gc.collect()
    wait_until(lambda: not backends(admin))


# Snapshots


@pytest.fixture
def snap_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that will be copied, with no hooks of other tests."""
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    monkeypatch.setattr(snapshot_restore_py, "_before_snapshot_registry", [])
    monkeypatch.setattr(snapshot_restore_py, "_after_restore_registry", [])


def test_a_snapshot_has_no_connection_and_no_secret(
    snap_start: None,
    open_database: Open,
    admin: Admin,
    secrets_service: SecretsService,
    secrets_environment: None,
) -> None:
    """The first checkout after it fetches the secret, as it is then, and connects."""
    arn = secrets_service.create({"username": "layer_test", "password": PASSWORD})
    db = open_database(user=None, password=None, secret_arn=arn)
    before = pid_of(db)
    kept = db.getconn()
    run_before_snapshot()
    wait_until(lambda: not backends(admin))
    assert kept.closed
    assert PASSWORD not in str([vars(db._credentials), vars(db._pool)])
    secrets_service.put(arn, {"username": "layer_test", "password": "another-canary"})
    admin.execute("ALTER ROLE layer_test PASSWORD 'another-canary'")
    run_after_restore()
    assert not backends(admin)
    assert pid_of(db) != before
    assert db.stats()["refreshes"] == 2
    assert db.stats()["connections_errors"] == 0
    db.putconn(kept)
    assert db.stats()["pool_size"] == 1


# Forks


def test_a_child_has_connections_of_its_own(db: Database[TupleRow], admin: Admin) -> None:
    """It closes all that it has, also its parent's: the parent's backend hears nothing of it."""
    mine = pid_of(db)

    def act() -> int:
        first = pid_of(db)
        db.close()
        gc.collect()
        assert pid_of(db) != first
        return first

    theirs = in_child(act)
    assert theirs.isdigit()
    assert int(theirs) != mine
    assert pid_of(db) == mine
    wait_until(lambda: backends(admin) == {mine})


def test_a_child_cannot_reach_into_its_parents_transaction(
    db: Database[TupleRow], admin: Admin
) -> None:
    """Whatever it tries with the connection in its hands fails there; the parent commits."""

    def act(connection: psycopg.Connection[TupleRow]) -> object:
        seen = []
        for attempt in (
            lambda: connection.execute("INSERT INTO counter VALUES (-1)"),
            lambda: connection.cursor().executemany("INSERT INTO counter VALUES (%s)", [(-1,)]),
            lambda: connection.cursor().copy("COPY counter FROM STDIN").__enter__(),
            lambda: connection.cancel_safe(timeout=1),
        ):
            try:
                attempt()
            except psycopg.Error:
                seen.append("error")
            else:
                seen.append("nothing")
        connection.close()
        return [*seen, scalar(db, "SELECT count(*) FROM counter")]

    with db.transaction() as connection:
        connection.execute("INSERT INTO counter VALUES (1)")
        assert in_child(lambda: act(connection)) == "['error', 'error', 'error', 'nothing', 0]"
        connection.execute("INSERT INTO counter VALUES (2)")
    assert db.execute("SELECT n FROM counter ORDER BY n").fetchall() == [(1,), (2,)]
    assert db.stats()["connections_num"] == 1


def test_a_child_that_leaves_its_parents_blocks_disturbs_nobody(db: Database[TupleRow]) -> None:
    """An exception there runs through both blocks, as when a worker fails."""

    def transfer() -> None:
        raise LookupError("mine")

    failed, parent = "", os.getpid()
    try:
        with db.transaction() as connection:
            connection.execute("INSERT INTO counter VALUES (1)")
            failed = in_child_raise(transfer)
            connection.execute("INSERT INTO counter VALUES (2)")
    except BaseException as error:  # the child comes here
        if os.getpid() == parent:
            raise
        os._exit(0 if isinstance(error, LookupError) else 1)
    assert failed == "left with 0"
    assert scalar(db, "SELECT count(*) FROM counter") == 2


def in_child_raise(action: Callable[[], None]) -> str:
    """Fork, and let the child's exception go on its way; return how the child ended."""
    child = os.fork()
    if child == 0:
        action()
    _, status = os.waitpid(child, 0)
    return f"left with {os.waitstatus_to_exitcode(status)}"


def test_the_threads_of_a_parent_go_on_while_it_forks(open_database: Open) -> None:
    """Whatever they hold of the layer's at that moment, child and parent are served.

    They are connected before: OpenSSL's locks are not for forks, and a child of a process in which
    another thread shakes hands may wait for one for ever.
    """
    db = open_database(slots=4)
    stop = threading.Event()
    connected = threading.Barrier(4)
    served: list[int] = []

    def work() -> None:
        count = 0
        with db.connection():
            connected.wait(10)
        while not stop.is_set():
            assert scalar(db, "SELECT 7") == 7
            with db.transaction() as connection:
                connection.execute("INSERT INTO counter VALUES (1)")
            count += 1
        served.append(count)

    with ThreadPoolExecutor(3) as threads:
        workers = [threads.submit(work) for _ in range(3)]
        try:
            connected.wait(10)
            children = [in_child(lambda: scalar(db, "SELECT 8")) for _ in range(10)]
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    assert children == ["8"] * 10
    assert scalar(db, "SELECT count(*) FROM counter") == sum(served)
    assert db.stats()["connections_num"] <= 4


_inherited: list[Database[TupleRow]] = []


def squared(number: int) -> tuple[int, int]:
    """Let the server multiply, in a worker."""
    row = _inherited[0].execute("SELECT %s * %s", [number, number]).fetchone()
    assert row is not None
    return pid_of(_inherited[0]), row[0]


def test_workers_of_multiprocessing_have_connections_of_their_own(
    db: Database[TupleRow],
) -> None:
    """Managed Instances fork too: an environment is then several processes."""
    mine = pid_of(db)
    _inherited[:] = [db]
    with multiprocessing.get_context("fork").Pool(3) as workers:
        answers = workers.map(squared, range(12), chunksize=1)
    _inherited.clear()
    assert [answer for _, answer in answers] == [number * number for number in range(12)]
    assert mine not in {pid for pid, _ in answers}
    assert pid_of(db) == mine


def test_a_child_of_a_handler_is_bound_by_its_deadline(db: Database[TupleRow]) -> None:
    """It works for the same invocation."""

    def sleep() -> str:
        try:
            db.execute("SELECT pg_sleep(20)")
        except DatabaseUnavailableError as error:
            return type(error).__name__
        return "nothing"

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> str:
        db.execute("SELECT 1")
        return in_child(sleep)

    assert handler(None, Context(0.8)) == "DeadlineExceededError"
    assert scalar(db, "SELECT 1") == 1


# Threads


def echo(number: int, connection: psycopg.Connection[TupleRow]) -> int:
    """Let the server repeat a number."""
    row = connection.execute("SELECT %s::int", [number]).fetchone()
    assert row is not None
    return int(row[0])


def test_sixteen_threads_share_four_slots(open_database: Open, admin: Admin) -> None:
    """Each gets the answers to its own questions, over never more than four backends."""
    db = open_database(slots=4, checkout_timeout=20.0)
    start = threading.Barrier(17)
    pids: set[int] = set()

    def ask(number: int) -> None:
        start.wait()
        for turn in range(20):
            mine = number * 1000 + turn
            row = db.execute("SELECT %s::int, pg_backend_pid()", [mine]).fetchone()
            assert row is not None
            assert row[0] == mine
            pids.add(row[1])
            with db.transaction(claims={"sub": mine}) as connection:
                row = connection.execute("SELECT current_setting('request.jwt.claims')").fetchone()
                assert row == (f'{{"sub": {mine}}}',)
            assert db.run_transaction(partial(echo, mine)) == mine

    most = 0
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(ask, number) for number in range(16)]
        start.wait()
        while not all(each.done() for each in asked):
            most = max(most, len(backends(admin)))
        for each in asked:
            each.result()
    assert 1 <= len(pids) <= 4
    assert 1 <= most <= 4
    stats = db.stats()
    assert stats["pool_size"] == stats["pool_available"] == stats["connections_num"]
    assert stats["requests_num"] == 16 * 20 * 3
    assert stats["requests_queued"] > 0
    assert stats["requests_waiting"] == 0


@pytest.mark.parametrize("release", ["return", "loss"])
def test_a_thread_that_waits_gets_the_slot_as_soon_as_it_is_free(
    db: Database[TupleRow], release: str
) -> None:
    """Also when the connection that held it is gone."""
    with ThreadPoolExecutor(1) as threads:
        with db.connection() as connection:
            waiting = threads.submit(scalar, db, "SELECT 1")
            wait_until(lambda: db.stats()["requests_waiting"] == 1)
            time.sleep(0.01)  # so that there is a wait to count
            if release == "loss":
                connection.close()
        started = time.monotonic()
        assert waiting.result() == 1
    assert time.monotonic() - started < 1
    assert db.stats()["requests_queued"] == 1
    assert db.stats()["requests_wait_ms"] > 0


def test_a_thread_that_asks_again_and_again_lets_others_pass(db: Database[TupleRow]) -> None:
    """Who waits is next, or the busiest thread would have the slot for ever."""
    stop = threading.Event()

    def hog() -> None:
        while not stop.is_set():
            db.execute("SELECT 1")

    with ThreadPoolExecutor(2) as threads:
        hogs = [threads.submit(hog) for _ in range(2)]
        waits = []
        try:
            for _ in range(20):
                started = time.monotonic()
                with db.connection() as connection:
                    connection.execute("SELECT 1")
                waits.append(time.monotonic() - started)
        finally:
            stop.set()
        for each in hogs:
            each.result()
    assert sorted(waits)[10] < 0.1
    assert max(waits) < 1.0


def nested_execute(db: Database[TupleRow]) -> None:
    """Run a statement."""
    db.execute("SELECT 1")


def nested_connection(db: Database[TupleRow]) -> None:
    """Take a connection."""
    with db.connection():
        pass


def nested_transaction(db: Database[TupleRow]) -> None:
    """Begin a transaction."""
    with db.transaction():
        pass


def nested_run_transaction(db: Database[TupleRow]) -> None:
    """Run a unit of work."""
    db.run_transaction(lambda connection: connection.execute("SELECT 1"))


NESTED: Final = [nested_execute, nested_connection, nested_transaction, nested_run_transaction]


@pytest.mark.parametrize("inner", NESTED)
@pytest.mark.parametrize("slots", [1, 2])
def test_a_checkout_that_can_never_succeed_is_explained_at_once(
    open_database: Open, inner: Callable[[Database[TupleRow]], None], slots: int
) -> None:
    """The thread that would have to return a connection is the one that waits for it."""
    db = open_database(slots=slots)
    held = [db.getconn() for _ in range(slots)]
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match=rf"all {slots} slots.*LAMBDA_PG_SLOTS"):
        inner(db)
    assert time.monotonic() - started < 1
    for connection in held:
        db.putconn(connection)
    inner(db)


def test_a_nested_checkout_that_can_succeed_is_waited_for(open_database: Open) -> None:
    """The other slot is another thread's, who returns it."""
    db = open_database(slots=2)
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with db.connection():
            taken.set()
            release.wait()

    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(hold)
        try:
            assert taken.wait(5)
            with db.connection():
                threading.Timer(0.1, release.set).start()
                assert scalar(db, "SELECT 1") == 1
        finally:
            release.set()
        holder.result()


def test_a_connection_is_returned_once(open_database: Open) -> None:
    """Returned twice it would serve two threads at the same time."""
    db = open_database(slots=2)
    connection = db.getconn()
    db.putconn(connection)
    with pytest.raises(ValueError, match="not checked out"):
        db.putconn(connection)
    assert db.stats()["pool_available"] == 1


def test_a_connection_of_another_pool_is_not_taken(open_database: Open) -> None:
    """Nor one that is psycopg's own."""
    one, other = open_database(), open_database()
    connection = other.getconn()
    with pytest.raises(ValueError, match="not checked out"):
        one.putconn(connection)
    other.putconn(connection)
    assert one.stats()["pool_size"] == 0
