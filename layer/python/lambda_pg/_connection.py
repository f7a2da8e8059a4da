"""One client connection: opened in the calling thread, and never waiting past a deadline."""

import math
import os
import select
import socket
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import generators, pq, waiting
from psycopg._preparing import PrepareManager
from psycopg.abc import Params, PQGen, Query
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq.abc import PGresult
from psycopg.rows import Row, RowFactory, tuple_row

from lambda_pg._cursor import Cursor, ServerCursor
from lambda_pg._errors import (
    DeadlineExceededError,
    StatementRefusedError,
)
from lambda_pg._flight import Command, Request, fly
from lambda_pg._outcome import TransactionId, asking, transaction_id
from lambda_pg._profiles import Profile
from lambda_pg._statements import ends_transaction, refusal, session_effect

RV = TypeVar("RV")

_ACTIVE: Final = pq.TransactionStatus.ACTIVE
_IDLE: Final = pq.TransactionStatus.IDLE

INTERVAL: Final = 0.1
"""Seconds between two looks at signals while a wait goes on (psycopg's own value)."""

CANCEL_TIMEOUT: Final = 0.25
"""Seconds that the cancel of an overdue statement may take; it comes out of the reserve."""

BEGIN: Final = Command(b"BEGIN")
COMMIT: Final = Command(b"COMMIT")
IS_READ_ONLY: Final = (
    "SELECT pg_is_in_recovery() OR setting = 'on' "
    "AND source NOT IN ('client', 'user', 'database user', 'session', 'interactive') "
    "FROM pg_settings WHERE name = 'default_transaction_read_only'"
)
READ_ONLY_TIMEOUT: Final = 0.5
"""Seconds that this question may take."""

SET_CLAIMS: Final = b"SELECT set_config('request.jwt.claims', $1, true)"


def opening(claims: str | None) -> list[Command]:
    """Return what begins a transaction, with JSON `claims` that end with it."""
    return [BEGIN] if claims is None else [BEGIN, Command(SET_CLAIMS, [claims.encode()])]


