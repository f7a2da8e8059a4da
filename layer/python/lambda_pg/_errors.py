"""What can go wrong between a handler and its database.

    ConfigurationError                  every problem of the settings at once
    psycopg.OperationalError
    ├── DatabaseUnavailableError        answer 503, retry after `retry_after`
    │   ├── CheckoutTimeoutError        no connection within the checkout timeout
    │   ├── ConnectFailedError          a connect that no retry can fix
    │   ├── CredentialsError            no credentials, or credentials that are refused
    │   └── DeadlineExceededError       the invocation ran out of time
    └── CommitOutcomeUnknownError       a write was sent and its answer was lost
    psycopg.NotSupportedError
    └── StatementRefusedError           strict mode: the statement would pin, leak or do nothing

SQL errors stay psycopg's own.
"""

from collections.abc import Sequence

import psycopg


class ConfigurationError(Exception):
    """Report settings that cannot work: `problems` holds one sentence for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Keep every problem, so that one deployment can fix them all."""
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("; ".join(self.problems))


class DatabaseUnavailableError(psycopg.OperationalError):
    """Report that the database cannot serve this request now.

    The statement or transaction that failed changed nothing, with three exceptions. A statement
    that its caller declared idempotent may have run, and so may one that the deadline ended
    (DeadlineExceededError.may_have_run). A procedure in connection() may have committed a part.

    `retry_after` is the number of seconds after which a client may retry, for a Retry-After header.
    `__cause__` holds the original error.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        """Take a message without secrets and the seconds to wait."""
        super().__init__(message)
        self.retry_after = retry_after


class CheckoutTimeoutError(DatabaseUnavailableError):
    """Report that there was no connection within the checkout timeout."""


class ConnectFailedError(DatabaseUnavailableError):
    """Report a refused connect that no retry can fix: a wrong certificate or database."""


class CredentialsError(DatabaseUnavailableError):
    """Report that the credentials could not be fetched, or were refused after a refresh."""


class DeadlineExceededError(DatabaseUnavailableError):
    """Report that the deadline ended a wait.

    `may_have_run` tells whether a statement was running: its connection was closed, and it may or
    may not have been committed, as after any lost answer. Otherwise nothing was sent.
    """

    def __init__(
        self, message: str, *, retry_after: float = 1.0, may_have_run: bool = False
    ) -> None:
        """Take a message without secrets, the seconds to wait, and `may_have_run`."""
        super().__init__(message, retry_after=retry_after)
        self.may_have_run = may_have_run


class CommitOutcomeUnknownError(psycopg.OperationalError):
    """Report that the answer to a write was lost: it may or may not have been committed.

    Nothing was retried. Look the outcome up before you repeat it, or make the write idempotent.

    `xid` is the id of the transaction where it is known, else None: `SELECT
    pg_xact_status('<xid>'::xid8)` answers `committed`, `aborted`, `in progress` (ask again), or
    NULL if it was too long ago. The answer is about this transaction only while `SELECT
    pg_postmaster_start_time(), pg_stat_get_bgwriter_stat_reset_time()` still shows the two moments
    of `incarnation`: a server that has crashed or failed over since may have given the id to
    another transaction. `incarnation` is None on PostgreSQL before 15, and proves nothing on Aurora
    or on versions after 18.
    """

    def __init__(
        self, message: str, *, xid: str | None = None, incarnation: str | None = None
    ) -> None:
        """Take a message without secrets, the id to ask with, and its incarnation."""
        super().__init__(message)
        self.xid = xid
        self.incarnation = incarnation


class StatementRefusedError(psycopg.NotSupportedError):
    """Report a statement that strict mode (LAMBDA_PG_STRICT=1) refused before it was sent.

    It needs session state, which pins or leaks through the pooler of the profile; or it sets
    something for its transaction, and is alone in it.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's text; libpq appends hints and other addresses."""
    return str(error).partition("\n")[0]
