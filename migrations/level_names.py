"""The trust levels of `/sql`. Synthesis reads them too, and has no psycopg."""

LEVELS = ("reader", "writer", "caller")
"""Each has a group and logins (docs/decisions/0051)."""
