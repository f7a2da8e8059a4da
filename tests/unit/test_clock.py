"""The clock of every wait: a test that stops time does not stop it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import lambda_pg
import pytest
from freezegun import freeze_time
from lambda_pg._clock import monotonic
from lambda_pg._overload import Breaker, RetryBudget
from lambda_pg._retry import Window

SOURCES = Path(lambda_pg.__file__).parent


def test_it_is_time_s_own() -> None:
    """Outside of such a test both are the same clock."""
    assert time.monotonic() <= monotonic() <= time.monotonic()


@pytest.mark.parametrize("moment", ["2020-01-01", "2040-01-01"])
def test_a_window_ends_though_time_stands_still(moment: str) -> None:
    """A request for a database that is away would be retried for ever."""
    with freeze_time(moment):
        window = Window(0.3, monotonic() + 60, breaker=Breaker(), budget=RetryBudget())
        with pytest.raises(lambda_pg.CheckoutTimeoutError):
            use_up(window)


@pytest.mark.parametrize(
    ("first", "plain"), [("os", True), ("pytest", False), ("freezegun", False)]
)
def test_only_tests_pay_for_it(first: str, plain: bool) -> None:
    """In a function it is the builtin itself: a wrapper would be seen in each warm request."""
    look = "import time; from lambda_pg._clock import monotonic; print(monotonic is time.monotonic)"
    said = subprocess.run(
        [sys.executable, "-c", f"import {first}; {look}"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str(plain)


def use_up(window: Window) -> None:
    """Retry more often than its time allows."""
    for _ in range(1000):
        window.pause(ConnectionError("refused"), absent=False)


def test_every_wait_of_the_layer_looks_at_it() -> None:
    """A module that takes time.monotonic() waits for ever where time stands still."""
    taken = [
        source.name
        for source in SOURCES.rglob("*.py")
        if re.search(r"from time import.*monotonic|time\.monotonic\(\) [-+<>=]", source.read_text())
    ]
    assert not taken, f"take monotonic from lambda_pg._clock in {taken}"
