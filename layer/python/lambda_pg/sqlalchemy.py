"""SQLAlchemy over the pool of a Database: each checkout of the engine is one of the layer's.

db = Database.from_env()
engine = create_engine(db)

For what takes a URL only, as Flask-SQLAlchemy does: `postgresql+lambda_pg://`, which is the
Database of `lambda_pg.sqlalchemy.database()`.
"""

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psycopg
import sqlalchemy
from psycopg.adapt import AdaptersMap
from psycopg.rows import tuple_row
from sqlalchemy import Engine, NullPool, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import ArgumentError

from lambda_pg._connection import Connection
from lambda_pg._database import Database
from lambda_pg._shared import database

__all__ = ["LayerDialect", "create_engine", "database"]

URL: Final = sqlalchemy.URL.create("postgresql+lambda_pg")


def create_engine(db: Database[Any], **options: Any) -> Engine:
    """Make an engine whose connections are those of `db`; there is no second pool.

    `options` are those of sqlalchemy.create_engine(), without its pool's. A checkout that fails
    is a sqlalchemy.exc.OperationalError whose `orig` is the DatabaseUnavailableError.
    The type hstore stays text unless `use_native_hstore=True` asks for its lookup at connect.
    """
    return sqlalchemy.create_engine(URL, database=db, **options)


class LayerDialect(PGDialect_psycopg):
    """SQLAlchemy's dialect for psycopg, with a Database instead of psycopg.connect()."""

    supports_statement_cache = True

    def __init__(
        self,
        database: Database[Any] | None = None,
        *,
        use_native_hstore: bool = False,
        **options: Any,
    ) -> None:
        """Take the database, or the environment's, and the options of SQLAlchemy's dialect."""
        super().__init__(use_native_hstore=use_native_hstore, **options)  # type: ignore[no-untyped-call]
        self._database = database

    @classmethod
    def get_pool_class(cls, url: sqlalchemy.URL) -> type[NullPool]:  # noqa: ARG003 - SQLAlchemy passes it
        """Keep no connection: the layer does."""
        return NullPool

    def create_connect_args(self, url: sqlalchemy.URL) -> Any:
        """Find the environment's database. Raises ArgumentError for a URL with more in it."""
        if url.set(drivername=URL.drivername) != URL:
            raise ArgumentError(
                f"{URL} takes endpoint and login from the environment (LAMBDA_PG_SECRET_ARN, "
                "DATABASE_URL): nothing may follow the slashes. For another database use "
                "lambda_pg.sqlalchemy.create_engine(db)"
            )
        if self._database is None:
            self._database = database()
        return super().create_connect_args(url)  # type: ignore[no-untyped-call]

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        """Refuse a second pool, and note the objects that keep a connection."""
        if not isinstance(engine.pool, NullPool):
            raise ArgumentError(
                f"the pool {type(engine.pool).__name__} would keep connections of the layer after "
                "the end of their invocation: leave out `poolclass`, and NullPool is used"
            )
        event.listen(engine, "engine_connect", _hold)
        event.listen(engine, "begin", _hold)  # a Connection may connect again

    def connect(self, *_: Any, **parameters: Any) -> Any:
        """Take a connection out of the layer's pool, as SQLAlchemy expects a new one to be."""
        assert self._database is not None  # noqa: S101 - create_connect_args() comes first
        connection = self._database.getconn()
        connection._adapters = AdaptersMap(parameters.get("context"))
        connection.row_factory = tuple_row
        connection.autocommit = False
        return connection

    def reset_isolation_level(self, dbapi_conn: Any) -> None:
        """Leave it to the layer's pool, which resets a connection."""

    def set_readonly(self, connection: Any, value: Any) -> None:
        """Set it, except on a closed connection, which SQLAlchemy resets before it drops it."""
        if not connection.closed:
            super().set_readonly(connection, value)  # type: ignore[no-untyped-call]

    def set_deferrable(self, connection: Any, value: Any) -> None:
        """Set it, except on a closed connection."""
        if not connection.closed:
            super().set_deferrable(connection, value)  # type: ignore[no-untyped-call]

    def do_close(self, dbapi_connection: Any) -> None:
        """Return the connection where SQLAlchemy closes one."""
        assert self._database is not None  # noqa: S101 - it was connected
        self._database.putconn(dbapi_connection)

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close the connection, which SQLAlchemy considers bad, and free its slot."""
        connection: psycopg.Connection[Any] = dbapi_connection
        connection.close()
        self.do_close(connection)


class _Holder:
    """A Connection of SQLAlchemy's, and the session that began its transaction."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self.connection = weakref.ref(connection)
        self.session: Callable[[], Any] = _nothing
        self._transactions: list[weakref.ref[Any]] = []

    def has_unsent_work(self) -> bool:
        session = self.session()
        held = [each for each in (session, self.connection()) if each is not None]
        found = [each.get_transaction() for each in held]
        self._transactions = [weakref.ref(each) for each in found if each is not None]
        return session is not None and bool(session.new or session.dirty or session.deleted)

    def settle(self, *, reported: bool) -> bool:
        """Make the session and its connection forget the transaction, unless they have already."""
        then = [each() for each in self._transactions]
        if reported:
            with suppress(Exception):  # of the application's listeners: this invocation is over
                self._forget(then)
        return reported or not any(each is not None for each in then)

    def _forget(self, transactions: list[Any]) -> None:
        session = self.session()
        if session is not None and _is_in(session, transactions):
            session.rollback()
        connection = self.connection()
        if connection is not None and (_is_in(connection, transactions) or _is_ended(connection)):
            connection.invalidate()
            connection.rollback()


def _nothing() -> None:
    return None


def _is_in(held: Any, transactions: list[Any]) -> bool:
    now = held.get_transaction()
    return any(now is each for each in transactions)


def _is_ended(connection: sqlalchemy.Connection) -> bool:
    if connection.closed or connection.invalidated:
        return False
    lent: Any = connection.connection.dbapi_connection
    return isinstance(lent, Connection) and lent.lease.reclaimed


def _hold(connection: sqlalchemy.Connection) -> None:
    """Note which SQLAlchemy connection has one of the layer's."""
    lent: Any = connection.connection.dbapi_connection
    if isinstance(lent, Connection) and lent.lease.holder is None:
        lent.lease.holder = _Holder(connection)
    orm = sys.modules.get("sqlalchemy.orm")  # imported before there can be a session
    if orm is not None and not event.contains(orm.Session, "after_begin", _hold_for_session):
        event.listen(orm.Session, "after_begin", _hold_for_session)


def _hold_for_session(session: Any, _: Any, connection: sqlalchemy.Connection) -> None:
    lent: Any = connection.connection.dbapi_connection
    if isinstance(lent, Connection) and isinstance(lent.lease.holder, _Holder):
        lent.lease.holder.session = weakref.ref(session)


registry.register("postgresql.lambda_pg", __name__, LayerDialect.__name__)
