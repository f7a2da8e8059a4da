"""The pooler: one face, whichever implementation a stage uses."""

from stacks.pooler.face import Pooler

__all__ = ["Pooler"]
