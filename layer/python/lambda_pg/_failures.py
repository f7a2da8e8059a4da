"""What a failed connect or statement means: the one table that decides about retries.

The SQLSTATE decides where there is one. psycopg's connect errors have none unless the connector
asks libpq for it (_verbose.py). PgBouncer reports most refusals as 08P01, so the table
distinguishes these by their text. An error that is not in the table is not retried.

The texts of RDS Proxy are those of its troubleshooting page in the RDS User Guide, Supavisor's
those of its lib/supavisor/errors and of the versions before, Neon's those of its proxy/src
(control_plane, auth, compute). The others were captured.
"""

import enum
import errno
import os
import re
import socket
from collections.abc import Mapping
from typing import Final

import psycopg


class Failure(enum.Enum):
    """The effect of a failed attempt, and whether a retry may help."""

    NOT_RUN = "the statement certainly did not run, and may be retried"
    LOGIN_REFUSED = "nothing ran: the credentials are stale or wrong"
    ROLLED_BACK = "the server rolled the transaction back; a retry may succeed"
    NOT_ABLE = "the server rolled the transaction back, because it is not able now"
    DENIED = "read-only was asked for: by the caller, or by the address of a hot standby"
    TOO_LONG = "the server or the pooler ended a transaction that took too long: it is rolled back"
    LOST = "the connection is gone, and whether the statement ran is unknown"
    FINAL = "no retry can help: the caller gets the error as it is"


LOGIN_REFUSED: Final = (
    "password authentication failed",  # PostgreSQL, Supavisor, Neon
    "SASL authentication failed",  # PgBouncer
    "PAM authentication failed",  # RDS, of an IAM token
    "IAM authentication failed for ",  # RDS Proxy
    "The password that was provided for the role .* is wrong",
    "This RDS proxy has no credentials for the role",
)
"""Texts of a login that is refused with these credentials: others may be right now.

These and the patterns below are not compiled: a cold start pays for none of them, and re keeps
those that are used.
"""

CONNECT_AGAIN: Final = (
    # exhaustion: PostgreSQL (two texts), its limits for a database or a role, PgBouncer
    "too many clients already",
    "remaining connection slots are reserved",
    "too many connections for",
    "no more connections allowed",
    "client connections exceeded",
    # a server that starts, stops or fails over
    "the database system is (starting up|shutting down|in recovery mode)",
    "the database system is not (yet )?accepting connections",
    "terminating connection due to",
    "server shutting down",
    "pgbouncer cannot connect to server",
    "server login has been failing",
    "query_wait_timeout",
    r"client_login_timeout \(server down\)",
    # RDS Proxy
    "Timed-out waiting to acquire database connection",
    "The maximum number of client connections to the proxy exceeded",
    "Rate of connection to proxy exceeded",
    "IAM authentication failed because of too many competing requests",
    # Supavisor, with a code and before it had any
    r"\(EMAX(CLIENT|PROXY)?CONN(SESSION)?\)",
    r"\(EMAXCLIENTSESSION\)",
    "[Mm]ax client connections reached",
    "MaxClientsInSessionMode: max clients reached",
    r"\(ECHECKOUTTIMEOUT\)",
    "Unable to check out process from the pool due to timeout",
    r"\(EDBHANDLEREXITED\)",
    "DbHandler exited",
    r"\(EAUTHQUERY\) authentication query failed: connection to database not available",
    # Neon; its "request failed: endpoint is disabled" is another matter
    "Couldn't connect to compute node",
    "(?m:(Console|Control plane) request failed$)",
    "Failed to acquire permit to connect to the database",
    "Too many connections attempts",
    "Too many connections to this endpoint",
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
)
"""Texts of a connect that may succeed in a moment."""

_CONNECT_STATES: Final = {
    "28P01": Failure.LOGIN_REFUSED,
    "53": Failure.NOT_RUN,  # insufficient resources: 53300 are connections
    "57P01": Failure.NOT_RUN,  # a server that shuts down
    "57P02": Failure.NOT_RUN,  # a crash of another backend
    "57P03": Failure.NOT_RUN,  # a server that starts, stops or recovers
}
"""What an SQLSTATE, or its class, means for a failed connect with any text."""

_VAGUE_STATES: Final = frozenset({None, "28000", "08000", "08P01", "XX000"})
"""SQLSTATEs that do not tell why a login was refused: 28000 stands for every refusal without a
password, as PAM's of an IAM token; poolers use the others for all their refusals."""