class Connection(psycopg.Connection[Row]):
    """A psycopg connection whose every wait ends at `deadline`."""

    profile: Profile
    """What may be sent over it."""

    strict: bool = False
    """Whether statements that pin or leak are refused before they are sent."""

    deadline: float = math.inf
    """The time.monotonic() at which waits end; set at each checkout."""

    managed: bool = False
    """Whether the open transaction is the layer's, which alone may end it."""

    opening: list[Command] | None = None
    """What begins the layer's transaction: it leaves together with the first statement."""

    transaction_id: TransactionId | None = None
    """The id of the layer's transaction, once it is known to have one: it writes."""

    touched: bool = False
    """Whether it may carry session state, and the invocation that left it."""

    used_by: int | None = None

    _pool: None = None
    """What tells psycopg that it may end with the program, open and without a warning."""

    slot: object = None
    """Its place in the pool, which is free when nobody has the connection any more."""

    reclaimed: bool = False
    """Whether the pool took it back, at an invocation's end, while a thread still had it."""

    orphaned: bool = False
    """Whether it belongs to the parent of this process; its socket here is a dead one."""

    fresh_until: float = 0.0
    """The wall clock's time until which a checkout takes it after one look at its socket."""

    idle_since: float = 0.0
    """The wall clock's time of its last return."""

    expires_at: float = math.inf
    """The wall clock's time at which its lifetime ends."""

    renew_at: float = math.inf
    """The wall clock's time at which its credentials are to be looked at, or its lifetime ends."""

    generation: int = 0
    """Of its credentials."""

    registered: AdaptersMap
    """The type adapters that each use of it begins with."""

    harmless: set[str]
    """Statements that were inspected for its profile, and leave no session state."""

    ask_after: float = math.inf
    """Seconds idle after which one look at its socket is not enough."""

    max_idle: float = math.inf
    """Seconds idle after which it is replaced without being asked."""

    poll: Callable[[int], list[tuple[int, int]]]
    """Look at the socket without a round trip, for events that tell that it is of no use.

    An idle connection has nothing to say: whatever there is to read is a farewell, and a hang-up
    shows even unread.
    """

    def equip(self, profile: Profile, *, strict: bool) -> None:
        """Make a connection that was just opened one of the layer's."""
        self.profile = profile
        self.strict = strict
        self.harmless = set()
        self.registered = AdaptersMap(psycopg.adapters)
        poller = select.poll()
        poller.register(self.pgconn.socket, _IDLE_EVENTS)
        self.poll = poller.poll
        self._undo_settings()
        _OPEN.add(self)

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

        Everything that psycopg sends passes here, so this is also where a transaction begins, and
        where nothing passes that would run outside of one.
        """
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
        """Wait for `timeout` seconds; at their end raise what tells of the deadline.

        `asked` says that the time is the caller's, as in notifies(), who expects to hear of its
        end by psycopg's own error.
        """
        try:
            # Not super().wait(): on the way of every statement each call counts.
            return waiting.wait(gen, self.pgconn.socket, interval, timeout)
        except psycopg.errors._WaitTimeout as error:
            if asked:
                raise
            raise self._overdue() from error
        except psycopg.OperationalError as error:
            # poll() may tell of a reset before libpq has read what came before it.
            if error.sqlstate is None and self.pgconn.transaction_status == _ACTIVE:
                self.pgconn.finish()
            raise
        except KeyboardInterrupt:
            self._abandon()
            raise

    def _left(self) -> float:
        """Return the seconds until the deadline; raises DeadlineExceededError when none are."""
        left = self.deadline - monotonic()
        if left <= 0:
            if self.pgconn.transaction_status == _ACTIVE:  # libpq has sent it already
                raise self._overdue() from psycopg.errors._WaitTimeout("no time left to wait")
            raise DeadlineExceededError("the deadline passed before the statement was sent")
        return left

    def _overdue(self) -> DeadlineExceededError:
        """Drop the connection while a statement is at work; return what tells of it."""
        self._abandon()
        return DeadlineExceededError(
            "the invocation's deadline passed while the database was at work: its connection "
            "was dropped",
            may_have_run=not self.managed,  # what the layer began and did not commit is undone
        )

    def run(self, cursor: psycopg.Cursor[Any], query: Query, params: Params | None) -> None:
        """Run one statement for a new cursor, while nobody else has the connection.

        What cursor.execute() does in autocommit and without prepared statements, less the lock
        and the bookkeeping for the rest: 3 of 40 µs (measured: benchmarks/results/overhead.json
        holds what is left).
        """
        cursor._tx = Transformer(cursor)
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
        """Run a command of the layer's own, as COMMIT."""
        with self.lock:
            self._wait(self._exec_command(text))

    def fly(self, statements: Sequence[Command | Request]) -> list[PGresult]:
        """Run statements in one round trip and return the last one's answer."""
        return self._wait(fly(self.pgconn, statements))

    def begin(self, claims: str | None) -> None:
        """Make the next statement open a transaction of the layer's, with JSON `claims`."""
        self.managed = True
        self.transaction_id = None
        self.opening = opening(claims)

    def open_with(
        self,
        cursor: psycopg.Cursor[Any],
        query: Query,
        params: Params | None,
        result: pq.Format | None,
    ) -> None:
        """Begin the transaction in one round trip with its first statement.

        The id comes along for nothing: where the first statement writes, a lost answer to COMMIT
        can be resolved later.
        """
        begin, request = self.opening or [], Request.of(cursor, query, params, result)
        self.opening = None
        with self.lock:
            (answer,) = self.fly([*begin, request, asking(self.pgconn.server_version)])
        self.transaction_id = transaction_id(answer)

    def require_open(self) -> None:
        """Raise where COMMIT would hang, do nothing, or answer ROLLBACK as if all were well."""
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

    def finish(self) -> None:
        """Commit the layer's transaction; where nothing was sent, BEGIN neither, nothing is."""
        self.managed = False
        if self.opening is None:
            self.command(COMMIT.text)

    def learn_transaction_id(self) -> None:
        """Ask for the id, unless the first statement has written and brought it."""
        if self.opening is None and self.transaction_id is None:
            question = asking(self.pgconn.server_version)
            with self.lock:
                answer = self._wait(self._exec_command(question.text, pq.Format.BINARY))
            self.transaction_id = None if answer is None else transaction_id(answer)

    def _hold_transaction(self) -> None:
        """Begin the layer's transaction, or refuse what would run after its end."""
        if self.opening is not None:
            self._open_first()
        elif self._pipeline is None and self.pgconn.transaction_status == _IDLE:
            raise psycopg.ProgrammingError(
                "the transaction of this block is not open: it could not be begun, or a statement "
                "inside it has ended it; nothing is sent outside of it"
            )

    def _open_first(self) -> None:
        """Begin the transaction on its own, before something that is not a plain statement."""
        pipeline = self._pipeline
        if pipeline is not None and not pipeline.level:
            return  # psycopg enters its pipeline mode: nothing is sent yet
        begin, self.opening = self.opening or [], None
        if pipeline is None:
            self.fly(begin)
            return
        for command in begin:
            pipeline.command_queue.append(partial(command.send, self.pgconn))
            pipeline.result_queue.append(None)

    def inspect(self, query: Query, *, prepare: bool = False, named_cursor: bool = False) -> bool:
        """Note session state that a statement leaves; tell whether it leaves none.

        Raises StatementRefusedError in strict mode, and ProgrammingError for what ends the layer's
        transaction, which could be rerun, and for a NUL: libpq would silently cut the statement
        there.
        """
        text = self.text_of(query)
        if "\0" in text:
            raise psycopg.ProgrammingError("the statement holds a NUL character")
        if self.managed and ends_transaction(text):
            self._refuse_inside("a statement that ends it")
        if not (self.strict or self.profile.session):
            return True
        if self.strict:
            reason = refusal(text, self.profile, prepare=prepare, named_cursor=named_cursor)
            if reason is not None:
                raise StatementRefusedError(reason)
        if self.profile.session and (prepare or session_effect(text) is not None):
            self.touched = True
        return not self.touched

    def text_of(self, query: Query) -> str:
        """Return a query as text."""
        if isinstance(query, str):
            return query
        if isinstance(query, bytes):
            return query.decode(errors="replace")
        return psycopg.sql.as_string(query, self)

    def close(self) -> None:
        """Close the connection; a pool that still knows it takes it for dead."""
        self.poll = _always
        super().close()

    def cut(self) -> None:
        """End the connection, which another thread may be using.

        Where that thread is at work in psycopg, only the socket is shut: see `shut`.
        """
        if self.lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self.lock.release()
        else:
            self.shut()

    def shut(self) -> None:
        """Shut the socket, which a thread that waits for it hears of at once; it closes the rest.

        Closed here, it would go on in memory that libpq has freed.
        """
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)

    def _try_cancel(self, *, timeout: float = CANCEL_TIMEOUT) -> None:
        """Cancel what a stream() or a COPY has left at work, as psycopg does, where that may be.

        psycopg would take 5 s for it, whatever the deadline; and it reads the rest in any case.
        """
        if self.profile.cancel and not self.reclaimed:
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
            self._prepared = PrepareManager()  # those that psycopg knew of are gone
            self.prepare_threshold = None
            self.touched = False
        return True

    def is_read_only(self) -> bool:
        """Ask, after a write was refused, whether the server takes no writes from anybody.

        What a client, a role or a statement sets for itself does not count; a standby and settings
        of the database or the server do. A connection that cannot answer says yes.
        """
        self.deadline = min(self.deadline, monotonic() + READ_ONLY_TIMEOUT)
        try:
            if not self.clean():
                return True
            row = psycopg.Cursor(self, row_factory=tuple_row).execute(IS_READ_ONLY).fetchone()
        except psycopg.Error:
            return True
        return row is None or bool(row[0])

    def lend(self, row_factory: RowFactory[Row]) -> None:
        """Make the connection ready for the caller who gets it in his hands."""
        self.row_factory = row_factory
        self.cursor_factory = Cursor
        self.server_cursor_factory = ServerCursor

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
        """End what was left open, and undo what was set; tell whether it can be used again."""
        self.managed = False
        self.opening = None
        self._undo_settings()
        if self.lost or self.lock.locked():  # a generator, as of stream(), still holds the lock
            return False
        if self._num_transactions or self._tpc:  # psycopg would end them in the next one's hands
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
        """Cancel what runs where a cancel reaches it, then shut the socket in any case."""
        try:
            if self.profile.cancel:
                self.cancel_safe(timeout=CANCEL_TIMEOUT)
        except psycopg.Error:
            pass  # the peer has stalled: closing the socket is all that is left
        finally:
            self.close()


def _always(_: int) -> list[tuple[int, int]]:
    return [(-1, select.POLLNVAL)]


# macOS has no POLLRDHUP; there a hang-up makes the socket readable.
_IDLE_EVENTS: Final = (
    select.POLLIN
    | select.POLLHUP
    | select.POLLERR
    | (0 if sys.platform == "darwin" else select.POLLRDHUP)
)

_OPEN: Final[weakref.WeakSet[Connection[Any]]] = weakref.WeakSet()


def _orphan() -> None:
    """Cut a forked child off its parent's sockets: not even a farewell may be sent on them."""
    null = os.open(os.devnull, os.O_RDWR)
    for connection in list(_OPEN):
        if not connection.closed:
            os.dup2(null, connection.fileno())
        connection.orphaned = True
    _OPEN.clear()
    os.close(null)


os.register_at_fork(after_in_child=_orphan)
