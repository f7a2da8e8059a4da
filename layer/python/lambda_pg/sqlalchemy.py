"""SQLAlchemy over the pool of a Database: each checkout of the engine is one of the layer's.

db = Database.from_env()
engine = create_engine(db)
"""

from typing import Any

import psycopg
import sqlalchemy
from psycopg.adapt import AdaptersMap
from psycopg.rows import tuple_row
from sqlalchemy import Engine, NullPool
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from lambda_pg._database import Database


def create_engine(db: Database[Any], **options: Any) -> Engine:
    """Make an engine whose connections are those of `db`; there is no second pool.

    `options` are those of sqlalchemy.create_engine(), without its pool's. A checkout that fails
    is a sqlalchemy.exc.OperationalError whose `orig` is the DatabaseUnavailableError.
    The type hstore stays text unless `use_native_hstore=True` asks for its lookup at connect.
    """
    options.setdefault("use_native_hstore", False)
    url = sqlalchemy.URL.create("postgresql+lambda_pg")
    return sqlalchemy.create_engine(url, poolclass=NullPool, database=db, **options)


class LayerDialect(PGDialect_psycopg):
    """SQLAlchemy's dialect for psycopg, with a Database in the place of psycopg.connect()."""

    supports_statement_cache = True

    def __init__(self, database: Database[Any], **options: Any) -> None:
        """Take the database, and what SQLAlchemy's dialect takes."""
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._database = database

    def connect(self, *_: Any, **parameters: Any) -> Any:
        """Take a connection out of the layer's pool, as SQLAlchemy expects a new one to be."""
        connection = self._database.getconn()
        connection._adapters = AdaptersMap(parameters.get("context"))
        connection.row_factory = tuple_row
        connection.autocommit = False
        return connection

    def do_close(self, dbapi_connection: Any) -> None:
        """Put the connection back, where SQLAlchemy closes one."""
        self._database.putconn(dbapi_connection)

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close the connection, which SQLAlchemy takes for a bad one, and free its slot."""
        connection: psycopg.Connection[Any] = dbapi_connection
        connection.close()
        self._database.putconn(connection)


registry.register("postgresql.lambda_pg", __name__, LayerDialect.__name__)