_SERVER_ANSWERED: Final = r"failed: [^:\n]{1,40}:  "
"""The answer of a server as psycopg and libpq write it: the severity, in any language, a colon and
two spaces. libpq's own errors have one space."""

_NETWORK_ERRORS: Final = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
)
"""Looked up by strerror(), which uses the language of the process' locale, as libpq does."""

NOT_RUN: Final = (
    ("08P01", "server shutting down"),
    ("08P01", "query_wait_timeout"),
    ("08P01", "server login has been failing"),
    ("08P01", "server login failed"),
    ("08P01", "pgbouncer cannot connect to server"),
    ("08P01", "no more connections allowed"),
    ("08P01", "too many clients already"),
    ("08P01", "remaining connection slots are reserved"),
    ("08000", "Timed-out waiting to acquire database connection"),  # RDS Proxy
    ("XX000", r"\(ECHECKOUTTIMEOUT\)"),  # Supavisor, which has no server connection then
    ("XX000", "Unable to check out process from the pool due to timeout"),
    ("53300", ""),
    ("57P03", ""),
)
"""SQLSTATE and text of a statement that a pooler had no server connection for."""

READ_ONLY: Final = "25006"
"""The server takes no writes now, or the caller asked for a read-only transaction."""

TRANSACTION_TIMEOUT: Final = "25P04"
"""The server ended a transaction that took longer than `transaction_timeout`."""

TOO_LONG: Final = (
    ("25P03", ""),  # idle_in_transaction_session_timeout
    (TRANSACTION_TIMEOUT, ""),
    ("08P01", "^idle transaction timeout"),  # PgBouncer
)
"""SQLSTATE and text of the FATAL error that ends a transaction which took too long."""

_ROLLED_BACK: Final = frozenset({"40001", "40P01"})
"""A serialization failure and a deadlock."""

_NOT_ABLE: Final = frozenset({READ_ONLY, "53000", "53100", "53200", "53300", "55P03", "57P03"})
"""Answers that, with the severity ERROR, undo the transaction and leave the connection open.

docs/failures.md has all classes and the reasons.
"""

_LOCK_NOT_AVAILABLE: Final = "55P03"
"""Retried only after a lock timeout. With NOWAIT and RAISE the caller asked for the error."""

_TIMEOUT_SOURCE: Final = "ProcessInterrupts"
"""The server's C function that reports a lock timeout, in every language."""

_UNKNOWN: Final = frozenset({"08007", "40003"})
"""By their definition it is not known whether the transaction was committed."""

_ENDED: Final = frozenset({"57P01", "57P02", "57P05"})
"""The server ended the connection and rolled the statement back. It is not NOT_RUN: a procedure may
have committed before."""

_ENDED_IF_FATAL: Final = frozenset({"53", "57", "58", "XX"})
"""Classes that mean the same with the severity FATAL: lack of resources, system and internal
errors. Supavisor uses XX000 for a server connection that was lost at any time."""


RESOLVER: Final[Mapping[str, Failure]] = {
    "EAI_AGAIN": Failure.NOT_RUN,  # no name server answers, or it fails
    "EAI_FAIL": Failure.NOT_RUN,  # a name server refuses, as one does that is just starting
    "EAI_NONAME": Failure.NOT_RUN,  # a name is missing while it is moved to another server
    "EAI_NODATA": Failure.NOT_RUN,  # so is its address
    "EAI_ADDRFAMILY": Failure.NOT_RUN,
    "EAI_MEMORY": Failure.NOT_RUN,  # this machine is short of something
    "EAI_SYSTEM": Failure.NOT_RUN,
    "EAI_BADFLAGS": Failure.FINAL,  # a wrong call: the layer makes the same one each time
    "EAI_BADHINTS": Failure.FINAL,
    "EAI_FAMILY": Failure.FINAL,
    "EAI_OVERFLOW": Failure.FINAL,
    "EAI_PROTOCOL": Failure.FINAL,
    "EAI_SERVICE": Failure.FINAL,
    "EAI_SOCKTYPE": Failure.FINAL,
}
"""What each error of the resolver means. Systems number them differently, and lack some."""


def classify_connect(error: psycopg.Error) -> Failure:
    """Tell what a failed connect means; nothing can have run."""
    if isinstance(error.__cause__, OSError):  # from the resolver, whose texts are translated
        return _classify_lookup(error.__cause__)
    state = error.sqlstate or ""
    known = _CONNECT_STATES.get(state) or _CONNECT_STATES.get(state[:2])
    return known or _classify_text(error)


