"""Only the interpreter, for comparison."""

import time

finished = time.monotonic_ns()

from finish import report  # noqa: E402 - after the measurement

report(finished, None)
