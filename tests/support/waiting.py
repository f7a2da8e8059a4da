"""Wait for a condition instead of sleeping."""

import time
from collections.abc import Callable

INTERVAL = 0.02
"""Seconds between two looks."""


def wait_until(condition: Callable[[], object], seconds: float = 20.0, what: str = "") -> None:
    """Wait until the condition holds; fail after `seconds`, saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what or condition}"
        time.sleep(INTERVAL)
