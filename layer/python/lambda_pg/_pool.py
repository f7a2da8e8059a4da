"""The pool: a few slots, no threads, opened by the first checkout, and aware of forks."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import pq

from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection
from lambda_pg._errors import CheckoutTimeoutError, ConfigurationError
from lambda_pg._events import Events
from lambda_pg._stats import Stats

AnyConnection = Connection[Any]

CHECK_TIMEOUT: Final = 1.0
"""Seconds that the round trip of a long idle connection may take before it is replaced."""

_IDLE: Final = pq.TransactionStatus.IDLE

_NESTED: Final = (
    "this thread already holds all {} slots of the pool, so a nested checkout can never "
    "succeed: use the connection at hand, or raise LAMBDA_PG_SLOTS"
)


class _Slot:
    """One place in the pool: taken as long as somebody holds it, as an open connection does.

    An exception from a signal handler may come between any two steps of a checkout or a return.
    What it leaves behind frees its place by itself.
    """

    def __init__(self, pool: "Pool") -> None:
        self._pool = weakref.ref(pool)
        self.is_free = False

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None and not self.is_free:
            pool._abandon()


class Pool:
    """Hand out at most `slots` connections; connects happen in the calling thread."""

    def __init__(
        self,
        connect: Callable[[float], AnyConnection],
        *,
        slots: int,
        stats: Stats,
        events: Events,
        is_current: Callable[[AnyConnection, float], bool] = lambda _connection, _timeout: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open nothing.

        `connect` and `is_current` get the seconds that they may take; the second tells whether a
        connection whose `renew_at` has passed is still what a new one would be.
        `clock` is the wall's: a frozen environment's other clocks stand still.
        """
        self._connect = connect
        self._slots = slots
        self._stats = stats
        self._events = events
        self._is_current = is_current
        self._clock = clock
        self._forget()
        _POOLS.add(self)

    def _forget(self) -> None:
        # Entered itself, not by the condition: no signal handler can come between lock and block.
        self._lock = threading.RLock()
        self._free = threading.Condition(self._lock)
        self._waiting = 0
        # No WeakSet: an exception in its own callback would leave the dead ones counted.
        self._taken: list[weakref.ref[_Slot]] = []
        self._abandoned = 0
        self._idle: list[AnyConnection] = []
        self._open: list[weakref.ref[AnyConnection]] = []
        self._kept: list[AnyConnection] = []
        """What was taken back from adapters' objects that have not forgotten it yet."""
        self.lent: weakref.WeakKeyDictionary[AnyConnection, int] = weakref.WeakKeyDictionary()
        """What callers have in their hands, and in which thread."""

    @property
    def size(self) -> int:
        """Connections that are open or being opened."""
        return len(self._slots_taken())

    @property
    def available(self) -> int:
        """Connections that nobody uses."""
        return len(self._idle)

    @property
    def busy(self) -> bool:
        """Tell whether a thread has a connection or opens one, or has dropped or kept one."""
        return self.size != len(self._idle) or self._abandoned > 0 or bool(self._kept)

    @property
    def waiting(self) -> int:
        """Threads that wait for a slot."""
        return self._waiting

    def take(self) -> AnyConnection | None:
        """Take an idle connection that one look at its socket shows to be alive; else None.

        The usual path: a pop, the clock, one poll(), and no lock. Not past threads that wait: one
        that asks again and again would let them wait for ever.
        """
        if self._waiting:
            return None
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        now = self._clock()  # before it was returned: the clock was set back
        if connection.idle_since <= now < connection.fresh_until and not connection.poll(0):
            return connection
        self._idle.append(connection)
        if self._waiting:
            self._notify()
        return None

    def put(self, connection: AnyConnection) -> None:
        """Return what `take` or `checkout` gave after one statement in autocommit.

        Raises ProgrammingError when it has not been that.
        """
        status = connection.pgconn.transaction_status
        if status != _IDLE:
            self.give_back(connection)
            if status == pq.TransactionStatus.UNKNOWN:
                return  # its answer came, and then the connection was lost
            raise psycopg.ProgrammingError(
                "the statement left a transaction open, or ran in one that was left open: it was "
                "rolled back; use transaction() or run_transaction()"
            )
        now = connection.idle_since = self._clock()
        check_at = now + connection.ask_after
        renew_at = connection.renew_at
        connection.fresh_until = check_at if check_at < renew_at else renew_at  # noqa: FURB136  # quicker
        if connection.touched:
            connection.fresh_until = 0.0
        self._idle.append(connection)
        if self._waiting:
            self._notify()

    def checkout(self, timeout: float, invocation: int | None = None) -> AnyConnection:
        """Take a living connection within `timeout` seconds.

        A connection that may carry session state is reset, unless the same `invocation` left it.
        Raises CheckoutTimeoutError when every slot stays taken, and whatever a connect raises.
        """
        until = monotonic() + timeout
        slot: object
        connection, slot = self._take_slot(until, timeout)
        try:
            while connection is not None:
                slot = connection.slot
                if self._is_kept(connection, until, invocation):
                    return connection
                if (other := self._next_idle()) is not None:
                    self._free_slot(slot)  # the other one has its slot
                connection = other
            connection = self._connect(max(0.0, until - monotonic()))
            connection.slot = slot
            self._keep_open(connection)
        except BaseException:
            self._free_slot(slot)
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
        """Note that a caller has the connection in his hands."""
        self.lent[connection] = threading.get_ident()

    def bind(self, deadline: float) -> None:
        """Let the connections that this thread has in its hands wait no longer than `deadline`."""
        mine = threading.get_ident()
        for connection, holder in list(self.lent.items()):
            if holder == mine:
                connection.deadline = deadline

    def take_back(self, connection: AnyConnection) -> None:
        """Return what a caller had in his hands, unless it is no longer his to return."""
        if self.lent.pop(connection, None) is not None:  # or `reclaim` has popped it: one can
            self.give_back(connection)
        elif connection.reclaimed or connection.orphaned:
            connection.close()

    def give_back(self, connection: AnyConnection) -> None:
        """Return a connection in whatever state; one that cannot be used again is closed."""
        clean = False
        try:
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
        self._free_slot(connection.slot)

    def reclaim(self, *, told: bool = False) -> int:
        """Cut every connection that a thread still has; return how many.

        Those that were dropped count too. The slot of one that is lent is free at once. A thread
        that runs a statement of the layer's has not lent its connection: it hears of the cut, and
        frees the slot itself.

        `told` says that an error of the handler's tells already that its work may be lost.
        """
        reclaimed, self._abandoned = self._abandoned, 0
        for connection in self._opened():
            if connection not in self.lent and connection not in self._idle:
                reclaimed += not connection.closed
                connection.reclaimed = True
                connection.shut()
        mine = threading.get_ident()
        for connection in list(self.lent):
            thread = self.lent.pop(connection, None)
            if thread is None:
                continue  # its caller has just returned it
            if connection.holder is not None and thread == mine:
                unsent = connection.holder.has_unsent_work()
                connection.told = told or not (unsent or connection.has_written())
                self._kept.append(connection)
            connection.reclaimed = True
            connection.cut()
            self._free_slot(connection.slot)
            reclaimed += 1
        self._kept = [each for each in self._kept if not _is_settled(each)]
        self._keep_open()
        return reclaimed

    def _keep_open(self, *opened: AnyConnection) -> None:
        with self._lock:
            known = [each for each in self._opened() if not (each.closed or each.reclaimed)]
            self._open = [*map(weakref.ref, known), *map(weakref.ref, opened)]

    def _opened(self) -> list[AnyConnection]:
        found = [reference() for reference in self._open]
        return [connection for connection in found if connection is not None]

    def close(self) -> None:
        """Close the idle connections; the next checkout opens a new one."""
        while (connection := self._next_idle()) is not None:
            self.discard(connection)

    def _next_idle(self) -> AnyConnection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _is_good(self, connection: AnyConnection, until: float, invocation: int | None) -> bool:
        now = self._clock()
        idle_for = now - connection.idle_since
        if idle_for < 0:  # the clock was set back, by so much at least
            connection.expires_at += idle_for
            connection.renew_at += idle_for
        timeout = (until - monotonic()) / 2
        if connection.poll(0):
            reason = "was lost"
        elif idle_for >= connection.max_idle or now >= connection.expires_at:
            reason = "was old"
        elif now >= connection.renew_at and not self._is_current(connection, timeout):
            reason = "had the credentials of before"
        elif not self._answers(connection, idle_for, timeout, invocation):
            reason = "did not answer"
            self.close()  # what one has met, the others have: do not wait for each
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

    def _answers(
        self, connection: AnyConnection, idle_for: float, timeout: float, invocation: int | None
    ) -> bool:
        """Ask a connection that was idle for long, or that another invocation has touched.

        A clock that was set back does not tell for how long it was idle.
        """
        mine = invocation is not None and connection.used_by == invocation
        reset = connection.touched and not mine
        if 0 <= idle_for < connection.ask_after and not reset:
            return True
        return connection.answers(min(CHECK_TIMEOUT, timeout), reset=reset)

    def _take_slot(self, until: float, timeout: float) -> tuple[AnyConnection | None, _Slot | None]:
        """Return an idle connection, or a slot to open one in."""
        if not self._waiting and (connection := self._next_idle()) is not None:
            return connection, None
        with self._lock:
            if not self._waiting and self.size < self._slots:
                return None, self._new_slot()
            return self._wait_for_slot(until, timeout)

    def _new_slot(self) -> _Slot:
        slot = _Slot(self)
        self._taken = [*map(weakref.ref, self._slots_taken()), weakref.ref(slot)]
        return slot

    def _slots_taken(self) -> list[_Slot]:
        slots = [reference() for reference in self._taken]
        return [slot for slot in slots if slot is not None and not slot.is_free]

    def _wait_for_slot(
        self, until: float, timeout: float
    ) -> tuple[AnyConnection | None, _Slot | None]:
        if list(self.lent.values()).count(threading.get_ident()) == self._slots:
            raise ConfigurationError([_NESTED.format(self._slots)])
        began = monotonic()
        in_time, is_first = True, not self._waiting  # the others wait in their order
        self._stats.requests_queued += 1
        self._events.mark("wait_for_slot")
        self._waiting += 1  # before the look: who returns appends first and looks at this then
        try:
            while True:
                if is_first and (connection := self._next_idle()) is not None:
                    return connection, None
                if is_first and self.size < self._slots:
                    return None, self._new_slot()
                if not in_time:  # only after a last look: a notice may have come too late to wake
                    raise CheckoutTimeoutError(
                        f"all {self._slots} slots of the pool stayed taken for {timeout:.1f} s"
                    )
                in_time = self._free.wait(max(0.0, until - monotonic()))
                is_first = True
        finally:
            self._waiting -= 1
            if self._waiting and self._idle:  # who was woken has not taken it
                self._free.notify()
            self._stats.requests_wait_ms += (monotonic() - began) * 1000

    def _free_slot(self, slot: object) -> None:
        if not isinstance(slot, _Slot):
            return
        with self._lock:
            slot.is_free = True
            self._free.notify()

    def _abandon(self) -> None:
        """Note that a slot was given up by nobody: what held it has gone."""
        self._abandoned += 1
        if self._waiting:
            self._notify()

    def _notify(self) -> None:
        with self._lock:
            self._free.notify()


def _is_settled(connection: AnyConnection) -> bool:
    return connection.holder is None or connection.holder.settle(told=connection.told)


_POOLS: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()


def _start_anew() -> None:
    """Leave a forked child without connections: its parent's sockets are dead in it."""
    for pool in list(_POOLS):
        idle = pool._idle
        for slot in pool._slots_taken():
            slot.is_free = True
        pool._forget()
        for connection in idle:
            connection.close()


os.register_at_fork(after_in_child=_start_anew)
