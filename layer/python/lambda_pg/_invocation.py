"""What a handler was called with: the invocation's context, and the time that it leaves."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

NO_DEADLINE: Final = (
    "the handler was called without a context whose get_remaining_time_in_millis() returns a "
    "number: no deadline bounds its waits on the database. In a test, pass the fixture "
    "lambda_context of lambda_pg.testing, or let a mock return 30000"
)

NUMBER: Final = (int, float)
"""A tuple: each `int | float` makes an object, for every invocation."""

COROUTINE: Final = 0x80
"""What marks the code of an `async def`: inspect.CO_COROUTINE, without the import of inspect."""


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
    none of them tells a remaining time, as None or a mock does not, the seconds are infinite.
    """
    candidates = (*args[1:3], *kwargs.values()) if kwargs else args[1:3]
    for candidate in candidates:
        ask = getattr(candidate, "get_remaining_time_in_millis", None)
        milliseconds = ask() if callable(ask) else None
        if isinstance(milliseconds, NUMBER):
            return candidate, milliseconds / 1000
    return kwargs.get("context", candidates[-1] if candidates else None), math.inf
