"""Certificates that have expired or are not valid yet: the caller learns which and why, at once."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from lambda_pg import ConnectFailedError, CredentialsError, Database, DatabaseUnavailableError
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers import certificates
from lambda_pg_cdk.local.servers.certificates import Authority, Certificate
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.clocks import Clock
from tests.support.layer import PASSWORD, Open, scalar, settings_for
from tests.support.servers import PoolerFixture
from tests.support.waiting import wait_until

OVER = (timedelta(days=2), timedelta(days=-1))
"""Since when a certificate is valid, counted back from now, and for how long, counted from now."""
TO_COME = (timedelta(days=-1), timedelta(days=2))


@contextmanager
def valid(since: timedelta, until: timedelta) -> Iterator[None]:
    """Let what is issued meanwhile be valid for this time."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(certificates, "CLOCK_SKEW", since)
        changed.setattr(certificates, "LIFETIME", until)
        yield


def server_expired() -> tuple[Authority, Certificate]:
    """Issue a server's certificate whose time is over."""
    authority = Authority.create("test CA")
    with valid(*OVER):
        return authority, authority.issue(["127.0.0.1"])


def server_to_come() -> tuple[Authority, Certificate]:
    """Issue one whose time has not come."""
    authority = Authority.create("test CA")
    with valid(*TO_COME):
        return authority, authority.issue(["127.0.0.1"])


def authority_expired() -> tuple[Authority, Certificate]:
    """Issue a good one, by an authority whose time is over."""
    with valid(*OVER):
        authority = Authority.create("test CA")
    return authority, authority.issue(["127.0.0.1"])


def authority_to_come() -> tuple[Authority, Certificate]:
    """Issue a good one, by an authority whose time has not come."""
    with valid(*TO_COME):
        authority = Authority.create("test CA")
    return authority, authority.issue(["127.0.0.1"])


Issue = Callable[[], tuple[Authority, Certificate]]

OUT_OF_TIME = pytest.mark.parametrize(
    ("issue", "told"),
    [
        (server_expired, "certificate has expired; it is the server's certificate.*renew it"),
        (server_to_come, "certificate is not yet valid; it is the server's certificate"),
        (authority_expired, r"certificate has expired; it is the CA's certificate in .*\.pem"),
        (authority_to_come, r"certificate is not yet valid; it is the CA's certificate in .*\.pem"),
    ],
)


