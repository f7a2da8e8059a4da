"""A server that answers "not now": what is retried, what is answered 503, and what is final."""

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from lambda_pg import ConnectFailedError, Database, DatabaseUnavailableError
from lambda_pg._connection import Connection
from lambda_pg._failures import RESOLVER, Failure
from psycopg import errors
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Admin, Open, later, scalar
from tests.support.postgres import CopiedPostgres
from tests.support.waiting import wait_until

INSERT = "INSERT INTO counter VALUES (1)"
Work = Callable[[psycopg.Connection[TupleRow]], object]


def insert(connection: psycopg.Connection[TupleRow]) -> None:
    """Write one row as a unit of work."""
    connection.execute(INSERT)


def by_execute(db: Database[TupleRow]) -> None:
    """Write one row by the one verb that can be retried."""
    db.execute(INSERT)


def by_claims(db: Database[TupleRow]) -> None:
    """Write one row in one round trip."""
    db.execute(INSERT, claims={"sub": "a"})


def by_work(db: Database[TupleRow]) -> None:
    """Write one row by the other one."""
    db.run_transaction(insert)


def by_transaction(db: Database[TupleRow]) -> None:
    """Write one row in a block."""
    with db.transaction() as connection:
        connection.execute(INSERT)


def by_connection(db: Database[TupleRow]) -> None:
    """Write one row in a caller's connection."""
    with db.connection() as connection:
        connection.execute(INSERT)


RETRIED = [by_execute, by_claims, by_work]
ONCE = [by_transaction, by_connection]
Verb = Callable[[Database[TupleRow]], None]


def count(admin: Admin) -> int:
    """Count the rows."""
    row = admin.execute("SELECT count(*) FROM counter").fetchone()
    return row[0] if row else 0


# --- a server that takes no writes


@pytest.fixture
def maintenance(admin: Admin) -> Iterator[Callable[[bool], None]]:
    """Make the whole server read-only, and writable again, as an operator does."""

    def switch(on: bool) -> None:
        with psycopg.connect(
            host=admin.info.host,
            port=admin.info.port,
            user=admin.info.user,
            password=admin.info.password,
            dbname="postgres",
            autocommit=True,
        ) as other:
            verb = "SET default_transaction_read_only = on"
            other.execute(
                f"ALTER SYSTEM {verb}" if on else "ALTER SYSTEM RESET default_transaction_read_only"
            )
            other.execute("SELECT pg_reload_conf()")
            wanted = ("on",) if on else ("off",)
            shown = "SHOW default_transaction_read_only"
            wait_until(lambda: other.execute(shown).fetchone() == wanted)

    yield switch
    switch(False)


@pytest.mark.parametrize("verb", RETRIED)
def test_a_server_that_is_read_only_for_a_moment_fails_nobody(
    db: Database[TupleRow], admin: Admin, maintenance: Callable[[bool], None], verb: Verb
) -> None:
    """The write is tried on other connections until the server takes it, once."""
    db.execute("SELECT 1")
    maintenance(True)
    with later(1.2, lambda: maintenance(False)):
        verb(db)
    assert count(admin) == 1
    assert db.stats()["retries"] > 0


@pytest.mark.parametrize("verb", [*RETRIED, *ONCE])
def test_a_server_that_stays_read_only_is_unavailable(
    open_database: Open, maintenance: Callable[[bool], None], verb: Verb
) -> None:
    """A handler answers 503, the cause is the database's error, and reads are still served."""
    db = open_database(checkout_timeout=0.5)
    maintenance(True)
    with pytest.raises(DatabaseUnavailableError, match="read-only") as caught:
        verb(db)
    assert isinstance(caught.value.__cause__, errors.ReadOnlySqlTransaction)
    assert db._retry.breaker.failures == 0
    assert scalar(db, "SELECT 1") == 1


def test_a_connection_that_was_opened_read_only_is_replaced(
    db: Database[TupleRow], admin: Admin
) -> None:
    """ALTER DATABASE counts for new connections: one from the time before would stay as it is."""
    admin.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    try:
        before = scalar(db, "SELECT pg_backend_pid()")
    finally:
        admin.execute("SET default_transaction_read_only = off")
        admin.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
    db.execute(INSERT)
    assert scalar(db, "SELECT pg_backend_pid()") != before
    assert count(admin) == 1


