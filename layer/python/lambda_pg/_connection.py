"""One client connection: opened in the calling thread, and never waiting past a deadline."""

import math
import os
import select
import socket
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any, Final, NamedTuple, NoReturn, Self, TypeVar

import psycopg
from psycopg import IsolationLevel, generators, pq, waiting
from psycopg._preparing import PrepareManager
from psycopg.abc import Params, PQGen, Query
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq.abc import PGresult
from psycopg.rows import Row

from lambda_pg._clock import monotonic
from lambda_pg._errors import (
    DatabaseUnavailableError,
    DeadlineExceededError,
    StatementRefusedError,
)
from lambda_pg._lease import Lease
from lambda_pg._outcome import TransactionId, asking, transaction_id
from lambda_pg._pipeline import Command, Pipeline, Request, final_error, send_batch
from lambda_pg._profiles import Profile
from lambda_pg._statements import (
    ends_transaction,
    refusal,
    refusal_alone,
    session_effect,
)

RV = TypeVar("RV")

_ACTIVE: Final = pq.TransactionStatus.ACTIVE
_IDLE: Final = pq.TransactionStatus.IDLE
_AT_WORK: Final = frozenset({_ACTIVE, pq.TransactionStatus.UNKNOWN})
"""The status of a connection on which a statement runs, or which is lost."""

INTERVAL: Final = 0.1
"""Seconds between two checks for signals during a wait (psycopg's own value)."""

CANCEL_TIMEOUT: Final = 0.25
"""Seconds that the cancel of an overdue statement may take; they come out of the reserve."""

BEGIN: Final = Command(b"BEGIN")
COMMIT: Final = Command(b"COMMIT")


LEFT_OPEN_TIMEOUT: Final = 0.25
"""Seconds that `has_written` may take; they come out of the reserve."""

SET_CLAIMS: Final = (
    b"SELECT set_config('request.jwt.claims', $1, true),"
    b" set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true)"
)
"""The second one names the transaction by its start: a policy that compares it rejects claims that
an earlier client left in the session (docs/decisions/0038)."""


class Modes(NamedTuple):
    """The options of BEGIN; None leaves one to the server's settings."""

    isolation_level: IsolationLevel | None = None
    read_only: bool | None = None
    deferrable: bool | None = None


DEFAULT_MODES: Final = Modes()


def opening(claims: str | None, begin: Command = BEGIN) -> list[Command]:
    """Return the commands that begin a transaction, with JSON `claims` that end with it."""
    return [begin] if claims is None else [begin, Command(SET_CLAIMS, [claims.encode()])]


