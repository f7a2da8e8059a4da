"""A session with PgBouncer through its unix socket, without a PostgreSQL driver.

The socket asks for no password, or for one in clear text: nothing leaves the machine. So the
protocol comes down to a few messages.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from pathlib import Path

PROTOCOL_VERSION = 196_608  # 3.0
# Bytes after each name in a RowDescription: numbers that are not needed here.
COLUMN_DETAILS = 18

Row = dict[str, str | None]


class SessionError(ConnectionError):
    """PgBouncer or the server refused something, left, or took too long."""


class Session:
    """A login and the statements after it, each within the session's deadline."""

    def __init__(
        self,
        path: Path,
        user: str,
        database: str,
        *,
        purpose: str,
        seconds: float,
        password: str = "",
    ) -> None:
        """Log in; everything until `extend` has to happen within some seconds, or SessionError."""
        self._path = path
        self._password = password
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.extend(seconds)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(str(path))
            self._send(startup_message(user, database, purpose))
            self._answer()
        except OSError as error:
            self._socket.close()
            raise SessionError(f"no session through {path}: {error}") from error

    def __enter__(self) -> Session:
        """Leave the session with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the session."""
        self.close()

    def extend(self, seconds: float) -> None:
        """Set a new deadline."""
        self._deadline = time.monotonic() + seconds

    def query(self, statement: str) -> list[Row]:
        """Run one statement; return its rows as texts by name of column."""
        try:
            self._send(query_message(statement))
            return self._answer()
        except OSError as error:
            raise SessionError(f"{statement} through {self._path}: {error}") from error

    def close(self) -> None:
        """Leave; what is open is rolled back."""
        with contextlib.suppress(OSError):  # PgBouncer may have left first, or not be reading
            self._send(TERMINATE)
        self._socket.close()

    def _send(self, message: bytes) -> None:
        self._socket.settimeout(self._left())
        self._socket.sendall(message)

    def _answer(self) -> list[Row]:
        """Read messages up to ReadyForQuery; return the rows among them."""
        names: list[str] = []
        rows: list[Row] = []
        while True:
            kind, length = struct.unpack("!cI", self._receive(5))
            body = self._receive(length - 4)
            if kind == b"T":
                names = column_names(body)
            elif kind == b"D":
                rows.append(dict(zip(names, values(body), strict=True)))
            elif kind == b"E":
                raise SessionError(error_text(body))
            elif kind == b"R" and body == WANTS_PASSWORD:
                self._send(password_message(self._password))
            elif kind == b"Z":
                return rows

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            self._socket.settimeout(self._left())
            part = self._socket.recv(size - len(received))
            if not part:
                raise SessionError("the connection was closed")
            received += part
        return received

    def _left(self) -> float:
        """Return the remaining seconds; never 0, which for a socket means "do not wait"."""
        return max(self._deadline - time.monotonic(), 0.001)


def startup_message(user: str, database: str, purpose: str) -> bytes:
    """Build the first message of a connection."""
    pairs = ("user", user, "database", database, "application_name", f"lambda-pg {purpose}")
    body = b"".join(text.encode() + b"\0" for text in pairs) + b"\0"
    return struct.pack("!II", len(body) + 8, PROTOCOL_VERSION) + body


def query_message(statement: str) -> bytes:
    """Build a message of the simple query protocol."""
    body = statement.encode() + b"\0"
    return b"Q" + struct.pack("!I", len(body) + 4) + body


# What follows the length in an AuthenticationCleartextPassword.
WANTS_PASSWORD = struct.pack("!I", 3)


def password_message(password: str) -> bytes:
    """Build the answer to a request for the password in clear text."""
    body = password.encode() + b"\0"
    return b"p" + struct.pack("!I", len(body) + 4) + body


TERMINATE = b"X" + struct.pack("!I", 4)


def column_names(body: bytes) -> list[str]:
    """Take the names of the columns out of a RowDescription."""
    (count,) = struct.unpack("!H", body[:2])
    names, rest = [], body[2:]
    for _ in range(count):
        name, _, rest = rest.partition(b"\0")
        names.append(name.decode())
        rest = rest[COLUMN_DETAILS:]
    return names


def values(body: bytes) -> list[str | None]:
    """Take the values out of a DataRow; None for NULL."""
    (count,) = struct.unpack("!H", body[:2])
    found: list[str | None] = []
    place = 2
    for _ in range(count):
        (size,) = struct.unpack_from("!i", body, place)
        place += 4
        found.append(body[place : place + size].decode() if size >= 0 else None)
        place += max(size, 0)
    return found


def error_text(body: bytes) -> str:
    """Return the message of an ErrorResponse."""
    fields = {field[:1]: field[1:] for field in body.split(b"\0") if field}
    return fields.get(b"M", b"an error without a text").decode(errors="replace")
