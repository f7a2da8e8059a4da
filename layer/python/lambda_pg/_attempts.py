"""Connects under way: the first to finish is taken; one that was answered is never dropped.

An overloaded pooler and one that hangs look the same until the first byte of an answer: the kernel
accepts connections for both. So a second connect soon starts beside one without an answer, and may
reach another task. A connect that was answered is finished, by a later request if this one has no
time left: the pooler need not do that work twice.
"""

import os
import select
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import waiting
from psycopg.abc import PQGenConn

from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection
from lambda_pg._credentials import Credentials
from lambda_pg._jitter import jitter
from lambda_pg._overload import NotReachedError

MOST: Final = 3
"""Sockets that one request may have open at once; the oldest is closed when another is due."""

UNCONNECTED: Final = 0.25
"""Seconds without a TCP connection after which another SYN is sent: the kernel retransmits the old
one only after 1, 3 and 7 s. The server has seen neither."""

UNANSWERED: Final = 0.75
"""Seconds without a byte from a server that TCP has reached: four attempts in a window of 3 s."""

PATIENT: Final = 4
LONGEST_UNANSWERED: Final = 12.0
"""From this attempt on, the wait for a first byte doubles, up to so many seconds: otherwise an
overloaded pooler would find only connects that were closed meanwhile."""

SLOW: Final = 0.25
PACE: Final = 2.0
FIRST_REST: Final = 1.0
"""After an answer that took longer than SLOW seconds, a login rests for up to PACE times as long.

Otherwise a fleet that comes back at once would take each step together. A pooler that is busy with
hundreds of logins has no time for its server connections: it rejects the clients that have logged
in and waited too long, and they begin again. The first rest is at most FIRST_REST seconds: a pooler
that only hung for a while answers quickly after that, and the first success must follow within 2 s.
"""

STUCK: Final = 30.0
"""Seconds without another byte from a server that has answered, until another connect may begin."""

KEPT: Final = 30.0
"""Seconds by the wall clock that connects may be kept between two requests. In an environment that
was frozen for longer, the pooler may have ended the login, or a load balancer dropped the flow."""

Opening = PQGenConn[Connection[Any]]

_READING: Final = int(waiting.WAIT_R)
_EVENTS: Final = {_READING: select.POLLIN, int(waiting.WAIT_W): select.POLLOUT}


class Attempt:
    """One connect: psycopg's generator, the socket that it waits for, and its progress."""

    def __init__(self, opening: Opening, address: str) -> None:
        """Send the SYN. Raises psycopg.OperationalError."""
        self.address = address
        self.is_connected = False
        self.is_answered = False
        self.waited = 0.0
        """The seconds for which requests have waited for the answer to its last step."""
        self.waited_in_all = 0.0
        self.rests_until = 0.0
        """The time.monotonic() until which its next step waits; 0 when it does not."""
        self._has_rested = False
        self.socket = -1
        """The socket that it waits for; -1 while libpq may change it."""
        self._opening = opening
        self._wants = 0
        self.go_on(None)

    @property
    def events(self) -> int:
        """What poll() has to wait for."""
        return _EVENTS[self._wants]

    def go_on(self, ready: int | None) -> Connection[Any] | None:
        """Take the next step; return the connection after the last one.

        Raises psycopg.OperationalError, and NotReachedError where the server has not seen it.
        """
        was_reading, self.socket = self._wants == _READING, -1
        try:
            step = next(self._opening) if ready is None else self._opening.send(ready)
        except StopIteration as end:
            self.is_answered = True
            connection: Connection[Any] = end.value
            return connection
        except psycopg.Error as error:
            error._pgconn = None  # which has the password, as a frame of psycopg's has
            error.__traceback__ = None
            if not was_reading:
                raise NotReachedError(str(error)) from None
            self.is_answered = True
            raise error.with_traceback(None)  # noqa: B904 - the same error
        self.socket, self._wants = step[0], int(step[1])
        self.waited = self.rests_until = 0.0
        is_reading = self._wants == _READING
        # libpq sends its first message before it reads for the first time. What it then reads is an
        # answer, unless it goes on to another address, where it must write.
        self.is_answered = self.is_answered or (was_reading and is_reading)
        self.is_connected = self.is_answered or is_reading
        return None

    def resume(self) -> Connection[Any] | None:
        """Take the next step after an event of poll(), or rest before it."""
        if self.is_answered and not self.rests_until and self.waited > SLOW:
            longest = PACE * self.waited
            if not self._has_rested:
                longest = min(FIRST_REST, longest)
            self.rests_until = monotonic() + jitter.uniform(0, longest)
            self._has_rested = True
            return None
        return self.go_on(self._wants)

    def wait(self, seconds: float) -> None:
        """Count seconds for which a request has waited for the next answer."""
        self.waited += seconds
        self.waited_in_all += seconds

    def close(self) -> None:
        """Close the socket."""
        self.socket = -1
        self._opening.close()


