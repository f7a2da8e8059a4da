"""One POST over a new connection, with an answer of a known length.

http.client would cost a cold start 10 ms of imports (measured: benchmarks/results/cold_start.json
holds what the layer costs in all). Only the plain case is handled here; the caller
handles the others.
"""

import os
import socket
import ssl
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from lambda_pg._clock import monotonic

LONGEST: Final = 1024 * 1024
"""The largest answer in bytes: a secret has 64 KiB."""

AMAZON_ROOTS: Final = os.path.join(os.path.dirname(__file__), "certs", "amazon.pem")  # noqa: PTH118, PTH120 - the fetch begins before pathlib is imported
"""Amazon's public roots, which sign the certificates of AWS's own endpoints. Reading these five
takes 0.6 ms of a cold start; reading the system's roots takes 16 ms (measured)."""

_TRUST_SETTINGS: Final = ("AWS_CA_BUNDLE", "SSL_CERT_FILE")


class UnusualAnswerError(Exception):
    """Report an answer that is not status, headers and a body of a known length."""


def post(url: str, body: bytes, headers: dict[str, str], timeout: float) -> tuple[int, bytes]:
    """Send `body` to `url` and return status and body of the answer within `timeout` seconds.

    Raises OSError, ValueError for what cannot be sent, and UnusualAnswerError for an answer
    that needs a complete client.
    """
    until = monotonic() + timeout
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in {"http", "https"}:
        raise ValueError("the URL names no host")
    # Bytes: for a str Python imports its idna codec, 1.5 ms of a cold start (measured).
    host, secure = parts.hostname.encode("ascii"), parts.scheme == "https"
    address = (host, parts.port or (443 if secure else 80))
    lines = ["POST / HTTP/1.1"]
    fields = headers | {"content-length": str(len(body)), "connection": "close"}
    lines += [f"{name}: {value}" for name, value in fields.items()]
    request = "\r\n".join([*lines, "", ""]).encode("ascii") + body
    if not secure:
        return _exchange(address, None, request, until)
    if host.endswith(b".amazonaws.com") and not any(map(os.environ.get, _TRUST_SETTINGS)):
        amazons = ssl.create_default_context(cafile=AMAZON_ROOTS)
        # After a failure the system's roots may do, for a proxy that inspects TLS or a new CA of
        # AWS. Nothing was sent yet.
        with suppress(ssl.SSLCertVerificationError):
            return _exchange(address, amazons, request, until)
    return _exchange(address, _trusting(), request, until)


def _trusting() -> ssl.SSLContext:
    """Trust the system's roots, or the file in AWS_CA_BUNDLE, as AWS's SDKs do."""
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)


def _exchange(
    address: tuple[bytes, int], trusted: ssl.SSLContext | None, request: bytes, until: float
) -> tuple[int, bytes]:
    """Send the request over a new connection, where `trusted` over TLS, and read the answer."""
    with socket.create_connection(address, timeout=_left(until)) as plain:  # type: ignore[arg-type]
        plain.settimeout(_left(until))
        with trusted.wrap_socket(plain, server_hostname=address[0]) if trusted else plain as wire:
            wire.sendall(request)
            return _answer(wire, until)


def _answer(wire: socket.socket, until: float) -> tuple[int, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(wire, until, len(received))
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in _split(lines)}
    length = fields.get("content-length", "")
    version, _, rest = status.partition(" ")
    if not (version.startswith("HTTP/1.") and rest[:3].isdigit() and length.isdigit()):
        raise UnusualAnswerError(status[:100])
    while len(body) < int(length):
        body += _more(wire, until, len(body))
    return int(rest[:3]), body[: int(length)]


def _split(lines: list[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines]


def _more(wire: socket.socket, until: float, so_far: int) -> bytes:
    # The socket's timeout is for each read: an answer in small pieces would never exceed it.
    wire.settimeout(_left(until))
    part = wire.recv(65536)
    if not part:
        raise ConnectionError("the connection ended before the answer did")
    if so_far > LONGEST:
        raise OSError("an answer of more than 1 MiB")
    return part


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError("no complete answer in time")
    return left
