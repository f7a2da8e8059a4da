"""A failover between two real servers, for connections that the layer keeps in its pool.

The address leads to the old primary for a while after that has become a standby, as a name does
until its time to live ends: connections that were opened then stay there.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

import psycopg
import pytest
from django.db import InternalError
from lambda_pg import Database, DatabaseUnavailableError
from lambda_pg.django import database as django_database
from lambda_pg.sqlalchemy import create_engine
from psycopg import errors
from psycopg.rows import TupleRow

from tests.support.django_project import entry_model, fresh_connections
from tests.support.layer import scalar
from tests.support.load import (
    Ledger,
    insert_alone,
    insert_as_work,
    wait_for_refusals,
    wait_for_rows,
)
from tests.support.servers import DATABASE, MASTER
from tests.support.switchover import Pair, assert_clean
from tests.support.waiting import wait_until

INSERT = "INSERT INTO counter VALUES (1)"
IN_RECOVERY = "SELECT pg_is_in_recovery()"


@pytest.fixture
def db(pair: Pair) -> Iterator[Database[TupleRow]]:
    """A database that has written to the primary, by the address, which waits for promotions."""
    with closing(Database(replace(pair.settings(), checkout_timeout=20))) as database:
        database.execute("TRUNCATE counter")
        yield database


def leave_behind(pair: Pair, db: Database[TupleRow]) -> None:
    """Fail over while the address is late: the pool has a connection to the demoted server."""
    pair.switch_over()
    wait_until(lambda: reads_at_a_standby(db))
    pair.move_address()


def reads_at_a_standby(db: Database[TupleRow]) -> bool:
    """Tell whether a read is served, and by a standby."""
    with suppress(psycopg.OperationalError):
        return scalar(db, IN_RECOVERY) is True
    return False


def by_execute(db: Database[TupleRow]) -> None:
    """Write one row by a statement."""
    db.execute(INSERT)


def by_claims(db: Database[TupleRow]) -> None:
    """Write one row in one round trip."""
    db.execute(INSERT, claims={"sub": "a"})


def by_work(db: Database[TupleRow]) -> None:
    """Write one row by a unit of work, which reads before."""

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute("SELECT 1")
        connection.execute(INSERT)

    db.run_transaction(work)


@pytest.mark.parametrize("verb", [by_execute, by_claims, by_work])
def test_a_write_leaves_the_demoted_server(
    pair: Pair, db: Database[TupleRow], verb: Callable[[Database[TupleRow]], None]
) -> None:
    """The write that the old primary denied is done by the new one, once."""
    leave_behind(pair, db)
    verb(db)
    assert pair.rows() == [1]
    assert db.stats()["retries"] > 0


def in_a_transaction(db: Database[TupleRow]) -> None:
    """Write in a block, whose caller keeps the error for itself."""
    with (
        suppress(errors.InFailedSqlTransaction),
        db.transaction() as connection,
        suppress(errors.ReadOnlySqlTransaction),
    ):
        connection.execute(INSERT)


def in_a_connection(db: Database[TupleRow]) -> None:
    """Do so outside of a transaction."""
    with db.connection() as connection, suppress(errors.ReadOnlySqlTransaction):
        connection.execute(INSERT)


def by_copy(db: Database[TupleRow]) -> None:
    """Do so by COPY, on a connection that an adapter to another library keeps."""
    connection = db.getconn()
    with (
        suppress(errors.ReadOnlySqlTransaction),
        connection.cursor().copy("COPY counter FROM STDIN") as copy,
    ):
        copy.write_row([1])
    db.putconn(connection)


def by_many(db: Database[TupleRow]) -> None:
    """Do so by executemany()."""
    with db.connection() as connection, suppress(errors.ReadOnlySqlTransaction):
        connection.cursor().executemany("INSERT INTO counter VALUES (%s)", [[1], [2]])


def by_engine(db: Database[TupleRow]) -> None:
    """Do so by SQLAlchemy, which puts a connection back after any error."""
    import sqlalchemy as sa  # noqa: PLC0415 - one test needs it

    with suppress(sa.exc.InternalError), create_engine(db).begin() as connection:
        connection.execute(sa.text(INSERT))


@pytest.mark.parametrize("denied", [in_a_transaction, in_a_connection, by_copy, by_many, by_engine])
def test_no_denied_connection_stays_in_the_pool(
    pair: Pair, db: Database[TupleRow], denied: Callable[[Database[TupleRow]], None]
) -> None:
    """However a caller meets the denial, the next one gets a connection to the new primary."""
    leave_behind(pair, db)
    denied(db)
    assert scalar(db, IN_RECOVERY) is False
    with db.transaction() as connection:
        connection.execute(INSERT)
    assert pair.rows() == [1]
    wait_until(lambda: not pair.clients(pair.standby))


@pytest.fixture
def project(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database[TupleRow]]:
    """The layer's database of a Django project, which has written to the primary."""
    login = ":".join(MASTER)
    address = f"postgresql://{login}@127.0.0.1:{pair.address.port}/{DATABASE}"
    monkeypatch.setenv("DATABASE_URL", address)
    monkeypatch.setenv("PGSSLROOTCERT", str(pair.primary.ca_file))
    monkeypatch.setenv("LAMBDA_PG_CHECKOUT_TIMEOUT", "20")
    entry_model()
    with fresh_connections():
        database = django_database()
        by_django()
        yield database


