"""Outages and exhaustion: survived while short, answered in time while long, over soon after."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import psycopg
import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
)
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.faults.proxy import FaultProxy, can_blackhole
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Admin, Open, scalar, settings_for, slot_taken, sockets_to
from tests.support.load import Load, wait_for_each
from tests.support.servers import PoolerFixture
from tests.support.waiting import wait_until

AT_ONCE: Final = 0.25
"""Seconds that a busy machine may take for what does not touch the network; the layer: 0.1 ms."""

EVERY: Final = 0.05
"""Seconds between the requests of a client that goes on asking."""


@dataclass(frozen=True)
class Request:
    """One request: when it began and ended, and how."""

    began: float
    ended: float
    error: Exception | None

    @property
    def took(self) -> float:
        """The seconds until its answer."""
        return self.ended - self.began


def ask(db: Database[TupleRow], query: str = "SELECT 1") -> Request:
    """Send a request, and take whatever comes."""
    began = time.monotonic()
    error: Exception | None = None
    try:
        db.execute(query, idempotent=True)
    except Exception as failed:  # noqa: BLE001 - whatever comes is what is looked at
        error = failed
    return Request(began, time.monotonic(), error)


def keep_asking(db: Database[TupleRow], seconds: float) -> list[Request]:
    """Send requests one after the other for some time."""
    until, requests = time.monotonic() + seconds, []
    while time.monotonic() < until:
        requests.append(ask(db))
        time.sleep(EVERY)
    return requests


def first_success(db: Database[TupleRow], fault_ended: float) -> float:
    """Ask until there is an answer; return the seconds from the end of the fault until then."""
    while (request := ask(db)).error is not None:
        assert request.ended - fault_ended < 10
        time.sleep(EVERY)
    return request.ended - fault_ended


def require_unavailable(request: Request, within: float) -> None:
    """Check what a request in an outage is told."""
    error = request.error
    assert isinstance(error, DatabaseUnavailableError)
    assert error.retry_after > 0
    assert request.took < within


def open_breaker(db: Database[TupleRow], window: float) -> None:
    """Let three requests fail, each in time."""
    for _ in range(3):
        require_unavailable(ask(db), window + 1)


# A server, or a pooler, that can be away


class Target:
    """A database and what makes it go away and come back."""

    def __init__(
        self,
        make: Callable[..., Database[TupleRow]],
        stop: Callable[[], object],
        start: Callable[[], object],
    ) -> None:
        """Take them; `make` takes settings to change."""
        self.make = make
        self._stop = stop
        self._start = start
        self._is_away = False

    def stop(self) -> None:
        """Let it go away."""
        self._is_away = True
        self._stop()

    def start(self) -> None:
        """Let it come back."""
        self._is_away = False
        self._start()

    def end(self) -> None:
        """Leave it running."""
        if self._is_away:
            self.start()


@pytest.fixture
def direct(open_database: Open, postgres: Postgres) -> Iterator[Target]:
    """The server itself, restarted as RDS's reboot does it."""
    target = Target(open_database, postgres.stop, postgres.start)
    yield target
    target.end()


@pytest.fixture
def pooled(pooler: PoolerFixture, secrets_environment: None) -> Iterator[Target]:
    """A pooler that is killed."""
    with poolers(pooler, pooler.process.kill, pooler.start) as target:
        yield target


@pytest.fixture
def behind(
    new_pooler: PoolerFixture, postgres: Postgres, secrets_environment: None
) -> Iterator[Target]:
    """A server that goes away behind its pooler."""
    pooler = new_pooler.start(QUERY_WAIT_TIMEOUT="1")
    with poolers(pooler, postgres.stop, postgres.start) as target:
        yield target


