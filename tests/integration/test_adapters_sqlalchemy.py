"""SQLAlchemy over the layer's pool, straight to PostgreSQL and through PgBouncer."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from lambda_pg import (
    ConfigurationError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
    StatementRefusedError,
)
from lambda_pg.sqlalchemy import create_engine
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.context import Context
from tests.support.recorder import Recorder
from tests.support.servers import DATABASE, PoolerFixture

PID = text("SELECT pg_backend_pid()")


class Base(DeclarativeBase):
    """The tables of this module."""


class Account(Base):
    """A row that an ORM session moves."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    balance: Mapped[int]


Open = Callable[..., Database[Any]]


@pytest.fixture
def open_database(postgres: Postgres) -> Iterator[Open]:
    """Make databases straight to PostgreSQL, with other settings than the defaults."""
    address = conninfo_to_dict(postgres.dsn)
    settings = Settings(
        host="127.0.0.1",
        port=postgres.port,
        dbname=str(address["dbname"]),
        user=str(address["user"]),
        password=str(address["password"]),
        sslrootcert=postgres.ca_file,
    )
    with ExitStack() as opened:

        def make(**changes: Any) -> Database[Any]:
            row_factory = changes.pop("row_factory", None)
            options = {"row_factory": row_factory} if row_factory else {}
            database: Database[Any] = Database(replace(settings, **changes), **options)
            opened.callback(database.close)
            return database

        yield make


@pytest.fixture
def db(open_database: Open) -> Database[Any]:
    """A database with the defaults of the layer."""
    return open_database()


@pytest.fixture
def engine(db: Database[Any]) -> Engine:
    """An engine over it."""
    return create_engine(db)


@pytest.fixture
def pooled(kept_pooler: PoolerFixture, tmp_path: Path) -> Iterator[tuple[Database[Any], Recorder]]:
    """A strict database through a recorder and PgBouncer, whose login has a schema of its own."""
    pooler = kept_pooler
    name = pooler.login.name
    with psycopg.connect(pooler.postgres.superuser_dsn, dbname=DATABASE, autocommit=True) as admin:
        admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        admin.execute(f"GRANT CREATE ON DATABASE {DATABASE} TO {name}")
        with Recorder(("127.0.0.1", pooler.port), tmp_path, server_ca=pooler.ca_file) as recorder:
            database: Database[Any] = Database(
                Settings(
                    host="127.0.0.1",
                    port=recorder.port,
                    dbname=DATABASE,
                    user=name,
                    password=pooler.login.password,
                    profile="rds-proxy",
                    sslrootcert=recorder.ca_file,
                    strict=True,
                )
            )
            yield database, recorder
            database.close()
        admin.execute(f"DROP SCHEMA {name} CASCADE")


def backend(engine: Engine) -> int:
    """Say which backend a checkout of the engine meets."""
    with engine.connect() as connection:
        return int(connection.scalar(PID) or 0)


