"""What the pool knows of a connection, beside what the connection itself is on the wire.

A lease has no reference to its connection: a connection that its caller has dropped ends at once,
and its slot with it.
"""

import math
from typing import Protocol


class Holder(Protocol):
    """An adapter's object that keeps a connection, and must forget it after a reclaim."""

    def has_unsent_work(self) -> bool:
        """Tell, at the end of the invocation, whether it would send more for the transaction."""

    def settle(self, *, reported: bool) -> bool:
        """Forget the transaction if its loss was reported; return whether nothing is left to do."""


class Lease:
    """One connection's place in the pool, and until when it may be used.

    The pool writes these facts, except where another writer is named.
    """

    slot: object = None
    """Its place in the pool, which is free when the connection is gone."""

    idle_since: float = 0.0
    """The wall clock's time of its last return."""

    fresh_until: float = 0.0
    """The wall clock's time until which a checkout needs only one look at its socket."""

    check_after: float = math.inf
    """Seconds idle after which one look at its socket is not enough. Written by the login."""

    max_idle: float = math.inf
    """Seconds idle after which it is replaced without a check. Written by the login."""

    expires_at: float = math.inf
    """The wall clock's time at which its lifetime ends. Written by the login."""

    renew_at: float = math.inf
    """The wall clock's time at which its credentials must be compared with the current ones, or
    its lifetime ends. Written by the login."""

    generation: int = 0
    """The generation of its credentials. Written by the login."""

    used_by: int | None = None
    """The invocation that may have left session state on it. Written by the Database."""

    reclaimed: bool = False
    """Whether the pool took it at an invocation's end while a thread still had it."""

    reported: bool = False
    """Whether a caller knows of that, or lost nothing by it. The connection writes it too, when it
    raises the error."""

    holder: Holder | None = None
    """The adapter's object that keeps it in a transaction. Written by the adapter."""

    def shift(self, seconds: float) -> None:
        """Move its ends, where the wall clock was set back by so many (negative) seconds."""
        self.expires_at += seconds
        self.renew_at += seconds