class Connection(psycopg.Connection[Row]):
    """A psycopg connection whose every wait ends at `deadline`.

    Large because psycopg's is: many methods override one of psycopg's, and a return to the pool
    resets the private state that psycopg has.
    """

    profile: Profile
    """What may be sent over it."""

    application_name: bytes = b""
    """The name with which it has logged in."""

    strict: bool = False
    """Whether statements that pin or leak are refused before they are sent."""

    deadline: float = math.inf
    """The time.monotonic() at which waits end; set at each checkout."""

    managed: bool = False
    """Whether the open transaction is the layer's, which alone may end it."""

    opening: list[Command] | None = None
    """The commands that begin the layer's transaction: sent together with the first statement."""

    closing: Sequence[Command | Request] = ()
    """The statements that travel with COMMIT of the layer's transaction."""

    transaction_id: TransactionId | None = None
    """The id of the layer's transaction, once known: PostgreSQL assigns it at the first write."""

    has_session_state: bool = False
    """Whether it may carry session state."""

    only_standbys: bool = False
    """Whether its Database has opened connections to hot standbys only, this one included."""

    denied: bool = False
    """Whether a write was denied, and `why_denied` was not called yet."""

    demoted: bool = False
    """Whether its server accepts no writes: the connection is not used again."""

    orphaned: bool = False
    """Whether it belongs to the parent of this process; its socket is dead here."""

    lease: Lease
    """What the pool knows of it."""

    _pool: None = None
    """Tells psycopg that it may end with the program, open and without a warning."""

    registered: AdaptersMap
    """The type adapters with which each use of it begins."""

    harmless: set[str]
    """Statements that were inspected for its profile, and leave no session state."""

    reader: Any = None
    """What reads the rows of foreign statements, once there were some."""

    poll: Callable[[int], list[tuple[int, int]]]
    """Check the socket, without a round trip, for events of a connection that was lost.

    The server sends nothing on an idle connection, except a last error before it hangs up.
    """

    def equip(self, profile: Profile, *, strict: bool) -> None:
        """Make a connection that was just opened one of the layer's."""
        self.profile = profile
        self.application_name = self.pgconn.parameter_status(b"application_name") or b""
        self.strict = strict
        self.lease = Lease()
        self.harmless = set()
        self.registered = AdaptersMap(psycopg.adapters)
        poller = select.poll()
        poller.register(self.pgconn.socket, _IDLE_EVENTS)
        self.poll = poller.poll
        self._undo_settings()
        _OPEN.add(self)

    @cached_property
    def naming(self) -> Command:
        """What gives the session the name with which the connection has logged in."""
        name = pq.Escaping(self.pgconn).escape_literal(self.application_name)
        return Command(b"SET application_name TO " + name)

    @property
    def adapters(self) -> AdaptersMap:
        """The type adapters of this use; what a caller registers here ends with it."""
        if self._adapters is None:
            self._adapters = AdaptersMap(self.registered)
        return self._adapters

    def keep_adapters(self) -> None:
        """Let each use begin with the type adapters that it has now."""
        self.registered, self._adapters = self.adapters, None

    def wait(self, gen: PQGen[RV], interval: float = INTERVAL, timeout: float | None = None) -> RV:
        """Wait as psycopg does, at most until the deadline.

        Everything that psycopg sends passes here. So this is also where a transaction begins, and
        where a statement that would run outside of it is refused.
        """
        if self.lease.reclaimed:
            self._refuse_ended()
        if self.managed:
            self._hold_transaction()
        return self._wait(gen, interval, timeout)

    def _wait(self, gen: PQGen[RV], interval: float = INTERVAL, timeout: float | None = None) -> RV:
        left = None if self.deadline == math.inf else self._left()
        if timeout is None or (left is not None and left < timeout):
            return self._await(gen, left, interval)
        return self._await(gen, timeout, interval, asked=True)

    def _await(
        self,
        gen: PQGen[RV],
        timeout: float | None,
        interval: float = INTERVAL,
        *,
        asked: bool = False,
    ) -> RV:
        """Wait for `timeout` seconds. Raises DeadlineExceededError at their end.

        `asked` means that the caller set the time, as in notifies(), and expects psycopg's own
        error at its end.
        """
        try:
            # Not super().wait(): on the way of every statement each call counts.
            return waiting.wait(gen, self.pgconn.socket, interval, timeout)
        except psycopg.errors._WaitTimeout as error:
            if asked:
                raise
            raise self._overdue() from error
        except psycopg.errors.ReadOnlySqlTransaction:
            self.denied = True
            raise
        except psycopg.OperationalError as error:
            # poll() may report a reset before libpq has read what came before it.
            if error.sqlstate is None and self.pgconn.transaction_status in _AT_WORK:
                final = final_error(self.pgconn)
                self.pgconn.finish()
                if final is not None:
                    raise final from error
            raise
        except KeyboardInterrupt:
            self._abandon()
            raise

    def _left(self) -> float:
        """Return the seconds until the deadline. Raises DeadlineExceededError after it."""
        left = self.deadline - monotonic()
        if left <= 0:
            if self.pgconn.transaction_status == _ACTIVE:  # libpq has sent it already
                raise self._overdue() from psycopg.errors._WaitTimeout("no time left to wait")
            raise DeadlineExceededError("the deadline passed before the statement was sent")
        return left

    def _overdue(self) -> DeadlineExceededError:
        """Close the connection while a statement runs; return the error to raise."""
        self._abandon()
        return DeadlineExceededError(
            "the invocation's deadline passed while a statement was running: its connection "
            "was closed",
            may_have_run=not self.managed,  # the layer's own transaction is rolled back
        )

    def run(self, cursor: psycopg.Cursor[Any], query: Query, params: Params | None) -> None:
        """Run one statement for a new cursor, while only this thread has the connection.

        What cursor.execute() does in autocommit and without prepared statements, less the lock
        and the bookkeeping for the rest: 3 of 40 µs (measured; the layer's whole overhead is in
        benchmarks/results/overhead.json).
        """
        cursor._tx = Transformer(self)
        cursor._query = ready = cursor._convert_query(query, params)
        left = None if self.deadline == math.inf else self._left()  # first: libpq sends at once
        if ready.params:
            self.pgconn.send_query_params(
                ready.query, ready.params, param_formats=ready.formats, param_types=ready.types
            )
        else:
            self.pgconn.send_query(ready.query)
        results = self._await(generators.execute(self.pgconn), left)
        cursor._check_results(results)
        cursor._set_results(results)

    def command(self, text: bytes) -> None:
        """Run one of the layer's own commands, such as COMMIT."""
        with self.lock:
            self._wait(self._exec_command(text))

    def send_batch(self, statements: Sequence[Command | Request]) -> list[PGresult]:
        """Run statements in one round trip and return the last answer."""
        return self._wait(send_batch(self.pgconn, statements))

    def begin(self, claims: str | None, modes: Modes = DEFAULT_MODES) -> None:
        """Have the next statement open a transaction with JSON `claims`; the layer ends it."""
        self.managed = True
        self.transaction_id = None
        if modes == DEFAULT_MODES:
            self.opening = opening(claims)
        else:
            self._isolation_level, self._read_only, self._deferrable = modes  # no property: no lock
            self.opening = opening(claims, Command(self._get_tx_start_command()))

    def open_with(
        self,
        cursor: psycopg.Cursor[Any],
        query: Query,
        params: Params | None,
        result: pq.Format | None,
    ) -> None:
        """Begin the transaction in one round trip with its first statement.

        The same round trip brings the transaction's id: where the first statement writes, a lost
        answer to COMMIT can be resolved later.
        """
        begin, request = self.opening or [], Request.of(cursor, query, params, result)
        self.opening = None
        with self.lock:
            (answer,) = self.send_batch([*begin, request, asking(self.pgconn.server_version)])
        self.transaction_id = transaction_id(answer)

    def require_open(self) -> None:
        """Raise where COMMIT would hang, do nothing, or roll back without an error."""
        status = self.pgconn.transaction_status
        if self.opening is not None and not self.lost:
            return  # nothing was sent yet
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
        if self.lost:
            raise psycopg.OperationalError("the connection was lost inside the transaction")
        if self.poll(0):  # the server hung up, and COMMIT was not sent: nothing was committed
            self.command(b"SELECT")

    def close_with(self, statements: Sequence[Command | Request]) -> None:
        """Have statements travel with COMMIT, in one round trip.

        Raises ProgrammingError unless the transaction has an id already: where these statements
        are the first to write, a lost answer could not be resolved.
        """
        if self.transaction_id is None:
            raise psycopg.ProgrammingError(
                "the transaction has no id yet: its first statement must write, or ask for the id"
            )
        self.closing = statements

    def finish(self) -> None:
        """Commit the layer's transaction; where BEGIN was not sent, send nothing."""
        self.managed = False
        if self.closing:
            with self.lock:
                self.send_batch([*self.closing, COMMIT])
        elif self.opening is None:
            self.command(COMMIT.text)

    def learn_transaction_id(self) -> None:
        """Ask for the id, unless the first statement has written and brought it."""
        if self.opening is None and self.transaction_id is None:
            question = asking(self.pgconn.server_version)
            with self.lock:
                answer = self._wait(self._exec_command(question.text, pq.Format.BINARY))
            self.transaction_id = None if answer is None else transaction_id(answer)

    def _hold_transaction(self) -> None:
        """Begin the layer's transaction, or refuse a statement after its end."""
        if self.opening is not None:
            self._open_first()
        elif self._pipeline is None and self.pgconn.transaction_status == _IDLE:
            raise psycopg.ProgrammingError(
                "the transaction of this block is not open: it could not be begun, or a statement "
                "inside it has ended it; nothing is sent outside of it"
            )

    def _open_first(self) -> None:
        """Begin the transaction separately, before something that is not a plain statement."""
        pipeline = self._pipeline
        if pipeline is not None and not pipeline.level:
            return  # psycopg enters its pipeline mode: nothing is sent yet
        begin, self.opening = self.opening or [], None
        if pipeline is None:
            self.send_batch(begin)
            return
        for command in begin:
            pipeline.command_queue.append(partial(command.send, self.pgconn))
            pipeline.result_queue.append(None)

    def inspect(self, query: Query, *, prepare: bool = False, named_cursor: bool = False) -> bool:
        """Note session state that a statement leaves; return whether it leaves none.

        Raises StatementRefusedError in strict mode, and ProgrammingError for a statement that
        ends the layer's transaction, and for a NUL, where libpq would silently cut the statement.
        """
        text = self.text_of(query)
        if "\0" in text:
            raise psycopg.ProgrammingError("the statement holds a NUL character")
        if self.managed and ends_transaction(text):
            self._refuse_inside("a statement that ends the transaction")
        if not (self.strict or self.profile.session):
            return True
        if self.strict:
            reason = refusal(text, self.profile, prepare=prepare, named_cursor=named_cursor)
            if reason is None and self._is_alone():
                reason = refusal_alone(text)
            if reason is not None:
                raise StatementRefusedError(reason)
        if self.profile.session and (prepare or session_effect(text) is not None):
            self.has_session_state = True
        return not self.has_session_state

    def _is_alone(self) -> bool:
        """Tell whether the next statement is a transaction by itself."""
        in_block = self.managed or self._pipeline is not None or not self._autocommit
        return not in_block and self.pgconn.transaction_status == _IDLE

    def text_of(self, query: Query) -> str:
        """Return a query as text."""
        if isinstance(query, str):
            return query
        if isinstance(query, bytes):
            return query.decode(errors="replace")
        return psycopg.sql.as_string(query, self)

    def close(self) -> None:
        """Close the connection; the pool sees that it is dead by its `poll`."""
        self.poll = _always
        super().close()

    def end(self) -> None:
        """End the connection, which another thread may be using.

        Where that thread is inside psycopg, only the socket is shut: see `shut_socket`.
        """
        if self.lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self.lock.release()
        else:
            self.shut_socket()

    def shut_socket(self) -> None:
        """Shut the socket. A thread that waits for it wakes at once, and closes the connection.

        If this thread closed it, the other one would use memory that libpq has freed.
        """
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)

    def _try_cancel(self, *, timeout: float = CANCEL_TIMEOUT) -> None:
        """Cancel a stream() or a COPY that was left open, where the profile allows a cancel.

        psycopg would wait 5 s for the cancel, past a deadline; and it reads the rest in any case.
        """
        if self.profile.cancel and not self.lease.reclaimed:
            super()._try_cancel(timeout=min(timeout, CANCEL_TIMEOUT))

    def answers(self, timeout: float, *, reset: bool) -> bool:
        """Make one round trip of at most `timeout` seconds, which may also end session state."""
        deadline, self.deadline = self.deadline, monotonic() + timeout
        try:
            psycopg.Cursor(self).execute("DISCARD ALL" if reset else "")
        except psycopg.Error:
            return False
        finally:
            self.deadline = deadline
        if reset:
            self._prepared = PrepareManager()  # the server has dropped the prepared statements
            self.prepare_threshold = None
            self.has_session_state = False
        return True

    def has_written(self) -> bool:
        """Ask whether the transaction that was left open has an id: only a write has one.

        A connection that cannot answer counts as one that has written.
        """
        status = self.pgconn.transaction_status
        if status in {pq.TransactionStatus.IDLE, pq.TransactionStatus.INERROR}:
            return False
        if status != pq.TransactionStatus.INTRANS or self._pipeline or self.lock.locked():
            return True
        self.deadline = min(self.deadline, monotonic() + LEFT_OPEN_TIMEOUT)
        self.transaction_id = None
        try:
            self.learn_transaction_id()
        except psycopg.Error:
            return True
        return self.transaction_id is not None

    @contextmanager
    def pipeline(self, *, _no_lock: bool = False) -> Iterator[psycopg.Pipeline]:
        """Enter psycopg's pipeline mode; the server's own error is the one that is raised."""
        pipeline = self._pipeline or Pipeline(self, _no_lock)
        with pipeline._lock:
            self._check_connection_ok()
            self._pipeline = pipeline
        try:
            with pipeline:
                yield pipeline
        finally:
            if not pipeline.level:
                self._pipeline = None

    def _pipeline_nolock(self) -> Any:
        """Enter pipeline mode for executemany(), which holds the lock."""
        return self.pipeline(_no_lock=True)

    def commit(self) -> None:
        """Commit a transaction that the caller began."""
        self._refuse_inside("commit()")
        super().commit()

    def rollback(self) -> None:
        """Roll back a transaction that the caller began.

        Where the pool has reclaimed the connection, it was rolled back then.
        """
        if self.lease.reclaimed:
            self.lease.reported = True
            return
        self._refuse_inside("rollback()")
        super().rollback()

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Begin a transaction or a savepoint, as psycopg does.

        Raises DatabaseUnavailableError where the connection was lost inside the block and the error
        was caught, or came in another invocation: psycopg would leave the block without an error.
        """
        with super().transaction(savepoint_name, force_rollback) as block:
            yield block
        if block.status is block.Status.FAILED and not force_rollback:
            if self.lease.reclaimed:
                self._refuse_ended()
            raise DatabaseUnavailableError(
                "the connection was lost inside a transaction, which was rolled back"
            )

    def __enter__(self) -> Self:
        """Refuse `with connection:` in the layer's transaction: it would commit and close."""
        self._refuse_inside("with connection:")
        if self.lease.reclaimed:
            self._refuse_ended()
        return super().__enter__()

    def __exit__(self, kind: Any, raised: BaseException | None, traceback: Any) -> None:
        """End `with connection:`. Raises where the pool has reclaimed it: nothing is committed."""
        if self.lease.reclaimed and raised is None:
            self._refuse_ended()
        super().__exit__(kind, raised, traceback)

    def _check_connection_ok(self) -> None:
        if self.lease.reclaimed:
            self._refuse_ended()
        super()._check_connection_ok()

    def _refuse_ended(self) -> NoReturn:
        """Raise for the use of a reclaimed connection, which its caller did not close.

        Where a stream() or a COPY is still open, it is not certain whether it has written.
        """
        at_work = self.pgconn.transaction_status == _ACTIVE
        self.close()
        self.lease.reported = True
        kind = psycopg.OperationalError if at_work else DatabaseUnavailableError
        raise kind(
            "the connection was closed because its invocation has ended, and what was not "
            "committed was rolled back: take a connection from the pool in each invocation"
        )

    def _refuse_inside(self, what: str) -> None:
        if self.managed:
            raise psycopg.ProgrammingError(
                f"{what} is not allowed in a transaction that the layer began: to commit, leave "
                "the with block; to roll back, raise an exception; for a savepoint, use "
                "connection.transaction()"
            )

    @property
    def lost(self) -> bool:
        """Whether nothing more can come over this connection.

        That includes one that cannot leave pipeline mode, as after a hang-up in the middle of a
        pipeline (seen as "cannot exit pipeline mode while busy").
        """
        return (
            self.broken
            or self.lease.reclaimed
            or self.pgconn.pipeline_status != pq.PipelineStatus.OFF
        )

    def clean(self) -> bool:
        """Roll back what was left open, and reset what was set; return whether it can be reused."""
        self.managed = False
        self.opening = None
        self.closing = ()
        self._undo_settings()
        if self.lost or self.lock.locked():  # a generator, as of stream(), still holds the lock
            return False
        if self._num_transactions or self._tpc:  # psycopg would end them during the next use
            return False
        status = self.pgconn.transaction_status
        if status == pq.TransactionStatus.IDLE:
            return True
        if status not in {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR}:
            return False
        try:
            self.command(b"ROLLBACK")
        except psycopg.Error:
            return False
        return self.pgconn.transaction_status == pq.TransactionStatus.IDLE

    def _undo_settings(self) -> None:
        self._autocommit = True  # the properties would send nothing here, and each takes a lock
        self._isolation_level = self._read_only = self._deferrable = None
        self._begin_statement = b""
        self.prepare_threshold = None
        self._adapters = None
        self._notice_handlers.clear()
        self._notify_handlers.clear()
        self._notifies_backlog = deque()

    def _abandon(self) -> None:
        """Cancel what runs, where the profile allows it; then close the connection in any case."""
        try:
            if self.profile.cancel:
                self.cancel_safe(timeout=CANCEL_TIMEOUT)
        except psycopg.Error:
            pass  # the peer does not answer: only the close remains
        finally:
            self.close()


def _always(_: int) -> list[tuple[int, int]]:
    return [(-1, select.POLLNVAL)]


_IDLE_EVENTS: Final = (
    select.POLLIN
    | select.POLLHUP
    | select.POLLERR
    | (0 if sys.platform == "darwin" else select.POLLRDHUP)
)
"""What shows that an idle connection was lost. macOS has no POLLRDHUP; there a hang-up makes the
socket readable."""

_OPEN: Final[weakref.WeakSet[Connection[Any]]] = weakref.WeakSet()


def _orphan() -> None:
    """Detach a forked child from its parent's sockets: it may send nothing on them."""
    null = os.open(os.devnull, os.O_RDWR)
    for connection in list(_OPEN):
        if not connection.closed:
            os.dup2(null, connection.fileno())
        connection.orphaned = True
    _OPEN.clear()
    os.close(null)


os.register_at_fork(after_in_child=_orphan)
