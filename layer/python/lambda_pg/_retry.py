"""The retries of a request: what a failure means, whether another attempt follows, and when.

Every verb loops over the attempts of its request. It reports a failure and returns the connection.
The next attempt then comes after a pause, or the error for the caller is raised:

    while True:
        connection = attempts.next()
        try:
            return work(connection)
        except psycopg.Error as error:
            attempts.failed(error, connection)
        finally:
            pool.release(connection)

docs/failures.md has the table of all failures.
"""

import logging
import math
import time
from typing import Any, Final, Generic, NamedTuple

import psycopg
from psycopg.abc import QueryNoTemplate
from psycopg.rows import Row

from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection
from lambda_pg._credentials import SecretsUnavailableError
from lambda_pg._denial import Denial, why_denied
from lambda_pg._errors import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    ConnectFailedError,
    CredentialsError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    first_line,
)
from lambda_pg._events import Events
from lambda_pg._failures import (
    READ_ONLY,
    TRANSACTION_TIMEOUT,
    Failure,
    classify_connect,
    classify_statement,
)
from lambda_pg._invocation import Invocations
from lambda_pg._jitter import jitter
from lambda_pg._login import ConfigureInterruptedError, too_short
from lambda_pg._outcome import STATUS, TransactionId
from lambda_pg._overload import Breaker, NotReachedError, RetryBudget
from lambda_pg._pool import Pool
from lambda_pg._statements import is_undone_by_error
from lambda_pg._stats import Stats

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.5
DOUBLINGS: Final = 4
"""Bounds of the pause between attempts in seconds, with full jitter: a fleet spreads out."""

LONGEST_CONFLICT_PAUSE: Final = 0.2
"""The same between two attempts of transactions that conflict: they take milliseconds, and after a
longer wait a transaction loses to those that have just begun."""

LAST_ATTEMPT: Final = 0.1
"""Seconds before the end of a window in which no attempt begins: a connect takes up to 50 ms."""


class Window:
    """The time in which one request may retry, counted from its first attempt."""

    def __init__(
        self,
        seconds: float,
        deadline: float,
        *,
        breaker: Breaker,
        budget: RetryBudget,
        spent: float = 0.0,
    ) -> None:
        """Take the checkout timeout and the time.monotonic() of the deadline, or infinity.

        `spent` are the seconds since the request began.

        Raises DatabaseUnavailableError when the breaker admits no request now.
        """
        self._probes = breaker.is_open
        self._seconds = breaker.admit(seconds)
        self._until = monotonic() + self._seconds - spent
        self._deadline = deadline
        self._breaker = breaker
        self._budget = budget
        self._attempts = 0
        self._restarted = False
        self._denied = False
        self.may_have_run = False
        """Whether a lost attempt may have run."""

    @property
    def deadline(self) -> float:
        """The time.monotonic() of the invocation's deadline."""
        return self._deadline

    def remaining(self) -> float:
        """Return the seconds left for a checkout. Raises DeadlineExceededError if none are."""
        left = min(self._until, self._deadline) - monotonic()
        if left <= 0 and self._deadline <= self._until:
            raise DeadlineExceededError(
                "the invocation's deadline passed before the database was asked",
                may_have_run=self.may_have_run,
            )
        return max(0.0, left)

    def restart(self) -> None:
        """Count the seconds from now, once: until now the database was working, not unavailable."""
        if not self._restarted:
            self._restarted = True
            self._until = monotonic() + self._seconds

    def may_retry_denied(self) -> bool:
        """Allow, once, a retry of a write that was denied by a server that accepts writes."""
        denied, self._denied = self._denied, True
        return not denied

    def pause(self, cause: Exception, *, absent: bool = True) -> None:
        """Sleep before the next attempt. Raises from `cause` if there is no time for one.

        No pause is longer than half of the time left, so that the window ends with an attempt.
        `absent` means that the database did not answer: the breaker counts that, and the budget
        counts what it may have cost. A probe is not retried: a whole fleet of probes would overload
        a server that is about to come back.
        """
        if absent and self._probes:
            self._breaker.failed()
            raise DatabaseUnavailableError(
                f"the database is still unavailable: {first_line(cause)}"
            ) from cause
        most = LONGEST_PAUSE if absent else LONGEST_CONFLICT_PAUSE
        longest = min(most, FIRST_PAUSE * 2 ** min(self._attempts, DOUBLINGS))
        self._attempts += 1
        costs = absent and _costs(cause)
        rest = self._breaker.rest if costs else 0.0
        left = min(self._until, self._deadline) - monotonic()
        in_time = left > LAST_ATTEMPT + rest
        if not (in_time and (not costs or self._budget.spend())):
            if absent:
                self._breaker.failed()
            raise self._error(cause, in_time=in_time) from cause
        time.sleep(max(rest, min(jitter.uniform(0, longest), left / 2)))

    def _error(self, cause: Exception, *, in_time: bool) -> DatabaseUnavailableError:
        tried = f"{self._attempts} attempt{'s' if self._attempts > 1 else ''}"
        if in_time:
            return DatabaseUnavailableError(
                f"this environment has spent its budget of retries (after {tried}); "
                f"the last one failed: {first_line(cause)}"
            )
        if self._deadline <= self._until and not math.isinf(self._deadline):
            return DeadlineExceededError(
                f"the invocation's deadline passed after {tried}; "
                f"the last one failed: {first_line(cause)}",
                may_have_run=self.may_have_run,
            )
        return CheckoutTimeoutError(
            f"no success within {self._seconds:.1f} s ({tried}); "
            f"the last one failed: {first_line(cause)}"
        )