@contextmanager
def poolers(
    pooler: PoolerFixture, stop: Callable[[], object], start: Callable[[], object]
) -> Iterator[Target]:
    """Make databases for a pooler, and close them."""
    opened: list[Database[TupleRow]] = []

    def make(**changes: object) -> Database[TupleRow]:
        opened.append(Database(replace(settings_for(pooler), **changes)))  # type: ignore[arg-type]
        return opened[-1]

    target = Target(make, stop, start)
    yield target
    target.end()
    for db in opened:
        db.close()


@pytest.fixture(params=["direct", "pooled", "behind"])
def target(request: pytest.FixtureRequest) -> Target:
    """Each of them."""
    found: Target = request.getfixturevalue(request.param)
    return found


class Work(Load):
    """Units of work one after the other from a thread, until told to stop."""

    def _request(self) -> None:
        self._db.run_transaction(lambda connection: connection.execute("SELECT 1"))


def test_a_short_outage_fails_nothing(target: Target) -> None:
    """It ends within the checkout timeout: what met it takes longer, and that is all."""
    db = target.make(slots=2)
    loads = Load(db), Work(db)
    with loads[0], loads[1]:
        wait_for_each(loads, 20)
        target.stop()
        before = [load.served for load in loads]
        time.sleep(0.5)
        during = [load.served - served for load, served in zip(loads, before, strict=True)]
        target.start()
        wait_for_each(loads, 20)
    assert not [load.errors for load in loads if load.errors]
    # A thread may have had one answer that it had not counted when the outage began.
    assert max(during) <= 1


def test_a_long_outage_is_answered_in_time_and_over_soon(target: Target) -> None:
    """Three requests wait for the whole of their time, the next ones do not; then all is well."""
    window = 0.4
    db = target.make(checkout_timeout=window)
    db.execute("SELECT 1")
    target.stop()
    open_breaker(db, window)
    during = keep_asking(db, 1.0)
    for request in during:
        require_unavailable(request, 1.0 + AT_ONCE)
    assert sum(request.took > AT_ONCE for request in during) <= 3
    began = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        success = threads.submit(first_success, db, began)
        target.start()
        ended = time.monotonic()
        assert began + success.result() - ended < 2
    assert all(ask(db).error is None for _ in range(5))


# A server that is away behind a proxy: exactly so long, and no longer


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[FaultProxy]:
    """What stands before the server."""
    with FaultProxy("127.0.0.1", postgres.port) as proxy:
        yield proxy


def test_an_outage_as_long_as_the_window_less_a_moment_is_survived(
    open_database: Open, proxy: FaultProxy
) -> None:
    """With the timeout that functions have: 2.4 of 3 s."""
    db = open_database(port=proxy.port)
    db.execute("SELECT 1")
    with ThreadPoolExecutor(1) as threads, proxy.refuse():
        proxy.reset()
        answer = threads.submit(ask, db)
        time.sleep(2.4)
    assert answer.result().error is None
    assert db.stats()["requests_errors"] == 0


def test_a_long_outage_has_one_probe_at_a_time(open_database: Open, proxy: FaultProxy) -> None:
    """Of one connect, a quarter to three quarters of a second after the one before."""
    db = open_database(port=proxy.port, checkout_timeout=1.2, slots=3)
    db.execute("SELECT 1")
    with proxy.refuse():
        proxy.reset()
        with ThreadPoolExecutor(3) as threads:
            for request in threads.map(ask, [db] * 3):
                require_unavailable(request, 1.2 + 1)
        opened, connects = time.monotonic(), db.stats()["connections_num"]
        with ThreadPoolExecutor(3) as threads:
            asked = [threads.submit(keep_asking, db, 2.0) for _ in range(3)]
        requests = sorted((r for a in asked for r in a.result()), key=lambda r: r.began)
    for request in requests:
        require_unavailable(request, 1.0 + AT_ONCE)
    fast = [request for request in requests if "the next try is in" in str(request.error)]
    probes = [request for request in requests if request not in fast]
    assert 2.0 / (0.75 + 2 * EVERY + AT_ONCE) - 1 <= len(probes) <= 2.0 / 0.25
    assert db.stats()["connections_num"] - connects == len(probes)
    ends = [opened, *(probe.ended for probe in probes)]
    pauses = [probe.began - end for end, probe in zip(ends, probes, strict=False)]
    assert all(0.2 < pause < 0.75 + 2 * EVERY + AT_ONCE for pause in pauses), pauses
    assert len(fast) > 5 * len(probes)
    for request in fast:
        assert isinstance(request.error, DatabaseUnavailableError)
        assert request.error.retry_after <= 1.75
        assert request.took < AT_ONCE


