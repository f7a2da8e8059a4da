"""docs/other-languages.md and its example say what the layer does."""

import re

from lambda_pg import Settings, _credentials, _failures, _profiles
from lambda_pg._connection import SET_CLAIMS

from lambda_pg_cdk import PROJECT

PAGE = (PROJECT / "docs" / "other-languages.md").read_text()
EXAMPLE = (PROJECT / "examples" / "typescript" / "db.ts").read_text()


def squeezed(text: str) -> str:
    """Return a text without spaces, and without the joints of a string of TypeScript's."""
    return re.sub(r"\s|\" ?\+\s*\"", "", text)


def test_the_claims_are_set_as_the_layer_does() -> None:
    """On the page and in the example."""
    expected = squeezed(SET_CLAIMS.decode())
    assert expected in squeezed(PAGE)
    assert expected in squeezed(EXAMPLE)


def test_the_refusals_of_a_pooler_are_those_that_the_layer_knows() -> None:
    """A statement that they met did not run."""
    (section,) = re.findall(r"(?s)\n## What to retry\n(.*?)\n## ", PAGE)
    listed = re.findall(r"(?m)^    (\S.*)$", section)
    assert listed == [text for state, text in _failures.NOT_RUN if state == "08P01"]


def test_the_example_knows_the_sqlstates_of_the_page() -> None:
    """And no other: nothing else is retried."""
    states = set(re.findall(r'"(\d[0-9A-Z]{4})"', EXAMPLE))
    assert states == {"28P01", "28000"} | _failures._ROLLED_BACK
    assert all(f"`{state}`" in PAGE for state in states)


def test_the_example_waits_as_long_as_the_layer() -> None:
    """Milliseconds there, seconds here."""
    found = dict(re.findall(r"(?m)^const ([A-Z_]+) = (\d[\d_]*);", EXAMPLE))
    assert {name: int(value) / 1000 for name, value in found.items()} == {
        "CHECK_AFTER": Settings.idle_check_after,
        "MAX_IDLE": _profiles.FLOW_IDLE,
        "SECRET_LIFETIME": _credentials.LIFETIME,
    }
    assert f"LAMBDA_PG_MAX_LIFETIME ?? {_profiles.FOLLOW:.0f}" in EXAMPLE
    assert f"LAMBDA_PG_CHECKOUT_TIMEOUT ?? {Settings.checkout_timeout:.0f}" in EXAMPLE
