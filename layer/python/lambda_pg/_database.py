"""The face of the layer: two verbs that can be retried, two that hand out the connection."""

import functools
import json
import logging
import math
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

import psycopg
from psycopg import IsolationLevel, pq
from psycopg.abc import Params, QueryNoTemplate
from psycopg.rows import Row, RowFactory, TupleRow, tuple_row

from lambda_pg._connection import COMMIT, DEFAULT_MODES, Connection, Modes, opening
from lambda_pg._credentials import CredentialCache
from lambda_pg._cursor import Rows, lend
from lambda_pg._events import Events
from lambda_pg._invocation import (
    NO_DEADLINE,
    Invocations,
    deadline_of,
    invocation_of,
    require_plain,
)
from lambda_pg._login import Configure, Login
from lambda_pg._overload import Breaker
from lambda_pg._pipeline import Request
from lambda_pg._pool import Pool
from lambda_pg._retry import Attempts, Retry, require_invocation
from lambda_pg._settings import Settings
from lambda_pg._slots import SharedSlots
from lambda_pg._snapshot import register_snapshot_hooks
from lambda_pg._statements import is_short
from lambda_pg._stats import MetricLines, Stats

if TYPE_CHECKING:
    from lambda_pg._flight import Flight, Order
    from lambda_pg.text import Limits, Result, Statement

P = ParamSpec("P")
R = TypeVar("R")
Other = TypeVar("Other")  # psycopg's Row has a default, which pyright takes for the class's own
Claims = Mapping[str, Any]

_TUPLES: Final[RowFactory[Any]] = tuple_row

REMEMBERED: Final = 1000
"""Short statements whose text is known to leave no session state, for each connection."""

_LEFT_OPEN: Final[dict[int, str]] = {
    pq.TransactionStatus.INTRANS: "a transaction was left open: rolled back",
    pq.TransactionStatus.ACTIVE: "a stream() or a COPY was left open: its connection is closed",
}
"""The log message for what a caller left open. A failed transaction has raised its error."""

_TRACING_API: Final = "opentelemetry.trace"
"""A module that a program has loaded if it may make spans."""


