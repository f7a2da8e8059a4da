"""What follows from a failure: another try, or the error that a handler catches."""

import logging
from typing import Any

import psycopg
from psycopg.abc import QueryNoTemplate

from lambda_pg._connection import Connection, Denial
from lambda_pg._errors import (
    CommitOutcomeUnknownError,
    DatabaseUnavailableError,
)
from lambda_pg._events import Events
from lambda_pg._failures import READ_ONLY, TRANSACTION_TIMEOUT, Failure, classify_statement
from lambda_pg._outcome import TransactionId
from lambda_pg._overload import Breaker
from lambda_pg._statements import is_undone_by_error
from lambda_pg._stats import Stats
from lambda_pg._window import Window


class Recovery:
    """Decide by the kind of a failure; counts and reports what it decides."""

    def __init__(self, *, breaker: Breaker, stats: Stats, events: Events) -> None:
        """Take what is told of it."""
        self._breaker = breaker
        self._stats = stats
        self._events = events

    def judge(
        self,
        error: psycopg.Error,
        connection: Connection[Any],
        alone: QueryNoTemplate | None = None,
    ) -> Failure:
        """Tell what the failed statement of a connection means, before the connection is returned.

        `alone` is a query that ran in autocommit: a part of it may have been committed before the
        error. A connection to a server that takes no writes is closed: another connect may reach
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
            denial = connection.why_denied()
            # A statement alone asks for nothing: not the server that denied it has answered.
            elsewhere = denial is Denial.WRITABLE and alone is not None
            if denial is not Denial.SERVER and not elsewhere:
                failure = Failure.DENIED
        return failure if undone else Failure.FINAL

    def pause(self, window: Window, error: Exception, *, absent: bool = True) -> None:
        """Wait for another try; raises what the caller gets when there is no time for one."""
        window.pause(error, absent=absent)
        self._stats.retries += 1
        self._events.report(logging.INFO, "retry", "trying again after: %s", reason(error))

    def recover(
        self, error: psycopg.Error, failure: Failure, window: Window, *, in_transaction: bool
    ) -> None:
        """Wait for another try when the work certainly had no effect; else raise as `translate`."""
        if failure in {Failure.NOT_RUN, Failure.LOGIN_REFUSED}:
            self.pause(window, error)
        elif failure in {Failure.NOT_ABLE, Failure.ROLLED_BACK} or (
            failure is Failure.DENIED and window.may_ask_again()
        ):
            if failure is Failure.ROLLED_BACK:
                window.begin_anew()
            window.answered = error
            self.pause(window, error, absent=False)  # the database has answered
        else:
            self.translate(error, failure, in_transaction=in_transaction)

    def translate(
        self,
        error: psycopg.Error,
        failure: Failure,
        *,
        in_transaction: bool,
        transaction: TransactionId | None = None,
    ) -> None:
        """Raise what a handler catches: one error for the pooler and the network."""
        if isinstance(error.__cause__, psycopg.errors._WaitTimeout):  # it was at work
            self._stats.deadline_cancels += 1
        if isinstance(error, DatabaseUnavailableError | CommitOutcomeUnknownError):
            raise error
        match failure:
            case Failure.NOT_RUN | Failure.LOGIN_REFUSED:
                self._breaker.failed()
                raise DatabaseUnavailableError(f"refused: {reason(error)}") from error
            case Failure.NOT_ABLE:
                self._breaker.succeeded()  # the database has answered
                raise DatabaseUnavailableError(_not_able(error)) from error
            case Failure.TOO_LONG:
                self._breaker.succeeded()  # the database has answered
                raise DatabaseUnavailableError(
                    f"the transaction took too long and was rolled back: {reason(error)}"
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
                self._breaker.succeeded()  # the database has answered
                raise error


def outcome_unknown(what: str, transaction: TransactionId | None) -> CommitOutcomeUnknownError:
    """Return the error that says `what` was lost, and how its outcome can be looked up."""
    return CommitOutcomeUnknownError(
        f"{what}: whether it was committed is not certain",
        xid=transaction and transaction.xid,
        incarnation=transaction and transaction.incarnation,
    )


def _not_able(error: psycopg.Error) -> str:
    if error.sqlstate == READ_ONLY:
        return f"the server is read-only now: {reason(error)}"
    return f"the server cannot run the statement now ({error.sqlstate}): {reason(error)}"


def reason(error: Exception) -> str:
    """Return the first line of an error's text."""
    return str(error).partition("\n")[0]
