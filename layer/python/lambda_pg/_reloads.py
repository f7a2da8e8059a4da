"""Reloads of a module in the same process: it makes its Database again. Not imported in Lambda."""

import sys
import weakref
from typing import Final, Protocol

from lambda_pg._settings import Settings


class Closable(Protocol):
    """An object with connections that it can open again."""

    def close(self) -> None:
        """Close the idle connections."""


def close_replaced(database: Closable, settings: Settings) -> None:
    """Close the idle connections of the Databases that a reload of a module replaces.

    Those are the ones that the top level of the same module made with the same settings. Without
    this, an old one that is part of a cycle, as an engine of SQLAlchemy is, would keep its
    connection until the garbage collector runs; one that another module refers to, for ever. Code
    that still uses an old one connects again.
    """
    module = _running_module()
    if module is None:
        return
    made = _MADE.setdefault((module, settings), weakref.WeakSet())
    for replaced in list(made):
        replaced.close()
    made.add(database)


def _running_module() -> str | None:
    """Name the module whose top level calls the layer now; None inside of a function."""
    frame = sys._getframe()
    while frame.f_back is not None and _name(frame.f_globals).split(".")[0] == "lambda_pg":
        frame = frame.f_back
    return _name(frame.f_globals) if frame.f_code.co_name == "<module>" else None


def _name(module: dict[str, object]) -> str:
    return str(module.get("__name__"))


_MADE: Final[dict[tuple[str, Settings], weakref.WeakSet[Closable]]] = {}
"""The Databases that the top level of a module has made, by its name and their settings."""