@pytest.mark.parametrize(("fault", "lasts"), [("refuse", 0.1), ("refuse", 0.6), ("stall", 0.7)])
def test_the_first_success_follows_the_end_of_a_fault_within_two_seconds(
    open_database: Open, proxy: FaultProxy, fault: str, lasts: float
) -> None:
    """Whenever it ends, and whether connects were refused or not answered."""
    window = 0.3
    db = open_database(port=proxy.port, checkout_timeout=window)
    db.execute("SELECT 1")
    with proxy.refuse() if fault == "refuse" else proxy.stall():
        db.close() if fault == "stall" else proxy.reset()
        open_breaker(db, window)
        keep_asking(db, lasts)
    assert first_success(db, time.monotonic()) < 2


def test_the_breaker_opens_after_three_failures_and_closes_after_one_success(
    open_database: Open, proxy: FaultProxy
) -> None:
    """Two are an accident; and after a success it takes three again."""
    window = 0.3
    db = open_database(port=proxy.port, checkout_timeout=window)
    for _ in range(2):
        with proxy.refuse():
            db.close()
            for _ in range(2):
                require_unavailable(ask(db), window + 1)
        assert ask(db).error is None
    with proxy.refuse():
        db.close()
        open_breaker(db, window)
        assert ask(db).took < AT_ONCE


# Connects that take longer than a request has


HALF_A_LOGIN: Final = 600
"""Bytes of the server's answers after which a login is half done: the certificate is longer."""


def test_a_login_once_begun_is_finished_by_the_next_request(
    open_database: Open, proxy: FaultProxy
) -> None:
    """What an overloaded server has spent on it is not spent again."""
    db = open_database(port=proxy.port, checkout_timeout=0.3)
    with proxy.cut_after(HALF_A_LOGIN, then="stall"):
        for _ in range(2):
            request = ask(db)
            require_unavailable(request, 0.3 + AT_ONCE)
            assert "login not finished by" in str(request.error)
    assert first_success(db, time.monotonic()) < 2
    assert proxy.accepted == 1


def test_a_probe_goes_on_with_the_login_of_the_one_before(
    open_database: Open, proxy: FaultProxy
) -> None:
    """Behind an open breaker, too: a probe is too short for a login among those of a fleet."""
    db = open_database(port=proxy.port, checkout_timeout=0.3)
    with proxy.cut_after(HALF_A_LOGIN, then="stall"):
        open_breaker(db, 0.3)
        keep_asking(db, 1.5)
    assert first_success(db, time.monotonic()) < 2
    assert proxy.accepted == 1


def test_a_half_done_login_is_forgotten_before_a_snapshot(
    open_database: Open, proxy: FaultProxy
) -> None:
    """As an open connection is; and close() ends it, too."""
    db = open_database(port=proxy.port, checkout_timeout=0.3)
    with proxy.cut_after(HALF_A_LOGIN, then="stall"):
        for end in (db.forget, db.close):
            assert ask(db).error is not None
            assert len(sockets_to(proxy.port)) == 1
            end()
            assert not sockets_to(proxy.port)
    assert ask(db).error is None


