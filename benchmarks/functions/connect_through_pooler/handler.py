"""No layer: a new connection to the pooler for each request."""

import uuid
from typing import Any

import psycopg
from psycopg.rows import dict_row

from benchmarks.lookup import SELECT, SET_CLAIMS, User, claims_of, serve
from benchmarks.lookup.login import connection_parameters

parameters = connection_parameters()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return one user of the caller."""
    return serve(event, lookup)


def lookup(user_id: uuid.UUID, subject: str) -> User | None:
    """Connect, query, and close."""
    with psycopg.connect(**parameters, row_factory=dict_row) as connection:
        connection.execute(SET_CLAIMS, {"claims": claims_of(subject)})
        return connection.execute(SELECT, {"id": user_id}).fetchone()