class Presented:
    """What the test's PostgreSQL presents."""

    def __init__(self, postgres: Postgres) -> None:
        """Remember what it is now."""
        self._postgres = postgres
        self._folder = postgres.folder / "data"
        self._files = ("server.key", "server.crt")
        self._before = tuple((self._folder / name).read_text() for name in self._files)

    def present(self, key: str, chain: str) -> None:
        """Let new connections see this certificate."""
        for name, text in zip(self._files, (key, chain), strict=True):
            (self._folder / name).write_text(text)
        with psycopg.connect(self._postgres.superuser_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_reload_conf()")
        wait_until(lambda: presented(self._postgres.port) == ssl.PEM_cert_to_DER_cert(chain))

    def restore(self) -> None:
        """Present what was there before."""
        self.present(*self._before)


def presented(port: int) -> bytes | None:
    """Return the certificate that a PostgreSQL or a PgBouncer presents."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.sendall(struct.pack("!ii", 8, 80877103))
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain) as wire:
            return wire.getpeercert(binary_form=True)


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Presented]:
    """PostgreSQL, which presents its own certificate again at the end."""
    made = Presented(postgres)
    yield made
    made.restore()


@OUT_OF_TIME
def test_a_certificate_out_of_its_time_is_reported_at_once(
    open_database: Open, server: Presented, tmp_path: Path, issue: Issue, told: str
) -> None:
    """No retry can mend it; the error says which certificate it is, and what to do."""
    authority, certificate = issue()
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(authority.pem)
    server.present(certificate.private_key, certificate.chain)
    db = open_database(sslrootcert=ca_file)
    with pytest.raises(ConnectFailedError, match=f"certificate verify failed: {told}") as caught:
        db.execute("SELECT 1", idempotent=True)
    assert "The clock here says 20" in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    stats = db.stats()
    assert (stats["connections_num"], stats["retries"], stats["pool_size"]) == (1, 0, 0)


def test_a_certificate_that_is_renewed_is_accepted_without_a_restart(
    open_database: Open, server: Presented, tmp_path: Path
) -> None:
    """The same environment that was refused is served; nothing of the refusal stays."""
    authority, certificate = server_expired()
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(authority.pem)
    server.present(certificate.private_key, certificate.chain)
    db = open_database(sslrootcert=ca_file)
    for _ in range(5):  # more than open a breaker
        with pytest.raises(ConnectFailedError, match="has expired"):
            db.execute("SELECT 1")
    renewed = authority.issue(["127.0.0.1"])
    server.present(renewed.private_key, renewed.chain)
    assert scalar(db, "SELECT 1") == 1


def test_a_stranger_s_certificate_is_reported_with_the_reason(
    open_database: Open, tmp_path: Path
) -> None:
    """What libpq leaves out is not only the time."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(Authority.create("somebody else").pem)
    db = open_database(sslrootcert=ca_file)
    with pytest.raises(ConnectFailedError, match=r"verify failed: .*(issuer|self-signed)"):
        db.execute("SELECT 1")


def test_a_certificate_that_nobody_can_look_at_again_is_still_reported(
    open_database: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look is for the reason only; without it the error is libpq's."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(Authority.create("somebody else").pem)
    db = open_database(sslrootcert=ca_file)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no second connection")

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(ConnectFailedError, match=r"certificate verify failed$"):
        db.execute("SELECT 1")


# Secrets Manager


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secured]:
    """Secrets Manager behind TLS, whose certificate's time is over."""
    made = Secured(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{made.port}")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(made.ca_file))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    yield made
    made.close()


class Secured:
    """What answers every request with the test's login."""

    def __init__(self, folder: Path) -> None:
        """Listen, with an expired certificate."""
        self.ca_file = folder / "secrets-ca.pem"
        self._pair = folder / "secrets.pem"
        self._authority = Authority.create("test CA")
        self.ca_file.write_text(self._authority.pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with valid(*OVER):
            self.renew()
        self.handshakes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def renew(self) -> None:
        """Present another certificate."""
        issued = self._authority.issue(["localhost"])
        self._pair.write_text(issued.private_key + issued.chain)
        self._context.load_cert_chain(self._pair)

    def close(self) -> None:
        """End."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        login = json.dumps({"username": "layer_test", "password": PASSWORD})
        body = json.dumps({"SecretString": login})
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                self.handshakes += 1
                with suppress(OSError), plain, self._context.wrap_socket(plain, True) as wire:
                    wire.recv(65536)
                    wire.sendall((head + body).encode())


@pytest.mark.parametrize("region", ["aws:secretsmanager:us-east-1", "aws-cn:secretsmanager:cn-x-1"])
def test_an_expired_certificate_of_secrets_manager_is_reported_at_once(
    open_database: Open, secured: Secured, region: str
) -> None:
    """Asked directly and through boto3: one look, the reason, and no wait for what cannot mend."""
    arn = f"arn:{region}:000000000000:secret:app"
    db = open_database(user=None, password=None, secret_arn=arn, checkout_timeout=20)
    with pytest.raises(CredentialsError, match=r"not accepted .*has expired.*the clock"):
        db.execute("SELECT 1")
    assert (secured.handshakes, db.stats()["retries"]) == (1, 0)
    secured.renew()
    assert scalar(db, "SELECT 1") == 1


def test_an_expired_certificate_of_secrets_manager_harms_nobody_who_has_the_secret(
    open_database: Open, secured: Secured, clock: Clock
) -> None:
    """The old copy serves, as when Secrets Manager is away."""
    secured.renew()
    arn = "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"
    db = clock.govern(open_database(user=None, password=None, secret_arn=arn))
    db.execute("SELECT 1")
    with valid(*OVER):
        secured.renew()
    clock.shift += 1000
    db.close()
    assert scalar(db, "SELECT 1") == 1
    assert secured.handshakes == 2


# Through the pooler


def expired(pooler: PoolerFixture) -> dict[str, str]:
    """Issue a certificate for the pooler whose time is over."""
    with valid(*OVER):
        return pooler.certificate_content("127.0.0.1")


def serve(pooler: PoolerFixture, content: dict[str, str]) -> None:
    """Put a certificate into the pooler's secret, and wait until it presents it."""
    pooler.service.put(pooler.certificate_arn, content)
    pooler.process.reload()
    der = ssl.PEM_cert_to_DER_cert(content["certificate_chain"])
    wait_until(lambda: presented(pooler.port) == der)


def test_environments_outlive_an_expired_certificate_of_the_pooler(
    new_pooler: PoolerFixture, secrets_environment: None
) -> None:
    """What is connected goes on, what is not gets the reason; once renewed, all are served."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.3")
    connected: Database[TupleRow] = Database(settings_for(pooler))
    late: Database[TupleRow] = Database(settings_for(pooler))
    connected.execute("SELECT 1")
    serve(pooler, expired(pooler))
    for _ in range(5):
        assert scalar(connected, "SELECT 1") == 1
        with pytest.raises(ConnectFailedError, match="has expired; it is the server's"):
            late.execute("SELECT 1")
    connected.close()
    with pytest.raises(ConnectFailedError, match="has expired; it is the server's"):
        connected.execute("SELECT 1")
    serve(pooler, pooler.certificate_content("127.0.0.1"))
    for db in (connected, late):
        assert scalar(db, "SELECT 1") == 1
        db.close()


def test_an_expired_certificate_behind_the_pooler_is_answered_503(
    new_pooler: PoolerFixture, server: Presented, secrets_environment: None
) -> None:
    """The pooler refuses the database, and says so in its log; a renewed one is accepted."""
    authority, certificate = server_expired()
    ca_file = new_pooler.folder.parent / "database-ca.pem"
    ca_file.write_text(authority.pem)
    server.present(certificate.private_key, certificate.chain)
    pooler = new_pooler.start(SERVER_TLS_CA_FILE=str(ca_file))
    db: Database[TupleRow] = Database(settings_for(pooler))
    with pytest.raises(DatabaseUnavailableError):  # the pooler names no reason to its clients
        db.execute("SELECT 1")
    assert "certificate verify failed" in pooler.log
    renewed = authority.issue(["127.0.0.1"])
    server.present(renewed.private_key, renewed.chain)
    wait_until(lambda: serves(db))
    db.close()


def serves(db: Database[TupleRow]) -> bool:
    """Tell whether a statement is served."""
    try:
        return scalar(db, "SELECT 1") == 1
    except DatabaseUnavailableError:
        return False
