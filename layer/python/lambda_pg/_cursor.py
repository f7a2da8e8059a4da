"""The cursors that callers are handed."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NoReturn, Self, cast
from weakref import ReferenceType

import psycopg
from psycopg import generators, pq
from psycopg.abc import Loader, Params, PQGen, Query
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq.abc import PGresult
from psycopg.rows import Row, RowFactory

from lambda_pg._connection import Connection
from lambda_pg._pipeline import PARTS


class Cursor(psycopg.Cursor[Row]):
    """A psycopg cursor that lets a transaction begin together with its first statement.

    This only saves a round trip: everything else that goes over the connection makes the
    transaction begin first, in `Connection.wait`.
    """

    def execute(
        self,
        query: Any,  # psycopg's overloads differ only for template strings
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        """Execute one query; the first of a transaction is sent together with BEGIN."""
        connection = cast(Connection[Any], self._conn)
        connection.inspect(query, prepare=_may_prepare(connection, prepare))
        alone = prepare or connection._pipeline is not None or not _is_single(query)
        if connection.opening is None or alone:
            return super().execute(query, params, prepare=prepare, binary=binary)
        result = None if binary is None else psycopg.pq.Format(binary)
        connection.open_with(self, query, params, result)
        return self

    def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        """Execute one query for each of the parameters."""
        connection = cast(Connection[Any], self._conn)
        connection.inspect(query, prepare=_may_prepare(connection))
        super().executemany(query, params_seq, returning=returning)

    def stream(
        self,
        query: Query,
        params: Params | None = None,
        *,
        binary: bool | None = None,
        size: int = 1,
    ) -> Iterator[Row]:
        """Yield the rows of one query as they come."""
        cast(Connection[Any], self._conn).inspect(query)
        return super().stream(query, params, binary=binary, size=size)

    def _stream_fetchone_gen(self, first: bool) -> PQGen[PGresult | None]:
        """Return the next rows of a stream, and None at its end.

        After the last row of a write in autocommit its commit can still fail. psycopg 3.3.9 reads
        that error and drops it (measured).
        """
        result: PGresult | None = yield from generators.fetch(self._pgconn)
        if result is None:
            return None
        if result.status in PARTS:
            self.pgresult = result
            self._tx.set_pgresult(result, set_loaders=first)
            if first:
                self._make_row = self._make_row_maker()
            return result
        self._check_results([result])
        self._check_results([result, *(yield from generators.fetch_many(self._pgconn))])
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.ProgrammingError("the statement of a stream() returns no rows")
        return None

    def copy(
        self,
        statement: Any,  # as in execute
        params: Params | None = None,
        *,
        writer: Any = None,
    ) -> Any:
        """Run a COPY."""
        cast(Connection[Any], self._conn).inspect(statement)
        return super().copy(statement, params, writer=writer)


class _Context(NamedTuple):
    """Where psycopg looks for the adapters of types."""

    adapters: AdaptersMap
    connection: psycopg.Connection[Any]


class Rows(psycopg.Cursor[Row]):
    """The cursor that Database.execute() returns: it reads rows, and nothing else.

    Its connection is in the pool again, and another caller may have it.
    """

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise psycopg.InterfaceError(
            "a cursor from Database.execute() can only read its rows, because its connection "
            "is back in the pool. Call Database.execute() for another statement, or use "
            "Database.connection()"
        )

    execute = executemany = stream = copy = _refuse
    connection = property(_refuse)

    @classmethod
    def _loaders_changed(
        cls, reference: ReferenceType[Any], _oid: int, _loader: type[Loader]
    ) -> None:
        """Read the rows by the loaders that a caller has just registered for this cursor."""
        cursor = reference()
        if cursor is not None and cursor.pgresult is not None:
            position = cursor._pos
            cursor._tx = Transformer(_Context(cursor._adapters, cursor._conn))
            cursor._select_current_result(cursor._iresult)
            cursor._pos = position


class ServerCursor(psycopg.ServerCursor[Row]):
    """A psycopg server cursor whose DECLARE is inspected like any other statement."""

    def execute(
        self,
        query: Any,  # as in Cursor.execute
        params: Params | None = None,
        *,
        binary: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Declare the cursor for one query."""
        declaration = self._make_declare_statement(query)
        cast(Connection[Any], self._conn).inspect(declaration, named_cursor=True)
        return super().execute(query, params, binary=binary, **kwargs)


def lend(connection: Connection[Row], row_factory: RowFactory[Row]) -> None:
    """Have a connection that a caller gets make these cursors."""
    connection.row_factory = row_factory
    connection.cursor_factory = Cursor
    connection.server_cursor_factory = ServerCursor


def _may_prepare(connection: Connection[Any], prepare: bool | None = None) -> bool:
    """Tell whether psycopg may prepare a statement: never without a threshold."""
    return bool(prepare) or (prepare is None and connection.prepare_threshold is not None)


def _is_single(query: Query) -> bool:
    """Tell whether a query is certainly one statement: only such may share a batch."""
    return isinstance(query, str) and ";" not in query
