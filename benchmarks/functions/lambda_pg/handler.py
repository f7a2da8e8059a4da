"""The layer, through the pooler."""

from benchmarks.lookup.layer import handler

__all__ = ["handler"]
