"""What the integration tests say to their servers, in a few verbs."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import boto3
import psutil
import psycopg
from moto.server import ThreadedMotoServer
from psycopg import sql

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.passwords import machine_made_password
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.stage.task import sql_database

REGION = "us-east-1"
DATABASE = "app"
SQL_DATABASE = sql_database(DATABASE)
MAJOR = 17
MASTER = ("master", "canary-of-the-master")


# A line for each request would be kept for a test's report, and costs a fifth of the request.
logging.getLogger("werkzeug").setLevel(logging.WARNING)


class SecretsService:
    """Secrets Manager of a test: a real HTTP endpoint with nothing behind it."""

    def __init__(self) -> None:
        """Choose a port; `start` listens on it."""
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]
        self.client: Any = boto3.client(
            "secretsmanager",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What an AWS SDK needs to come here."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_REGION": REGION} | keys

    def create(self, content: dict[str, str]) -> str:
        """Create a secret; return its ARN."""
        arn: str = self.client.create_secret(
            Name=f"secret-{secrets.token_hex(6)}", SecretString=json.dumps(content)
        )["ARN"]
        return arn

    def put(self, arn: str, content: dict[str, str]) -> None:
        """Make a new version of a secret the current one."""
        self.client.put_secret_value(SecretId=arn, SecretString=json.dumps(content))

    def stop(self) -> None:
        """Stop listening: from now on connections are refused."""
        self._server.stop()


@dataclass
class Login:
    """A role that may log in, with the secret that holds its password."""

    name: str
    password: str = field(repr=False)
    arn: str


def create_login(postgres: Postgres, service: SecretsService, password: str) -> Login:
    """Create a role with a new name, and its secret."""
    name = f"app_{secrets.token_hex(4)}"
    arn = service.create({"username": name, "password": password})
    change_password(postgres, name, password, verb="CREATE")
    return Login(name, password, arn)


def change_password(postgres: Postgres, name: str, password: str, verb: str = "ALTER") -> None:
    """Create a role with a password, or change its password; it is hashed once."""
    statement = sql.SQL(f"{verb} ROLE {{}} LOGIN PASSWORD {{}}")
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as connection:
        hash_once(connection)
        connection.execute(statement.format(sql.Identifier(name), sql.Literal(password)))


def hash_once(connection: psycopg.Connection[Any]) -> None:
    """Have the passwords that a session sets hashed once: half of what a login with them costs.

    Before PostgreSQL 16 they are hashed 4,096 times.
    """
    if connection.info.server_version >= 160000:
        connection.execute("SET scram_iterations = 1")


class PoolerFixture:
    """A PgBouncer under its supervisor, with its own login and certificate."""

    def __init__(
        self,
        binary: PgBouncerBinary,
        folder: Path,
        port: int,
        postgres: Postgres,
        service: SecretsService,
    ) -> None:
        """Create the login and the certificate; `start` starts the supervisor."""
        self.postgres = postgres
        self.service = service
        self.authority = Authority.create("test CA")
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_text(self.authority.pem)
        self.login = create_login(postgres, service, machine_made_password())
        self.sql_logins: tuple[Login, ...] = ()
        self.certificate_arn = service.create(self.certificate_content("127.0.0.1"))
        self.port = port
        self.environment = service.environment | {
            "LISTEN_PORT": str(port),
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(postgres.port),
            "DATABASE_NAME": DATABASE,
            "USER_SECRET_ARNS": self.login.arn,
            "CERTIFICATE_SECRET_ARN": self.certificate_arn,
            "SERVER_TLS_CA_FILE": str(postgres.ca_file),
            "POOL_MODE": "transaction",
            "MAX_CLIENT_CONN": "2000",
            "DEFAULT_POOL_SIZE": "10",
            "MAX_DB_CONNECTIONS": "20",
            "QUERY_WAIT_TIMEOUT": "2",
            "REFRESH_INTERVAL": "60",
            "DRAIN_TIMEOUT": "10",
        }
        self.binary = binary
        self.folder = folder / "pooler"
        self._process: Pooler | None = None

    @property
    def process(self) -> Pooler:
        """The supervisor's process."""
        assert self._process is not None, "start() comes first"
        return self._process

    @property
    def log(self) -> str:
        """What supervisor and PgBouncer have logged so far."""
        return self.process.log.read_text()

    def prepare(self, **changes: str) -> Pooler:
        """Make the process, with changes to the environment, without starting it."""
        self._process = Pooler(self.binary, self.folder, self.environment | changes)
        return self._process

    def start(self, **changes: str) -> PoolerFixture:
        """Start with changes to the environment, and wait until PgBouncer answers.

        The server connections that it opens first are ended: they would not know what a test
        changes of the role or the database.
        """
        self.prepare(**changes).start()
        if self.postgres.running:
            with psycopg.connect(self.postgres.superuser_dsn, autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE usename = ANY(%s)",
                    [[login.name for login in (self.login, *self.sql_logins)]],
                )
        return self

    def add_sql(self, users: int, *, pool_size: int, most: int) -> tuple[Login, ...]:
        """Give the database a second name for so many new logins, before the start.

        One login's pool has `pool_size` server connections, and all of the name `most`.
        """
        self.sql_logins = tuple(
            create_login(self.postgres, self.service, machine_made_password()) for _ in range(users)
        )
        self.environment |= {
            "SQL_SECRET_ARNS": ",".join(login.arn for login in self.sql_logins),
            "SQL_POOL_SIZE": str(pool_size),
            "SQL_MAX_DB_CONNECTIONS": str(most),
        }
        return self.sql_logins

    def dsn(self, login: Login | None = None, database: str = DATABASE, **options: str) -> str:
        """Build the address of a login through the pooler, verified unless options differ."""
        login = login or self.login
        host = options.pop("host", "127.0.0.1")
        password = options.pop("password", login.password)
        query = {"sslmode": "verify-full", "sslrootcert": str(self.ca_file)} | options
        user = f"{login.name}:{quote(password, safe='')}"
        return f"postgresql://{user}@{host}:{self.port}/{database}?{urlencode(query)}"

    def connect(
        self, login: Login | None = None, database: str = DATABASE, **options: str
    ) -> psycopg.Connection[Any]:
        """Connect through the pooler, in autocommit and without prepared statements."""
        dsn = self.dsn(login, database, **options)
        return psycopg.connect(dsn, autocommit=True, prepare_threshold=None, connect_timeout=10)

    def rotate_password(self, password: str) -> None:
        """Change the role's password and the secret, as a rotation of one user does."""
        change_password(self.postgres, self.login.name, password)
        self.service.put(self.login.arn, {"username": self.login.name, "password": password})
        self.login.password = password

    def certificate_content(self, *names: str) -> dict[str, str]:
        """Issue a certificate; return what its secret holds."""
        issued = self.authority.issue(names)
        return {
            "private_key": issued.private_key,
            "certificate_chain": issued.chain,
            "ca_certificate": self.authority.pem,
        }

    def renew(self) -> None:
        """Replace the server connections: on the new ones nobody has left anything yet."""
        with psycopg.connect(self.process.admin_dsn, autocommit=True) as console:
            console.execute("RECONNECT")
            console.execute("WAIT_CLOSE")

    def stop(self) -> None:
        """End the supervisor, however it is."""
        if self._process is not None:
            self._process.kill()


