"""The clock of every wait, which no test can stop.

freezegun replaces time.monotonic() in every module that has it, and a wait that looks at a clock
that stands still never ends. It leaves clock_gettime() alone.
"""

import time
from functools import partial
from typing import Final

monotonic: Final = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
"""What time.monotonic() returns on Linux, in seconds."""
