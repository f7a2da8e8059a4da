"""One open transaction through PgBouncer, without a PostgreSQL driver.

A drain needs one. PgBouncer, told to stop, ends as soon as no server connection is in use, and
then cuts clients whose statements are on their way: whether those ran, nobody knows. While a
transaction is open it stays, and refuses each such statement with a clean error instead.

The unix socket asks for no password, so the protocol comes down to two messages.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from pathlib import Path

PROTOCOL_VERSION = 196_608  # 3.0


class TransactionRefusedError(ConnectionError):
    """PgBouncer or the server refused the transaction, or took too long."""


class Transaction:
    """An open transaction; `close` ends it."""

    def __init__(self, path: Path, user: str, database: str, seconds: float) -> None:
        """Log in and begin, within some seconds; raise TransactionRefusedError."""
        self._deadline = time.monotonic() + seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(str(path))
            self._socket.sendall(startup_message(user, database))
            self._await_ready()
            self._socket.sendall(query_message("BEGIN"))
            self._await_ready()
        except OSError as error:
            self._socket.close()
            raise TransactionRefusedError(f"no transaction through {path}: {error}") from error

    def close(self) -> None:
        """Commit, without waiting for long, and leave."""
        with contextlib.suppress(OSError):  # PgBouncer may have left first
            self._deadline = time.monotonic() + 1
            self._socket.sendall(query_message("COMMIT"))
            self._await_ready()
        self._socket.close()

    def _await_ready(self) -> None:
        """Read messages up to ReadyForQuery."""
        while True:
            kind, length = struct.unpack("!cI", self._receive(5))
            body = self._receive(length - 4)
            if kind == b"E":
                raise TransactionRefusedError(error_text(body))
            if kind == b"Z":
                return

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
            part = self._socket.recv(size - len(received))
            if not part:
                raise TransactionRefusedError("the connection was closed")
            received += part
        return received


def startup_message(user: str, database: str) -> bytes:
    """Build the first message of a connection."""
    pairs = ("user", user, "database", database, "application_name", "lambda-pg drain")
    body = b"".join(text.encode() + b"\0" for text in pairs) + b"\0"
    return struct.pack("!II", len(body) + 8, PROTOCOL_VERSION) + body


def query_message(statement: str) -> bytes:
    """Build a message of the simple query protocol."""
    body = statement.encode() + b"\0"
    return b"Q" + struct.pack("!I", len(body) + 4) + body


def error_text(body: bytes) -> str:
    """Take the text for people out of an ErrorResponse."""
    fields = {field[:1]: field[1:] for field in body.split(b"\0") if field}
    return fields.get(b"M", b"an error without a text").decode(errors="replace")
