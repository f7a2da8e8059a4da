"""Statements that are sent in one write and answered in one round trip."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import generators, pq
from psycopg._queries import PostgresQuery
from psycopg.abc import AdaptContext, Params, PQGen, Query
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGconn, PGresult


class Command(NamedTuple):
    """One of the layer's own statements, ready to be sent."""

    text: bytes
    params: Sequence[bytes] | None = None
    binary: bool = False
    """Whether its answer comes in PostgreSQL's binary format."""

    def send(self, pgconn: PGconn) -> None:
        """Hand it to libpq."""
        pgconn.send_query_params(self.text, self.params, result_format=self.binary)

    def receive(self, pgconn: PGconn, results: list[PGresult]) -> None:
        """Raise the answer if it is an error."""
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding=pgconn._encoding)


class Request(NamedTuple):
    """A caller's statement, ready to be sent, and the cursor that gets its rows."""

    cursor: psycopg.Cursor[Any]
    ready: PostgresQuery
    format: pq.Format

    @classmethod
    def of(
        cls,
        cursor: psycopg.Cursor[Any],
        query: Query,
        params: Params | None,
        format: pq.Format | None = None,  # noqa: A002 - as psycopg's own
        context: AdaptContext | None = None,
    ) -> "Request":
        """Convert the parameters. Raises psycopg.Error where that is not possible.

        `context` has the type adapters; without it the cursor has them.
        """
        if cursor.closed:
            raise psycopg.InterfaceError("the cursor is closed")
        cursor._reset()
        cursor._last_query = None
        cursor._tx = Transformer(context or cursor)
        cursor._query = ready = cursor._convert_query(query, params)
        return cls(cursor, ready, cursor.format if format is None else format)

    def send(self, pgconn: PGconn) -> None:
        """Hand it to libpq."""
        ready = self.ready
        pgconn.send_query_params(
            ready.query,
            ready.params,
            param_formats=ready.formats,
            param_types=ready.types,
            result_format=self.format,
        )

    def receive(self, _: PGconn, results: list[PGresult]) -> None:
        """Give the cursor its rows, or raise the answer if it is an error."""
        self.cursor._check_results(results)
        self.cursor._set_results(results)


PARTS: Final = frozenset({pq.ExecStatus.SINGLE_TUPLE, pq.ExecStatus.TUPLES_CHUNK})
"""The status of results that are some of the rows of a stream."""


def final_error(pgconn: PGconn) -> psycopg.Error | None:
    """Read the error with which the server ended a connection, where it has not been read yet.

    An error after rows belongs to their statement; one after any other answer does not.
    """
    with suppress(psycopg.Error):  # libpq parses nothing before the end of a COPY
        pgconn.put_copy_end(b"the connection was lost")
    with suppress(psycopg.Error):
        if pgconn.status == pq.ConnStatus.OK:
            pgconn.consume_input()
        while not pgconn.is_busy() and (result := pgconn.get_result()):
            if result.status == pq.ExecStatus.FATAL_ERROR:
                error = psycopg.errors.error_from_result(result, encoding=pgconn._encoding)
                return error if error.sqlstate is not None else None
            if result.status not in PARTS:
                return None
    return None


def send_batch(pgconn: PGconn, statements: Sequence[Command | Request]) -> PQGen[list[PGresult]]:
    """Send `statements`, wait for all the answers, and return the last one's.

    Raises the first error among them. There must be a transaction, begun by the first of them or
    before: an error at the Sync of an implicit transaction would leave the connection in pipeline
    mode for good (measured on psycopg 3.3.9).

    psycopg's own pipeline() flushes once for each statement; this writes once for all of them.
    """
    pgconn.enter_pipeline_mode()
    unsent: psycopg.Error | None = None
    sent = []
    for statement in statements:
        try:
            statement.send(pgconn)
        except psycopg.Error as refused:
            unsent = refused
            break
        sent.append(statement)
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    failure: psycopg.Error | None = None
    results: list[PGresult] = []
    for statement in sent:
        try:
            results = yield from generators.fetch_many(pgconn)
            statement.receive(pgconn, results)
        except psycopg.Error as error:
            failure = failure or error  # the later ones fail because of the first
            if pgconn.status == pq.ConnStatus.BAD:
                raise failure from None
    first = failure or unsent
    try:
        yield from generators.fetch_many(pgconn)  # the Sync's own
        pgconn.exit_pipeline_mode()
    except psycopg.Error:
        if first is None:
            raise
    # A pooler that refuses a statement hangs up: that must not hide the refusal.
    if first is not None:
        raise first
    return results


_SYNC: Final[Any] = object()
"""Stands for the answer to a Sync among those that a pipeline waits for."""


class Pipeline(psycopg.Pipeline):
    """psycopg's pipeline, in which the server's own error is the one that is raised.

    Measured on psycopg 3.3.9: an error at a Sync, as a deferred constraint's, leaves the connection
    in pipeline mode for good; and the end of a connection hides the server's error before it. Both
    then look like a lost answer.
    """

    _final_error: psycopg.Error | None = None
    """The error with which the server has ended the connection."""

    def _enqueue_sync(self) -> None:
        self.command_queue.append(self.pgconn.pipeline_sync)
        self.result_queue.append(_SYNC)

    def _process_results(self, queued: Any, results: list[PGresult]) -> None:
        if queued is _SYNC:
            queued = None
            if results[0].status != pq.ExecStatus.PIPELINE_SYNC:  # an error: its answer follows
                self.result_queue.appendleft(_SYNC)
        try:
            super()._process_results(queued, results)
        except psycopg.Error as error:
            if error.diag.severity_nonlocalized in {"FATAL", "PANIC"}:
                self._final_error = error
            raise

    def _communicate_gen(self) -> PQGen[None]:
        # psycopg reads before each command, and drops what it has read when the next read fails.
        while self.command_queue:
            self.command_queue.popleft()()
        yield from super()._communicate_gen()

    def _fetch_gen(self, *, flush: bool) -> PQGen[None]:
        try:
            yield from super()._fetch_gen(flush=flush)
        except psycopg.OperationalError as lost:
            raise self._final_error or lost from None

    def _exit_gen(self) -> PQGen[None]:
        self._enqueue_sync()
        first: psycopg.Error | None = None
        try:
            yield from self._communicate_gen()
        except psycopg.Error as error:
            first = error
        try:
            yield from self._fetch_gen(flush=True)
        except psycopg.Error as error:
            first = first or error  # the later ones fail because of the first
        if first is not None:
            raise first