def test_a_forked_child_leaves_a_half_done_login_to_its_parent(
    open_database: Open, proxy: FaultProxy
) -> None:
    """The child begins its own, and the parent's goes on."""
    db = open_database(port=proxy.port, checkout_timeout=0.8)
    with proxy.cut_after(HALF_A_LOGIN, then="stall"):
        assert ask(db).error is not None
    child = os.fork()
    if child == 0:
        os._exit(0 if ask(db).error is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert first_success(db, time.monotonic()) < 2
    assert proxy.accepted == 2


def test_a_server_that_hangs_leaves_time_for_another(
    open_database: Open, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two tasks is stopped: the kernel accepts for it, and the other one serves."""
    monkeypatch.setattr("lambda_pg._connector.resolve", lambda *_: ["127.0.0.2", "127.0.0.1"])
    with socket.create_server(("127.0.0.2", postgres.port)):
        db = open_database()
        request = ask(db)
    assert request.error is None
    assert request.took < 2


@pytest.mark.skipif(not can_blackhole(), reason="needs Linux's socket filters")
def test_lost_packets_that_end_within_the_window_fail_no_connect(
    open_database: Open, proxy: FaultProxy
) -> None:
    """A fresh SYN is sent twice a second: TCP alone would wait from 1 s to 3 s."""
    dbs = [open_database(port=proxy.port) for _ in range(8)]
    ends = time.monotonic() + 2.5
    with ThreadPoolExecutor(len(dbs)) as threads, proxy.blackhole():
        asked = []
        for db in dbs:
            asked.append(threads.submit(ask, db))
            time.sleep(0.05)
        time.sleep(max(0.0, ends - time.monotonic()))
    assert [each.result().error for each in asked] == [None] * len(dbs)


class Closing:
    """A server that takes connections and closes them at once; counts them."""

    def __enter__(self) -> "Closing":
        """Listen."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._socket.getsockname()[1])
        self.accepted: list[float] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted.append(time.monotonic())
            connection.close()


def test_a_fleet_does_not_hammer_a_dead_server(open_database: Open) -> None:
    """Twenty environments whose clients never stop asking: a few connects a second of each."""
    with Closing() as server:
        fleet = [open_database(port=server.port, checkout_timeout=0.3) for _ in range(20)]
        with ThreadPoolExecutor(20) as threads:
            for each in [threads.submit(open_breaker, db, 0.3) for db in fleet]:
                each.result()
            began = time.monotonic()
            for asked in [threads.submit(keep_asking, db, 2) for db in fleet]:
                assert all(request.error is not None for request in asked.result())
        later = [at for at in server.accepted if began < at < began + 2]
    assert 20 * 2 < len(later) < 20 * 2 * 3


# What is no outage


CONFLICTS: Final = 15.0
"""Seconds of conflicts: a budget of 60 retries and one a second was spent after ten."""


def test_conflicts_on_one_row_are_bound_by_the_window_only(
    open_database: Open, admin: Admin
) -> None:
    """Four environments count up one row at REPEATABLE READ for longer than a budget lasts."""
    admin.execute("INSERT INTO counter VALUES (0)")
    ends = time.monotonic() + CONFLICTS

    def count(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = connection.execute("SELECT n FROM counter").fetchone()
        time.sleep(0.01)
        connection.execute("UPDATE counter SET n = %s", [row[0] + 1 if row else None])

    def work(db: Database[TupleRow]) -> tuple[int, int]:
        done = 0
        while time.monotonic() < ends:
            try:
                db.run_transaction(count)
                done += 1
            except CheckoutTimeoutError:
                continue  # the window has ended: no other error may come
        return done, db.stats()["retries"]

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(work, [open_database() for _ in range(4)]))
    assert max(retries for _, retries in results) > 60 + CONFLICTS, "too few conflicts to tell"
    assert admin.execute("SELECT n FROM counter").fetchone() == (sum(done for done, _ in results),)


def sql_error(db: Database[TupleRow]) -> None:
    """Divide by zero."""
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute("SELECT 1/0")


def sql_error_in_a_transaction(db: Database[TupleRow]) -> None:
    """Divide by zero inside."""
    with pytest.raises(psycopg.errors.DivisionByZero), db.transaction() as connection:
        connection.execute("SELECT 1/0")


def serialization_failure(db: Database[TupleRow]) -> None:
    """Conflict with somebody until there is no time left."""
    raising = "DO $$ BEGIN RAISE 'conflict' USING ERRCODE = '40001'; END $$"
    with pytest.raises(DatabaseUnavailableError) as caught:
        db.run_transaction(lambda connection: connection.execute(raising))
    assert isinstance(caught.value.__cause__, psycopg.errors.SerializationFailure)


def serialization_failure_of_a_statement(db: Database[TupleRow]) -> None:
    """Conflict once."""
    with pytest.raises(psycopg.errors.SerializationFailure):
        db.execute("DO $$ BEGIN RAISE 'conflict' USING ERRCODE = '40001'; END $$")


def deadline_of_a_statement(db: Database[TupleRow]) -> None:
    """Ask for more than there is time for."""
    with pytest.raises(DeadlineExceededError), db.deadline(0.5):
        db.execute("SELECT pg_sleep(5)")


def error_of_the_handler(db: Database[TupleRow]) -> None:
    """Fail in Python."""
    with pytest.raises(LookupError), db.connection():
        raise LookupError


def slots_taken(db: Database[TupleRow]) -> None:
    """Find every slot taken by another thread."""
    with slot_taken(db), pytest.raises(DatabaseUnavailableError, match="slots"):
        db.execute("SELECT 1")


@pytest.mark.parametrize(
    "failure",
    [
        sql_error,
        sql_error_in_a_transaction,
        serialization_failure,
        serialization_failure_of_a_statement,
        deadline_of_a_statement,
        error_of_the_handler,
        slots_taken,
    ],
)
def test_what_is_no_outage_never_opens_the_breaker(
    open_database: Open, failure: Callable[[Database[TupleRow]], None]
) -> None:
    """The database is there: however often it happens, the next request is served at once."""
    db = open_database(checkout_timeout=0.5)
    wait_until(lambda: ask(db).error is None)  # the first login may take longer
    for _ in range(4):  # three failures would open it
        failure(db)
    assert scalar(db, "SELECT 1") == 1


def test_a_full_pooler_is_answered_in_time(
    new_pooler: PoolerFixture, secrets_environment: None
) -> None:
    """All server connections are busy: the queue refuses, and so does the layer, in time."""
    pooler = new_pooler.start(MAX_DB_CONNECTIONS="1", QUERY_WAIT_TIMEOUT="1")
    db = Database(settings_for(pooler))
    with pooler.connect() as holder:
        holder.execute("BEGIN")
        request = ask(db)
        holder.execute("COMMIT")
    require_unavailable(request, 3 + 2)  # the last attempt may wait 1 s in the queue
    assert "query_wait_timeout" in str(request.error)
    assert ask(db).error is None
    db.close()


def write_with_claims(db: Database[TupleRow]) -> None:
    """Write in a transaction of one round trip."""
    db.execute("CREATE TABLE never ()", claims={"sub": "a"})


def write_in_a_unit_of_work(db: Database[TupleRow]) -> None:
    """Write in a transaction that is begun together with its first statement."""
    db.run_transaction(lambda connection: connection.execute("CREATE TABLE never ()"))


@pytest.mark.parametrize("write", [write_with_claims, write_in_a_unit_of_work])
def test_a_refusal_in_the_middle_of_a_pipeline_is_known_for_what_it_is(
    new_pooler: PoolerFixture,
    secrets_environment: None,
    write: Callable[[Database[TupleRow]], None],
) -> None:
    """The pooler refuses and hangs up: the first says that nothing ran, the second nothing."""
    pooler = new_pooler.start(MAX_DB_CONNECTIONS="1", QUERY_WAIT_TIMEOUT="1")
    db = Database(settings_for(pooler))
    with pooler.connect() as holder:
        holder.execute("BEGIN")
        with pytest.raises(CheckoutTimeoutError, match="query_wait_timeout"):
            write(db)
        holder.execute("COMMIT")
    db.close()
