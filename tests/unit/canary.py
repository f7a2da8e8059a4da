"""A secret that must show nowhere, and the look for it."""

CANARY = "canary-Pa55word"


def assert_nowhere(error: BaseException) -> None:
    """Look for the canary in everything that a log could show of an error and of its causes."""
    seen: BaseException | None = error
    while seen is not None:
        assert CANARY not in f"{seen} {seen!r} {vars(seen)}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