INVOCATION_ENDED: Final = "the invocation in which this thread asked for a connection has ended"


class Retry:
    """The parts that the failed requests of one Database share."""

    def __init__(
        self,
        pool: Pool,
        *,
        breaker: Breaker,
        stats: Stats,
        events: Events,
        checkout_timeout: float,
        credentials_change: bool,
        invocations: Invocations,
    ) -> None:
        """Take the parts of a Database.

        `checkout_timeout` is in seconds; `credentials_change` means that a refused login may be
        accepted later.
        """
        self.pool = pool
        self.breaker = breaker
        self.budget = RetryBudget()
        self.stats = stats
        self.events = events
        self.checkout_timeout = checkout_timeout
        self.credentials_change = credentials_change
        self.invocations = invocations

    def judge(
        self,
        error: psycopg.Error,
        connection: Connection[Any],
        alone: QueryNoTemplate | None = None,
    ) -> Failure:
        """Return what a failed statement means, before its connection is returned.

        `alone` is a query that ran in autocommit: a part of it may have been committed before the
        error. A connection to a server that accepts no writes is closed: another connect may reach
        the new primary.
        """
        failure = classify_statement(error, broken=connection.lost)
        if failure is Failure.TOO_LONG:
            # The server notices this timeout also after a COMMIT has taken effect.
            at_commit = error.sqlstate == TRANSACTION_TIMEOUT and not connection.managed
            return Failure.LOST if at_commit else failure
        if failure not in {Failure.NOT_ABLE, Failure.ROLLED_BACK}:
            return failure
        undone = alone is None or is_undone_by_error(connection.text_of(alone))
        if error.sqlstate == READ_ONLY:
            denial = why_denied(connection)
            # A statement alone cannot ask for read-only: another server has answered.
            elsewhere = denial is Denial.WRITABLE and alone is not None
            if denial is not Denial.SERVER and not elsewhere:
                failure = Failure.DENIED
        return failure if undone else Failure.FINAL

    def translate(
        self,
        error: psycopg.Error,
        failure: Failure,
        *,
        in_transaction: bool,
        transaction: TransactionId | None = None,
    ) -> None:
        """Raise the error that a handler catches: one for the pooler and the network."""
        if isinstance(error.__cause__, psycopg.errors._WaitTimeout):  # a statement was running
            self.stats.deadline_cancels += 1
        if isinstance(error, DatabaseUnavailableError | CommitOutcomeUnknownError):
            raise error
        match failure:
            case Failure.NOT_RUN | Failure.LOGIN_REFUSED:
                self.breaker.failed()
                raise DatabaseUnavailableError(f"refused: {first_line(error)}") from error
            case Failure.NOT_ABLE:
                self.breaker.succeeded()  # the database has answered
                raise DatabaseUnavailableError(_not_able(error)) from error
            case Failure.TOO_LONG:
                self.breaker.succeeded()  # the database has answered
                raise DatabaseUnavailableError(
                    f"the transaction took too long and was rolled back: {first_line(error)}"
                ) from error
            case Failure.LOST if in_transaction:
                raise DatabaseUnavailableError(
                    "the connection was lost inside a transaction, which was rolled back"
                ) from error
            case Failure.LOST:
                raise outcome_unknown(
                    "the connection was lost after the statement was sent", transaction
                ) from error
            case _:
                self.breaker.succeeded()  # the database has answered
                raise error

    def window(self, deadline: float, began: float) -> Window:
        """Open the window of a request that began at the time.monotonic() of `began`.

        Raises DatabaseUnavailableError when the breaker admits no request now.
        """
        return Window(
            self.checkout_timeout,
            deadline,
            spent=monotonic() - began,
            breaker=self.breaker,
            budget=self.budget,
        )

    def note(self, error: Exception) -> None:
        """Count and report a retry."""
        self.stats.retries += 1
        self.events.report(logging.INFO, "retry", "retrying after: %s", first_line(error))

    def answered(self) -> None:
        """Note that the database answers."""
        if self.breaker.failures:
            self.breaker.succeeded()