@contextmanager
def pooler_in_tmp(
    binary: PgBouncerBinary, postgres: Postgres, service: SecretsService
) -> Iterator[PoolerFixture]:
    """Make a pooler that is not started yet, in a folder with a short path; end it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    pooler = PoolerFixture(binary, folder, processes.free_port(), postgres, service)
    try:
        yield pooler
    finally:
        pooler.stop()
        shutil.rmtree(folder, ignore_errors=True)


def waiting_clients(pooler: PoolerFixture) -> int:
    """Ask PgBouncer how many clients wait for a server connection."""
    with psycopg.connect(pooler.process.admin_dsn, autocommit=True) as console:
        cursor = psycopg.ClientCursor(console)
        cursor.execute("SHOW POOLS")
        names = [column.name for column in cursor.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return sum(int(row["cl_waiting"]) for row in rows if row["database"] == DATABASE)


def answer(connection: psycopg.Connection) -> int:
    """Ask a trivial question."""
    row = connection.execute("SELECT 1").fetchone()
    assert row is not None
    return int(row[0])


def logs_in(pooler: PoolerFixture) -> bool:
    """Tell whether a new client gets an answer."""
    try:
        with pooler.connect() as connection:
            return answer(connection) == 1
    except psycopg.OperationalError:
        return False


def served_certificate(pooler: PoolerFixture) -> bytes:
    """Ask the pooler for its certificate as a PostgreSQL client does."""
    context = ssl.create_default_context(cafile=str(pooler.ca_file))
    with socket.create_connection(("127.0.0.1", pooler.port), timeout=5) as plain:
        plain.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
            certificate = wrapped.getpeercert(binary_form=True)
            assert certificate is not None
            return certificate


def pgbouncer_of(pooler: PoolerFixture) -> psutil.Process:
    """Find the PgBouncer that the supervisor has started."""
    (child,) = psutil.Process(pooler.process.pid).children()
    return child