class Database(Generic[Row]):
    """One database, its pool and its credentials: make one in each environment, at import.

    Nothing is read but the settings, and nothing is opened, before the first checkout.
    Large because it is the layer's whole face: thirteen of its methods are public.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        row_factory: RowFactory[Row] = _TUPLES,
        configure: Configure | None = None,
        slots: SharedSlots | None = None,
    ) -> None:
        """Take settings and psycopg's row factory for the rows of every verb.

        `slots` are those that it shares with other Databases; without them it has as many as the
        settings say.

        `configure(connection)` runs once for each new connection, before its first use, within the
        checkout timeout and the deadline, to register type adapters on it. It may read: the
        connection is in autocommit, its rows are tuples. Only its adapters are kept.
        """
        self._settings = settings
        self._row_factory = row_factory
        self._stats = Stats()
        self._events = Events()
        self._credentials = CredentialCache(settings)
        self._invocations = Invocations()
        breaker = Breaker()
        self._login = Login(
            settings,
            self._credentials,
            breaker=breaker,
            stats=self._stats,
            events=self._events,
            configure=configure,
        )
        self._slots = slots or SharedSlots(settings.slots)
        self._pool = Pool(
            self._login.connect,
            slots=self._slots,
            stats=self._stats,
            events=self._events,
            is_current=self._login.is_current,
        )
        self._retry = Retry(
            self._pool,
            breaker=breaker,
            stats=self._stats,
            events=self._events,
            checkout_timeout=settings.checkout_timeout,
            credentials_change=settings.secret_arn is not None or settings.auth != "password",
            invocations=self._invocations,
        )
        self._emits = settings.metrics
        self._metrics = MetricLines(os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "local"))
        register_snapshot_hooks(self)
        if "AWS_LAMBDA_FUNCTION_NAME" not in os.environ:
            from lambda_pg._reloads import close_replaced  # noqa: PLC0415 - no cold start needs it

            close_replaced(self, settings)
        if _TRACING_API in sys.modules:
            self._trace()

    @overload
    @classmethod
    def from_env(
        cls, *, direct: bool = False, configure: Configure | None = None
    ) -> "Database[TupleRow]": ...

    @overload
    @classmethod
    def from_env(
        cls,
        *,
        row_factory: RowFactory[Other],
        direct: bool = False,
        configure: Configure | None = None,
    ) -> "Database[Other]": ...

    @classmethod
    def from_env(
        cls,
        *,
        row_factory: RowFactory[Any] = tuple_row,
        direct: bool = False,
        configure: Configure | None = None,
    ) -> "Database[Any]":
        """Read the settings from the environment. Raises ConfigurationError.

        `direct` takes the direct URL, past any pooler: for migrations.
        `configure` is as for Database().
        """
        settings = Settings.from_env(direct=direct)
        return Database(settings, row_factory=row_factory, configure=configure)

    def __repr__(self) -> str:
        """Show the settings, which hold no secret."""
        return f"Database({self._settings!r})"

    def execute(
        self,
        query: QueryNoTemplate,
        params: Params | None = None,
        *,
        claims: Claims | None = None,
        idempotent: bool = False,
    ) -> psycopg.Cursor[Row]:
        """Run one statement and return its cursor, whose rows are already here.

        With `claims` the statement runs in a separate transaction that has them as
        `request.jwt.claims`, all in one round trip. What certainly had no effect is retried within
        the checkout timeout: a refusal, a deadlock, a server that is not able now
        (docs/failures.md). A lost connection is retried only for `idempotent=True`, as reads are.

        Raises DatabaseUnavailableError, CommitOutcomeUnknownError, and psycopg's SQL errors.
        """
        claimed = None if claims is None else _CLAIMS.encode(claims)
        attempts = self._attempts()
        while True:
            connection = attempts.take()
            connection.deadline = attempts.deadline
            try:
                cursor = self._send(connection, query, params, claimed)
            except psycopg.Error as error:
                alone = query if claimed is None else None
                attempts.failed(error, connection, alone=alone, idempotent=idempotent)
                self._pool.release(connection)
            except BaseException:
                self._pool.release(connection)  # which closes it, unless nothing was sent
                raise
            else:
                self._retry.answered()
                self._pool.put(connection)
                return cursor

    def _send(
        self,
        connection: Connection[Row],
        query: QueryNoTemplate,
        params: Params | None,
        claimed: str | None,
    ) -> psycopg.Cursor[Row]:
        """Run one statement; with claims, in a transaction that ends with it."""
        if query.__class__ is not str or query not in connection.harmless:  # or no hash
            self._inspect(connection, query)
        cursor = Rows(connection, row_factory=self._row_factory)
        if claimed is None:
            connection.run(cursor, query, params)
        else:
            request = Request.of(cursor, query, params, context=connection)
            connection.send_batch([*opening(claimed), request, COMMIT])
        return cursor

    def run_transaction(
        self,
        work: Callable[[psycopg.Connection[Row]], R],
        *,
        claims: Claims | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> R:
        """Run `work(connection)` between BEGIN and COMMIT and return what it returns.

        `isolation_level`, `read_only` and `deferrable` travel with BEGIN; None leaves them to the
        server's settings. After psycopg.Rollback everything is rolled back, and the result is None.
        `work` has to be done when it returns: the result may be no awaitable and no generator.

        The transaction is retried, within the checkout timeout, after a serialization failure, a
        deadlock, a refusal by the pooler, an answer that the server is not able now
        (docs/failures.md), or a connection lost before COMMIT was sent: `work` must have no effects
        but those of its connection. It is not retried when the server or the pooler ended it for
        taking too long. When the answer to COMMIT is lost, the layer asks the server for the
        outcome, which it knows unless it has crashed or failed over meanwhile. For that, the
        transaction's id comes with the first statement, or, where only a later one writes, by a
        round trip before COMMIT.
        A transaction without an id has written to no table of its database and is retried: its
        NOTIFY, and its writes to foreign tables, may happen twice.

        Raises DatabaseUnavailableError, CommitOutcomeUnknownError when that is not certain,
        psycopg's SQL errors, and what `work` raises.
        """
        claimed = _json(claims)
        modes = _modes(isolation_level, read_only, deferrable)
        attempts = self._attempts()
        while True:
            connection = self._lent(attempts)
            committing = False
            try:
                connection.begin(claimed, modes)
                result = work(connection)
                _require_done(result)
                connection.require_open()
                connection.learn_transaction_id()
                committing = True
                connection.finish()
            except psycopg.Error as error:
                attempts.failed(error, connection, in_transaction=not committing)
            except psycopg.Rollback as left:
                _require_unnamed(left)
                return None  # type: ignore[return-value]  # as documented
            else:
                self._retry.answered()
                return result
            finally:
                self._pool.return_lent(connection)
            if committing and attempts.was_committed(connection.transaction_id):
                return result

    def run_text(
        self,
        statements: Iterable["Statement"],
        *,
        limits: "Limits",
        claims: Claims | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        idempotent: bool = False,
    ) -> list["Result"]:
        """Run statements of a foreign client in one transaction and one round trip.

        Parameters go and values come as text, without types. What the statements leave in their
        session ends with the call, also after an error. Strict mode does not apply. What certainly
        had no effect is retried, as in execute(); a lost connection only for `idempotent=True`,
        which also spares the question for the transaction's id. Where that has come, a lost answer
        to COMMIT is looked up, as in run_transaction().

        Raises DatabaseUnavailableError, CommitOutcomeUnknownError, psycopg's SQL errors,
        QueryCanceled at the deadline, TooLargeError and CopyRefusedError of lambda_pg.text.
        """
        flight_of, order = _flights()
        modes = _modes(isolation_level, read_only, deferrable)
        asked = order(statements, limits, _json(claims), modes, idempotent=idempotent)
        attempts = self._attempts()
        while True:
            connection = attempts.take()
            connection.deadline = attempts.deadline
            flight = flight_of(connection, asked)
            try:
                flight.run()
            except psycopg.Error as error:
                undone = flight.is_undone
                attempts.failed(error, connection, in_transaction=undone, idempotent=idempotent)
                flight.recover()
                self._pool.release(connection)
            except BaseException:
                self._pool.release(connection)  # which closes it, unless nothing was sent
                raise
            else:
                self._retry.answered()
                self._pool.discard(connection) if connection.closed else self._pool.put(connection)
                return flight.results
            if flight.asked and attempts.was_committed(flight.transaction_id):
                return flight.results

    def connection(self) -> AbstractContextManager[psycopg.Connection[Row]]:
        """Hand out a psycopg connection in autocommit, for what execute() cannot express.

        Nothing is retried. On leaving, refusals by the pooler, and errors of a server that is not
        able now, become DatabaseUnavailableError, and a connection lost outside a transaction
        CommitOutcomeUnknownError.
        """
        return _Block(self._lent_freely, self._leave)

    def _lent_freely(self) -> Connection[Row]:
        """Take a connection in autocommit, on which a caller may do anything."""
        connection = self._lent(self._attempts())
        connection.has_session_state = connection.profile.session
        return connection

    def _leave(self, connection: Connection[Row], raised: BaseException | None) -> bool:
        try:
            if isinstance(raised, psycopg.Error):
                failure = self._retry.judge(raised, connection)
                require_invocation(connection, failure, raised, in_transaction=False)
                self._retry.translate(raised, failure, in_transaction=False)
            elif raised is None:
                self._retry.answered()
            return False
        finally:
            self._return_lent(connection)

    def transaction(
        self,
        *,
        claims: Claims | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> AbstractContextManager[psycopg.Connection[Row]]:
        """Hand out a connection between BEGIN and COMMIT, or ROLLBACK on an exception.

        BEGIN and the claims leave together with the first statement; without one nothing is sent.
        `isolation_level`, `read_only` and `deferrable` travel with BEGIN; None leaves them to the
        server's settings. psycopg.Rollback rolls back and ends here.
        Nothing is retried. On leaving, refusals by the pooler, lost connections, and errors of a
        server that is not able now become DatabaseUnavailableError, a lost answer to COMMIT
        CommitOutcomeUnknownError.
        """
        modes = _modes(isolation_level, read_only, deferrable)
        return _Block(functools.partial(self._begin, claims, modes), self._end_transaction)

    def _begin(self, claims: Claims | None, modes: Modes) -> Connection[Row]:
        claimed = _json(claims)
        connection = self._lent(self._attempts())
        connection.begin(claimed, modes)
        return connection

    def _end_transaction(self, connection: Connection[Row], raised: BaseException | None) -> bool:
        """Commit or roll back; tell whether the exception ends here."""
        committing = False
        try:
            if raised is None:
                connection.require_open()
                committing = True
                connection.finish()
                self._retry.answered()
            elif isinstance(raised, psycopg.Error):
                raise raised
            return isinstance(raised, psycopg.Rollback) and raised.transaction is None
        except psycopg.Error as error:
            failure = self._retry.judge(error, connection)
            require_invocation(connection, failure, error, in_transaction=not committing)
            self._retry.translate(
                error, failure, in_transaction=not committing, transaction=connection.transaction_id
            )
            return False
        finally:
            self._pool.return_lent(connection)

    def getconn(self) -> psycopg.Connection[Row]:
        """Take a connection in autocommit out of the pool; `putconn` must follow.

        For adapters to libraries that keep the connection themselves: handlers use connection().
        """
        return self._lent_freely()

    def putconn(self, connection: psycopg.Connection[Any]) -> None:
        """Return what `getconn` gave; what is open on it is rolled back."""
        if not isinstance(connection, Connection):
            raise TypeError(f"not a connection of this pool: {type(connection).__name__}")
        gone = connection.lease.reclaimed or connection.orphaned
        if connection not in self._pool.lent and not gone:
            raise ValueError(
                "the connection is not checked out of this pool: it was returned before, or it "
                "belongs to another pool"
            )
        self._pool.return_lent(connection)

    @contextmanager
    def deadline(self, seconds: float) -> Generator[None, None, None]:
        """Bound every wait on the database inside by `seconds` from now, in this thread.

        For a script, a test or a part of a handler, where bind_lambda_context is for an
        invocation. Of several deadlines the earliest holds. It bounds the connections that the
        thread has already checked out, too.
        """
        with self._invocations.bounded(seconds, self._pool.bind):
            yield

    def bind_lambda_context(self, handler: Callable[P, R]) -> Callable[P, R]:
        """Decorate a handler: its invocation's remaining time bounds every wait on the database.

        Connections that the handler has left open are closed when it ends, and reported; so are
        those that its threads still use.

        An execution environment serves one invocation at a time; threads that the handler starts
        have the same deadline. The handler may be a method, and its context is found by position
        or by keyword. Without a context that knows its remaining time, as in a test, there is no
        deadline, and a warning is logged.

        Raises TypeError for an `async def`.
        """
        require_plain(handler)

        @functools.wraps(handler)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            context, remaining = invocation_of(args, kwargs)
            until = deadline_of(remaining)
            if self._invocations.current is not None:  # called by another bound handler
                with self._invocations.shortened(until):
                    return handler(*args, **kwargs)
            if _TRACING_API in sys.modules:
                self._trace()
            self._events.context = context
            if remaining == math.inf:
                self._events.report_once(logging.WARNING, "no_deadline", NO_DEADLINE)
            self._invocations.begin(until)
            failed = True
            try:
                answer = handler(*args, **kwargs)
                failed = False
            finally:
                self._invocations.end()
                if self._pool.busy or self._emits:
                    self._end(failed=failed)
                self._events.context = None
            return answer

        return bound

    def _trace(self) -> None:
        """Make spans from now on."""
        if self._events.tracing is not None:
            return
        from lambda_pg._tracing import Tracing  # noqa: PLC0415 - only where the API is loaded

        self._events.tracing = tracing = Tracing(self._settings)
        # No `if` in execute(): tracing costs nothing where it is off.
        self.execute = tracing.around(self.execute)  # type: ignore[method-assign]

    def stats(self) -> dict[str, int]:
        """Count what the pool has done since the environment began; times are milliseconds.

        The names are those of psycopg_pool's get_stats(), and besides `retries` (attempts after a
        first one), `refreshes` (fetches of credentials), `deadline_cancels` (statements that a
        deadline has ended) and `leaks` (connections that a handler left open).
        """
        return {
            "pool_min": 0,
            "pool_max": self._slots.count,
            "pool_size": self._pool.size,
            "pool_available": self._pool.available,
            "requests_waiting": self._pool.waiting,
            **self._stats.counters(),
            "refreshes": self._credentials.refreshes,
        }

    def close(self) -> None:
        """Close the idle connections; the next checkout opens a new one."""
        self._pool.close()
        self._login.close()

    def forget(self) -> None:
        """Close every connection and drop the credentials: a snapshot is about to be taken."""
        self._pool.reclaim()
        self.close()
        self._credentials.forget()

    def _end(self, *, failed: bool) -> None:
        """Finish an invocation: close what is still open or in use, and report its metrics."""
        leaked = self._pool.reclaim(reported=failed)
        if leaked:
            self._stats.leaks += leaked
            self._events.report(
                logging.WARNING,
                "leak",
                "the handler left %d connection(s) checked out, or a thread was using them: "
                "closed, and what was open on them rolled back",
                leaked,
            )
        if self._emits:
            line = self._metrics.line(self.stats(), self._events.request_id)
            if line is not None:
                print(line)  # CloudWatch reads metrics from standard output

    def _attempts(self) -> Attempts[Row]:
        """Begin a request."""
        self._stats.requests_num += 1
        invocations = self._invocations
        deadline = invocations.earliest() if invocations.has_bounds else invocations.deadline
        return Attempts(self._retry, deadline, invocations.current)

    def _lent(self, attempts: Attempts[Row]) -> Connection[Row]:
        """Take a connection to hand out to a caller."""
        connection = attempts.next()
        connection.deadline = attempts.deadline
        connection.lease.used_by = self._invocations.current
        lend(connection, self._row_factory)
        self._pool.lend(connection)
        return connection

    def _return_lent(self, connection: Connection[Row]) -> None:
        """Return a connection; report what its caller has left open."""
        left_open = _LEFT_OPEN.get(connection.pgconn.transaction_status)
        if left_open is not None and not connection.lease.reclaimed:  # or it was reported then
            self._stats.leaks += 1
            self._events.report(logging.WARNING, "leak", left_open)
        self._pool.return_lent(connection)

    def _inspect(self, connection: Connection[Row], query: QueryNoTemplate) -> None:
        if not connection.inspect(query):
            connection.lease.used_by = self._invocations.current
        elif isinstance(query, str) and is_short(query):
            if len(connection.harmless) >= REMEMBERED:
                connection.harmless.clear()
            connection.harmless.add(query)


class _Block(AbstractContextManager[Connection[Row]]):
    """A block that ends only where it is left: its caller may enter it by hand and drop it.

    A generator would end then, and return a connection that its caller still uses.
    """

    def __init__(
        self,
        enter: Callable[[], Connection[Row]],
        leave: Callable[[Connection[Row], BaseException | None], bool],
    ) -> None:
        self._enter = enter
        self._leave = leave
        self._connection: Connection[Row] | None = None

    def __enter__(self) -> Connection[Row]:
        if self._connection is not None:
            raise RuntimeError("the block was entered before: each is for one `with`")
        self._connection = self._enter()
        return self._connection

    def __exit__(self, _: object, raised: BaseException | None, __: object) -> bool | None:
        return self._connection is not None and self._leave(self._connection, raised)


def _json(claims: Claims | None) -> str | None:
    return None if claims is None else _CLAIMS.encode(claims)


def _mapping(value: object) -> dict[Any, Any]:
    """Turn a mapping into what JSON can encode."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"claims hold a value of type {type(value).__name__}, which JSON cannot encode")