class FailedAttempt(NamedTuple):
    """A failed attempt, and whether it may be repeated after a lost connection."""

    error: psycopg.Error
    failure: Failure
    connection: Connection[Any]
    in_transaction: bool
    repeatable: bool


class Attempts(Generic[Row]):
    """The attempts of one request, in order: each has a connection."""

    _window: Window | None = None
    _failed: FailedAttempt | None = None
    _answered: Exception | None = None
    """The last error of a server that answered and could not run the statement."""

    def __init__(self, retry: Retry, deadline: float, invocation: int | None) -> None:
        """Begin now; `deadline` is a time.monotonic() or infinity, `invocation` a number or None.

        The window is made by the first failure: the usual path does not need one.
        """
        self._retry = retry
        self._began = monotonic()
        self._invocation = invocation
        self.deadline = deadline

    def take(self) -> Connection[Row]:
        """Return an idle connection for the first attempt, without a lock; else as `next`."""
        if self._failed is None and not self._retry.breaker.failures:
            connection = self._retry.pool.take()
            if connection is not None:
                return connection
        return self.next()

    def next(self) -> Connection[Row]:
        """Return the connection for the next attempt, after a pause if the last one has failed.

        Raises the error for the caller if no attempt may follow.
        """
        if self._failed is not None:
            self._wait(self._failed)
        return self._checkout()

    def failed(
        self,
        error: psycopg.Error,
        connection: Connection[Any],
        *,
        alone: QueryNoTemplate | None = None,
        in_transaction: bool = False,
        idempotent: bool = False,
    ) -> None:
        """Note that an attempt failed, before its connection is returned.

        `alone` is a query that ran in autocommit. A lost connection has rolled back a statement
        that was `in_transaction`; another one is repeated only if it is `idempotent`.
        """
        failure = self._retry.judge(error, connection, alone)
        self._failed = FailedAttempt(
            error, failure, connection, in_transaction, in_transaction or idempotent
        )

    def was_committed(self, transaction: TransactionId | None) -> bool:
        """Tell whether a failed COMMIT took effect; ask the server if its answer was lost.

        A transaction without an id has written nothing: it counts as not committed. Raises
        CommitOutcomeUnknownError, from the last error, if there is no answer within the window, or
        none that is certainly about this transaction.
        """
        failed = self._failed
        if failed is None or failed.failure is not Failure.LOST:
            return False
        require_invocation(
            failed.connection, failed.failure, failed.error, in_transaction=failed.in_transaction
        )
        unknown = outcome_unknown("the answer to COMMIT was lost", transaction)
        try:
            status = self._status(
                transaction, failed._replace(in_transaction=True, repeatable=True)
            )
        except (DatabaseUnavailableError, ConfigurationError, psycopg.Error) as error:
            raise unknown from error
        if status is None:
            raise unknown from failed.error
        if status != "committed" and failed.error.sqlstate == TRANSACTION_TIMEOUT:
            # It would take as long again.
            self._retry.translate(failed.error, Failure.TOO_LONG, in_transaction=True)
        return status == "committed"

    def _status(self, transaction: TransactionId | None, failed: FailedAttempt) -> str | None:
        if transaction is None:
            self._wait(failed)
            return "aborted"
        self._failed = failed
        while True:
            connection = self.next()
            connection.deadline = self.deadline
            cursor = psycopg.Cursor(connection)
            try:
                cursor.execute(STATUS, [transaction.xid], binary=True)
            except psycopg.Error as error:
                self.failed(error, connection, in_transaction=True)
                continue
            finally:
                self._retry.pool.release(connection)
            status = transaction.status(cursor.pgresult) if cursor.pgresult else None
            if status != "in progress":
                return status
            self._failed = failed

    def _wait(self, failed: FailedAttempt) -> None:
        """Wait before another attempt; raise the error for the caller if none may follow."""
        self._failed = None
        require_invocation(
            failed.connection, failed.failure, failed.error, in_transaction=failed.in_transaction
        )
        match failed.failure:
            case Failure.NOT_RUN | Failure.LOGIN_REFUSED:
                self._pause(failed.error)
            case Failure.LOST if failed.repeatable:
                window = self._open_window()
                window.may_have_run |= not failed.in_transaction
                window.restart()
                self._pause(failed.error)
            case Failure.ROLLED_BACK:
                self._open_window().restart()
                self._pause_for_answer(failed.error)
            case Failure.NOT_ABLE:
                self._pause_for_answer(failed.error)
            case Failure.DENIED if self._open_window().may_retry_denied():
                self._pause_for_answer(failed.error)
            case failure:
                self._retry.translate(failed.error, failure, in_transaction=failed.in_transaction)

    def _pause_for_answer(self, error: psycopg.Error) -> None:
        """Wait after an error of a server that answered."""
        self._answered = error
        self._pause(error, absent=False)

    def _pause(self, error: Exception, *, absent: bool = True) -> None:
        self._open_window().pause(error, absent=absent)
        self._retry.note(error)

    def _open_window(self) -> Window:
        """Return the window; the first call opens it, if the breaker admits the request."""
        if self._window is None:
            try:
                self._window = self._retry.window(self.deadline, self._began)
            except DatabaseUnavailableError:
                self._retry.stats.requests_errors += 1
                raise
        return self._window

    def _checkout(self) -> Connection[Row]:
        """Take a connection; retry a connect within the window, where that may help."""
        window = self._open_window()
        tracing = self._retry.events.tracing
        try:
            if tracing is None:
                return self._connected(window)
            with tracing.checkout():
                return self._connected(window)
        except (DatabaseUnavailableError, ConfigurationError):
            self._retry.stats.requests_errors += 1
            raise

    def _connected(self, window: Window) -> Connection[Row]:
        pool = self._retry.pool
        answered: psycopg.OperationalError | None = None
        left = 0.0
        while True:
            try:
                left = window.remaining()
                connection: Connection[Row] = pool.checkout(left, self._invocation)
            except (SecretsUnavailableError, ConfigureInterruptedError) as error:
                self._pause(error)
            except DatabaseUnavailableError:
                window.remaining()  # raises where the deadline has ended the wait for a slot
                raise
            except psycopg.OperationalError as error:
                if not isinstance(error, psycopg.errors.ConnectionTimeout):
                    answered = error
                if answered is None and self._answered and too_short(error, left):
                    self._pause(self._answered, absent=False)
                    continue  # the server's answer says more than a connect without time
                self._recover_connect(answered if answered and too_short(error, left) else error)
            else:
                if self._invocation in {None, self._retry.invocations.current}:
                    return connection
                pool.release(connection)  # this thread waited past the invocation's end
                raise DatabaseUnavailableError(f"{INVOCATION_ENDED}: nothing was sent")

    def _recover_connect(self, error: psycopg.OperationalError) -> None:
        """Return if another connect may help; else raise the error for the caller."""
        failure = classify_connect(error)
        if failure is Failure.NOT_RUN:
            self._pause(error)
        elif failure is not Failure.LOGIN_REFUSED:
            raise ConnectFailedError(f"cannot connect: {first_line(error)}") from error
        elif not self._retry.credentials_change:
            raise CredentialsError("the login in the URL was refused") from error
        else:
            # A rotation in progress: the database has the new password, the secret not yet.
            try:
                self._pause(error)
            except DatabaseUnavailableError as late:
                raise CredentialsError(
                    "the login was refused, also with the current credentials"
                ) from late


