"""A PostgreSQL server of one local cloud, as similar to RDS's as an unmanaged one can be."""

import secrets
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import PostgresBinaries
from lambda_pg_cdk.local.paths import shareable
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.stage.server_log import LOG_PARAMETERS

SUPERUSER = "postgres"
SOCKET = "socket"
# RDS reserves these connections: 3 for superusers, 2 for its administrators.
SUPERUSER_RESERVED = 3
ADMINISTRATOR_RESERVED = 2
START_SECONDS = 60.0
STOP_SECONDS = 20.0
STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "smart": signal.SIGTERM}
# What a member of RDS's administrators' role may do besides creating roles and databases.
ADMINISTRATOR_ROLES = ("pg_monitor", "pg_signal_backend")


def superuser_dsn(folder: Path, port: int) -> str:
    """Return the URL of the superuser of the server in a folder, over its socket."""
    password = (folder / "superuser").read_text()
    query = urlencode({"host": str(folder / SOCKET), "port": port})
    return f"postgresql://{SUPERUSER}:{password}@/postgres?{query}"


class PostgresError(RuntimeError):
    """The server did not start, or ended unexpectedly; has the end of its log."""


class Postgres:
    """A server with its own data folder, on 127.0.0.1 and a unix socket.

    TCP requires TLS, with a certificate from the server's own authority (`ca_file`); every login
    uses SCRAM. The socket is in `folder`, whose path must be short.
    """

    def __init__(
        self,
        binaries: PostgresBinaries,
        folder: Path,
        *,
        port: int,
        max_connections: int = 100,
        durable: bool = True,
        names: Sequence[str] = ("127.0.0.1", "localhost"),
        parameters: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Take the settings; `durable=False` trades crash safety of the data for speed.

        The certificate is for `names`. `parameters` override the server's settings; `environment`
        adds variables for its process, such as LOCPATH.
        """
        self.binaries = binaries
        self.folder = folder
        self.port = port
        self.max_connections = max_connections
        self.durable = durable
        self.names = tuple(names)
        self.parameters = dict(parameters or {})
        self.environment = dict(environment or {})
        self._account = processes.service_account()
        self._process: subprocess.Popen[bytes] | None = None
        self._master: tuple[str, str, str] | None = None

    # Files

    @property
    def log(self) -> Path:
        """What the server has written."""
        return self.folder / "postgres.log"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that clients trust."""
        return self.folder / "ca.pem"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _socket(self) -> Path:
        return self.folder / SOCKET

    # Addresses

    @property
    def dsn(self) -> str:
        """The URL of the master user, for the application's tools."""
        if self._master is None:
            raise PostgresError("there is no master user yet: call create_master() first")
        return self.dsn_of(*self._master)

    def dsn_of(self, user: str, password: str, database: str) -> str:
        """Build the URL of a user over TCP, which verifies the server's certificate."""
        query = urlencode({"sslmode": "verify-full", "sslrootcert": str(self.ca_file)})
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}?{query}"

    @property
    def superuser_dsn(self) -> str:
        """The URL of the superuser over the socket: it uses reserved connections, to observe."""
        return superuser_dsn(self.folder, self.port)

    @property
    def pid(self) -> int | None:
        """The process id of the running server."""
        process = self._process  # another thread may stop it
        return process.pid if process is not None and process.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self.pid is not None

    # Life

    def start(self) -> None:
        """Start the server, with a new data folder the first time, and wait until it answers."""
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        self._write_settings()
        self._process = processes.start(
            [str(self.binaries.folder / "postgres"), "-D", str(self._data)],
            log=self.log,
            environment=processes.base_environment() | self.environment,
            folder=self.folder,
            account=self._account,
            death_signal=signal.SIGINT,
        )
        processes.wait_until(self._answers, START_SECONDS, f"PostgreSQL on port {self.port}")

    def stop(self, how: str = "fast") -> None:
        """Stop the server: `smart`, `fast` (as RDS's reboot) or `immediate` (as a crash)."""
        if self._process is not None:
            processes.stop(self._process, STOP_SIGNALS[how], STOP_SECONDS)
            self._process = None

    def restart(self, how: str = "fast") -> None:
        """Stop and start the server, on the same port and with the same data."""
        self.stop(how)
        self.start()

    def create_master(self, user: str, password: str, database: str) -> None:
        """Create or change a master user with exactly RDS's rights, and its database.

        `dsn` is the URL of the first one; others belong to other apps in the same cloud.
        """
        statements = _master_statements(user, password)
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)
            exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
            verb = (
                "ALTER DATABASE {} OWNER TO {}"
                if exists.rowcount
                else "CREATE DATABASE {} OWNER {}"
            )
            connection.execute(sql.SQL(verb).format(sql.Identifier(database), sql.Identifier(user)))
        if self._master is None or self._master[0] == user:
            self._master = (user, password, database)

    # Preparation

    def _initialise(self) -> None:
        shareable(self.folder)
        for private in (self._data, self._socket):
            processes.make_private_folder(private, self._account)
        password = self.folder / "superuser"
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(16))
        processes.own(password, self._account)
        command = [
            *processes.launcher(self._account, signal.SIGKILL),
            str(self.binaries.folder / "initdb"),
            f"--pgdata={self._data}",
            f"--username={SUPERUSER}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        made = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=processes.base_environment(),
        )
        if made.returncode:
            raise PostgresError(f"initdb failed in {self._data}: {made.stderr.strip()}")
        self._write_certificate()

    def _write_certificate(self) -> None:
        authority = Authority.create("lambda-pg local PostgreSQL")
        certificate = authority.issue(self.names)
        self.ca_file.write_text(authority.pem)
        self.ca_file.chmod(0o644)
        self._write_private("server.key", certificate.private_key)
        self._write_private("server.crt", certificate.chain)

    def _write_settings(self) -> None:
        self._write_private("postgresql.auto.conf", render_settings(self._settings()))
        self._write_private("pg_hba.conf", HBA)

    def _settings(self) -> dict[str, str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._socket),
            "unix_socket_permissions": "0700",
            "max_connections": str(self.max_connections),
            "superuser_reserved_connections": str(SUPERUSER_RESERVED),
            "password_encryption": "scram-sha-256",
            "ssl": "on",
            "ssl_cert_file": "server.crt",
            "ssl_key_file": "server.key",
            "log_line_prefix": "%m [%p] %q%u@%d %a ",
            "log_timezone": "UTC",
            # Exact counts for benchmarks: polling the server costs more, and misses peaks.
            "log_connections": "on",
            "log_disconnections": "on",
        }
        if self.binaries.major >= 13:
            settings |= LOG_PARAMETERS
        if self.binaries.major >= 16:  # older versions do not have the parameter
            settings["reserved_connections"] = str(ADMINISTRATOR_RESERVED)
        if not self.durable:
            # A crash of the server loses nothing: the kernel has the committed data.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        return settings | self.parameters

    def _write_private(self, name: str, text: str) -> None:
        path = self._data / name
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
        processes.own(path, self._account)

    def _answers(self) -> bool:
        if not self.running:
            raise PostgresError(
                f"PostgreSQL ended while starting; the end of {self.log}:\n"
                f"{processes.last_lines(self.log)}"
            )
        try:
            psycopg.connect(self.superuser_dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


# TCP without TLS is refused, and every login needs a password.
HBA = """\
local    all  all                scram-sha-256
hostssl  all  all  127.0.0.1/32  scram-sha-256
"""


def render_settings(settings: Mapping[str, str]) -> str:
    """Render parameters in the syntax of postgresql.conf."""
    lines = [f"{name} = '{_escape(value)}'" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def _master_statements(user: str, password: str) -> list[sql.Composed]:
    name = sql.Identifier(user)
    create = "DO $$ BEGIN CREATE ROLE {} ; EXCEPTION WHEN duplicate_object THEN END $$"
    statements = [
        sql.SQL(create).format(sql.Identifier("rds_superuser")),
        sql.SQL(create).format(name),
        sql.SQL("ALTER ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD {}").format(
            name, sql.Literal(password)
        ),
        sql.SQL("GRANT rds_superuser TO {} WITH ADMIN OPTION").format(name),
    ]
    grant = "GRANT {} TO rds_superuser WITH ADMIN OPTION"
    return statements + [sql.SQL(grant).format(sql.Identifier(r)) for r in ADMINISTRATOR_ROLES]


def _escape(value: str) -> str:
    return value.replace("'", "''")
