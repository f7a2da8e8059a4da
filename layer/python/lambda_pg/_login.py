"""New connections with the current credentials, and how long each may live."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import time
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection
from lambda_pg._connector import Connector
from lambda_pg._credentials import DOUBTED_PAUSE, CredentialCache, Credentials
from lambda_pg._cursor import lend
from lambda_pg._denial import why_denied
from lambda_pg._errors import (
    CheckoutTimeoutError,
    ConnectFailedError,
    CredentialsError,
    DeadlineExceededError,
    first_line,
)
from lambda_pg._events import Events
from lambda_pg._failures import Failure, classify_connect, classify_statement, is_unexplained
from lambda_pg._jitter import jitter
from lambda_pg._overload import Breaker
from lambda_pg._settings import Settings
from lambda_pg._stats import Stats

MIN_CONNECT_SECONDS: Final = 1.0
"""The fewest seconds for a connect: a timeout after less does not mean that a server is silent."""


def too_short(error: psycopg.Error, seconds: float) -> bool:
    """Tell whether a connect had too few seconds for its timeout to have a meaning."""
    return isinstance(error, psycopg.errors.ConnectionTimeout) and seconds < MIN_CONNECT_SECONDS


Configure = Callable[[psycopg.Connection[Any]], object]
"""What an application does with each new connection before its first use."""

_ONLY_ADAPTERS: Final = (
    "only type adapters are kept; set defaults with ALTER ROLE … SET or ALTER DATABASE … SET"
)


class ConfigureInterruptedError(psycopg.OperationalError):
    """A new connection was lost or refused while `configure` used it: a retry may succeed."""


class Login:
    """Open connections, and tell whose credentials are still the current ones."""

    def __init__(
        self,
        settings: Settings,
        credentials: CredentialCache,
        *,
        breaker: Breaker,
        stats: Stats,
        events: Events,
        configure: Configure | None = None,
    ) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._credentials = credentials
        self._connector = Connector(settings, breaker)
        self._stats = stats
        self._events = events
        self._has_seen_primary = False
        self._configure = configure

    def connect(self, timeout: float) -> Connection[Any]:
        """Connect within `timeout` seconds, with other credentials where the first are refused.

        Raises psycopg.OperationalError, and what the credentials, the settings and `configure`
        raise.
        """
        until = monotonic() + timeout
        began = monotonic()
        credentials = self._credentials.get(timeout)
        refused: psycopg.OperationalError | None = None
        while True:
            self._stats.connections_num += 1
            left = max(0.0, until - monotonic())
            try:
                connection = self._open(credentials, left)
            except psycopg.OperationalError as error:
                self._stats.connections_errors += 1
                if refused is not None and too_short(error, left):
                    raise refused from None
                refused = error
                if is_unexplained(error):
                    if self._connector.learn_sqlstates():
                        continue  # the same login brings its SQLSTATE now
                    other = self._other_than(credentials, until - monotonic())
                elif classify_connect(error) is Failure.LOGIN_REFUSED:
                    left = max(0.1, until - monotonic())
                    other = self._credentials.after_refusal(credentials, left)
                else:
                    raise
                if other is None:
                    raise
                self._events.report(
                    logging.INFO, "refresh", "the login was refused: trying newer credentials"
                )
                credentials = other
            else:
                break
        self._credentials.accepted(credentials)
        self._stats.connections_ms += (monotonic() - began) * 1000
        self._date(connection)
        # Servers before PostgreSQL 14 do not report that they are standbys.
        self._has_seen_primary |= connection.pgconn.parameter_status(b"in_hot_standby") != b"on"
        connection.only_standbys = not self._has_seen_primary
        if self._configure is not None:
            self._make_ready(connection, self._configure, until)
        return connection

    def _open(self, credentials: Credentials, seconds: float) -> Connection[Any]:
        """Connect, in a span where the program traces."""
        tracing = self._events.tracing
        if tracing is None:
            return self._connector.connect(credentials, seconds)
        with tracing.connect():
            return self._connector.connect(credentials, seconds, tracing.connection)

    def _make_ready(self, connection: Connection[Any], configure: Configure, until: float) -> None:
        """Let the application configure a new connection, until the time.monotonic() `until`."""
        kept = False
        connection.deadline = until
        lend(connection, tuple_row)
        try:
            with _strict(connection):
                configure(connection)
            _require_unchanged(connection)
            connection.keep_adapters()
            if connection.denied:  # and `configure` swallowed the error
                why_denied(connection)
            kept = connection.clean()
        except DeadlineExceededError as late:
            raise CheckoutTimeoutError(
                "a new connection was not ready in time: configure was still running"
            ) from late
        except psycopg.Error as error:
            if classify_statement(error, broken=connection.lost) is not Failure.FINAL:
                raise ConfigureInterruptedError(_configure_failed(error)) from error
            if isinstance(error, psycopg.OperationalError):
                raise ConnectFailedError(_configure_failed(error)) from error
            raise
        finally:
            if not kept:
                self._stats.connections_errors += 1
                connection.close()

    def _other_than(self, doubted: Credentials, timeout: float) -> Credentials | None:
        """Fetch newer credentials after a refusal for an unknown reason."""
        try:
            return self._credentials.after_refusal(doubted, max(0.1, timeout), pause=DOUBTED_PAUSE)
        except CredentialsError:
            return None  # the caller gets the server's error

    def close(self) -> None:
        """Close the logins that no request has finished."""
        self._connector.close()

    def _date(self, connection: Connection[Any]) -> None:
        """Set how long a new connection may live, with jitter: a fleet's do not end together."""
        settings, profile = self._settings, connection.profile
        lifetime = settings.max_lifetime or profile.max_lifetime
        lease = connection.lease
        lease.idle_since = time()
        lease.expires_at = lease.idle_since + lifetime * jitter.uniform(0.8, 1.0)
        lease.max_idle = settings.max_idle or profile.max_idle
        lease.check_after = min(settings.idle_check_after, lease.max_idle)
        lease.generation = self._credentials.generation
        lease.renew_at = min(lease.expires_at, self._credentials.fresh_until)

    def is_current(self, connection: Connection[Any], timeout: float) -> bool:
        """Refresh the credentials; tell whether they are those of the connection."""
        self._credentials.get(timeout)
        lease = connection.lease
        lease.renew_at = min(lease.expires_at, self._credentials.fresh_until)
        return lease.generation == self._credentials.generation


@contextmanager
def _strict(connection: Connection[Any]) -> Iterator[None]:
    """Refuse what would pin or leak, also where the settings do not ask for that."""
    strict, connection.strict = connection.strict, True
    try:
        yield
    finally:
        connection.strict = strict


def _require_unchanged(connection: Connection[Any]) -> None:
    """Raise where `configure` has left something that does not stay on the connection."""
    if connection.lost:
        raise psycopg.OperationalError("the connection was lost")
    if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
        raise psycopg.ProgrammingError(
            "the function `configure` left a transaction open on a new connection"
        )
    if connection.has_session_state:
        raise psycopg.ProgrammingError(
            f"the function `configure` set session state: {_ONLY_ADAPTERS}"
        )


def _configure_failed(error: psycopg.Error) -> str:
    return f"configure failed on a new connection: {first_line(error)}"
