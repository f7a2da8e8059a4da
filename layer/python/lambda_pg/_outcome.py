"""The outcome of a transaction whose COMMIT got no answer, where that is certain.

PostgreSQL does not log that it has assigned a transaction id. A crash forgets the ids whose first
record was not on disk yet, and gives them to the next writers: `pg_xact_status` then answers for
another transaction. So the id is kept together with two moments that every role may read: the start
of the server, and the last reset of its statistics. A crash discards the statistics, also one after
which the server restarts its processes without a new start; a failover leads to a server with
another start. (Both are needed: a standby that was copied from a stopped server has its reset.)
"""

import datetime
from typing import Final, NamedTuple

from psycopg.pq.abc import PGresult

from lambda_pg._pipeline import Command

SOUND: Final = range(15, 19)
"""Major versions of PostgreSQL whose crashes discard the statistics, which tests/integration/
test_outcome.py shows for each. 13 and 14 do so too, but read them from a file: 0.1 ms for each
transaction, and sometimes 15 ms (measured). A newer version may keep its statistics."""

_MOMENTS: Final = (
    "pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_stat_get_bgwriter_stat_reset_time()"
)
_ID: Final = "SELECT pg_catalog.pg_current_xact_id_if_assigned()"
"""A statement before it may have set search_path."""
_WITH_MOMENTS: Final = Command(f"{_ID}, {_MOMENTS}".encode(), binary=True)
_ALONE: Final = Command(_ID.encode(), binary=True)

STATUS: Final = (
    f"SELECT pg_xact_status(%s::xid8), {_MOMENTS},"
    f" current_setting('server_version_num')::int / 10000 BETWEEN {SOUND[0]} AND {SOUND[-1]}"
    " AND to_regproc('aurora_version') IS NULL"
)
"""Asks for a transaction's outcome, and whether the answer is about that transaction. Aurora
recovers in its storage; whether its crashes discard the statistics is not known."""


class TransactionId(NamedTuple):
    """The id of a transaction that writes, and the moments of the server that assigned it.

    All are in PostgreSQL's binary format. `moments` is empty where they would prove nothing.
    """

    number: bytes
    moments: tuple[bytes | None, ...]

    @property
    def xid(self) -> str:
        """The id, as `pg_xact_status` takes it."""
        return str(int.from_bytes(self.number, "big"))

    @property
    def incarnation(self) -> str | None:
        """The moments for people: the server's start, and the last reset of its statistics."""
        return " / ".join(str(_time(moment)) for moment in self.moments if moment) or None

    def status(self, answer: PGresult) -> str | None:
        """Return this transaction's status from an answer to STATUS, in binary format.

        None if the answer may be about another one, or if the server does not know any more.
        """
        status, *moments, sound = (answer.get_value(0, column) for column in range(4))
        same = tuple(moments) == self.moments and None not in moments
        return status.decode() if same and sound == b"\1" and status is not None else None


def asking(server_version: int) -> Command:
    """Return the query for the open transaction's id; `server_version` is libpq's number."""
    return _WITH_MOMENTS if server_version // 10000 in SOUND else _ALONE


def transaction_id(answer: PGresult) -> TransactionId | None:
    """Read the answer to `asking`; None for a transaction that has written nothing."""
    number = answer.get_value(0, 0)
    if number is None:
        return None
    moments = (answer.get_value(0, 1), answer.get_value(0, 2)) if answer.nfields >= 3 else ()
    return TransactionId(number, moments)


def _time(moment: bytes) -> datetime.datetime:
    """Read a timestamp: microseconds since the year 2000."""
    since = datetime.timedelta(microseconds=int.from_bytes(moment, "big", signed=True))
    return datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC) + since
