"""The layer's own HTTPS: whom it trusts, shown on real handshakes."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lambda_pg import _http, _profiles
from lambda_pg._http import post

from lambda_pg_cdk.local.servers.certificates import Authority

AWS = "secretsmanager.us-east-1.amazonaws.com"
ELSEWHERE = "secrets.example.com"
OTHERS = Authority.create("another authority")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """A server with TLS that has every name, and counts who connects and who asks."""

    def __init__(self, folder: Path) -> None:
        """Listen, with a certificate of a new authority."""
        self.authority = Authority.create("the server's authority")
        certificate = self.authority.issue([AWS, ELSEWHERE])
        file = folder / "server.pem"
        file.write_text(certificate.private_key + certificate.chain)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(file)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                self.connections += 1
                with plain, suppress(OSError), self._context.wrap_socket(plain, True) as wire:
                    self.requests.append(wire.recv(65536))
                    wire.sendall(ANSWER)

    def stop(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Trust:
    """Says who trusts which authority; at first, nobody knows the server's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Leave the roots as they are."""
        self._folder, self._monkeypatch = folder, monkeypatch

    def amazons(self, authority: Authority) -> None:
        """Trust an authority instead of Amazon's roots."""
        self._monkeypatch.setattr(_http, "AMAZON_ROOTS", self.file("amazon", authority))

    def system(self, authority: Authority) -> None:
        """Trust an authority instead of those that the system trusts."""

        def load(context: ssl.SSLContext, _: ssl.Purpose) -> None:
            context.load_verify_locations(cadata=authority.pem)

        self._monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load)

    def file(self, name: str, authority: Authority) -> str:
        """Write a file of roots."""
        file = self._folder / f"{name}.pem"
        file.write_text(authority.pem)
        return str(file)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that answers to every name, in an environment without settings of trust."""
    server = Server(tmp_path)
    lookup = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *rest, **more: lookup("127.0.0.1", *rest, **more)
    )
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.stop()


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    """The roots of the layer and of the system, to be replaced."""
    return Trust(tmp_path, monkeypatch)


def ask(server: Server, host: str = AWS) -> tuple[int, bytes]:
    """Send a request to the server under one of its names."""
    return post(f"https://{host}:{server.port}", b"{}", {"host": host}, 5)


def test_the_roots_are_amazons() -> None:
    """The file is the one that RDS Proxy is verified by; it is read as it is."""
    assert Path(_http.AMAZON_ROOTS) == _profiles.AMAZON_ROOTS
    assert len(ssl.create_default_context(cafile=_http.AMAZON_ROOTS).get_ca_certs()) == 5


def test_an_endpoint_of_aws_is_verified_by_amazons_roots(server: Server, trust: Trust) -> None:
    """One connection is enough, and what the system trusts is not read."""
    trust.amazons(server.authority)
    assert ask(server) == (200, b"hi")
    assert server.connections == len(server.requests) == 1


def test_what_amazons_roots_do_not_know_the_system_may(server: Server, trust: Trust) -> None:
    """An inspecting proxy has a CA that the system was told: asked once, on a second connection."""
    trust.system(server.authority)
    assert ask(server) == (200, b"hi")
    assert server.connections == 2
    assert len(server.requests) == 1


def test_a_server_that_nobody_knows_is_sent_nothing(server: Server) -> None:
    """Neither the first nor the second look is one without verification."""
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server)
    assert server.connections == 2
    assert not server.requests


def test_a_server_with_another_name_is_sent_nothing(server: Server, trust: Trust) -> None:
    """A certificate of the right authority for another host proves nothing."""
    trust.amazons(server.authority)
    trust.system(server.authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, "sts.us-east-1.amazonaws.com")
    assert not server.requests


def test_an_endpoint_elsewhere_is_verified_by_the_system(server: Server, trust: Trust) -> None:
    """Amazon does not sign for everybody."""
    trust.amazons(server.authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, ELSEWHERE)
    assert server.connections == 1
    trust.system(server.authority)
    assert ask(server, ELSEWHERE) == (200, b"hi")


def test_ca_bundle_is_all_that_is_trusted(
    server: Server, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_CA_BUNDLE means the same as for AWS's SDKs: this file and no other."""
    trust.amazons(server.authority)
    trust.system(server.authority)
    monkeypatch.setenv("AWS_CA_BUNDLE", trust.file("bundle", OTHERS))
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server)
    assert server.connections == 1
    monkeypatch.setenv("AWS_CA_BUNDLE", trust.file("bundle", server.authority))
    assert ask(server) == (200, b"hi")


def test_openssls_own_setting_is_left_to_openssl(
    server: Server, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE replaces what the system trusts, so Amazon's roots are not added to it."""
    trust.amazons(server.authority)
    monkeypatch.setenv("SSL_CERT_FILE", trust.file("cert-file", OTHERS))
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server)
    trust.amazons(OTHERS)
    monkeypatch.setenv("SSL_CERT_FILE", trust.file("cert-file", server.authority))
    assert ask(server) == (200, b"hi")
    assert server.connections == 2
