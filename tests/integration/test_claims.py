"""Claims that somebody has left in a session show no row to the next client of the pooler."""

import json
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.util import load_python_file
from lambda_pg import Database, Settings, StatementRefusedError
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from sqlalchemy import create_engine, text

from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.roles import Login, Timeouts
from lambda_pg_cdk.migrations.run import migrate
from lambda_pg_cdk.migrations.upgrade import BASE
from tests.support.servers import PoolerFixture, SecretsService, pooler_in_tmp

TIMEOUTS = Timeouts(statement=7, lock=2, idle_in_transaction=20)
MINE, OTHERS = uuid.uuid4(), uuid.uuid4()
COUNT = "SELECT count(*) FROM users"

CLAIMED = json.dumps({"sub": str(MINE)})
SESSION = "SELECT pg_backend_pid(), current_setting('request.jwt.claims', true)"
INSERT = "INSERT INTO users (owner, name) VALUES (%s, 'somebody')"
LEFT = {
    "by SET": f"SET request.jwt.claims = '{CLAIMED}'",
    "by set_config": f"SELECT set_config('request.jwt.claims', '{CLAIMED}', false)",
    "by SET in a transaction": f"BEGIN; SET request.jwt.claims = '{CLAIMED}'; COMMIT",
    "with the transaction": (
        f"SELECT set_config('request.jwt.claims', '{CLAIMED}', false),"
        " set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, false)"
    ),
}
"""What clients that do not know the pooler leave in a session."""

Reader = Callable[[Database[TupleRow]], object]


class Site:
    """The sample's schema in a database of the test's own, behind one server connection."""

    def __init__(self, pooler: PoolerFixture, postgres: Postgres, database: str) -> None:
        self.pooler = pooler
        self.owner_dsn = make_conninfo(postgres.dsn, dbname=database)
        self._dsn = make_conninfo(pooler.dsn(), dbname=database)
        self._login = Login(pooler.login.name, pooler.login.password, borrowed=True)
        self._settings = Settings(
            host="127.0.0.1",
            port=pooler.port,
            dbname=database,
            user=pooler.login.name,
            password=pooler.login.password,
            sslrootcert=pooler.ca_file,
            profile="pgbouncer",
        )

    def migrate(self) -> None:
        """Deploy."""
        connection = psycopg.connect(self.owner_dsn, autocommit=True)
        migrate(connection, lambda: self._login, TIMEOUTS, patience=30, shared=True)

    def downgrade(self) -> None:
        """Undo the base's third and second revisions."""
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(self.owner_dsn)
        )
        for name in ("0003_idempotency_keys.py", "0002_claims_of_this_transaction.py"):
            revision = load_python_file(BASE.folder, name)
            with engine.begin() as session, Operations.context(MigrationContext.configure(session)):
                revision.downgrade()
                session.execute(
                    text("UPDATE alembic_version SET version_num = :to WHERE version_num = :old"),
                    {"to": revision.down_revision, "old": revision.revision},
                )
        engine.dispose()

    def leave(self, statement: str) -> object:
        """Leave claims in the session, as a client of another kind might; return the session."""
        with self.connect() as client:
            client.execute(statement.encode())
            return client.execute(SESSION).fetchone()

    def connect(self) -> psycopg.Connection[Any]:
        """Connect through the pooler without the layer."""
        return psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)

    def open(self, **options: Any) -> Database[TupleRow]:
        """Open the layer."""
        return Database(replace(self._settings, **options))


def by_execute(db: Database[TupleRow]) -> object:
    """Read in one statement."""
    return db.execute(COUNT).fetchone()


def by_transaction(db: Database[TupleRow]) -> object:
    """Read in a transaction."""
    with db.transaction() as connection:
        return connection.execute(COUNT).fetchone()


def by_unit_of_work(db: Database[TupleRow]) -> object:
    """Read in a unit of work."""
    return db.run_transaction(lambda connection: connection.execute(COUNT).fetchone())


def by_connection(db: Database[TupleRow]) -> object:
    """Read over a connection."""
    with db.connection() as connection:
        return connection.execute(COUNT).fetchone()


READERS = [by_execute, by_transaction, by_unit_of_work, by_connection]


