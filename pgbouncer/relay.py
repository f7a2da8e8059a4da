"""Takes cancel requests from PgBouncer and passes them on to the tasks that they are meant for.

PgBouncer could connect to its peers by itself. But it opens one TCP connection to a peer at a time,
and goes back to a request that came meanwhile only when yet another one comes: of eight at once
it lost half. A unix socket is connected at once, so none of them waits (docs/decisions/0010).
"""

import logging
import socket
import socketserver
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

# Length, the code instead of a version, and the key: one byte, the peer_id in two, the rest.
REQUEST = struct.Struct("!IIx2s5x")
CODE = 80_877_102
# How long a task may take for each step. The client waits for it.
STEP_SECONDS = 1.0

log = logging.getLogger("supervisor")


class Relay:
    """A unix socket that stands for all peers; the key of a request tells which one is meant."""

    def __init__(self, path: Path, port: int) -> None:
        """Listen on the path; tasks are connected to at the port."""
        self.addresses: Mapping[int, str] = {}
        self._port = port
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), _Handler)
        self._server.relay = self

    def start(self) -> None:
        """Serve, in a thread for each request."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def pass_on(self, client: socket.socket) -> None:
        """Read a request, send it to its task, and wait until that has dealt with it."""
        client.settimeout(STEP_SECONDS)
        request = client.recv(REQUEST.size)
        if len(request) < REQUEST.size:
            return
        length, code, number = REQUEST.unpack(request)
        address = self.addresses.get(int.from_bytes(number, "little"))
        if (length, code) != (REQUEST.size, CODE) or address is None:
            return
        try:
            with socket.create_connection((address, self._port), STEP_SECONDS) as task:
                task.sendall(request)
                task.recv(1)  # the end: there is no answer to a cancel request
        except OSError as error:
            log.warning("a cancel request for a statement of %s may be lost: %s", address, error)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    relay: Relay


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        try:
            self.server.relay.pass_on(self.request)
        except OSError as error:
            log.warning("a cancel request could not be read: %s", error)
