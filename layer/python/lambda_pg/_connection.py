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
from functools import partial
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
"""The status of a connection on which a statement is at work, or which is lost."""

INTERVAL: Final = 0.1
"""Seconds between two looks at signals while a wait goes on (psycopg's own value)."""

CANCEL_TIMEOUT: Final = 0.25
"""Seconds that the cancel of an overdue statement may take; it comes out of the reserve."""

BEGIN: Final = Command(b"BEGIN")
COMMIT: Final = Command(b"COMMIT")


LEFT_OPEN_TIMEOUT: Final = 0.25
"""Seconds that the question for writes left open may take; they come out of the reserve."""

SET_CLAIMS: Final = (
    b"SELECT set_config('request.jwt.claims', $1, true),"
    b" set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true)"
)
"""The second one names the transaction by its start: a policy that compares it takes no claims that
somebody has left in the session (docs/decisions/0038)."""


class Modes(NamedTuple):
    """What BEGIN says of its transaction; None leaves it to the server's settings."""

    isolation_level: IsolationLevel | None = None
    read_only: bool | None = None
    deferrable: bool | None = None


DEFAULT_MODES: Final = Modes()


def opening(claims: str | None, begin: Command = BEGIN) -> list[Command]:
    """Return what begins a transaction, with JSON `claims` that end with it."""
    return [begin] if claims is None else [begin, Command(SET_CLAIMS, [claims.encode()])]


class Connection(psycopg.Connection[Row]):
    """A psycopg connection whose every wait ends at `deadline`.

    Large because psycopg's is: many methods override one of psycopg's, and a return to the pool
    resets the private state that psycopg has.
    """

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
    """Whether it may carry session state."""

    only_standbys: bool = False
    """Whether its Database has opened connections to hot standbys only, this one included."""

    denied: bool = False
    """Whether a write was denied, and nobody has asked why."""

    demoted: bool = False
    """Whether its server takes no writes: it is not used again."""

    orphaned: bool = False
    """Whether it belongs to the parent of this process; its socket here is a dead one."""

    lease: Lease
    """What the pool knows of it."""

    _pool: None = None
    """Tells psycopg that it may end with the program, open and without a warning."""

    registered: AdaptersMap
    """The type adapters that each use of it begins with."""

    harmless: set[str]
    """Statements that were inspected for its profile, and leave no session state."""

    poll: Callable[[int], list[tuple[int, int]]]
    """Look at the socket without a round trip, for events that tell that it is of no use.

    An idle connection has nothing to say: whatever there is to read is a farewell, and a hang-up
    shows even unread.
    """

    def equip(self, profile: Profile, *, strict: bool) -> None:
        """Make a connection that was just opened one of the layer's."""
        self.profile = profile
        self.strict = strict
        self.lease = Lease()
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
        except psycopg.errors.ReadOnlySqlTransaction:
            self.denied = True
            raise
        except psycopg.OperationalError as error:
            # poll() may tell of a reset before libpq has read what came before it.
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
        """Return the seconds until the deadline. Raises DeadlineExceededError when none are."""
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
        """Run a command of the layer's own, as COMMIT."""
        with self.lock:
            self._wait(self._exec_command(text))

    def send_batch(self, statements: Sequence[Command | Request]) -> list[PGresult]:
        """Run statements in one round trip and return the last one's answer."""
        return self._wait(send_batch(self.pgconn, statements))

    def begin(self, claims: str | None, modes: Modes = DEFAULT_MODES) -> None:
        """Make the next statement open a transaction of the layer's, with JSON `claims`."""
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

        The id comes along for nothing: where the first statement writes, a lost answer to COMMIT
        can be resolved later.
        """
        begin, request = self.opening or [], Request.of(cursor, query, params, result)
        self.opening = None
        with self.lock:
            (answer,) = self.send_batch([*begin, request, asking(self.pgconn.server_version)])
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
        if self.poll(0):  # a farewell, which is heard before COMMIT is sent: nothing was committed
            self.command(b"SELECT")

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
            self.send_batch(begin)
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
            if reason is None and self._is_alone():
                reason = refusal_alone(text)
            if reason is not None:
                raise StatementRefusedError(reason)
        if self.profile.session and (prepare or session_effect(text) is not None):
            self.touched = True
        return not self.touched

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
            self._prepared = PrepareManager()  # those that psycopg knew of are gone
            self.prepare_threshold = None
            self.touched = False
        return True

    def has_written(self) -> bool:
        """Ask whether the transaction that was left open has an id, which only a write gives it.

        A connection that cannot answer says yes.
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
        """Enter psycopg's pipeline mode; an error of the server's is raised as it is."""
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
        """Commit, where the transaction is the caller's own."""
        self._refuse_inside("commit()")
        super().commit()

    def rollback(self) -> None:
        """Roll back, where the transaction is the caller's own.

        Where the pool has taken the connection back, that was done then.
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

        psycopg leaves the block as if it were committed where its connection was lost inside and
        the error was caught, or came in another invocation.
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
        """Refuse `with connection:`, which would commit and close at its end."""
        self._refuse_inside("with connection:")
        if self.lease.reclaimed:
            self._refuse_ended()
        return super().__enter__()

    def __exit__(self, kind: Any, raised: BaseException | None, traceback: Any) -> None:
        """End `with connection:`, which commits nothing any more where the pool took it back."""
        if self.lease.reclaimed and raised is None:
            self._refuse_ended()
        super().__exit__(kind, raised, traceback)

    def _check_connection_ok(self) -> None:
        if self.lease.reclaimed:
            self._refuse_ended()
        super()._check_connection_ok()

    def _refuse_ended(self) -> NoReturn:
        """Say why the connection serves nobody: to its holder it is not a closed one.

        Only a stream() or a COPY is at work here: whether it has written is not certain.
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
                f"{what} inside a transaction that the layer began: leave its block to commit, "
                "raise to roll back, and use connection.transaction() for a savepoint"
            )

    @property
    def lost(self) -> bool:
        """Tell whether nothing more can come over this connection.

        One that cannot leave pipeline mode is as good as gone: what a farewell met in the middle
        of a pipeline (seen as "cannot exit pipeline mode while busy").
        """
        return (
            self.broken
            or self.lease.reclaimed
            or self.pgconn.pipeline_status != pq.PipelineStatus.OFF
        )

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
    """Cut a forked child off its parent's sockets: not even a farewell may be sent on them."""
    null = os.open(os.devnull, os.O_RDWR)
    for connection in list(_OPEN):
        if not connection.closed:
            os.dup2(null, connection.fileno())
        connection.orphaned = True
    _OPEN.clear()
    os.close(null)


os.register_at_fork(after_in_child=_orphan)