def test_a_read_only_transaction_that_was_asked_for_is_final(db: Database[TupleRow]) -> None:
    """The caller's own wish is the caller's own error: psycopg's, after one more try."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(1)
        connection.execute("SET TRANSACTION READ ONLY")
        connection.execute(INSERT)

    with pytest.raises(errors.ReadOnlySqlTransaction):
        db.run_transaction(work)
    assert len(runs) == 2
    with pytest.raises(errors.ReadOnlySqlTransaction), db.transaction() as connection:
        work(connection)
    assert db.stats()["connections_num"] == 1


def test_a_role_that_may_not_write_is_final(db: Database[TupleRow], admin: Admin) -> None:
    """What is set for the role is meant: it is the same on each server."""
    admin.execute("ALTER ROLE layer_test SET default_transaction_read_only = on")
    for verb in [*RETRIED, *ONCE]:
        with pytest.raises(errors.ReadOnlySqlTransaction):
            verb(db)


def test_startup_options_that_forbid_writes_are_final(open_database: Open) -> None:
    """So is what the settings say."""
    db = open_database(options="-c default_transaction_read_only=on")
    with pytest.raises(errors.ReadOnlySqlTransaction):
        db.execute(INSERT)


@pytest.fixture
def standby() -> Iterator[Postgres]:
    """A hot standby with the table of the tests, which nobody feeds: it can be promoted."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    port = processes.free_port()
    server = CopiedPostgres(find_postgres(17), folder / "pg", port=port, durable=False)
    try:
        server.start()
        server.create_master("layer_test", "canary-Pa55word", "app")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE counter (n int)")
        server.stop()
        marker = folder / "pg" / "data" / "standby.signal"
        marker.touch()
        shutil.chown(marker, (folder / "pg" / "data").stat().st_uid)
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_standby_that_is_promoted_takes_the_write(standby: Postgres, open_database: Open) -> None:
    """The new primary is still a standby for a moment: the write waits for its promotion."""
    db = open_database(port=standby.port, dbname="app", sslrootcert=standby.ca_file)
    assert scalar(db, "SELECT pg_is_in_recovery()") is True
    with psycopg.connect(standby.superuser_dsn, autocommit=True) as connection:
        with later(1.0, lambda: connection.execute("SELECT pg_promote()")):
            db.run_transaction(insert)
        assert scalar(db, "SELECT count(*) FROM counter") == 1


