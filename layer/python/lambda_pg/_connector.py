"""Open connections as the settings say."""

import os
import weakref
from pathlib import Path
from time import monotonic
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from lambda_pg._address import resolve
from lambda_pg._attempts import Attempt, Attempts
from lambda_pg._connection import Connection
from lambda_pg._credentials import Credentials
from lambda_pg._errors import ConfigurationError, ConnectFailedError
from lambda_pg._overload import Breaker
from lambda_pg._profiles import Profile, options_refused, profile_for, roots_for
from lambda_pg._settings import Settings

# A half-open connection ends after this many milliseconds instead of 15 minutes (measured: 3.4 s).
TCP_USER_TIMEOUT: Final = 3000

REFUSED_CERTIFICATE: Final = "certificate verify failed"
"""What libpq says of a certificate that it does not accept, whatever the reason."""


class Connector:
    """Open connections as the settings say, with credentials given at each connect."""

    def __init__(self, settings: Settings, breaker: Breaker) -> None:
        """Write nothing yet: an environment may still be copied. The breaker hears of logins."""
        self._settings = settings
        self._breaker = breaker
        self._ca_file: Path | None = None
        self._silent: dict[str, float] = {}
        """Addresses that have not answered, and when: the others come first."""
        self._kept: list[Attempts] = []
        """What requests have begun and had no time to finish."""

    def connect(
        self,
        credentials: Credentials,
        timeout: float,
        kind: type[Connection[Any]] = Connection,
    ) -> Connection[Any]:
        """Connect within `timeout` seconds, or go on where the last request had to stop.

        `kind` is the class of a new connection.
        Raises psycopg.OperationalError, ConnectFailedError when there is no host, and
        ConfigurationError for startup options that cannot work there.
        """
        until = monotonic() + timeout
        host, port = self._endpoint(credentials)
        profile = profile_for(self._settings.profile, host, port)
        attempts = self._kept_for(credentials)
        addresses: list[str] = []

        def begin() -> Attempt:
            # Connection.connect() rounds timeouts up to at least 2 s: too coarse for a deadline.
            if not addresses:
                addresses.extend(resolve(host, max(0.0, until - monotonic())))
            self._silent |= dict.fromkeys(attempts.silent, monotonic())
            addresses.sort(key=lambda address: self._silent.get(address, 0.0))
            return Attempt(
                kind._connect_gen(self._conninfo(credentials, host, port, addresses, profile)),
                addresses[0],
            )

        try:
            connection = attempts.finish(begin, until)
        except psycopg.Error as error:
            attempts.close()
            if REFUSED_CERTIFICATE in str(error):
                self._explain(error.with_traceback(None), profile, host, port, until)
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
                f"connection timeout expired: {missing} {profile.name} {host}:{port} "
                f"within {timeout:.1f} s"
            )
        self._silent.pop(connection.info.hostaddr, None)
        connection.equip(profile, strict=self._settings.strict)
        return connection

    def close(self) -> None:
        """Close the connects that no request has finished."""
        while self._kept:
            self._kept.pop().close()

    def _kept_for(self, credentials: Credentials) -> Attempts:
        """Take what another request has begun with these credentials, or something new."""
        try:
            kept = self._kept.pop()
        except IndexError:
            return Attempts(credentials)
        if kept.may_go_on(credentials):
            return kept
        kept.close()
        return Attempts(credentials)

    def _explain(
        self,
        error: psycopg.Error,
        profile: Profile,
        host: str,
        port: int,
        until: float,
    ) -> None:
        """Raise ConnectFailedError that says why the certificate was refused, where that shows."""
        from lambda_pg._certificates import why_refused  # noqa: PLC0415  # no cold start needs it

        roots = self._root_certificate(profile, host)
        addresses = resolve(host, max(0.0, until - monotonic()))
        why = why_refused(addresses, port, roots, until - monotonic())
        if why is not None:
            first_line = str(error).partition("\n")[0]
            raise ConnectFailedError(f"cannot connect: {first_line}: {why}") from error

    def _endpoint(self, credentials: Credentials) -> tuple[str, int]:
        settings = self._settings
        host = settings.host or credentials.host
        if host is None:
            raise ConnectFailedError(
                "no host to connect to: set PGHOST, or give the secret a field 'host' or 'url'"
            )
        return host, settings.port or credentials.port or 5432

    def _conninfo(
        self,
        credentials: Credentials,
        host: str,
        port: int,
        addresses: list[str],
        profile: Profile,
    ) -> str:
        settings = self._settings
        return make_conninfo(
            "",
            host=",".join([host] * len(addresses)),
            hostaddr=",".join(addresses),
            port=port,
            dbname=settings.dbname or credentials.dbname or "postgres",
            user=credentials.user,
            password=credentials.password,
            options=self._options(credentials, profile),
            sslmode=settings.sslmode,
            sslrootcert=str(self._root_certificate(profile, host)),
            channel_binding=settings.channel_binding or credentials.channel_binding,
            application_name=settings.application_name,
            client_encoding="UTF8",
            gssencmode="disable",
            tcp_user_timeout=TCP_USER_TIMEOUT,
        )

    def _options(self, credentials: Credentials, profile: Profile) -> str:
        """Return the startup options, empty where there are none: for None libpq takes PGOPTIONS.

        Raises ConfigurationError where the profile, which may hang on the secret, refuses them.
        """
        options = self._settings.options or credentials.options or ""
        if options and not profile.startup_options:
            source = "the settings have" if self._settings.options else "the URL in the secret has"
            raise ConfigurationError([f"{source} startup options: {options_refused(profile)}"])
        return options

    def _root_certificate(self, profile: Profile, host: str) -> Path:
        """Return the file with the roots to trust; libpq takes them only from a file."""
        settings = self._settings
        if settings.sslrootcert is not None:
            return settings.sslrootcert
        if settings.ca_pem is None:
            return roots_for(profile, host)
        if self._ca_file is None or not self._ca_file.exists():
            self._ca_file = _write_temporary(settings.ca_pem)
            weakref.finalize(self, _remove, self._ca_file, os.getpid())
        return self._ca_file


def _write_temporary(text: str) -> Path:
    """Write a new file that only this user can read; raises OSError.

    tempfile would cost a cold start 2 ms for its imports, and a first request 0.5 ms.
    """
    folder = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  # a file of that name is an error
    if not os.access(folder, os.W_OK):
        folder = "/tmp"  # noqa: S108
    path = Path(folder) / f"lambda-pg-{os.urandom(12).hex()}.pem"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child leaves its parent's file alone
        path.unlink(missing_ok=True)
