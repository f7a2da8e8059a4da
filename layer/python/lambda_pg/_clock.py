"""The clock of every wait, which no test can stop.

freezegun replaces time.monotonic() in every module that has it, and a wait that looks at a clock
that stands still never ends. It leaves clock_gettime() alone, which costs a warm request 1 to 2 µs
more (measured): so only a process that runs tests looks there.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

_in_tests = not sys.modules.keys().isdisjoint(("pytest", "freezegun"))

monotonic: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_MONOTONIC) if _in_tests else time.monotonic
)
"""What time.monotonic() returns on Linux, in seconds."""
