"""The last output of a measurement, and its exit code."""

import sys
from collections.abc import Sequence
from typing import Final

NOT_MEASURABLE: Final = 3
"""The exit code of a run that failed only because the machine was too busy or too slow."""


def conclude(broken: Sequence[str], unmeasured: Sequence[str] = ()) -> int:
    """Print the broken promises, and those that could not be measured on this machine.

    Return the exit code: 1 if any is broken, NOT_MEASURABLE if some could not be measured, else 0.
    """
    for promise in unmeasured:
        print(f"NOT MEASURABLE HERE: {promise}", file=sys.stderr, flush=True)
    for promise in broken:
        print(f"FAILED: {promise}", file=sys.stderr, flush=True)
    if broken:
        return 1
    return NOT_MEASURABLE if unmeasured else 0
