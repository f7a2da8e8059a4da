"""The face of the layer: two verbs that can be retried, two that hand out the connection."""

import functools
import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

import psycopg
from psycopg import pq
from psycopg.abc import Params, QueryNoTemplate
from psycopg.rows import Row, RowFactory, TupleRow, tuple_row

from lambda_pg._connection import Connection, Connector
from lambda_pg._credentials import CredentialCache, Credentials
from lambda_pg._errors import (
    CommitOutcomeUnknownError,
    ConnectFailedError,
    CredentialsError,
    DatabaseUnavailableError,
)
from lambda_pg._failures import Failure, classify_connect, classify_statement
from lambda_pg._pool import Pool
from lambda_pg._secrets import SecretsUnavailableError
from lambda_pg._settings import Settings
from lambda_pg._window import Window

P = ParamSpec("P")
R = TypeVar("R")
Claims = Mapping[str, Any]

_TUPLES: Final[RowFactory[Any]] = tuple_row

SET_CLAIMS: Final = "SELECT set_config('request.jwt.claims', %s, true)"

RESERVE: Final = 0.5
"""Seconds of the invocation kept back to answer in after its deadline has ended a wait."""


class Database(Generic[Row]):
    """One database, its pool and its credentials: make one for each environment, at import.

    Nothing is read but the settings, and nothing is opened, before the first checkout.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        row_factory: RowFactory[Row] = _TUPLES,
    ) -> None:
        """Take settings and psycopg's row factory for the rows of every verb."""
        self._settings = settings
        self._row_factory = row_factory
        self._credentials = CredentialCache(settings)
        self._connector = Connector(settings)
        self._pool = Pool(
            self._connect, slots=settings.slots, idle_check_after=settings.idle_check_after
        )
        self._deadline = math.inf

    @overload
    @classmethod
    def from_env(cls) -> "Database[TupleRow]": ...

    @overload
    @classmethod
    def from_env(cls, *, row_factory: RowFactory[Row]) -> "Database[Row]": ...

    @classmethod
    def from_env(cls, *, row_factory: RowFactory[Any] = tuple_row) -> "Database[Any]":
        """Read the settings from the environment; raises ConfigurationError."""
        return Database(Settings.from_env(), row_factory=row_factory)

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

        With `claims` the statement runs in a transaction of its own that has them as
        `request.jwt.claims`, all in one round trip. Refusals after which the statement certainly
        did not run are retried within the checkout timeout; a lost connection only for
        `idempotent=True`, as reads are.

        Raises DatabaseUnavailableError, CommitOutcomeUnknownError, and psycopg's SQL errors.
        """
        window = self._window()
        while True:
            connection = self._checkout(window)
            try:
                if claims is None:
                    return connection.execute(query, params)
                return _execute_with_claims(connection, query, params, claims)
            except psycopg.Error as error:
                failed, broken = error, connection.lost
            finally:
                self._pool.give_back(connection)
            failure = classify_statement(failed, broken=broken)
            if failure is Failure.LOST and idempotent:
                window.pause(failed)
            else:
                _recover(failed, failure, window, in_transaction=False)

    def run_transaction(
        self,
        work: Callable[[psycopg.Connection[Row]], R],
        *,
        claims: Claims | None = None,
    ) -> R:
        """Run `work(connection)` between BEGIN and COMMIT and return what it returns.

        The whole is run again, within the checkout timeout, after a serialization failure, a
        deadlock, a refusal by the pooler, or a connection lost before COMMIT was sent: `work`
        must have no other effects than those of its connection.

        Raises DatabaseUnavailableError, CommitOutcomeUnknownError when the answer to COMMIT was
        lost, psycopg's SQL errors, and whatever `work` raises.
        """
        window = self._window()
        while True:
            connection = self._checkout(window)
            committing = False
            try:
                _begin(connection, claims)
                result = work(connection)
                _require_open(connection)
                committing = True
                connection.execute("COMMIT")
            except psycopg.Error as error:
                failed, broken = error, connection.lost
            else:
                return result
            finally:
                self._pool.give_back(connection)
            failure = classify_statement(failed, broken=broken)
            if failure is Failure.ROLLED_BACK or (failure is Failure.LOST and not committing):
                window.pause(failed)
            else:
                _recover(failed, failure, window, in_transaction=not committing)

    @contextmanager
    def connection(self) -> Generator[psycopg.Connection[Row], None, None]:
        """Hand out a psycopg connection in autocommit, for what execute() cannot express.

        Nothing is retried. On leaving, refusals by the pooler become DatabaseUnavailableError,
        and a connection lost outside a transaction CommitOutcomeUnknownError.
        """
        connection = self._checkout(self._window())
        try:
            yield connection
        except psycopg.Error as error:
            failure = classify_statement(error, broken=connection.lost)
            _translate(error, failure, in_transaction=False)
        finally:
            self._pool.give_back(connection)

    @contextmanager
    def transaction(
        self, *, claims: Claims | None = None
    ) -> Generator[psycopg.Connection[Row], None, None]:
        """Hand out a connection between BEGIN and COMMIT, or ROLLBACK on an exception.

        Nothing is retried. On leaving, refusals by the pooler and lost connections become
        DatabaseUnavailableError, a lost answer to COMMIT CommitOutcomeUnknownError.
        """
        connection = self._checkout(self._window())
        committing = False
        try:
            _begin(connection, claims)
            yield connection
            _require_open(connection)
            committing = True
            connection.execute("COMMIT")
        except psycopg.Error as error:
            failure = classify_statement(error, broken=connection.lost)
            _translate(error, failure, in_transaction=not committing)
        finally:
            self._pool.give_back(connection)

    def bind_lambda_context(
        self, handler: Callable[Concatenate[Any, Any, P], R]
    ) -> Callable[Concatenate[Any, Any, P], R]:
        """Decorate a handler: its invocation's remaining time bounds every wait on the database.

        An execution environment serves one invocation at a time; threads that the handler starts
        are bound by the same deadline.
        """

        @functools.wraps(handler)
        def bound(event: Any, context: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            before = self._deadline
            remaining = context.get_remaining_time_in_millis() / 1000
            self._deadline = monotonic() + remaining - min(RESERVE, remaining / 2)
            try:
                return handler(event, context, *args, **kwargs)
            finally:
                self._deadline = before

        return bound

    def close(self) -> None:
        """Close the idle connections; the next checkout opens a new one."""
        self._pool.close()

    def _window(self) -> Window:
        return Window(self._settings.checkout_timeout, self._deadline)

    def _checkout(self, window: Window) -> Connection[Row]:
        """Take a connection, connecting again while the window lasts and it may help."""
        while True:
            try:
                connection: Connection[Row] = self._pool.checkout(window.remaining())
            except SecretsUnavailableError as error:
                window.pause(error)
            except DatabaseUnavailableError:
                raise
            except psycopg.OperationalError as error:
                self._recover_connect(error, window)
            else:
                connection.prepare(window.deadline, self._row_factory)
                return connection

    def _connect(self, timeout: float) -> Connection[Any]:
        until = monotonic() + timeout
        credentials = self._credentials.get(timeout)
        try:
            return self._connector.connect(credentials, max(0.0, until - monotonic()))
        except psycopg.OperationalError as error:
            if classify_connect(error) is not Failure.LOGIN_REFUSED:
                raise
            return self._connect_after_refusal(error, credentials, until)

    def _connect_after_refusal(
        self, error: psycopg.OperationalError, refused: Credentials, until: float
    ) -> Connection[Any]:
        """Refresh the secret once; raises the refusal again when it holds nothing new."""
        if not self._credentials.replace(refused, max(0.1, until - monotonic())):
            raise error
        fresh = self._credentials.get(max(0.1, until - monotonic()))
        return self._connector.connect(fresh, max(0.0, until - monotonic()))

    def _recover_connect(self, error: psycopg.OperationalError, window: Window) -> None:
        """Return when another connect may help; raise what the caller gets otherwise."""
        failure = classify_connect(error)
        if failure is Failure.NOT_RUN:
            window.pause(error)
        elif failure is not Failure.LOGIN_REFUSED:
            raise ConnectFailedError(f"cannot connect: {_reason(error)}") from error
        elif self._settings.secret_arn is None:
            raise CredentialsError("the login that the URL holds was refused") from error
        else:
            # A rotation in progress: the database knows the new password, the secret not yet.
            try:
                window.pause(error)
            except DatabaseUnavailableError as late:
                raise CredentialsError(
                    "the login was refused, also with the secret's current password"
                ) from late


def _recover(
    error: psycopg.Error, failure: Failure, window: Window, *, in_transaction: bool
) -> None:
    """Return when the unit of work certainly did not run; raise what the caller gets otherwise."""
    if failure in {Failure.NOT_RUN, Failure.LOGIN_REFUSED}:
        window.pause(error)
    else:
        _translate(error, failure, in_transaction=in_transaction)


def _translate(error: psycopg.Error, failure: Failure, *, in_transaction: bool) -> None:
    """Raise what a handler catches: one error for the pooler and the network."""
    if isinstance(error, DatabaseUnavailableError | CommitOutcomeUnknownError):
        raise error
    match failure:
        case Failure.NOT_RUN | Failure.LOGIN_REFUSED:
            raise DatabaseUnavailableError(f"refused: {_reason(error)}") from error
        case Failure.LOST if in_transaction:
            raise DatabaseUnavailableError(
                "the connection was lost inside a transaction, which was rolled back"
            ) from error
        case Failure.LOST:
            raise CommitOutcomeUnknownError(
                "the connection was lost after the statement was sent: whether it was "
                "committed is unknown"
            ) from error
        case _:
            raise error


def _execute_with_claims(
    connection: Connection[Row], query: QueryNoTemplate, params: Params | None, claims: Claims
) -> psycopg.Cursor[Row]:
    # BEGIN and COMMIT are explicit: an error that comes only at the Sync of an implicit
    # transaction leaves psycopg's connection stuck in pipeline mode (measured on 3.3.9).
    with connection.pipeline():
        connection.execute("BEGIN")
        connection.execute(SET_CLAIMS, [json.dumps(claims)])
        cursor = connection.execute(query, params)
        connection.execute("COMMIT")
    return cursor


def _begin(connection: Connection[Any], claims: Claims | None) -> None:
    connection.managed = True
    if claims is None:
        connection.execute("BEGIN")
        return
    with connection.pipeline():
        connection.execute("BEGIN")
        connection.execute(SET_CLAIMS, [json.dumps(claims)])


def _require_open(connection: Connection[Any]) -> None:
    """Raise where COMMIT would hang, do nothing, or answer ROLLBACK as if all were well."""
    status = connection.pgconn.transaction_status
    if status == pq.TransactionStatus.INERROR:
        raise psycopg.errors.InFailedSqlTransaction(
            "an error inside the transaction was swallowed: nothing was committed"
        )
    if status == pq.TransactionStatus.ACTIVE:
        raise psycopg.ProgrammingError(
            "a stream() or a COPY is still open at the end of the transaction: "
            "nothing was committed"
        )
    if status == pq.TransactionStatus.IDLE:
        raise psycopg.ProgrammingError("a statement inside the transaction has ended it")
    if connection.lost:
        raise psycopg.OperationalError("the connection was lost inside the transaction")


def _reason(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0]
