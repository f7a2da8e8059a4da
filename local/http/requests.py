"""HTTP/1.1 for the clients inside a function: libcurl under awslambdaric, the layer, boto3. No I/O.

They send one request at a time, with the length of its body. A full web server costs several times
as much for each request. Only the API's front end has one, since any client may use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

MAX_HEAD_BYTES: Final = 1_200_000
"""awslambdaric sends up to 1 MiB of X-Ray fault in one header."""

_PHRASES: Final = {int(status): status.phrase for status in HTTPStatus}


class UnreadableError(Exception):
    """The request is too large, or the length of its body is missing: close the connection."""


@dataclass(slots=True)
class Request:
    """One request. The names of headers are in lower case; a body that is too large is None."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytearray | None

    @property
    def is_last(self) -> bool:
        """Whether the client wants the connection closed after the answer."""
        return self.headers.get("connection", "").lower() == "close"


class RequestReader:
    """Splits the bytes of one connection into requests.

    A body of more than `max_body` bytes is read to its end and not kept: libcurl closes the
    connection when only half of a body is read.
    """

    def __init__(self, max_body: int) -> None:
        """Begin with a new connection."""
        self._max_body = max_body
        self._received = bytearray()
        self._request: Request | None = None  # its head is complete, its body is not
        self._missing = 0  # bytes of that body still to come

    def feed(self, data: bytes) -> None:
        """Add received bytes; raise UnreadableError."""
        self._received += data
        if len(self._received) > MAX_HEAD_BYTES + self._max_body:
            raise UnreadableError("the client sent a request before the last one was answered")

    def next(self) -> Request | None:
        """Return the next request if it is complete; raise UnreadableError."""
        request = self._request = self._request or self._begin()
        if request is None:
            return None
        part = self._received[: self._missing]
        del self._received[: self._missing]
        self._missing -= len(part)
        if request.body is not None:
            request.body += part
        if self._missing:
            return None
        self._request = None
        return request

    def _begin(self) -> Request | None:
        if not self._received:
            return None
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            raise UnreadableError(f"a head of more than {MAX_HEAD_BYTES} bytes")
        if not found:
            return None
        self._received = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, path = first.partition(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = headers.get("content-length", "" if "transfer-encoding" in headers else "0")
        if not length.isdecimal():
            raise UnreadableError("a body without a length")
        self._missing = int(length)
        body = bytearray() if self._missing <= self._max_body else None
        return Request(method, path.partition(" ")[0], headers, body)


def response(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """Build the bytes of a response."""
    lines = [f"HTTP/1.1 {status:d} {_PHRASES[status]}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1") + body


LENGTH_REQUIRED: Final = response(411, {"Connection": "close"}, b"")
"""The response to an unreadable request."""