def require_invocation(
    connection: Connection[Any], failure: Failure, error: psycopg.Error, *, in_transaction: bool
) -> None:
    """Raise if the pool reclaimed the connection at the end of this thread's invocation.

    Nothing is retried for an invocation that has ended.
    """
    if not connection.lease.reclaimed or failure is not Failure.LOST:
        return
    if isinstance(error, DatabaseUnavailableError):
        raise error  # it was used after that
    if in_transaction:
        ended = f"{INVOCATION_ENDED}: its transaction was rolled back"
        raise DatabaseUnavailableError(ended) from error
    what = f"{INVOCATION_ENDED} while a statement was running"
    raise outcome_unknown(what, connection.transaction_id) from error


def outcome_unknown(what: str, transaction: TransactionId | None) -> CommitOutcomeUnknownError:
    """Return the error that says `what` was lost, with the id to look its outcome up."""
    return CommitOutcomeUnknownError(
        f"{what}: whether it was committed is not certain",
        xid=transaction and transaction.xid,
        incarnation=transaction and transaction.incarnation,
    )


def _not_able(error: psycopg.Error) -> str:
    if error.sqlstate == READ_ONLY:
        return f"the server is read-only now: {first_line(error)}"
    return f"the server cannot run the statement now ({error.sqlstate}): {first_line(error)}"


def _costs(error: Exception) -> bool:
    """Tell whether a failed attempt may have cost a server work."""
    return not isinstance(error, NotReachedError | psycopg.errors.ConnectionTimeout)
