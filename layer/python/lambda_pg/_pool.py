"""The pool: a few slots, no threads, opened by the first checkout, and aware of forks."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg import pq

from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection
from lambda_pg._denial import why_denied
from lambda_pg._errors import ConfigurationError
from lambda_pg._events import Events
from lambda_pg._slots import SharedSlots, Slot, Slots, pop
from lambda_pg._stats import Stats

AnyConnection = Connection[Any]

CHECK_TIMEOUT: Final = 1.0
"""Seconds that the round trip of a long idle connection may take before it is replaced."""

_IDLE: Final = pq.TransactionStatus.IDLE

_NESTED: Final = (
    "this thread already holds all {} slots of the pool, so a nested checkout can never "
    "succeed: use the connection that it has, or raise LAMBDA_PG_SLOTS"
)


class Pool:
    """Hand out connections within `slots`; connects happen in the calling thread.

    Large because a connection changes between idle, lent and reclaimed here, and nowhere else.
    """

    def __init__(
        self,
        connect: Callable[[float], AnyConnection],
        *,
        slots: SharedSlots,
        stats: Stats,
        events: Events,
        is_current: Callable[[AnyConnection, float], bool] = lambda _connection, _timeout: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open nothing.

        `connect` and `is_current` get the seconds that they may take; the second tells whether a
        connection whose `renew_at` has passed still has the current credentials.
        `clock` is the wall clock: a frozen environment's other clocks stand still.
        """
        self._connect = connect
        self._slots = Slots(slots, stats, events)
        self._shared = slots
        self._stats = stats
        self._events = events
        self._is_current = is_current
        self._clock = clock
        self._forget()
        slots.join(self)
        _POOLS.add(self)

    def _forget(self) -> None:
        self._slots.reset()
        self._lock = threading.RLock()
        self._idle: list[AnyConnection] = []
        self._open: list[weakref.ref[AnyConnection]] = []
        self._kept: list[AnyConnection] = []
        """Reclaimed connections that adapters' objects still refer to."""
        self.lent: weakref.WeakKeyDictionary[AnyConnection, int] = weakref.WeakKeyDictionary()
        """Connections that callers have, and the thread of each."""

    @property
    def size(self) -> int:
        """Connections that are open or being opened."""
        return len(self._slots.taken)

    @property
    def available(self) -> int:
        """Connections that are not in use."""
        return len(self._idle)

    @property
    def busy(self) -> bool:
        """Whether a thread has or opens a connection, or one was dropped or is kept."""
        if self._slots.abandoned or self._kept:
            return True
        idle = len(self._idle)
        # Each idle connection has a slot: where the numbers are equal, no slot need be looked at.
        return idle != self._slots.most and idle != self.size  # noqa: PLR1714 - the second one costs

    @property
    def waiting(self) -> int:
        """Threads that wait for a slot."""
        return self._shared.waiting

    @property
    def idle_since(self) -> float | None:
        """The wall clock's time since which it has an idle connection; None if it has none."""
        oldest = self._idle[:1]  # another thread may take it now
        return oldest[0].lease.idle_since if oldest else None

    def close_oldest(self) -> None:
        """Close the connection that has been idle for longest, if there is still one."""
        with suppress(IndexError):
            self.discard(self._idle.pop(0))

    def held_by(self, thread: int) -> int:
        """Count the connections that a thread has."""
        return list(self.lent.values()).count(thread)

    def take(self) -> AnyConnection | None:
        """Take an idle connection that one poll() of its socket shows to be alive; else None.

        The usual path: a pop, the clock, one poll(), and no lock. Not while threads wait for a
        slot: a busy thread would let them wait for ever.
        """
        if self._shared.waiting:
            return None
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        lease, now = connection.lease, self._clock()  # before its return: the clock was set back
        if lease.idle_since <= now < lease.fresh_until and not connection.poll(0):
            return connection
        self._idle.append(connection)
        if self._shared.waiting:
            self._shared.notify()
        return None

    def put(self, connection: AnyConnection) -> None:
        """Return what `take` or `checkout` gave after one statement in autocommit.

        Raises ProgrammingError if a transaction is open.
        """
        status = connection.pgconn.transaction_status
        if status != _IDLE:
            self.release(connection)
            if status == pq.TransactionStatus.UNKNOWN:
                return  # the connection was lost after the answer
            raise psycopg.ProgrammingError(
                "the statement left a transaction open, or ran in one that was left open: it was "
                "rolled back; use transaction() or run_transaction()"
            )
        lease = connection.lease
        now = lease.idle_since = self._clock()
        check_at = now + lease.check_after
        renew_at = lease.renew_at
        lease.fresh_until = check_at if check_at < renew_at else renew_at  # noqa: FURB136 - quicker
        if connection.has_session_state:
            lease.fresh_until = 0.0
        self._idle.append(connection)
        if self._shared.waiting:
            self._shared.notify()

    def checkout(self, timeout: float, invocation: int | None = None) -> AnyConnection:
        """Take a living connection within `timeout` seconds.

        A connection that may carry session state is reset, unless the same `invocation` left it.
        Raises CheckoutTimeoutError if every slot stays taken, and what a connect raises.
        """
        until = monotonic() + timeout
        slot: object
        connection, slot = self._take_slot(until, timeout)
        try:
            while connection is not None:
                slot = connection.lease.slot
                if self._is_kept(connection, until, invocation):
                    return connection
                if (other := self._next_idle()) is not None:
                    self._slots.free(slot)  # the other one has its slot
                connection = other
            connection = self._connect(max(0.0, until - monotonic()))
            connection.lease.slot = slot
            self._keep_open(connection)
        except BaseException:
            self._slots.free(slot)
            raise
        return connection

    def _is_kept(self, connection: AnyConnection, until: float, invocation: int | None) -> bool:
        """Tell whether an idle connection is still good, and close it where it is not."""
        good = False
        try:
            good = self._is_good(connection, until, invocation)
        finally:
            if not good:
                connection.close()
        return good

    def lend(self, connection: AnyConnection) -> None:
        """Note that a caller has the connection, and in which thread."""
        connection.lease.holder = None
        self.lent[connection] = threading.get_ident()

    def bind(self, deadline: float) -> None:
        """Set the deadline of the connections that this thread has checked out."""
        mine = threading.get_ident()
        for connection, holder in list(self.lent.items()):
            if holder == mine:
                connection.deadline = deadline

    def return_lent(self, connection: AnyConnection) -> None:
        """Return a connection that a caller had, unless the pool has reclaimed it."""
        if (
            self.lent.pop(connection, None) is not None
        ):  # only one of two pops succeeds: `reclaim` has the other
            self.release(connection)
        elif connection.lease.reclaimed or connection.orphaned:
            connection.close()

    def release(self, connection: AnyConnection) -> None:
        """Return a connection in any state; close it if it cannot be reused."""
        clean = False
        try:
            if connection.denied and not connection.closed:  # and the caller swallowed the error
                why_denied(connection)
            clean = not connection.closed and connection.clean()
        finally:
            if not clean:
                self._stats.returns_bad += 1
                self.discard(connection)
            if connection.demoted:
                self.close()  # the idle ones were opened at the same server
        if clean:
            self.put(connection)

    def discard(self, connection: AnyConnection) -> None:
        """Close a connection and free its slot."""
        connection.close()
        self._slots.free(connection.lease.slot)

    def reclaim(self, *, reported: bool = False) -> int:
        """End every connection that a thread still has; return how many.

        Those that were dropped count too. The slot of a lent one is free at once. A thread that
        runs a statement of the layer's gets an error, and frees the slot itself.

        `reported` says that the handler's own error already tells that its work may be lost.
        """
        reclaimed, self._slots.abandoned = self._slots.abandoned, 0
        for connection in self._opened():
            if connection not in self.lent and connection not in self._idle:
                reclaimed += not connection.closed
                connection.lease.reclaimed = True
                connection.shut_socket()
        for connection in list(self.lent):
            thread = self.lent.pop(connection, None)
            if thread is not None:  # else its caller has just returned it
                self._end_lent(connection, thread, reported=reported)
                reclaimed += 1
        self._kept = [each for each in self._kept if not _is_settled(each)]
        self._keep_open()
        return reclaimed

    def _end_lent(self, connection: AnyConnection, thread: int, *, reported: bool) -> None:
        """End a connection that a caller has; keep it while an adapter's object refers to it."""
        lease = connection.lease
        if lease.holder is not None and thread == threading.get_ident():
            unsent = lease.holder.has_unsent_work()
            lease.reported = reported or not (unsent or connection.has_written())
            self._kept.append(connection)
        lease.reclaimed = True
        connection.end()
        self._slots.free(lease.slot)

    def _keep_open(self, *opened: AnyConnection) -> None:
        with self._lock:
            known = [each for each in self._opened() if not (each.closed or each.lease.reclaimed)]
            self._open = [*map(weakref.ref, known), *map(weakref.ref, opened)]

    def _opened(self) -> list[AnyConnection]:
        found = [reference() for reference in self._open]
        return [connection for connection in found if connection is not None]

    def close(self) -> None:
        """Close the idle connections; the next checkout opens a new one."""
        while (connection := self._next_idle()) is not None:
            self.discard(connection)

    def _next_idle(self) -> AnyConnection | None:
        return pop(self._idle)

    def _is_good(self, connection: AnyConnection, until: float, invocation: int | None) -> bool:
        lease, now = connection.lease, self._clock()
        idle_for = now - lease.idle_since
        if idle_for < 0:  # the clock was set back, by so much at least
            lease.shift(idle_for)
        timeout = (until - monotonic()) / 2
        if connection.poll(0):
            reason = "was lost"
        elif idle_for >= lease.max_idle or now >= lease.expires_at:
            reason = "was old"
        elif now >= lease.renew_at and not self._is_current(connection, timeout):
            reason = "had old credentials"
        elif not _answers(connection, idle_for, timeout, invocation):
            reason = "did not answer"
            self.close()  # the others are probably lost too: do not wait for each
        else:
            return True
        self._stats.connections_lost += reason in {"was lost", "did not answer"}
        self._events.report(
            logging.INFO,
            "replaced",
            "replaced a connection that %s, after %.0f s idle",
            reason,
            idle_for,
        )
        return False

    def _take_slot(self, until: float, timeout: float) -> tuple[AnyConnection | None, Slot | None]:
        """Return an idle connection, or a slot to open one in."""
        if not self._shared.waiting and (connection := self._next_idle()) is not None:
            return connection, None
        if (slot := self._slots.take()) is not None:
            return None, slot
        if self._shared.held_by(threading.get_ident()) == self._shared.count:
            raise ConfigurationError([_NESTED.format(self._shared.count)])
        return self._slots.wait(self._idle, until, timeout)


def _answers(
    connection: AnyConnection, idle_for: float, timeout: float, invocation: int | None
) -> bool:
    """Make a round trip where a connection was idle for long, or has another invocation's state.

    A clock that was set back does not tell for how long it was idle.
    """
    lease = connection.lease
    mine = invocation is not None and lease.used_by == invocation
    reset = connection.has_session_state and not mine
    if 0 <= idle_for < lease.check_after and not reset:
        return True
    return connection.answers(min(CHECK_TIMEOUT, timeout), reset=reset)


def _is_settled(connection: AnyConnection) -> bool:
    lease = connection.lease
    return lease.holder is None or lease.holder.settle(reported=lease.reported)


_POOLS: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()


def _reset_in_child() -> None:
    """Leave a forked child without connections: its parent's sockets are dead in it."""
    for pool in list(_POOLS):
        idle = pool._idle
        for slot in pool._slots.taken:
            slot.is_free = True
        pool._shared.reset()
        pool._forget()
        for connection in idle:
            connection.close()


os.register_at_fork(after_in_child=_reset_in_child)
