"""A PostgreSQL server of one local cloud, as near to RDS's as an unmanaged one can be."""

from __future__ import annotations

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
# RDS keeps these out of applications' reach: 3 for superusers, 2 for its own administrators.
SUPERUSER_RESERVED = 3
ADMINISTRATOR_RESERVED = 2
START_SECONDS = 60.0
STOP_SECONDS = 20.0
STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "smart": signal.SIGTERM}
# What a member of RDS's administrators' role may do besides creating roles and databases.
ADMINISTRATOR_ROLES = ("pg_monitor", "pg_signal_backend")


def superuser_dsn(folder: Path, port: int) -> str:
    """Return the address of the superuser of the server in a folder, over its socket."""
    password = (folder / "superuser").read_text()
    query = urlencode({"host": str(folder / SOCKET), "port": port})
    return f"postgresql://{SUPERUSER}:{password}@/postgres?{query}"


class PostgresError(RuntimeError):
    """The server did not start, or ended by itself; carries the end of its log."""


class Postgres:
    """A server with a data folder of its own, on 127.0.0.1 and a unix socket.

    TCP takes TLS only, with a certificate from an authority of its own (`ca_file`), and every
    login is by SCRAM. The socket is in `folder`, which must be short.
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
        """Name the places; `durable=False` trades crash safety of the data for speed.

        `names` go into the certificate, `parameters` into the server's settings, over ours, and
        `environment` into its process' variables, as LOCPATH does.
        """
        self.binaries = binaries
        self.folder = folder
        self.port = port
        self.max_connections = max_connections
        self.durable = durable
        self.names = tuple(names)
        self.parameters = dict(parameters or {})
        self.environment = dict(environment or {})
        self.log = folder / "postgres.log"
        self.ca_file = folder / "ca.pem"
        self._data = folder / "data"
        self._socket = folder / SOCKET
        self._account = processes.service_account()
        self._process: subprocess.Popen[bytes] | None = None
        self._master: tuple[str, str, str] | None = None

    # Addresses

    @property
    def dsn(self) -> str:
        """The address of the master user, as the application's tools see it."""
        if self._master is None:
            raise PostgresError("there is no master user yet: create_master() makes one")
        return self.dsn_of(*self._master)

    def dsn_of(self, user: str, password: str, database: str) -> str:
        """Build the address of a user over TCP, with the server's certificate verified."""
        query = urlencode({"sslmode": "verify-full", "sslrootcert": str(self.ca_file)})
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}?{query}"

    @property
    def superuser_dsn(self) -> str:
        """The address of the superuser, over the socket: for observing, from reserved slots."""
        return superuser_dsn(self.folder, self.port)

    @property
    def pid(self) -> int | None:
        """The process id of the running server."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Tell whether the server's process is there."""
        return self._process is not None and self._process.poll() is None

    # Life

    def start(self) -> None:
        """Start the server, after making its data folder on the first time, and wait for it."""
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
        """Create or change a master user, with RDS's rights and no more, and its database.

        The first one is the one that `dsn` is of: others belong to other apps in the same cloud.
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
            # Exact counts for benchmarks: a question to the server costs more, and misses peaks.
            "log_connections": "on",
            "log_disconnections": "on",
        }
        if self.binaries.major >= 13:
            settings |= LOG_PARAMETERS
        if self.binaries.major >= 16:  # the parameter is not older
            settings["reserved_connections"] = str(ADMINISTRATOR_RESERVED)
        if not self.durable:
            # A crash of the server itself loses nothing: the kernel has what was committed.
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


# No line for TCP without TLS, and none that trusts.
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