def test_an_answer_is_not_hidden_by_a_last_connect_that_is_too_short(
    standby: Postgres, open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connect that the end of the window cuts says less than what the server has said before."""
    db = open_database(
        port=standby.port, dbname="app", sslrootcert=standby.ca_file, checkout_timeout=0.5
    )
    connect = db._pool._connect

    def once(timeout: float) -> Connection[TupleRow]:
        monkeypatch.setattr(db._pool, "_connect", cut)
        return connect(timeout)

    def cut(_: float) -> Connection[TupleRow]:
        raise errors.ConnectionTimeout("no answer within 0.0 s")

    monkeypatch.setattr(db._pool, "_connect", once)
    with pytest.raises(DatabaseUnavailableError, match="read-only"):
        db.execute(INSERT)


def test_a_standby_says_that_it_is_one(standby: Postgres, open_database: Open) -> None:
    """Where the address is a standby's, each write is a 503 that says why."""
    db = open_database(
        port=standby.port, dbname="app", sslrootcert=standby.ca_file, checkout_timeout=0.5
    )
    with pytest.raises(DatabaseUnavailableError, match="read-only"):
        db.execute(INSERT)


# --- locks


@pytest.fixture
def lock_timeout(admin: Admin) -> Iterator[None]:
    """A short wait for locks, set on the database as the stacks do."""
    admin.execute("ALTER DATABASE postgres SET lock_timeout = '200ms'")
    yield
    admin.execute("ALTER DATABASE postgres RESET lock_timeout")


@contextmanager
def locked(admin: Admin) -> Iterator[None]:
    """Lock the table as a migration does."""
    admin.execute("BEGIN; LOCK TABLE counter IN ACCESS EXCLUSIVE MODE")
    try:
        yield
    finally:
        admin.execute("COMMIT")


@pytest.mark.parametrize("verb", RETRIED)
def test_a_migrations_lock_is_waited_for(
    db: Database[TupleRow], admin: Admin, lock_timeout: None, verb: Verb
) -> None:
    """A lock that is released within the checkout timeout fails nobody."""
    release = threading.Event()

    def migrate() -> None:
        with locked(admin):
            release.wait(10)

    with ThreadPoolExecutor(1) as threads:
        migration = threads.submit(migrate)
        wait_until(lambda: admin.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS)
        with later(1.2, release.set):
            verb(db)
        migration.result()
    assert count(admin) == 1


@pytest.mark.parametrize("verb", [*RETRIED, *ONCE])
def test_a_lock_that_stays_is_unavailability(
    open_database: Open, admin: Admin, lock_timeout: None, verb: Verb
) -> None:
    """A handler answers 503, and the breaker stays closed: other tables can be used."""
    db = open_database(checkout_timeout=0.7)
    with locked(admin), pytest.raises(DatabaseUnavailableError) as caught:
        verb(db)
    assert isinstance(caught.value.__cause__, errors.LockNotAvailable)
    assert db._retry.breaker.failures == 0


def test_nowait_is_final(db: Database[TupleRow], admin: Admin) -> None:
    """Who says NOWAIT has asked for the error at once, in a statement or inside a function."""
    admin.execute(
        "CREATE FUNCTION pg_temp_nowait() RETURNS void LANGUAGE plpgsql AS "
        "$$ BEGIN LOCK TABLE counter IN SHARE MODE NOWAIT; END $$"
    )
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(1)
        connection.execute("SELECT pg_temp_nowait()")

    admin.execute(INSERT)
    try:
        with locked(admin):
            with pytest.raises(errors.LockNotAvailable):
                db.run_transaction(work)
            with pytest.raises(errors.LockNotAvailable), db.transaction() as connection:
                connection.execute("LOCK TABLE counter NOWAIT")
        admin.execute("BEGIN; SELECT * FROM counter FOR UPDATE")
        with pytest.raises(errors.LockNotAvailable):
            db.execute("SELECT * FROM counter FOR UPDATE NOWAIT")
        admin.execute("COMMIT")
    finally:
        admin.execute("DROP FUNCTION pg_temp_nowait()")
    assert len(runs) == 1
    assert db.stats()["retries"] == 0


# --- transactions that give way


def wait_for_lock(admin: Admin) -> None:
    """Wait until the layer's statement waits for a lock."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = %s"

    def waits() -> object:
        admin.execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees the same one else
        return admin.execute(waiting, ["layer_test"]).fetchone()

    try:
        wait_until(waits)
    except AssertionError:
        admin.execute("ROLLBACK")  # else nobody could end
        raise


def test_execute_survives_a_serialization_failure(db: Database[TupleRow], admin: Admin) -> None:
    """The loser of two updates was rolled back by the server, and is run again."""
    admin.execute("ALTER ROLE layer_test SET default_transaction_isolation = 'repeatable read'")
    admin.execute("INSERT INTO counter VALUES (0)")
    with ThreadPoolExecutor(1) as threads:
        admin.execute("BEGIN; UPDATE counter SET n = n + 1")
        update = threads.submit(db.execute, "UPDATE counter SET n = n + 1")
        wait_for_lock(admin)
        admin.execute("COMMIT")
        update.result()
    assert scalar(db, "SELECT n FROM counter") == 2
    assert db.stats()["retries"] == 1


def test_execute_survives_a_deadlock(db: Database[TupleRow], admin: Admin) -> None:
    """The victim of a deadlock was rolled back by the server, and is run again."""
    admin.execute("ALTER ROLE layer_test SET deadlock_timeout = '500ms'")
    admin.execute("SET deadlock_timeout = '30s'")
    admin.execute("INSERT INTO counter VALUES (10), (20)")
    both = (
        "WITH first AS (UPDATE counter SET n = n + 1 WHERE n = 10 RETURNING n) "
        "UPDATE counter SET n = counter.n + first.n FROM first WHERE counter.n = 20"
    )
    with ThreadPoolExecutor(1) as threads:
        admin.execute("BEGIN; UPDATE counter SET n = n WHERE n = 20")
        update = threads.submit(db.execute, both)
        wait_for_lock(admin)
        admin.execute("UPDATE counter SET n = n WHERE n = 10; COMMIT")  # waits for the victim
        update.result()
    assert [n for (n,) in admin.execute("SELECT n FROM counter ORDER BY n")] == [11, 31]
    assert db.stats()["retries"] == 1


# --- resources, and what may have been committed before the error


@pytest.fixture
def failing(admin: Admin) -> Iterator[Callable[[str, int], None]]:
    """Make functions of the database that fail some times with an SQLSTATE."""
    admin.execute("CREATE SEQUENCE attempts")
    admin.execute("GRANT ALL ON attempts TO layer_test")

    def make(sqlstate: str, times: int) -> None:
        admin.execute(
            "CREATE FUNCTION fail() RETURNS int LANGUAGE plpgsql AS $$ BEGIN "
            f"IF nextval('attempts') <= {times} THEN RAISE 'x' USING ERRCODE = '{sqlstate}'; "
            "END IF; RETURN 1; END $$"
        )
        admin.execute(
            "CREATE PROCEDURE write_and_fail() LANGUAGE plpgsql AS "
            f"$$ BEGIN {INSERT}; COMMIT; PERFORM fail(); END $$"
        )

    yield make
    admin.execute("DROP PROCEDURE IF EXISTS write_and_fail; DROP FUNCTION IF EXISTS fail")
    admin.execute("DROP SEQUENCE attempts")


NOT_ABLE = ["53000", "53100", "53200"]


@pytest.mark.parametrize("sqlstate", [*NOT_ABLE, "40001", "40P01"])
@pytest.mark.parametrize("claims", [None, {"sub": "a"}])
def test_a_lack_that_passes_fails_nobody(
    db: Database[TupleRow],
    admin: Admin,
    failing: Callable[[str, int], None],
    sqlstate: str,
    claims: dict[str, str] | None,
) -> None:
    """A statement that was undone is run again until it succeeds, and took effect once."""
    failing(sqlstate, 2)
    db.execute("INSERT INTO counter SELECT fail()", claims=claims)
    assert count(admin) == 1
    assert db.stats()["retries"] == 2


@pytest.mark.parametrize("sqlstate", NOT_ABLE)
def test_a_lack_that_stays_is_unavailability(
    open_database: Open, failing: Callable[[str, int], None], sqlstate: str
) -> None:
    """A full disk is a 503 with the database's error as its cause, from each verb."""
    db = open_database(checkout_timeout=0.3)
    failing(sqlstate, 1000)

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute("SELECT fail()")

    for verb in (lambda: db.execute("SELECT fail()"), lambda: db.run_transaction(work)):
        with pytest.raises(DatabaseUnavailableError) as caught:
            verb()
        assert caught.value.__cause__ is not None
        assert getattr(caught.value.__cause__, "sqlstate", None) == sqlstate
    for block in (db.transaction, db.connection):
        with pytest.raises(DatabaseUnavailableError, match=sqlstate), block() as connection:
            connection.execute("SELECT fail()")
    assert db._retry.breaker.failures == 0


@pytest.mark.parametrize("sqlstate", ["53100", "40001", "25006"])
@pytest.mark.parametrize(
    "query",
    [
        "CALL write_and_fail()",
        "/* a */ call write_and_fail()",
        f"DO $$ BEGIN {INSERT}; COMMIT; PERFORM fail(); END $$",
        f"{INSERT}; COMMIT; SELECT fail()",
    ],
)
def test_what_may_have_committed_is_never_run_again(
    db: Database[TupleRow],
    admin: Admin,
    failing: Callable[[str, int], None],
    query: str,
    sqlstate: str,
) -> None:
    """A procedure that committed before its error is not repeated: the error is psycopg's own."""
    failing(sqlstate, 1)
    with pytest.raises(errors.lookup(sqlstate)):
        db.execute(query)
    assert count(admin) == 1
    assert db.stats()["retries"] == 0


# --- the resolver


@pytest.mark.parametrize(
    "name",
    [name for name, failure in RESOLVER.items() if failure is Failure.NOT_RUN],
)
def test_a_resolver_that_fails_for_a_moment_fails_nobody(
    open_database: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No error of the resolver that can pass is the end of a request."""
    code = getattr(socket, name, None)
    if code is None:
        pytest.skip(f"this system has no {name}")
    asked: list[object] = []
    real = socket.getaddrinfo

    def resolver(host: bytes, *arguments: object, **options: object) -> object:
        asked.append(host)
        if len(asked) <= 2:
            raise socket.gaierror(code, "nicht jetzt")
        return real("127.0.0.1", *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    assert scalar(open_database(host="localhost"), "SELECT 1") == 1
    assert len(asked) == 3


def test_what_is_no_name_fails_at_once(open_database: Open) -> None:
    """A mistake in the settings is reported without a wait."""
    began = time.monotonic()
    with pytest.raises(ConnectFailedError, match="not the name of a host"):
        open_database(host="db example").execute("SELECT 1")
    assert time.monotonic() - began < 2
