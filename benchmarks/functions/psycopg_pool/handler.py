"""A peer: psycopg_pool with its check, through the pooler."""

import uuid
from typing import Any

from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool

from benchmarks.lookup import (
    SELECT,
    SET_CLAIMS,
    User,
    claims_of,
    patience,
    serve,
)
from benchmarks.lookup.login import connection_parameters

pool: ConnectionPool[Connection[DictRow]] = ConnectionPool(
    kwargs={**connection_parameters(), "row_factory": dict_row},
    min_size=1,
    max_size=1,
    timeout=patience(),
    check=ConnectionPool.check_connection,
    open=False,
)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return one user of the caller; the first request opens the pool, which starts threads."""
    pool.open()
    return serve(event, lookup)


def lookup(user_id: uuid.UUID, subject: str) -> User | None:
    """Check out the connection, which costs a round trip, and query in a transaction."""
    with pool.connection() as connection:
        connection.execute(SET_CLAIMS, {"claims": claims_of(subject)})
        return connection.execute(SELECT, {"id": user_id}).fetchone()
