"""Why a server denied a write, and whether another connect may reach one that takes writes."""

import enum
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection


class Denial(enum.Enum):
    """Why a server denied a write."""

    ASKED = "the caller, its settings or its role asked for read-only"
    STANDBY = "it is a standby that follows a primary"
    SERVER = "it accepts no writes from any client"
    WRITABLE = "the transaction asked for read-only, or another server answered than denied it"


WHY_DENIED: Final = (
    "SELECT CASE"
    " WHEN setting = 'on'"
    " AND source IN ('client', 'user', 'database user', 'session', 'interactive') THEN 'ASKED'"
    " WHEN pg_is_in_recovery() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 'STANDBY'"
    " WHEN pg_is_in_recovery() OR setting = 'on' THEN 'SERVER'"
    " ELSE 'WRITABLE' END FROM pg_settings WHERE name = 'default_transaction_read_only'"
)
DENIAL_TIMEOUT: Final = 0.5
"""Seconds that WHY_DENIED may take."""


def why_denied(connection: Connection[Any]) -> Denial:
    """Ask, after a write was denied, why; close the connection where the server is the reason.

    A connection that is opened now may reach the new primary. STANDBY is returned only where the
    Database has reached nothing but standbys: its address names one, and no promotion is due.
    SERVER is returned for a connection that cannot answer. Behind a pooler, the server that denied
    the write answers only inside its transaction.
    """
    connection.denied = False
    answer = _ask_why_denied(connection)
    connection.demoted = answer in {Denial.SERVER, Denial.STANDBY}
    if connection.demoted:
        connection.close()
    if answer is Denial.STANDBY and not connection.only_standbys:
        return Denial.SERVER
    return answer


def _ask_why_denied(connection: Connection[Any]) -> Denial:
    connection.deadline = min(connection.deadline, monotonic() + DENIAL_TIMEOUT)
    try:
        if _is_aborted(connection):
            # After a plain ROLLBACK a pooler may give another server.
            connection.command(b"ROLLBACK AND CHAIN")
        elif not connection.clean():
            return Denial.SERVER
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        row = cursor.execute(WHY_DENIED, prepare=False).fetchone()
    except psycopg.Error:
        return Denial.SERVER
    return Denial.SERVER if row is None else Denial[row[0]]


def _is_aborted(connection: Connection[Any]) -> bool:
    """Tell whether an error has ended the transaction, and the next command may leave it."""
    kept = (
        connection.lost
        or connection.lock.locked()
        or connection._num_transactions
        or connection._tpc
    )
    return not kept and connection.pgconn.transaction_status == pq.TransactionStatus.INERROR
