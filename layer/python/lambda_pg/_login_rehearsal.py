"""One login by libpq before a snapshot, over TLS and with SCRAM, at a server in this process.

Every environment that is restored has what OpenSSL and libpq make once in a process. A first
request then takes 0.93 of the processor time that it takes after a ClientHello alone (measured).
A cold start would be slower with it: the whole login takes longer than it saves.
"""

import base64
import select
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Final

from psycopg import pq
from psycopg.conninfo import make_conninfo

HOST: Final = "rehearsal.invalid"

STEP: Final = 0.1
"""Seconds that each step may take, if the loopback is slow."""

CERTIFICATE: Final = Path(__file__).with_name("rehearsal.pem")
"""Trusted by the client of this login only."""

_KEY: Final = bytes.fromhex(
    "30310201010420"
    "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721"
    "a00a06082a8648ce3d030107"
)
"""The certificate's key. It is an example of RFC 6979 (A.2.5): everybody knows it."""

_SSL_REQUEST_SIZE: Final = 8
_MOST: Final = 65536
_SASL, _SASL_CONTINUE = 10, 11
_SALT: Final = base64.b64encode(bytes(16))


def log_in() -> None:
    """Log in as far as the client's proof. Raises OSError, psycopg.Error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(STEP)
        client = _Client(listener.getsockname()[1])
        try:
            with listener.accept()[0] as accepted:
                accepted.settimeout(STEP)
                _serve(_Server(accepted, client))
        finally:
            client.finish()


def _serve(server: "_Server") -> None:
    """Ask for SCRAM, with one iteration."""
    server.receive()  # the startup message
    server.ask(_SASL, b"SCRAM-SHA-256\0\0")
    nonce = server.receive().partition(b",r=")[2]
    server.ask(_SASL_CONTINUE, b"r=%s+,s=%s,i=1" % (nonce, _SALT))
    server.receive()  # the proof


class _Client:
    """A connection of libpq that takes a step whenever its socket is ready."""

    def __init__(self, port: int) -> None:
        """Begin to connect."""
        conninfo = make_conninfo(
            "",
            host=HOST,
            hostaddr="127.0.0.1",
            port=port,
            user="rehearsal",
            password="rehearsal",  # noqa: S106 - of no server
            sslmode="verify-full",
            sslrootcert=str(CERTIFICATE),
            gssencmode="disable",
        )
        self._libpq = pq.PGconn.connect_start(conninfo.encode())
        self.finish = self._libpq.finish
        self._wanted: int = pq.PollingStatus.WRITING

    def step_or_wait_for(self, other: socket.socket) -> bool:
        """Take a step, or wait; return whether `other` can be read. Raises OSError."""
        own, sends = self._libpq.socket, self._wanted == pq.PollingStatus.WRITING
        poll = select.poll()
        poll.register(own, select.POLLOUT if sends else select.POLLIN)
        poll.register(other, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(STEP * 1000)]
        if own in ready:
            self._wanted = self._libpq.connect_poll()
            if self._wanted == pq.PollingStatus.FAILED:
                raise ConnectionError(self._libpq.get_error_message())
        if not ready:
            raise TimeoutError("the loopback did not answer")
        return other.fileno() in ready


class _Server:
    """PostgreSQL's side of the connection."""

    def __init__(self, accepted: socket.socket, client: _Client) -> None:
        """Accept TLS."""
        self._socket, self._client = accepted, client
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._read(_SSL_REQUEST_SIZE)
        accepted.sendall(b"S")

    def receive(self) -> bytes:
        """Return the client's next message."""
        while True:
            try:
                return self._tls.read(_MOST)
            except ssl.SSLWantReadError:
                self._flush()
                self._incoming.write(self._read(_MOST))

    def ask(self, kind: int, data: bytes) -> None:
        """Send a request for authentication."""
        size = (8 + len(data)).to_bytes(4, "big")
        self._tls.write(b"R" + size + kind.to_bytes(4, "big") + data)
        self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._outgoing.read())

    def _read(self, most: int) -> bytes:
        """Read what the client sends. Raises OSError where it sends nothing."""
        while not self._client.step_or_wait_for(self._socket):
            pass
        received = self._socket.recv(most)
        if not received:
            raise ConnectionError("the client has gone")
        return received


def _context() -> ssl.SSLContext:
    """Make the server's context. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as key:  # ssl reads keys from files only
        text = base64.b64encode(_KEY).decode()
        key.write(f"-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----\n")
        key.flush()
        context.load_cert_chain(CERTIFICATE, key.name)
    return context
