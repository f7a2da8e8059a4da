"""The layer without a pooler: each environment keeps a connection to the database.

A control: with more environments than `max_connections`, requests must fail.
"""

from benchmarks.lookup.layer import handler

__all__ = ["handler"]