def is_unexplained(error: psycopg.Error) -> bool:
    """Tell whether a server refused a login for a reason that the table does not have.

    The server may speak another language, or be a pooler of another kind.
    """
    return (
        error.sqlstate in _VAGUE_STATES
        and _is_answer(str(error))
        and classify_connect(error) is Failure.FINAL
    )


def classify_statement(error: psycopg.Error, *, broken: bool) -> Failure:
    """Tell what a failed statement means; `broken` means that its connection was lost.

    A pooler that refuses ends the connection: its severity is FATAL. What has the severity ERROR
    comes from within a statement, where a caller's value or another server's error may stand.
    """
    sqlstate = error.sqlstate
    severity = error.diag.severity_nonlocalized or error.diag.severity
    if sqlstate in _ROLLED_BACK:
        return Failure.ROLLED_BACK
    if sqlstate in _UNKNOWN:
        return Failure.LOST
    if sqlstate in _NOT_ABLE and severity == "ERROR":
        return Failure.FINAL if _is_own_lock_error(error) else Failure.NOT_ABLE
    if sqlstate is not None and (severity != "ERROR" or sqlstate == "08000"):
        refusal = _classify_refusal(sqlstate, severity, error.diag.message_primary or str(error))
        if refusal is not None:
            return refusal
    return Failure.LOST if broken and _ends_connection(sqlstate, severity) else Failure.FINAL


def _is_own_lock_error(error: psycopg.Error) -> bool:
    """Tell whether a caller asked for a lock error, by NOWAIT or RAISE, without a timeout."""
    own = error.diag.source_function != _TIMEOUT_SOURCE
    return own and error.sqlstate == _LOCK_NOT_AVAILABLE


def _ends_connection(sqlstate: str | None, severity: str | None) -> bool:
    """Tell whether the connection was lost by this error, and not after its answer."""
    if sqlstate is None or sqlstate.startswith("08") or sqlstate in _ENDED:
        return True
    return severity in {"FATAL", "PANIC"} and sqlstate[:2] in _ENDED_IF_FATAL


def _classify_text(error: psycopg.Error) -> Failure:
    """Tell what the text of a failed connect means."""
    text = str(error)
    if _matches(LOGIN_REFUSED, text):
        return Failure.LOGIN_REFUSED
    passes = (
        isinstance(error, psycopg.errors.ConnectionTimeout)
        or _matches(CONNECT_AGAIN, text)
        or any(os.strerror(number) in text for number in _NETWORK_ERRORS)
        or (_is_answer(text) and _says_exhausted(text))
    )
    return Failure.NOT_RUN if passes else Failure.FINAL


def _is_answer(text: str) -> bool:
    return re.search(_SERVER_ANSWERED, text) is not None


def _classify_lookup(error: OSError) -> Failure:
    if not isinstance(error, socket.gaierror):
        return RESOLVER["EAI_SYSTEM"]  # Python raises it by its errno
    for name, failure in RESOLVER.items():
        if getattr(socket, name, None) == error.errno:
            return failure
    return Failure.FINAL


def _says_exhausted(text: str) -> bool:
    """Tell whether a text means, in a language other than English, that no connection is free."""
    from lambda_pg._languages import EXHAUSTED  # noqa: PLC0415 - no cold start needs it

    return _matches(EXHAUSTED, text)


def _classify_refusal(sqlstate: str, severity: str | None, text: str) -> Failure | None:
    if sqlstate == "28P01" or (sqlstate == "08P01" and _matches(LOGIN_REFUSED, text)):
        return Failure.LOGIN_REFUSED
    if _is_one_of(NOT_RUN, sqlstate, text):
        return Failure.NOT_RUN
    if sqlstate == "08P01" and _says_exhausted(text):  # an older pooler, of its server
        return Failure.NOT_RUN
    if severity == "FATAL" and _is_one_of(TOO_LONG, sqlstate, text):
        return Failure.TOO_LONG
    return None


def _is_one_of(known: tuple[tuple[str, str], ...], sqlstate: str, text: str) -> bool:
    return any(sqlstate == code and re.search(pattern, text) for code, pattern in known)


def _matches(patterns: tuple[str, ...], text: str) -> bool:
    return re.search("|".join(patterns), text) is not None
