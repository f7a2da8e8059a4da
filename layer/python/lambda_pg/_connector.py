"""Open connections as the settings say."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo

from lambda_pg._address import resolve
from lambda_pg._attempts import Attempt, ConnectAttempts, Opening
from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection
from lambda_pg._credentials import Credentials
from lambda_pg._errors import ConfigurationError, ConnectFailedError, first_line
from lambda_pg._overload import Breaker
from lambda_pg._profiles import Profile, options_refused, profile_for, roots_for
from lambda_pg._settings import Settings

TCP_USER_TIMEOUT: Final = 3000
"""Milliseconds after which a half-open connection ends (measured: 3.4 s, not 15 minutes)."""

OLDEST_SERVER: Final = 13
"""The oldest major version of PostgreSQL: 12 lacks pg_current_xact_id_if_assigned()."""

REFUSED_CERTIFICATE: Final = "certificate verify failed"
"""The text of libpq's error for a certificate that it does not accept, for any reason."""

REMEDIES: Final = {
    "server does not support SSL": (
        "switch TLS on there, or accept a connection without it: sslmode=disable in the URL or in "
        "PGSSLMODE, and LAMBDA_PG_ALLOW_UNVERIFIED_TLS=1. Outside Lambda, a DATABASE_URL whose "
        "host is localhost, 127.0.0.1 or ::1 needs no TLS"
    ),
    "does not match host name": (
        "connect by a name that the certificate holds; where PGHOST is another name of an RDS "
        "endpoint, a CNAME or a tunnel, set LAMBDA_PG_RDS_ENDPOINT to that endpoint"
    ),
    "no password supplied": (
        "set LAMBDA_PG_SECRET_ARN, or, outside Lambda, put the password into the URL or PGPASSWORD"
    ),
}
"""Texts of errors that libpq itself decides, and what to do then."""

_VERIFYING: Final = frozenset({"verify-ca", "verify-full"})
"""Values of sslmode with which the server's certificate is verified."""


class _Server(NamedTuple):
    """Where to connect to; `name` is the host that its certificate is for."""

    host: str
    port: int
    name: str
    profile: Profile

    def __str__(self) -> str:
        return f"{self.profile.name} {self.host}:{self.port}"