_CLAIMS: Final = json.JSONEncoder(default=_mapping)


@functools.cache
def _flights() -> tuple["type[Flight]", "Callable[..., Order]"]:
    """Import what runs foreign statements: no cold start needs it.

    Kept, as an import statement takes 5 µs of each request, also where nothing is to be imported.
    """
    from lambda_pg._flight import Flight, order  # noqa: PLC0415 - as above

    return Flight, order


def _modes(
    isolation_level: IsolationLevel | None, read_only: bool | None, deferrable: bool | None
) -> Modes:
    """Raise ValueError for a level that psycopg does not know, before anything is checked out."""
    if isolation_level is None and read_only is None and deferrable is None:
        return DEFAULT_MODES
    level = None if isolation_level is None else IsolationLevel(isolation_level)
    return Modes(level, read_only, deferrable)


def _require_unnamed(left: psycopg.Rollback) -> None:
    """Let the rollback of a named transaction go on to its block."""
    if left.transaction is not None:
        raise left


def _require_done(result: object) -> None:
    """Raise TypeError for a result whose work would begin after the transaction's end."""
    if not isinstance(result, Awaitable | Generator | AsyncGenerator):
        return
    kind = type(result).__name__
    if isinstance(result, CoroutineType | GeneratorType):
        result.close()  # or Python warns of a coroutine that was not awaited
    raise TypeError(
        f"the work of run_transaction() returned a {kind}, which would run after the end of the "
        "transaction. The transaction was rolled back. Do the work in a plain function, and "
        "return a list instead of a generator"
    )
