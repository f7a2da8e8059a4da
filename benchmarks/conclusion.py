"""How every measurement ends."""

import sys
from collections.abc import Sequence


def conclude(broken: Sequence[str]) -> int:
    """Print the promises that did not hold; return the exit code, 0 only if there are none."""
    for promise in broken:
        print(f"FAILED: {promise}", file=sys.stderr)
    return 1 if broken else 0
