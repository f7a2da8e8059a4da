"""A failover behind PgBouncer, whose server connections lead to a standby that takes no writes."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from lambda_pg import Database, DatabaseUnavailableError
from psycopg import errors
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Admin, later, scalar, settings_for
from tests.support.postgres import CopiedPostgres
from tests.support.servers import DATABASE, MAJOR, PoolerFixture, SecretsService
from tests.support.switchover import copy_server, mark_standby, start_with_table

INSERT = "INSERT INTO counter VALUES (1)"
REFUSED = "cannot execute INSERT in a read-only transaction"

Verb = Callable[[Database[TupleRow]], object]


@dataclass
class Pair:
    """A primary and its standby, one after the other at one address, and the pooler before it."""

    primary: Postgres
    standby: Postgres
    pooler: PoolerFixture

    def superuser(self) -> Admin:
        """Connect to the standby, past the pooler."""
        address = make_conninfo(self.standby.superuser_dsn, dbname=DATABASE)
        return psycopg.connect(address, autocommit=True)

    def fail_over(self) -> None:
        """Crash the primary, and have the standby answer in its place: reads only."""
        self.primary.stop("immediate")
        self.standby.start()

    def promote(self) -> None:
        """Let the standby take writes."""
        with self.superuser() as admin:
            admin.execute("SELECT pg_promote()")

    def rows(self) -> int:
        """Count the rows that the standby has."""
        with self.superuser() as admin:
            return len(admin.execute("SELECT FROM counter").fetchall())


@pytest.fixture
def pair(
    secrets_service: SecretsService, pgbouncer_binary: PgBouncerBinary, secrets_environment: None
) -> Iterator[Pair]:
    """A pooler that works with the primary; the standby is a copy from before."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    binaries, port = find_postgres(MAJOR), processes.free_port()
    primary, standby = (
        CopiedPostgres(binaries, folder / name, port=port, durable=False) for name in ("pg", "copy")
    )
    pooler: PoolerFixture | None = None
    try:
        start_with_table(primary)
        pooler = PoolerFixture(
            pgbouncer_binary, folder, processes.free_port(), primary, secrets_service
        )
        copy_server(primary, standby)
        mark_standby(standby)
        primary.start()
        yield Pair(primary, standby, pooler.start())
    finally:
        if pooler is not None:
            pooler.stop()
        primary.stop("immediate")
        standby.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def by_execute(db: Database[TupleRow]) -> object:
    """Write one row by the one verb that can be retried."""
    return db.execute(INSERT)


def by_work(db: Database[TupleRow]) -> object:
    """Write one row by the other one."""
    return db.run_transaction(lambda connection: connection.execute(INSERT))


@pytest.mark.parametrize("verb", [by_execute, by_work])
def test_a_write_waits_for_the_promotion_of_a_standby(pair: Pair, verb: Verb) -> None:
    """PgBouncer reconnects meanwhile, and what it has then takes writes as soon as it may."""
    with closing(Database(replace(settings_for(pair.pooler), checkout_timeout=20))) as db:
        verb(db)
        pair.fail_over()
        assert scalar_again(db, "SELECT pg_is_in_recovery()") is True
        with later(1.0, pair.promote):
            verb(db)
        assert REFUSED in pair.standby.log.read_text(), "nothing was refused: this proves nothing"
    assert pair.rows() == 1


@pytest.mark.parametrize("verb", [by_execute, by_work])
def test_a_standby_that_stays_one_is_unavailable_for_writes(pair: Pair, verb: Verb) -> None:
    """A handler answers 503 within the checkout timeout, and reads are still served."""
    with closing(Database(replace(settings_for(pair.pooler), checkout_timeout=5))) as db:
        verb(db)
        pair.fail_over()
        assert scalar_again(db, "SELECT pg_is_in_recovery()") is True
        with pytest.raises(DatabaseUnavailableError, match="read-only") as caught:
            verb(db)
        assert isinstance(caught.value.__cause__, errors.ReadOnlySqlTransaction)
        assert scalar(db, "SELECT pg_is_in_recovery()") is True
    assert pair.rows() == 0


def scalar_again(db: Database[TupleRow], query: str) -> object:
    """Ask by a statement that may be repeated, as connections may be lost meanwhile."""
    row = db.execute(query, idempotent=True).fetchone()
    return row[0] if row else None
