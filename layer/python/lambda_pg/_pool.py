"""The pool: a few slots, no threads, opened by the first checkout, and aware of forks."""

import logging
import os
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from lambda_pg._connection import Connection
from lambda_pg._errors import CheckoutTimeoutError, ConfigurationError

AnyConnection = Connection[Any]

CHECK_TIMEOUT: Final = 1.0
"""Seconds that the round trip of a long idle connection may take before it is replaced."""

_NESTED: Final = (
    "this thread already holds all {} slots of the pool, so a nested checkout can never "
    "succeed: use the connection at hand, or raise LAMBDA_PG_SLOTS"
)

logger = logging.getLogger("lambda_pg")


class Pool:
    """Hand out at most `slots` connections; connects happen in the calling thread."""

    def __init__(
        self,
        connect: Callable[[float], AnyConnection],
        *,
        slots: int,
        idle_check_after: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open nothing. `clock` is the wall's: a frozen environment's other clocks stand still."""
        self._connect = connect
        self._slots = slots
        self._idle_check_after = idle_check_after
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._free = threading.Condition()
        self._idle: list[AnyConnection] = []
        self._holders: list[int] = []

    def checkout(self, timeout: float) -> AnyConnection:
        """Take a living connection within `timeout` seconds.

        Raises CheckoutTimeoutError when every slot stays taken, and whatever a connect raises.
        """
        until = monotonic() + timeout
        if self._pid != os.getpid():
            self._leave_to_parent()
        self._take_slot(until, timeout)
        try:
            connection = self._living(until) or self._connect(max(0.0, until - monotonic()))
        except BaseException:
            self._free_slot()
            raise
        return connection

    def give_back(self, connection: AnyConnection) -> None:
        """Return a connection; one that cannot be used again is closed."""
        if self._pid != os.getpid():
            _PARENTS_CONNECTIONS.append(connection)
            return
        try:
            if not connection.closed and connection.clean():
                connection.idle_since = self._clock()
                self._idle.append(connection)
            else:
                connection.close()
        finally:
            self._free_slot()

    def close(self) -> None:
        """Close the idle connections; the next checkout opens a new one."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        while self._idle:
            self._idle.pop().close()

    def _living(self, until: float) -> AnyConnection | None:
        while self._idle:
            connection = self._idle.pop()
            idle_for = self._clock() - connection.idle_since
            if connection.is_alive():
                if idle_for < self._idle_check_after:
                    return connection
                if connection.answers(min(CHECK_TIMEOUT, (until - monotonic()) / 2)):
                    return connection
                self.close()  # what one has met, the others have: do not wait for each
            logger.info("replaced a connection that was lost after %.0f s idle", idle_for)
            connection.close()
        return None

    def _take_slot(self, until: float, timeout: float) -> None:
        me = threading.get_ident()
        with self._free:
            while len(self._holders) >= self._slots:
                if self._holders.count(me) == self._slots:
                    raise ConfigurationError([_NESTED.format(self._slots)])
                if not self._free.wait(max(0.0, until - monotonic())):
                    raise CheckoutTimeoutError(
                        f"all {self._slots} slots of the pool stayed taken for {timeout:.1f} s"
                    )
            self._holders.append(me)

    def _free_slot(self) -> None:
        with self._free:
            me = threading.get_ident()
            self._holders.remove(me if me in self._holders else self._holders[0])
            self._free.notify()

    def _leave_to_parent(self) -> None:
        """Forget the parent's connections without a farewell on their sockets."""
        _PARENTS_CONNECTIONS.extend(self._idle)
        self._reset()


# Never closed: closing would send Terminate on a socket that the parent process still uses.
_PARENTS_CONNECTIONS: Final[list[AnyConnection]] = []
