"""Environments that are restored from one snapshot do not share random numbers."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("restored_twice.py")
LAYER = Path(__file__).parents[2] / "layer" / "python"
NAMESPACE = ["unshare", "--pid", "--fork", *([] if os.geteuid() == 0 else ["--map-root-user"])]
RANDOM = slice(11, 43)
"""Where a ClientHello has its 32 random bytes: RFC 8446, 5.1 and 4.1.2."""


class Listener:
    """A server that accepts TLS, keeps what a client says first, and leaves."""

    def __init__(self) -> None:
        """Listen."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.randoms: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client = self._socket.accept()[0]
                with client:
                    client.settimeout(10)
                    client.recv(8)  # it asks for TLS
                    client.sendall(b"S")
                    self.randoms.append(client.recv(65536)[RANDOM])

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """What both copies say hello to."""
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    """Skip where this user may make no process namespace."""
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may make no process namespace")


def restore_twice(listener: Listener, *arguments: str) -> list[bytes]:
    """Return the random bytes of two copies of one process."""
    environment = os.environ | {
        "PYTHONPATH": str(LAYER),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
        "AWS_LAMBDA_FUNCTION_NAME": "function",
        "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT": "1",
    }
    subprocess.run(
        [*NAMESPACE, sys.executable, str(PROGRAM), str(listener.port), *arguments],
        env=environment,
        check=True,
        timeout=60,
    )
    return listener.randoms


def test_restored_environments_make_different_keys(listener: Listener) -> None:
    """OpenSSL has had random bytes of the operating system since the snapshot."""
    first, second = restore_twice(listener, "renew")
    assert first != second


def test_without_the_hook_they_make_the_same_ones(listener: Listener) -> None:
    """The control: nothing tells OpenSSL that it is a copy, or the test above proves nothing."""
    first, second = restore_twice(listener)
    assert first == second
