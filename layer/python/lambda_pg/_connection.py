"""One client connection: opened in the calling thread, and never waiting past a deadline."""

import math
import os
import select
import sys
import tempfile
import weakref
from pathlib import Path
from time import monotonic
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import pq, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.rows import Row, RowFactory

from lambda_pg._credentials import Credentials
from lambda_pg._errors import ConnectFailedError, DeadlineExceededError
from lambda_pg._settings import AWS_ROOTS, Settings

RV = TypeVar("RV")

INTERVAL: Final = 0.1
"""Seconds between two looks at signals while a wait goes on (psycopg's own value)."""

CANCEL_TIMEOUT: Final = 0.25
"""Seconds that the cancel of an overdue statement may take; it comes out of the reserve."""

# A half-open connection ends after this many milliseconds instead of 15 minutes (measured: 3.4 s).
TCP_USER_TIMEOUT: Final = 3000


class Connection(psycopg.Connection[Row]):
    """A psycopg connection whose every wait ends at `deadline`."""

    deadline: float = math.inf
    """The time.monotonic() at which waits end; set at each checkout."""

    managed: bool = False
    """Whether the open transaction is the layer's, which alone may end it."""

    idle_since: float = 0.0
    """The wall clock's time of the last return to the pool."""

    def wait(self, gen: PQGen[RV], interval: float = INTERVAL, timeout: float | None = None) -> RV:
        """Wait as psycopg does, at most until the deadline."""
        if self.deadline == math.inf or timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, max(0.0, self.deadline - monotonic()))
        except psycopg.errors._WaitTimeout as error:
            self._abandon()
            raise DeadlineExceededError(
                "the invocation's deadline passed while the database was at work: its connection "
                "was dropped, and whether the statement ran to its end is unknown"
            ) from error

    def is_alive(self) -> bool:
        """Look at the socket without a round trip: an idle connection has nothing to say.

        Whatever there is to read on it is a farewell, and a hang-up shows even unread.
        """
        if self.closed:
            return False
        poller = select.poll()
        poller.register(self.pgconn.socket, _IDLE_EVENTS)
        return not poller.poll(0)

    def answers(self, timeout: float) -> bool:
        """Make one round trip of at most `timeout` seconds."""
        deadline, self.deadline = self.deadline, monotonic() + timeout
        try:
            self.execute("")
        except psycopg.Error:
            return False
        finally:
            self.deadline = deadline
        return True

    def prepare(self, deadline: float, row_factory: RowFactory[Row]) -> None:
        """Make the connection as good as new for the next user, whatever the last one set."""
        self.deadline = deadline
        self.row_factory = row_factory
        self.cursor_factory = psycopg.Cursor
        self.prepare_threshold = None
        self._autocommit = True  # the property would refuse nothing here and costs a lock

    def commit(self) -> None:
        """Commit, where the transaction is the caller's own."""
        self._refuse_inside("commit()")
        super().commit()

    def rollback(self) -> None:
        """Roll back, where the transaction is the caller's own."""
        self._refuse_inside("rollback()")
        super().rollback()

    def __enter__(self) -> Self:
        """Refuse `with connection:`, which would commit and close at its end."""
        self._refuse_inside("with connection:")
        return super().__enter__()

    def _refuse_inside(self, what: str) -> None:
        if self.managed:
            raise psycopg.ProgrammingError(
                f"{what} inside a transaction that the layer began: leave its block to commit, "
                "raise to roll back, and use connection.transaction() for a savepoint"
            )

    @property
    def lost(self) -> bool:
        """Tell whether nothing more can come over this connection.

        One that cannot leave pipeline mode is as good as gone: what a farewell met in the middle
        of a pipeline (seen as "cannot exit pipeline mode while busy").
        """
        return self.broken or self.pgconn.pipeline_status != pq.PipelineStatus.OFF

    def clean(self) -> bool:
        """End what was left open; tell whether the connection can be used again."""
        self.managed = False
        if self.lost or self.lock.locked():  # a generator, as of stream(), still holds the lock
            return False
        status = self.pgconn.transaction_status
        if status == pq.TransactionStatus.IDLE:
            return True
        if status not in {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR}:
            return False
        try:
            self.execute("ROLLBACK")
        except psycopg.Error:
            return False
        return self.pgconn.transaction_status == pq.TransactionStatus.IDLE

    def _abandon(self) -> None:
        """Cancel what runs, then shut the socket, whatever becomes of the cancel."""
        try:
            self.cancel_safe(timeout=CANCEL_TIMEOUT)
        except psycopg.Error:
            pass  # the peer has stalled: closing the socket is all that is left
        finally:
            self.close()


# macOS has no POLLRDHUP; there a hang-up makes the socket readable.
_IDLE_EVENTS: Final = (
    select.POLLIN
    | select.POLLHUP
    | select.POLLERR
    | (0 if sys.platform == "darwin" else select.POLLRDHUP)
)


class Connector:
    """Open connections as the settings say, with credentials given at each connect."""

    def __init__(self, settings: Settings) -> None:
        """Write nothing yet: an environment may still be copied."""
        self._settings = settings
        self._ca_file: Path | None = None

    def connect(self, credentials: Credentials, timeout: float) -> Connection[Any]:
        """Connect within `timeout` seconds.

        Raises psycopg.OperationalError, or ConnectFailedError when there is no host.
        """
        conninfo = self._conninfo(credentials)
        try:
            # Connection.connect() rounds timeouts up to at least 2 s: too coarse for a deadline.
            connection: Connection[Any] = waiting.wait_conn(
                Connection._connect_gen(conninfo), interval=INTERVAL, timeout=timeout
            )
        except psycopg.errors._WaitTimeout as error:
            raise psycopg.errors.ConnectionTimeout(
                f"connection timeout expired: no answer from {self.target(credentials)} "
                f"within {timeout:.1f} s"
            ) from error
        return connection

    def target(self, credentials: Credentials) -> str:
        """Name the endpoint for messages: profile, host and port, never a user or a password."""
        settings = self._settings
        host, port = settings.host or credentials.host, settings.port or credentials.port or 5432
        return f"{settings.profile} {host}:{port}"

    def _conninfo(self, credentials: Credentials) -> str:
        settings = self._settings
        host = settings.host or credentials.host
        if host is None:
            raise ConnectFailedError(
                "no host to connect to: set PGHOST, or give the secret a field 'host'"
            )
        return make_conninfo(
            "",
            host=host,
            port=settings.port or credentials.port or 5432,
            dbname=settings.dbname or credentials.dbname or "postgres",
            user=credentials.user,
            password=credentials.password,
            sslmode=settings.sslmode,
            sslrootcert=str(self._root_certificate()),
            application_name=settings.application_name,
            client_encoding="UTF8",
            gssencmode="disable",
            tcp_user_timeout=TCP_USER_TIMEOUT,
        )

    def _root_certificate(self) -> Path:
        """Return the file with the roots to trust; libpq takes them only from a file."""
        settings = self._settings
        if settings.sslrootcert is not None:
            return settings.sslrootcert
        if settings.ca_pem is None:
            return AWS_ROOTS
        if self._ca_file is None or not self._ca_file.exists():
            self._ca_file = _write_temporary(settings.ca_pem)
            weakref.finalize(self, _remove, self._ca_file, os.getpid())
        return self._ca_file


def _write_temporary(text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="lambda-pg-", suffix=".pem")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return Path(name)


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child leaves its parent's file alone
        path.unlink(missing_ok=True)
