"""What the daemon and its control plane agree on, so that one can tell the other of changes."""

from typing import Final

PATH: Final = "/_lambda_pg/changes"
"""Of the control plane: answers `{"count": n}` once n is not the `known` of the query."""

HELD_SECONDS: Final = 60.0
"""How long an answer is held back at most."""

OWN_REQUESTS: Final = "lambda-pg-inventory"
"""In the user agent of the daemon's own reading requests, which change nothing."""
