"""A secret that must show nowhere, and the look for it."""

import traceback
from pathlib import Path

CANARY = "canary-Pa55word"

TESTS = Path(__file__).parents[1]


def assert_nowhere(error: BaseException) -> None:
    """Look for the canary in everything that a log could show of an error and of its causes."""
    seen: BaseException | None = error
    while seen is not None:
        assert CANARY not in f"{seen} {seen!r} {vars(seen)}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def assert_in_no_frame(error: BaseException) -> None:
    """Look for it in the variables of every frame, too, as a logger that prints them would."""
    assert_nowhere(error)
    seen: BaseException | None = error
    while seen is not None:
        for frame, _ in traceback.walk_tb(seen.__traceback__):
            if not frame.f_code.co_filename.startswith(str(TESTS)):
                for name, value in frame.f_locals.items():
                    assert CANARY not in repr(value), f"{name} in {frame.f_code.co_qualname}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