class ConnectAttempts:
    """The connects of one request, or of several that follow; at most one is answered."""

    def __init__(self, credentials: Credentials) -> None:
        """Begin nothing yet."""
        self.credentials = credentials
        self._open: list[Attempt] = []
        self._begun = 0
        self._another_at = 0.0
        """The time.monotonic() at which another connect may begin."""
        self._left_at = time.time()
        self.login_seconds = 0.0
        """How long requests waited for the answers of a login that ended, by success or refusal."""
        _ALL.add(self)

    @property
    def is_answered(self) -> bool:
        """Tell whether a server has answered."""
        return any(attempt.is_answered for attempt in self._open)

    @property
    def silent(self) -> list[str]:
        """The addresses that have not answered yet."""
        return [attempt.address for attempt in self._open if not attempt.is_answered]

    def may_go_on(self, credentials: Credentials) -> bool:
        """Tell whether a request with these credentials can continue the last one's connects."""
        return credentials == self.credentials and 0 <= time.time() - self._left_at < KEPT

    def finish(self, begin: Callable[[], Attempt], until: float) -> Connection[Any] | None:
        """Return the first connection, or None if there is none at the time.monotonic() `until`.

        `begin` begins another connect. Raises what it raises, and psycopg.OperationalError when no
        connect can succeed any more.
        """
        while True:
            for attempt in self._ready(until):
                connection = self._advance(attempt)
                if connection is not None:
                    self._open.remove(attempt)
                    self.login_seconds = attempt.waited_in_all
                    return connection
                if attempt.is_answered:
                    break  # the others are closed
            now = monotonic()
            self._left_at = time.time()
            if now >= until:
                return None
            if now >= self._another_at:
                self._begin(begin)

    def _ready(self, until: float) -> list[Attempt]:
        """Wait until an attempt can go on, another one is due, or the time is up.

        Only this wait counts as time without an answer: between two requests no thread waits.
        """
        poll, waiting_for = select.poll(), {}
        now = monotonic()
        until = min(until, self._another_at)
        for attempt in self._open:
            if attempt.rests_until > now:
                until = min(until, attempt.rests_until)
            else:
                poll.register(attempt.socket, attempt.events)
                waiting_for[attempt.socket] = attempt
        seconds = max(0.0, until - now)
        # Rounded up: poll() would spin through the last millisecond.
        found = poll.poll(seconds * 1000 + 1 if seconds else 0)
        waited = monotonic() - now
        for attempt in waiting_for.values():
            attempt.wait(waited)
        return [waiting_for[ready] for ready, _ in found]

    def _begin(self, begin: Callable[[], Attempt]) -> None:
        if len(self._open) == MOST:
            self._open.pop(0).close()
        self._begun += 1
        self._another_at = monotonic() + UNCONNECTED
        try:
            self._open.append(begin())
        except psycopg.OperationalError:
            if not self._open:
                raise

    def _advance(self, attempt: Attempt) -> Connection[Any] | None:
        """Let one attempt go on. Raises its error unless another one may succeed."""
        was_connected = attempt.is_connected
        try:
            connection = attempt.resume()
        except psycopg.OperationalError:
            self._open.remove(attempt)
            if attempt.is_answered:
                self.login_seconds = attempt.waited_in_all
            if attempt.is_answered or not self._open:
                raise
            return None
        if attempt.is_answered:
            self._another_at = monotonic() + STUCK
            for other in [each for each in self._open if each is not attempt]:
                self._open.remove(other)
                other.close()
        elif attempt.is_connected and not was_connected:
            doubled = UNANSWERED * 2.0 ** max(0, self._begun - PATIENT)
            self._another_at = monotonic() + min(LONGEST_UNANSWERED, doubled)
        return connection

    def close(self) -> None:
        """Close what is under way."""
        while self._open:
            self._open.pop().close()


_ALL: Final[weakref.WeakSet[ConnectAttempts]] = weakref.WeakSet()


def _orphan() -> None:
    """Detach a forked child from its parent's connects, which go on there."""
    null = os.open(os.devnull, os.O_RDWR)
    for attempts in list(_ALL):
        for attempt in attempts._open:
            if attempt.socket >= 0:
                os.dup2(null, attempt.socket)
        attempts._open, attempts._another_at = [], 0.0
    os.close(null)


os.register_at_fork(after_in_child=_orphan)
