"""How every measurement ends."""

import sys
from collections.abc import Sequence
from typing import Final

NOT_MEASURABLE: Final = 3
"""The exit code of a run in which nothing failed by itself, and requests had no processor."""


def conclude(broken: Sequence[str], unmeasured: Sequence[str] = ()) -> int:
    """Print the promises that did not hold, and those that could not be measured on this machine.

    Return the exit code: 0 only if there are none, 1 where any is broken.
    """
    for promise in unmeasured:
        print(f"NOT MEASURABLE HERE: {promise}", file=sys.stderr, flush=True)
    for promise in broken:
        print(f"FAILED: {promise}", file=sys.stderr, flush=True)
    if broken:
        return 1
    return NOT_MEASURABLE if unmeasured else 0
