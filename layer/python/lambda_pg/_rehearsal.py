"""One TLS connection by libpq before the first real one, up to its ClientHello.

The work that OpenSSL and libpq do once in each process is a sixth of a first request's processor
time (measured). It costs the same at import. But Lambda gives the start of an environment a whole
processor, and a request only its share of one. For a snapshot, which holds the result, it is a
whole login (_login_rehearsal.py).
"""

import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from lambda_pg._profiles import LETSENCRYPT_ROOTS

REHEARSAL: Final = "LAMBDA_PG_REHEARSAL"

STEP: Final = 0.1
"""Seconds that each of four steps may take, if the loopback is slow."""

_READ, _WRITE = pq.PollingStatus.READING, pq.PollingStatus.WRITING


def rehearse(environ: Mapping[str, str]) -> None:
    """Let libpq connect to this process, in a function where no setting forbids it.

    Afterwards no port is open and no thread runs. An error is not reported: either it has no
    meaning (there may be no loopback), or the first checkout meets it too and reports more.
    """
    if "AWS_LAMBDA_FUNCTION_NAME" not in environ or environ.get(REHEARSAL) == "0":
        return
    with suppress(OSError, psycopg.Error):
        if environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start":
            _say_hello()
            return
        from lambda_pg._login_rehearsal import log_in  # noqa: PLC0415 - no cold start needs it

        log_in()


def _say_hello() -> None:
    """Play the server up to the S that accepts TLS. Raises OSError, psycopg.Error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(STEP)
        # A name, so that it is sent as SNI; some roots, so that certificates were read once.
        conninfo = make_conninfo(
            "",
            host="rehearsal.invalid",
            hostaddr="127.0.0.1",
            port=listener.getsockname()[1],
            user="rehearsal",
            password="rehearsal",  # noqa: S106 - of no server
            sslmode="verify-full",
            sslrootcert=str(LETSENCRYPT_ROOTS),
            gssencmode="disable",
        )
        client = pq.PGconn.connect_start(conninfo.encode())
        try:
            _go_on(client, _WRITE)  # it is connected
            _go_on(client, _WRITE)  # it asks for TLS
            with listener.accept()[0] as server:
                server.sendall(b"S")
                _go_on(client, _READ)  # the ClientHello is sent
        finally:
            client.finish()


def _go_on(client: pq.abc.PGconn, wanted: pq.PollingStatus) -> None:
    """Let libpq take its next step when its socket is ready. Raises TimeoutError."""
    poll = select.poll()
    poll.register(client.socket, select.POLLIN if wanted == _READ else select.POLLOUT)
    if not poll.poll(STEP * 1000):
        raise TimeoutError("the loopback did not answer")
    client.connect_poll()
