"""Statements that leave in one write and are answered in one round trip."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import generators
from psycopg._queries import PostgresQuery
from psycopg.abc import Params, PQGen, QueryNoTemplate


class Statement(NamedTuple):
    """One statement of a flight and the cursor that gets its result."""

    cursor: psycopg.Cursor[Any]
    query: QueryNoTemplate
    params: Params | None = None


def fly(statements: Sequence[Statement]) -> PQGen[None]:
    """Send `statements`, wait for all the answers, and raise the first error among them.

    BEGIN and COMMIT must be among them: an error that comes only at the Sync of an implicit
    transaction would leave the connection stuck in pipeline mode (measured on psycopg 3.3.9).

    psycopg's own pipeline() flushes once for each statement; this writes once for all.
    """
    converted = []  # first, so that a parameter that cannot be sent sends nothing
    for cursor, query, params in statements:
        yield from cursor._start_query(query)
        cursor._query = cursor._convert_query(query, params)
        converted.append((cursor, cursor._query))
    pgconn = statements[0].cursor.connection.pgconn
    pgconn.enter_pipeline_mode()
    unsent: psycopg.Error | None = None
    sent = []
    for cursor, ready in converted:
        try:
            _send(cursor, ready)
        except psycopg.Error as refused:
            unsent = refused
            break
        sent.append(cursor)
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    failure = yield from _answers(sent)
    yield from generators.fetch_many(pgconn)  # the Sync's own
    pgconn.exit_pipeline_mode()
    if (error := failure or unsent) is not None:
        raise error


def _send(cursor: psycopg.Cursor[Any], query: PostgresQuery) -> None:
    cursor.connection.pgconn.send_query_params(
        query.query,
        query.params,
        param_formats=query.formats,
        param_types=query.types,
        result_format=cursor.format,
    )


def _answers(cursors: Sequence[psycopg.Cursor[Any]]) -> PQGen[psycopg.Error | None]:
    """Give each cursor its result; return the first error, which made the later ones fail."""
    failure: psycopg.Error | None = None
    for cursor in cursors:
        results = yield from generators.fetch_many(cursor.connection.pgconn)
        try:
            cursor._check_results(results)
            cursor._set_results(results)
        except psycopg.Error as error:
            failure = failure or error
            if cursor.connection.broken:
                raise failure from None
    return failure