def by_django() -> None:
    """Write one row in a request of Django, which closes its connection at the end."""
    from django.db import connection, transaction  # noqa: PLC0415 - needs the settings

    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(INSERT)
    finally:
        connection.close()


def test_django_leaves_the_demoted_server(pair: Pair, project: Database[TupleRow]) -> None:
    """One request meets the denial; the next one writes to the new primary."""
    leave_behind(pair, project)
    with pytest.raises(InternalError, match="read-only") as caught:
        by_django()
    assert isinstance(caught.value.__cause__, errors.ReadOnlySqlTransaction)
    by_django()
    assert pair.rows() == [1, 1]
    wait_until(lambda: not pair.clients(pair.standby))


def test_idle_connections_leave_together(pair: Pair) -> None:
    """One denial is enough for all that are idle: they were opened at the same server."""
    with closing(Database(replace(pair.settings(), slots=3, checkout_timeout=20))) as db:
        db.execute("TRUNCATE counter")
        pair.switch_over()
        wait_until(lambda: reads_at_a_standby(db))
        taken = [db.getconn() for _ in range(3)]
        for connection in taken:
            db.putconn(connection)
        assert len(pair.clients(pair.standby)) == 3
        pair.move_address()
        db.execute(INSERT)
        assert db.stats()["retries"] == 1
        wait_until(lambda: not pair.clients(pair.standby))
    assert pair.rows() == [1]


def test_blocks_say_that_the_database_is_unavailable(pair: Pair, db: Database[TupleRow]) -> None:
    """What cannot be retried is a 503 with the database's error as its cause."""
    for block in (db.transaction, db.connection):
        leave_behind(pair, db)
        with pytest.raises(DatabaseUnavailableError, match="read-only") as caught, block() as held:
            held.execute(INSERT)
        assert isinstance(caught.value.__cause__, errors.ReadOnlySqlTransaction)
        db.execute(INSERT)
    assert pair.rows() == [1, 1]


def test_a_standby_by_address_is_asked_for(pair: Pair) -> None:
    """Where the address is a standby's, a write is the caller's own error, and soon."""
    with closing(Database(replace(pair.settings(pair.standby), checkout_timeout=60))) as db:
        assert scalar(db, IN_RECOVERY) is True
        for write in (by_execute, by_claims, by_work):
            with pytest.raises(errors.ReadOnlySqlTransaction):
                write(db)
        for block in (db.transaction, db.connection):
            with pytest.raises(errors.ReadOnlySqlTransaction), block() as held:
                held.execute(INSERT)
        assert scalar(db, IN_RECOVERY) is True
        assert db.stats()["retries"] == 3, "each of the two verbs tries once more, and no block"


def test_read_only_settings_are_asked_for_at_a_standby_too(pair: Pair) -> None:
    """What the settings say is meant, at whatever server."""
    options = "-c default_transaction_read_only=on"
    with closing(Database(replace(pair.settings(pair.standby), options=options))) as db:
        before = scalar(db, "SELECT pg_backend_pid()")
        with pytest.raises(errors.ReadOnlySqlTransaction):
            db.execute(INSERT)
        assert scalar(db, "SELECT pg_backend_pid()") == before


def test_an_environment_that_starts_at_the_demoted_server_is_not_stuck(pair: Pair) -> None:
    """It has seen standbys only: its writes are refused, until the address has moved."""
    pair.switch_over()
    with closing(Database(pair.settings())) as db:
        with pytest.raises(errors.ReadOnlySqlTransaction):
            db.execute(INSERT)
        pair.move_address()
        db.execute(INSERT)
    assert pair.rows() == [1]


def test_writers_follow_the_primary_there_and_back(pair: Pair) -> None:
    """A ledger over two failovers, with writers that know nothing of them."""
    with (
        closing(Database(pair.settings())) as one,
        closing(Database(pair.settings())) as other,
        ExitStack() as stopped,
    ):
        ledgers = [Ledger(one, insert_alone, 0), Ledger(other, insert_as_work, 1_000_000)]
        for ledger in ledgers:
            stopped.enter_context(ledger)
        for _ in range(2):
            wait_for_rows(ledgers)
            pair.switch_over()
            wait_for_refusals(ledgers)
            pair.move_address()
        wait_for_rows(ledgers)
    assert_clean(pair, ledgers)
