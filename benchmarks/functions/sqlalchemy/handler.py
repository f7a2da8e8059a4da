"""A peer: SQLAlchemy with pre-ping, through the pooler."""

import uuid
from typing import Any

from sqlalchemy import create_engine

from benchmarks.lookup import (
    SELECT,
    SET_CLAIMS,
    User,
    claims_of,
    patience,
    serve,
)
from benchmarks.lookup.login import connection_parameters

engine = create_engine(
    "postgresql+psycopg://",
    connect_args=connection_parameters(),
    pool_size=1,
    max_overflow=0,
    pool_timeout=patience(),
    pool_pre_ping=True,
)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return one user of the caller."""
    return serve(event, lookup)


def lookup(user_id: uuid.UUID, subject: str) -> User | None:
    """Check out the connection, which costs a round trip, and query in a transaction."""
    with engine.begin() as connection:
        connection.exec_driver_sql(SET_CLAIMS, {"claims": claims_of(subject)})
        row = connection.exec_driver_sql(SELECT, {"id": user_id}).mappings().fetchone()
        return None if row is None else dict(row)