@pytest.fixture(scope="module")
def deployed(
    postgres: Postgres, secrets_service: SecretsService, pgbouncer_binary: PgBouncerBinary
) -> Iterator[Site]:
    """The deployed sample."""
    database = f"claims_{secrets.token_hex(4)}"
    with (
        psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin,
        pooler_in_tmp(pgbouncer_binary, postgres, secrets_service) as pooler,
    ):
        owner = sql.Identifier(str(conninfo_to_dict(postgres.dsn)["user"]))
        admin.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(database), owner)
        )
        try:
            pooler.start(DATABASE_NAME=database, DEFAULT_POOL_SIZE="1", MAX_DB_CONNECTIONS="1")
            site = Site(pooler, postgres, database)
            site.migrate()
            yield site
        finally:
            pooler.stop()
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            admin.execute(drop.format(sql.Identifier(database)))


@pytest.fixture
def site(deployed: Site) -> Site:
    """The deployed sample, with one row of each of two subjects, and nothing left in a session."""
    with psycopg.connect(deployed.owner_dsn) as owner:
        owner.execute("TRUNCATE users")
    deployed.pooler.renew()
    with closing(deployed.open()) as db:
        for subject in (MINE, OTHERS):
            db.execute(INSERT, [subject], claims={"sub": str(subject)})
    return deployed


@pytest.mark.parametrize("left", LEFT)
def test_claims_left_in_a_session_show_no_row(site: Site, left: str) -> None:
    """The next client has that session, with the claims in it, and sees nothing by any verb."""
    session = site.leave(LEFT[left])
    with closing(site.open()) as db:
        assert db.execute(SESSION).fetchone() == session
        assert CLAIMED in str(session)
        for read in READERS:
            assert read(db) == (0,), read.__name__
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(INSERT, [MINE])
        assert db.execute(SESSION).fetchone() == session


@pytest.mark.parametrize("left", LEFT)
def test_claims_of_a_transaction_hold_over_those_of_its_session(site: Site, left: str) -> None:
    """Who brings claims gets the rows of those, and of no others."""
    session = site.leave(LEFT[left])
    with closing(site.open()) as db:
        for subject in (OTHERS, MINE, OTHERS):
            found = db.execute("SELECT owner FROM users", claims={"sub": str(subject)})
            assert found.fetchall() == [(subject,)]
        assert db.execute("SELECT owner FROM users", claims={}).fetchall() == []
        assert db.execute(SESSION).fetchone() == session


def test_the_schema_before_showed_the_row(site: Site) -> None:
    """Nothing but the newest revision keeps it back; going forth and back is possible."""
    site.downgrade()
    site.leave(LEFT["by SET"])
    with closing(site.open()) as db:
        assert by_execute(db) == (1,)
        site.migrate()
        assert by_execute(db) == (0,)
        assert db.execute(COUNT, claims={"sub": str(MINE)}).fetchone() == (1,)


def test_claims_hold_whatever_the_session_s_formats_are(site: Site) -> None:
    """The start of the transaction is compared as a time, not as a text."""
    with closing(site.open()) as db, db.transaction(claims={"sub": str(MINE)}) as connection:
        connection.execute("SET LOCAL TimeZone = 'Asia/Kolkata'")
        assert connection.execute(COUNT).fetchone() == (1,)
        connection.execute("SAVEPOINT here")
        assert connection.execute(COUNT).fetchone() == (1,)


@pytest.mark.parametrize("statement", ["by SET", "by set_config", "by SET in a transaction"])
def test_a_deployed_function_cannot_leave_claims(site: Site, statement: str) -> None:
    """Strict mode, which the stacks switch on, refuses them before they are sent."""
    with closing(site.open(strict=True)) as db:
        with pytest.raises(StatementRefusedError):
            db.execute(LEFT[statement])
        row = db.execute(SESSION).fetchone()
        assert row is not None
        assert not row[1]


def test_the_policy_costs_no_call(site: Site) -> None:
    """PostgreSQL inlines the function, which costs a statement less than a call did."""
    with site.connect() as connection:
        plan = connection.execute("EXPLAIN (VERBOSE, COSTS OFF) SELECT FROM users").fetchall()
    assert "request.jwt.transaction" in str(plan)
    assert "current_subject" not in str(plan)