class Connector:
    """Open connections as the settings say, with credentials given at each connect."""

    def __init__(self, settings: Settings, breaker: Breaker) -> None:
        """Write nothing yet: an environment may still be copied. The breaker counts slow logins."""
        self._settings = settings
        self._breaker = breaker
        self._ca_file: Path | None = None
        self._silent: dict[str, float] = {}
        """Addresses that have not answered, and when: the others come first."""
        self._kept: list[ConnectAttempts] = []
        """Connects that requests have begun and had no time to finish."""
        self._open: Callable[[str, type[Connection[Any]]], Opening] | None = None
        """Replaces psycopg's connect once the SQLSTATE of a refusal is needed."""

    def connect(
        self,
        credentials: Credentials,
        timeout: float,
        kind: type[Connection[Any]] = Connection,
    ) -> Connection[Any]:
        """Connect within `timeout` seconds, or continue the connects of the last request.

        `kind` is the class of a new connection.
        Raises psycopg.OperationalError, ConnectFailedError when there is no host, and
        ConfigurationError for startup options that cannot work there and for a server that is too
        old.
        """
        until = monotonic() + timeout
        server = self._server(credentials)
        attempts = self._kept_for(credentials)
        try:
            connection = attempts.finish(self._starter(server, attempts, kind, until), until)
        except psycopg.Error as error:
            attempts.close()
            self._explain(error, server, until)
            raise
        except BaseException:
            attempts.close()
            raise
        finally:
            self._breaker.logged_in(attempts.login_seconds)
        if connection is None:
            self._kept.append(attempts)
            missing = "login not finished by" if attempts.is_answered else "no answer from"
            raise psycopg.errors.ConnectionTimeout(
                f"connection timeout expired: {missing} {server} within {timeout:.1f} s"
            )
        self._silent.pop(connection.info.hostaddr, None)
        _require_version(connection, server)
        connection.equip(server.profile, strict=self._settings.strict)
        return connection

    def _server(self, credentials: Credentials) -> _Server:
        settings = self._settings
        host = settings.host or credentials.host
        if host is None:
            raise ConnectFailedError(
                "no host to connect to: set PGHOST, or give the secret a field 'host' or 'url'"
            )
        port = settings.port or credentials.port or 5432
        name = settings.rds_endpoint or host
        return _Server(host, port, name, profile_for(settings.profile, name, port))

    def _starter(
        self, server: _Server, attempts: ConnectAttempts, kind: type[Connection[Any]], until: float
    ) -> Callable[[], Attempt]:
        """Return a function that begins a connect; addresses that did not answer come last.

        Connection.connect() rounds timeouts up to at least 2 s: too coarse for a deadline.
        """
        addresses: list[str] = []

        def start() -> Attempt:
            if not addresses:
                addresses.extend(resolve(server.host, max(0.0, until - monotonic())))
            self._silent |= dict.fromkeys(attempts.silent, monotonic())
            addresses.sort(key=lambda address: self._silent.get(address, 0.0))
            # No variable has the connection string, which has the password.
            opened = (self._open or _open)(
                self._conninfo(attempts.credentials, server, addresses), kind
            )
            return Attempt(opened, addresses[0])

        return start

    def learn_sqlstates(self) -> bool:
        """Make every later refusal bring its SQLSTATE; return whether that is new."""
        from lambda_pg import _verbose  # noqa: PLC0415 - no cold start needs it

        if self._open is not None or not _verbose.IS_POSSIBLE:
            return False
        self._open = _verbose.connect
        return True

    def close(self) -> None:
        """Close the connects that no request has finished."""
        while self._kept:
            self._kept.pop().close()

    def _kept_for(self, credentials: Credentials) -> ConnectAttempts:
        """Take what another request has begun with these credentials, or begin with nothing."""
        try:
            kept = self._kept.pop()
        except IndexError:
            return ConnectAttempts(credentials)
        if kept.may_go_on(credentials):
            return kept
        kept.close()
        return ConnectAttempts(credentials)

    def _explain(self, error: psycopg.Error, server: _Server, until: float) -> None:
        """Raise ConnectFailedError, with what to do, where the reason of libpq's error is known."""
        if REFUSED_CERTIFICATE in str(error):
            from lambda_pg._certificates import why_refused  # noqa: PLC0415 - no cold start needs it

            addresses = resolve(server.host, max(0.0, until - monotonic()))
            roots = self._root_certificate(server)
            why = why_refused(addresses, server.port, roots, until - monotonic())
            if why is not None:
                raise _cannot_connect(error.with_traceback(None), why) from error
        for text, remedy in REMEDIES.items():
            if text in str(error):
                raise _cannot_connect(error.with_traceback(None), remedy) from error

    def _conninfo(self, credentials: Credentials, server: _Server, addresses: list[str]) -> str:
        settings = self._settings
        return make_conninfo(
            "",
            host=",".join([server.name] * len(addresses)),
            hostaddr=",".join(addresses),
            port=server.port,
            dbname=settings.dbname or credentials.dbname or "postgres",
            user=credentials.user,
            password=credentials.password,
            options=self._options(credentials, server.profile),
            sslmode=settings.sslmode,
            sslrootcert=self._trusted(server),
            channel_binding=settings.channel_binding or credentials.channel_binding,
            application_name=settings.application_name,
            client_encoding="UTF8",
            gssencmode="disable",
            tcp_user_timeout=TCP_USER_TIMEOUT,
        )

    def _options(self, credentials: Credentials, profile: Profile) -> str:
        """Return the startup options, "" if there are none: for None libpq reads PGOPTIONS.

        Raises ConfigurationError where the profile, which may depend on the secret, refuses them.
        """
        options = self._settings.options or credentials.options or ""
        if options and not profile.startup_options:
            source = "the settings have" if self._settings.options else "the URL in the secret has"
            raise ConfigurationError([f"{source} startup options: {options_refused(profile)}"])
        return options

    def _trusted(self, server: _Server) -> str | None:
        """Return the file with the roots; with one, libpq verifies the server in every sslmode.

        So there is none for an sslmode that does not verify, unless the settings name one.
        """
        settings = self._settings
        if settings.sslmode in _VERIFYING or settings.sslrootcert or settings.ca_pem:
            return str(self._root_certificate(server))
        return None

    def _root_certificate(self, server: _Server) -> Path:
        """Return the file with the roots to trust; libpq takes them only from a file."""
        settings = self._settings
        if settings.sslrootcert is not None:
            return settings.sslrootcert
        if settings.ca_pem is None:
            return roots_for(server.profile, server.name)
        if self._ca_file is None or not self._ca_file.exists():
            self._ca_file = _write_temporary(settings.ca_pem)
            weakref.finalize(self, _remove, self._ca_file, os.getpid())
        return self._ca_file


def _open(conninfo: str, kind: type[Connection[Any]]) -> Opening:
    return kind._connect_gen(conninfo)


def _require_version(connection: Connection[Any], server: _Server) -> None:
    """Close a connection to a server that is too old. Raises ConfigurationError.

    The server, or the pooler for it, sent its version at the login; 0 means none was sent.
    """
    version = connection.pgconn.server_version
    if 0 < version < OLDEST_SERVER * 10000:
        connection.close()
        number = f"{version // 10000}.{version % 10000}"
        problem = (
            f"the server at {server.host}:{server.port} is PostgreSQL {number}; lambda_pg needs "
            f"{OLDEST_SERVER} or newer: upgrade the database"
        )
        raise ConfigurationError([problem])


def _cannot_connect(error: psycopg.Error, why: str) -> ConnectFailedError:
    return ConnectFailedError(f"cannot connect: {first_line(error)}: {why}")


def _write_temporary(text: str) -> Path:
    """Write a new file that only this user can read. Raises OSError.

    tempfile would cost a cold start 2 ms for its imports, and a first request 0.5 ms.
    """
    folder = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - a file of that name is an error
    if not os.access(folder, os.W_OK):
        folder = "/tmp"  # noqa: S108 - as above
    path = Path(folder) / f"lambda-pg-{os.urandom(12).hex()}.pem"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child leaves its parent's file alone
        path.unlink(missing_ok=True)
