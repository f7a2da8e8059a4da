"""What a failed connect or statement means: the one table that retries rest on.

psycopg's connect errors carry no SQLSTATE, and PgBouncer reports most of its own refusals as
08P01, so both are told apart by text. Whatever the table does not know is not retried.
"""

import enum
import re
from typing import Final

import psycopg


class Failure(enum.Enum):
    """How far a failed attempt came."""

    NOT_RUN = "the statement certainly did not run, and may be sent again"
    LOGIN_REFUSED = "nothing ran: the credentials are stale or wrong"
    ROLLED_BACK = "the server rolled the transaction back; running it again may succeed"
    LOST = "the connection is gone, and whether the statement ran is unknown"
    FINAL = "waiting changes nothing: the caller gets the error as it is"


# Patterns, not compiled ones: a cold start pays for none of them, and re keeps those that are used.
_LOGIN_REFUSED: Final = r"password authentication failed|SASL authentication failed"

_CONNECT_AGAIN: Final = "|".join(
    [
        # exhaustion: PostgreSQL (two texts), PgBouncer
        "too many clients already",
        "remaining connection slots are reserved",
        "too many connections for",
        "no more connections allowed",
        # a server that starts, stops or fails over
        "the database system is (starting up|shutting down|in recovery mode|not accepting)",
        "terminating connection due to",
        "server shutting down",
        "pgbouncer cannot connect to server",
        "server login has been failing",
        "query_wait_timeout",
        # the network
        "[Cc]onnection refused",
        "[Cc]onnection reset",
        "[Cc]onnection timed out",
        "connection timeout expired",
        "server closed the connection unexpectedly",
        "SSL SYSCALL error",
        "unexpected eof while reading",
        "SSL connection has been closed unexpectedly",
        "could not (receive data from|send data to) server",
        "Network is unreachable",
        "No route to host",
        "Temporary failure in name resolution",
    ]
)

_POOLER_REFUSED: Final = (
    "server shutting down"
    "|query_wait_timeout"
    "|server login has been failing"
    "|server login failed"
    "|pgbouncer cannot connect to server"
    "|no more connections allowed"
    "|too many clients already"
    "|remaining connection slots are reserved"
)

_ROLLED_BACK: Final = frozenset({"40001", "40P01"})
_NOT_RUN: Final = frozenset({"53300", "57P03"})
# The server ended the connection. It rolled the statement back, but a procedure may have
# committed before that: this is no NOT_RUN.
_ENDED: Final = frozenset({"57P01", "57P02", "57P05"})


def classify_connect(error: psycopg.Error) -> Failure:
    """Tell what a failed connect means; nothing can have run."""
    text = str(error)
    if re.search(_LOGIN_REFUSED, text):
        return Failure.LOGIN_REFUSED
    if isinstance(error, psycopg.errors.ConnectionTimeout) or re.search(_CONNECT_AGAIN, text):
        return Failure.NOT_RUN
    return Failure.FINAL


def classify_statement(error: psycopg.Error, *, broken: bool) -> Failure:
    """Tell what a failed statement means; `broken` says that its connection is gone since.

    Texts count only in a pooler's own errors: in others a caller's value may stand.
    """
    sqlstate = error.sqlstate
    text = (error.diag.message_primary or str(error)) if sqlstate == "08P01" else ""
    if sqlstate in _ROLLED_BACK:
        return Failure.ROLLED_BACK
    if sqlstate == "28P01" or re.search(_LOGIN_REFUSED, text):
        return Failure.LOGIN_REFUSED
    if sqlstate in _NOT_RUN or re.search(_POOLER_REFUSED, text):
        return Failure.NOT_RUN
    ended = sqlstate is None or sqlstate.startswith("08") or sqlstate in _ENDED
    return Failure.LOST if broken and ended else Failure.FINAL
