"""The layer, straight to the database: each environment keeps a connection of its own.

A control: more environments than `max_connections` must fail, however well each is kept.
"""

from benchmarks.lookup.layer import handler

__all__ = ["handler"]
