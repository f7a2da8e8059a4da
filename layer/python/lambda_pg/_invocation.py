"""The invocation that runs: its context, its number, and the deadlines that bound it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from lambda_pg._clock import monotonic

RESERVE: Final = 0.5
"""Seconds of the invocation kept back to answer in after its deadline has ended a wait."""

NO_DEADLINE: Final = (
    "the handler was called without a context whose get_remaining_time_in_millis() returns a "
    "number: no deadline bounds its waits on the database. In a test, pass the fixture "
    "lambda_context of lambda_pg.testing, or let a mock return 30000"
)

NUMBER: Final = (int, float)
"""A tuple: each `int | float` makes an object, for every invocation."""

COROUTINE: Final = 0x80
"""The flag of an `async def`'s code: inspect.CO_COROUTINE, without the import of inspect."""


def require_plain(handler: Callable[..., object]) -> None:
    """Raise TypeError for an `async def`, which Lambda does not await either."""
    code = getattr(handler, "__code__", None)
    if code is not None and code.co_flags & COROUTINE:
        raise TypeError(
            f"the handler {handler.__name__} is an async def, which Lambda's runtime does not "
            "await: write a plain function, and call asyncio.run() in it where you need to"
        )


def invocation_of(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[object, float]:
    """Return the context among a handler's arguments and its remaining seconds.

    The context is the second argument, the third one of a method, or a keyword argument. Where
    none of them has a remaining time, as None and a mock have not, the seconds are infinite.
    """
    candidates = (*args[1:3], *kwargs.values()) if kwargs else args[1:3]
    for candidate in candidates:
        ask = getattr(candidate, "get_remaining_time_in_millis", None)
        milliseconds = ask() if callable(ask) else None
        if isinstance(milliseconds, NUMBER):
            return candidate, milliseconds / 1000
    return kwargs.get("context", candidates[-1] if candidates else None), math.inf


def deadline_of(remaining: float) -> float:
    """Return the time.monotonic() at which waits end when `remaining` seconds are left."""
    return monotonic() + (remaining - RESERVE if remaining > 2 * RESERVE else remaining / 2)


class Invocations:
    """Which invocation of an environment runs, and until when it may wait; times are monotonic."""

    def __init__(self) -> None:
        """Have none, and no deadline."""
        self.current: int | None = None
        """The number of the invocation that runs."""
        self.deadline = math.inf
        """When its time is up."""
        self.has_bounds = False
        """Whether `bounded` was ever used: without it `deadline` is the earliest."""
        self._bound: ContextVar[float] = ContextVar("bound", default=math.inf)
        self._count = 0

    def begin(self, deadline: float) -> None:
        """Note that an invocation begins."""
        self.deadline = deadline
        self.current = self._count = self._count + 1

    def end(self) -> None:
        """Note that it has ended."""
        self.deadline = math.inf
        self.current = None

    def earliest(self) -> float:
        """Return the deadline of this thread."""
        return min(self.deadline, self._bound.get())

    @contextmanager
    def shortened(self, deadline: float) -> Iterator[None]:
        """Take the earlier one of two deadlines, while a handler calls another one."""
        before = self.deadline
        self.deadline = min(before, deadline)
        try:
            yield
        finally:
            self.deadline = before

    @contextmanager
    def bounded(self, seconds: float, changed: Callable[[float], None]) -> Iterator[None]:
        """Bound this thread's waits by `seconds` from now; `changed` gets each new deadline."""
        self.has_bounds = True  # for good: threads cannot count together without a lock
        before = self._bound.get()
        try:
            self._bound.set(min(before, monotonic() + seconds))
            changed(self.earliest())
            yield
        finally:
            self._bound.set(before)
            changed(self.earliest())