def test_an_orm_session_works_through_a_pooler(pooled: tuple[Database[Any], Recorder]) -> None:
    """Tables, rows, a savepoint that fails and a transaction that fails, as with any engine."""
    engine = create_engine(pooled[0])
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Account(owner=owner, balance=10) for owner in ("ann", "bob")])
        with pytest.raises(sqlalchemy.exc.IntegrityError), session.begin_nested():
            session.add(Account(id=1, owner="eve", balance=0))
    with Session(engine) as session, pytest.raises(ZeroDivisionError), session.begin():
        session.query(Account).update({"balance": 1 // 0})
    with Session(engine) as session:
        rows = session.execute(sqlalchemy.select(Account).order_by(Account.id)).scalars().all()
        assert [(row.owner, row.balance) for row in rows] == [("ann", 10), ("bob", 10)]
    assert sqlalchemy.inspect(engine).has_table("account")


def test_nothing_that_pins_crosses_the_wire(pooled: tuple[Database[Any], Recorder]) -> None:
    """Neither what SQLAlchemy asks at its first connect, nor a transaction, pins RDS Proxy."""
    db, recorder = pooled
    engine = create_engine(db)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE note (body text)"))
        connection.execute(text("INSERT INTO note VALUES (:body)"), [{"body": "a"}, {"body": "b"}])
    assert not recorder.violations("rds-proxy")
    recorder.clear()
    with engine.connect() as connection:
        connection.execute(text("SELECT body FROM note"))
    assert recorder.queries == ["BEGIN", "SELECT body FROM note", "ROLLBACK"]
    recorder.clear()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT body FROM note"))
    assert recorder.queries == ["SELECT body FROM note"]


def test_strict_mode_holds_for_the_engine(pooled: tuple[Database[Any], Recorder]) -> None:
    """A statement that would leak is refused before it is sent, as SQLAlchemy's own error."""
    engine = create_engine(pooled[0])
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.NotSupportedError) as refused:
        connection.execute(text("SET work_mem = '8MB'"))
    assert isinstance(refused.value.orig, StatementRefusedError)
    assert "SET work_mem = '8MB'" not in pooled[1].queries


def test_there_is_one_pool(db: Database[Any], engine: Engine) -> None:
    """Engine and layer meet the same backend, one after the other, and count together."""
    first = backend(engine)
    assert db.execute("SELECT pg_backend_pid()").fetchone() == (first,)
    assert backend(engine) == first
    assert db.stats()["connections_num"] == 1


def test_a_statement_of_the_layer_inside_a_checkout_of_the_engine_is_explained(
    db: Database[Any], engine: Engine
) -> None:
    """The one slot is taken by this very thread: it is told so at once, not after a wait."""
    with engine.connect(), pytest.raises(ConfigurationError, match="LAMBDA_PG_SLOTS"):
        db.execute("SELECT 1")


def test_a_checkout_that_fails_is_an_operational_error(open_database: Open) -> None:
    """SQLAlchemy's error carries the layer's, with the seconds after which to try again."""
    db = open_database(port=processes.free_port(), checkout_timeout=0.2)
    with pytest.raises(sqlalchemy.exc.OperationalError) as failed:
        create_engine(db).connect()
    assert isinstance(failed.value.orig, DatabaseUnavailableError)
    assert failed.value.orig.retry_after > 0


def test_the_deadline_ends_a_statement_of_the_engine(db: Database[Any], engine: Engine) -> None:
    """The error carries the layer's, and the next checkout has a connection that works."""
    lost = backend(engine)
    began = time.monotonic()
    with (
        db.deadline(0.3),
        pytest.raises(sqlalchemy.exc.OperationalError) as failed,
        engine.connect() as connection,
    ):
        connection.execute(text("SELECT pg_sleep(30)"))
    assert time.monotonic() - began < 5
    assert isinstance(failed.value.orig, DeadlineExceededError)
    assert backend(engine) != lost


def test_a_backend_lost_in_the_pool_is_replaced(postgres: Postgres, engine: Engine) -> None:
    """As after a thaw: the engine never sees the connection that died meanwhile."""
    lost = backend(engine)
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        assert admin.execute("SELECT pg_terminate_backend(%s, 5000)", [lost]).fetchone() == (True,)
    assert backend(engine) != lost


def test_an_invalidated_connection_is_closed(db: Database[Any], engine: Engine) -> None:
    """What SQLAlchemy distrusts does not come back, and its slot is free again."""
    with engine.connect() as connection:
        distrusted = connection.scalar(PID)
        connection.invalidate()
    assert backend(engine) != distrusted
    assert db.stats()["pool_size"] == 1


def test_a_checkout_left_open_ends_with_its_invocation(db: Database[Any], engine: Engine) -> None:
    """The next invocation has its slot, and the connection left open is closed."""

    @db.bind_lambda_context
    def handler(_event: object, _context: object) -> sqlalchemy.Connection:
        connection = engine.connect()
        connection.execute(PID)
        return connection

    left = handler({}, Context(5))
    assert backend(engine)
    assert db.stats()["leaks"] == 1
    left.invalidate()
    assert backend(engine)


def test_what_an_engine_sets_ends_with_its_checkout(open_database: Open) -> None:
    """Isolation, adapters and rows are the engine's while it has the connection, then nobody's."""
    db = open_database(row_factory=dict_row)
    engine = create_engine(db, isolation_level="SERIALIZABLE", json_deserializer=lambda _: "mine")
    with engine.connect() as connection:
        row = connection.execute(text("SELECT '1'::json, current_setting('transaction_isolation')"))
        assert row.one() == ("mine", "serializable")
    plain = db.execute(
        "SELECT '1'::json AS json, current_setting('transaction_isolation') AS level"
    )
    assert plain.fetchone() == {"json": 1, "level": "read committed"}


def test_hstore_is_looked_up_only_on_demand(postgres: Postgres, db: Database[Any]) -> None:
    """An option of SQLAlchemy's dialect reaches it."""
    assert create_engine(db).dialect.use_native_hstore is False  # type: ignore[attr-defined]
    asking = create_engine(db, use_native_hstore=True)
    assert asking.dialect.use_native_hstore is True  # type: ignore[attr-defined]
    assert backend(asking)


def test_a_second_pool_is_refused(db: Database[Any]) -> None:
    """The pool's options of SQLAlchemy are errors, not silence."""
    with pytest.raises(TypeError, match="pool_size"):
        create_engine(db, pool_size=5)
