"""The rehearsal of a TLS connection or a login at import: what it does, and what it survives."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.x509 import load_pem_x509_certificate
from lambda_pg import ConfigurationError, Settings, _login_rehearsal, _rehearsal
from lambda_pg._login_rehearsal import CERTIFICATE, log_in
from lambda_pg._rehearsal import rehearse

LAYER = Path(__file__).parents[2] / "layer" / "python"
FUNCTION = {"AWS_LAMBDA_FUNCTION_NAME": "users"}
SNAPSHOT = FUNCTION | {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
HANDSHAKE, CLIENT_HELLO = 22, 1


class Listeners:
    """The listeners of the rehearsal: counts them, and keeps what each received."""

    def __init__(self, backlog: int | None = None) -> None:
        """Take the backlog of each listener, or None for the usual."""
        self.opened: list[socket.socket] = []
        self._backlog = backlog
        self._create = socket.create_server

    def create_server(self, address: tuple[str, int]) -> socket.socket:
        """Listen; a copy of the socket stays open, to read what arrived."""
        listener = self._create(address, backlog=self._backlog)
        self.opened.append(listener)
        return listener


@pytest.fixture
def listeners(monkeypatch: pytest.MonkeyPatch) -> Listeners:
    """The listeners of this test's rehearsal."""
    made = Listeners()
    monkeypatch.setattr(socket, "create_server", made.create_server)
    return made


def test_it_gets_as_far_as_the_client_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then libpq has loaded OpenSSL, read certificates and made its keys."""
    copies: list[socket.socket] = []
    accept = socket.socket.accept

    def keep(listener: socket.socket) -> Any:
        server, address = accept(listener)
        copies.append(server.dup())
        return server, address

    monkeypatch.setattr(socket.socket, "accept", keep)
    rehearse(FUNCTION)
    with copies[0] as server:
        server.settimeout(5)
        said = b""
        while part := server.recv(65536):  # to the end: the client has gone
            said += part
    assert said.startswith(SSL_REQUEST)
    hello = said[len(SSL_REQUEST) :]
    assert (hello[0], hello[5]) == (HANDSHAKE, CLIENT_HELLO)


def test_before_a_snapshot_it_is_a_login_up_to_the_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By then libpq has verified a certificate, and OpenSSL has done what TLS and SCRAM need."""
    received: list[bytes] = []
    receive = _login_rehearsal._Server.receive

    def keep(server: _login_rehearsal._Server) -> bytes:
        received.append(receive(server))
        return received[-1]

    monkeypatch.setattr(_login_rehearsal._Server, "receive", keep)
    log_in()
    startup, first, proof = received
    assert b"user\0rehearsal\0" in startup
    assert first.startswith(b"p")
    assert b"SCRAM-SHA-256" in first
    assert b",p=" in proof
    received.clear()
    rehearse(SNAPSHOT)
    assert len(received) == 3
    rehearse(SNAPSHOT | {"LAMBDA_PG_REHEARSAL": "0"})
    rehearse(FUNCTION)
    assert len(received) == 3


def test_a_server_whose_certificate_is_another_one_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client verifies what it is shown: only then that work is done before the snapshot."""
    monkeypatch.setattr(_login_rehearsal, "HOST", "another.invalid")
    with pytest.raises(OSError, match=r"another\.invalid"):
        log_in()
    rehearse(SNAPSHOT)


def test_the_key_of_the_rehearsal_is_one_that_everybody_knows() -> None:
    """It is RFC 6979's (A.2.5), so nobody can take it for a secret."""
    known = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    certificate = load_pem_x509_certificate(CERTIFICATE.read_bytes())
    public = derive_private_key(known, SECP256R1()).public_key()
    assert certificate.public_key() == public
    assert certificate.not_valid_after_utc.year == 2120


@pytest.mark.parametrize(
    "environment", [{}, FUNCTION | {"LAMBDA_PG_REHEARSAL": "0"}, {"LAMBDA_PG_REHEARSAL": "1"}]
)
def test_it_takes_place_in_functions_and_unless_a_setting_forbids_it(
    listeners: Listeners, environment: dict[str, str]
) -> None:
    """Outside Lambda no port is opened, nor with the setting that turns it off."""
    rehearse(environment)
    assert listeners.opened == []
    rehearse(FUNCTION)
    rehearse(FUNCTION | {"LAMBDA_PG_REHEARSAL": "1"})
    assert len(listeners.opened) == 2


def test_a_wrong_value_of_the_setting_is_named() -> None:
    """Not at import, but when the other settings are checked."""
    environment = {"DATABASE_URL": "postgresql://user@db.example/app", "LAMBDA_PG_REHEARSAL": "no"}
    with pytest.raises(ConfigurationError, match="LAMBDA_PG_REHEARSAL is 'no'"):
        Settings.from_env(environment)


IMPORT = """
import os, threading
import lambda_pg
left = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")[:-1]]
print(threading.active_count(), [name for name in left if name.startswith("socket:")])
"""


def imported(environment: dict[str, str], *prefix: str) -> str:
    """Import the layer in a new process as a function would; return what remains open."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", IMPORT],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(LAYER), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.fixture(params=[FUNCTION, SNAPSHOT], ids=["function", "snapshot"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variables of a function, without and with SnapStart."""
    return dict(request.param)


def test_the_import_leaves_nothing_behind(environment: dict[str, str]) -> None:
    """No port, no connection, no thread: otherwise no snapshot is possible."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    assert imported(environment) == "1 []"


def test_a_function_without_a_network_can_import_the_layer(environment: dict[str, str]) -> None:
    """Not even the loopback is up in a new network namespace."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("needs a network namespace")
    assert imported(environment, *alone) == "1 []"


def test_no_descriptors_are_no_error(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    """The import continues without the rehearsal."""

    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "create_server", none_left)
    rehearse(environment)


def test_a_loopback_that_drops_packets_ends_it_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import goes on after STEP: a listener whose backlog is full lets SYNs drop."""
    full = Listeners(backlog=0)
    callers = []

    def create_server(address: tuple[str, int]) -> socket.socket:
        listener = full.create_server(address)
        for _ in range(3):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
            callers.append(caller)
        return listener

    monkeypatch.setattr(socket, "create_server", create_server)
    threads = threading.active_count()
    steps: list[float] = []
    go_on = _rehearsal._go_on

    def timed(*arguments: Any) -> None:
        steps.append(time.monotonic())
        go_on(*arguments)

    monkeypatch.setattr(_rehearsal, "_go_on", timed)
    began = time.monotonic()
    rehearse(FUNCTION)
    assert len(steps) == 1  # it did not come to the second
    assert _rehearsal.STEP <= time.monotonic() - began < 10
    assert threading.active_count() == threads
    for caller in callers:
        caller.close()
