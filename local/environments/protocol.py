"""Speak as much of HTTP/1.1 as a runtime client does. No I/O here.

The client is always ours (awslambdaric through libcurl and `http.client`): every request carries
its length or has no body, and one connection carries one request after the other. Doing this by
hand instead of with a web framework keeps a warm call at a quarter of a millisecond.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_HEAD_BYTES = 1_200_000  # awslambdaric sends up to 1 MiB of X-Ray fault in one header
_REASONS = {
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    413: "Payload Too Large",
}


class ProtocolError(ValueError):
    """The peer does not speak HTTP/1.1 as a runtime client does."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower-cased."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class RequestReader:
    """Cut the byte stream of one connection into requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._body_bytes = 0

    def feed(self, data: bytes) -> list[Request]:
        """Take bytes as they come and return the requests that they complete."""
        self._buffer += data
        requests = []
        while (request := self._next()) is not None:
            requests.append(request)
        return requests

    def _next(self) -> Request | None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise ProtocolError(f"a request head of more than {MAX_HEAD_BYTES} bytes")
                return None
            self._head = _parse_head(bytes(self._buffer[:end]))
            self._body_bytes = _body_length(self._head[2])
            del self._buffer[: end + 4]
        if len(self._buffer) < self._body_bytes:
            return None
        (method, path, headers), self._head = self._head, None
        body = bytes(self._buffer[: self._body_bytes])
        del self._buffer[: self._body_bytes]
        return Request(method, path, headers, body)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise ProtocolError(f"not a request line: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ProtocolError(f"not a header line: {line[:80]!r}")
        headers[name.strip().lower()] = value.strip()
    return parts[0], parts[1], headers


def _body_length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise ProtocolError("chunked requests are not part of the Runtime API")
    length = headers.get("content-length", "0")
    if not length.isdigit():
        raise ProtocolError(f"not a content length: {length[:20]!r}")
    return int(length)


def render_response(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """Render one response as a single buffer, so that it leaves in a single write."""
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
