"""Logins whose refusal brings its SQLSTATE, in any language of the server.

libpq gives the SQLSTATE of a refused login only in the text of a verbose error, and psycopg has no
name for the function that asks for one. So ctypes calls it, in the libpq that psycopg itself uses.
Imported when the text of a refusal is unknown: ctypes would cost a cold start 4 ms (measured).
"""

import ctypes
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import pq, waiting
from psycopg.abc import PQGenConn
from psycopg.pq.misc import find_libpq_full_path

from lambda_pg._connection import Connection

_DEFAULT, _VERBOSE = 1, 2  # PGVerbosity of libpq-fe.h

_SQLSTATE: Final = r":  ([0-9A-Z]{5}): "
"""After the severity, as libpq writes it: `FATAL:  28P01: …`."""


def _find_setter() -> Callable[[int, int], object] | None:
    """Find PQsetErrorVerbosity; None if it cannot be reached.

    A symbol is looked up in a library and in those that it is linked with: psycopg's extension
    leads to its own libpq.
    """
    extension = sys.modules[pq.PGconn.__module__].__file__
    try:
        library = ctypes.CDLL(find_libpq_full_path() if pq.__impl__ == "python" else extension)
        setter = library.PQsetErrorVerbosity
    except (OSError, AttributeError):
        return None
    setter.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return setter


_set_verbosity: Final = _find_setter()

IS_POSSIBLE: Final = _set_verbosity is not None


def connect(conninfo: str, kind: type[Connection[Any]]) -> PQGenConn[Connection[Any]]:
    """Make a connection of a class, as psycopg's generator does.

    Raises psycopg.OperationalError; its `sqlstate` is the server's, if a server has refused.
    """
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    del conninfo  # it has the password, and the frame may be in a traceback
    _set_error_verbosity(pgconn, _VERBOSE)
    while (status := pgconn.connect_poll()) != pq.PollingStatus.OK:
        if status == pq.PollingStatus.FAILED:
            raise _refusal(pgconn)
        wait = waiting.WAIT_R if status == pq.PollingStatus.READING else waiting.WAIT_W
        while not (yield pgconn.socket, wait):
            pass
    _set_error_verbosity(pgconn, _DEFAULT)  # errors of statements bring it anyway
    pgconn.nonblocking = 1
    return kind(pgconn)


def _set_error_verbosity(pgconn: Any, verbosity: int) -> None:
    if _set_verbosity is not None:
        _set_verbosity(pgconn.pgconn_ptr, verbosity)


def _refusal(pgconn: pq.abc.PGconn) -> psycopg.OperationalError:
    """Make psycopg's error; the last of several addresses counts."""
    text = pgconn.get_error_message("utf-8")
    pgconn.finish()
    error = psycopg.OperationalError(f"connection failed: {text}")
    states = re.findall(_SQLSTATE, text)
    error.sqlstate = states[-1] if states else None
    return error
