"""One open transaction through PgBouncer.

A drain needs one. When PgBouncer has to stop, it ends as soon as no server connection is in use. It
then cuts clients whose statements are in transit, and it is unknown whether those ran. While a
transaction is open, PgBouncer keeps running and rejects each such statement with a clean error. A
start has several at once, so that there are server connections before there are clients.
"""

import contextlib
from pathlib import Path

from .session import Session, SessionError


class Transaction:
    """An open transaction; `close` ends it."""

    def __init__(self, path: Path, user: str, database: str, seconds: float) -> None:
        """Log in and begin, within some seconds; raise SessionError."""
        self._session = Session(path, user, database, purpose="supervisor", seconds=seconds)
        try:
            self._session.query("BEGIN")
        except SessionError:
            self._session.close()
            raise

    def close(self) -> None:
        """Commit, without waiting for long, and leave."""
        with contextlib.suppress(SessionError):  # PgBouncer may have left first
            self._session.extend(1)
            self._session.query("COMMIT")
        self._session.close()
