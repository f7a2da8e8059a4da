"""Run-time settings: read once from the environment, checked as a whole, never a secret."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast, get_args

from lambda_pg._address import is_loopback
from lambda_pg._errors import ConfigurationError
from lambda_pg._profiles import ProfileName, options_refused, profile_for, region_of
from lambda_pg._rehearsal import REHEARSAL
from lambda_pg._url import ChannelBinding, SslMode, Url, host_problem

Auth = Literal["password", "iam"]

PASSWORD_IN_ENVIRONMENT: Final = "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT"  # noqa: S105 - a setting's name
INSECURE_TLS: Final = "LAMBDA_PG_ALLOW_UNVERIFIED_TLS"

LONGEST_TIMEOUT: Final = 900.0
"""Seconds that an invocation can last at most."""

LONGEST_AGE: Final = 86400.0
"""Seconds that RDS Proxy lets a client connection live at most."""

_UNREAD: Final = {
    "PGHOSTADDR": "set PGHOST to the address",
    "PGSERVICE": "set PGHOST, PGPORT, PGDATABASE and PGUSER",
}
"""Variables of libpq that choose the server, and what to set instead."""

_SAME_EVERYWHERE: Final[tuple[ProfileName, ...]] = ("direct", "pgbouncer", "rds-proxy")
"""Profiles that do not depend on host and port."""


@dataclass(frozen=True)
class Settings:
    """Where the database is and how to wait for it; durations are seconds.

    Large because it has one attribute for each setting.

    Without a secret, `user` and `password` are those of the URL (PGUSER beats it); with one they
    come from the secret. Without `host` the secret must name one, as `host` or in `url`
    (`direct_url` where `direct` is set). Where `host` is another name of an RDS endpoint, such as a
    CNAME, `rds_endpoint` is the name that its certificate and its tokens are for. A `profile`,
    `max_lifetime` or `max_idle` of None follows from host and port at each connect.
    """

    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    secret_arn: str | None = None
    auth: Auth = "password"
    region: str | None = None
    rds_endpoint: str | None = None
    rds_port: int | None = None
    direct: bool = False
    profile: ProfileName | None = None
    options: str | None = None
    sslmode: SslMode = "verify-full"
    channel_binding: ChannelBinding | None = None
    sslrootcert: Path | None = None
    ca_pem: str | None = field(default=None, repr=False)
    application_name: str = "lambda_pg"
    checkout_timeout: float = 3.0
    idle_check_after: float = 30.0
    max_lifetime: float | None = None
    max_idle: float | None = None
    slots: int = 1
    strict: bool = False
    metrics: bool = False

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, direct: bool = False
    ) -> "Settings":
        """Read PG*, LAMBDA_PG_* and, where there is no secret, DATABASE_URL.

        With `direct` the endpoint is the database itself, past any pooler: DIRECT_URL replaces
        DATABASE_URL, the secret's `direct_url` replaces its `url`, and PGHOST, PGPORT, PGDATABASE,
        PGUSER and LAMBDA_PG_PROFILE, which describe the other endpoint, are ignored. Raises
        ConfigurationError that names every wrong variable, never a password.
        """
        reader = _Reader(os.environ if environ is None else environ, direct=direct)
        settings = reader.settings()
        if reader.problems:
            raise ConfigurationError(reader.problems)
        return settings


class _Reader:
    """Collect settings and every problem found on the way.

    Large because each kind of setting has a method that reads and checks it.
    """

    def __init__(self, environ: Mapping[str, str], *, direct: bool) -> None:
        self.environ = environ
        self.direct = direct
        self.url_name = "DIRECT_URL" if direct else "DATABASE_URL"
        self.problems: list[str] = []

    def settings(self) -> Settings:
        secret_arn = self._text("LAMBDA_PG_SECRET_ARN")
        url = self._url() if secret_arn is None else Url()
        host = self._host("PGHOST", self._endpoint("PGHOST")) or url.host
        rds_endpoint, rds_port = self._rds_endpoint()
        auth = cast(Auth, self._choice("LAMBDA_PG_AUTH", get_args(Auth)) or "password")
        is_own = secret_arn is None and auth == "password" and rds_endpoint is None
        settings = Settings(
            host=host,
            port=self._port("PGPORT", self._endpoint("PGPORT")) or url.port,
            dbname=self._endpoint("PGDATABASE") or url.dbname,
            user=self._endpoint("PGUSER") or url.user,
            password=(self._password() if secret_arn is None else None) or url.password,
            secret_arn=secret_arn,
            auth=auth,
            region=region_of(rds_endpoint or host or "") or self._text("AWS_REGION"),
            rds_endpoint=rds_endpoint,
            rds_port=rds_port,
            direct=self.direct,
            profile=self._profile(),
            options=self._text("PGOPTIONS") or url.options,
            sslmode=self._sslmode(url, stays_here=is_own and self._stays_here(host)),
            channel_binding=url.channel_binding,
            sslrootcert=self._root_certificate(),
            ca_pem=self._ca_pem(),
            application_name=self._text("PGAPPNAME") or "lambda_pg",
            checkout_timeout=self._seconds("LAMBDA_PG_CHECKOUT_TIMEOUT", LONGEST_TIMEOUT) or 3.0,
            idle_check_after=self._seconds("LAMBDA_PG_IDLE_CHECK_AFTER", LONGEST_TIMEOUT) or 30.0,
            max_lifetime=self._seconds("LAMBDA_PG_MAX_LIFETIME", LONGEST_AGE),
            max_idle=self._seconds("LAMBDA_PG_MAX_IDLE", LONGEST_AGE),
            slots=self._count("LAMBDA_PG_SLOTS") or 1,
            strict=self._flag("LAMBDA_PG_STRICT"),
            metrics=self._flag("LAMBDA_PG_METRICS"),
        )
        self._check_unread()
        self._check_endpoint(settings)
        self._check_options(settings)
        self._choice(REHEARSAL, ("0", "1"))  # it was read at import, where nothing is raised
        return settings

    def _check_endpoint(self, settings: Settings) -> None:
        if settings.auth == "iam":
            self._check_iam(settings)
        elif not self._names_endpoint():
            self.problems.append(
                "no database: set LAMBDA_PG_SECRET_ARN to the ARN of a secret, or, outside Lambda, "
                f"{self.url_name} to postgresql://user@host/db"
            )

    def _names_endpoint(self) -> bool:
        names = {"LAMBDA_PG_SECRET_ARN", self.url_name} | (set() if self.direct else {"PGHOST"})
        return any(self.environ.get(name) for name in names)

    def _check_iam(self, settings: Settings) -> None:
        missing = {
            "a host (PGHOST)": settings.host,
            "a user (PGUSER)": settings.user,
            "a region (AWS_REGION)": settings.region,
        }
        for what, value in missing.items():
            if value is None:
                self.problems.append(f"LAMBDA_PG_AUTH is 'iam', which needs {what}")
        if settings.secret_arn is not None:
            self.problems.append(
                "LAMBDA_PG_AUTH is 'iam', which needs no secret: unset LAMBDA_PG_SECRET_ARN"
            )
        if settings.password is not None:
            source = "PGPASSWORD" if self._has_password else self.url_name
            self.problems.append(
                f"LAMBDA_PG_AUTH is 'iam', and {source} holds a password: remove it there"
            )

    def _check_options(self, settings: Settings) -> None:
        """Refuse startup options where they would certainly fail; else the connect decides."""
        if settings.options is None:
            return
        host = settings.rds_endpoint or settings.host
        if host is None and settings.profile not in _SAME_EVERYWHERE:
            return
        profile = profile_for(settings.profile, host or "", settings.port or 5432)
        if not profile.startup_options:
            name = "PGOPTIONS" if self.environ.get("PGOPTIONS") else self.url_name
            self.problems.append(f"{name} sets options: {options_refused(profile)}")

    def _url(self) -> Url:
        text = self.environ.get(self.url_name, "")
        if not text:
            return Url()
        try:
            url = Url.parse(text)
        except ValueError as error:
            self.problems.append(
                f"{self.url_name} {error}; the form is postgresql://user@host:5432/db"
            )
            return Url()
        if url.password:
            self._check_password(self.url_name, "the URL")
        return url

    @property
    def _has_password(self) -> bool:
        return not self.direct and bool(self.environ.get("PGPASSWORD"))

    def _password(self) -> str | None:
        """Read PGPASSWORD as it is: a password may look like a URL, too."""
        if not self._has_password:
            return None
        text = self.environ["PGPASSWORD"]
        if not text.isprintable():
            self.problems.append(
                "PGPASSWORD holds a character that cannot be printed, a line end perhaps"
            )
            return None
        self._check_password("PGPASSWORD", "user and password")
        return text

    def _check_password(self, name: str, what: str) -> None:
        if self._in_lambda() and not self._flag(PASSWORD_IN_ENVIRONMENT):
            self.problems.append(
                f"{name} holds a password and is an environment variable of a function: "
                f"everyone with access to its configuration can read it. Put {what} into a secret "
                f"and set LAMBDA_PG_SECRET_ARN, or accept it with {PASSWORD_IN_ENVIRONMENT}=1"
            )

    def _stays_here(self, host: str | None) -> bool:
        """Tell whether a connection cannot leave the machine, and the machine is not Lambda's."""
        return host is not None and is_loopback(host) and not self._in_lambda()

    def _sslmode(self, url: Url, *, stays_here: bool) -> SslMode:
        """Read PGSSLMODE or the URL's.

        Consoles show URLs with sslmode=require; these get verify-full, which is stricter. A
        connection that stays on this machine gets what is asked for, and without that TLS only if
        the server has it, unless a CA is set.
        """
        unverified = self._flag(INSECURE_TLS) or stays_here
        asked = self._choice("PGSSLMODE", get_args(SslMode))
        name = "PGSSLMODE" if asked else f"the sslmode of {self.url_name}"
        if asked is None and (unverified or url.sslmode == "disable"):
            asked = url.sslmode
        if asked not in {None, "verify-full"} and not unverified:
            self.problems.append(
                f"{name} is {asked!r}, which does not verify the server; use 'verify-full', "
                f"or accept it with {INSECURE_TLS}=1"
            )
        has_ca = self.environ.get("PGSSLROOTCERT") or self.environ.get("LAMBDA_PG_CA_PEM")
        default = "prefer" if stays_here and not has_ca else "verify-full"
        return cast(SslMode, asked or default)

    def _profile(self) -> ProfileName | None:
        name = self._choice("LAMBDA_PG_PROFILE", get_args(ProfileName))
        return None if self.direct else cast(ProfileName | None, name)

    def _host(self, name: str, host: str | None) -> str | None:
        if host is not None and (problem := host_problem(host)):
            self.problems.append(f"{name} {problem}")
            return None
        if host is not None and (" " in host or "@" in host):
            self.problems.append(f"{name} is not the name or the address of a host")
            return None
        return host

    def _rds_endpoint(self) -> tuple[str | None, int | None]:
        """Read host, or host:port if the endpoint's port is not PGPORT."""
        name = "LAMBDA_PG_RDS_ENDPOINT"
        host, colon, port = (self._endpoint(name) or "").partition(":")
        return self._host(name, host or None), self._port(name, port) if colon else None

    def _check_unread(self) -> None:
        """Refuse variables that choose a server for libpq and that the layer ignores."""
        for name, instead in _UNREAD.items():
            if self.environ.get(name) and not self.direct:
                self.problems.append(f"{name} is set, which the layer does not read: {instead}")

    def _endpoint(self, name: str) -> str | None:
        text = self._text(name)
        return None if self.direct else text

    def _root_certificate(self) -> Path | None:
        text = self._text("PGSSLROOTCERT")
        if text is None:
            return None
        if text == "system":
            self.problems.append(
                "PGSSLROOTCERT is 'system', which psycopg's wheel cannot find. Unset it: the layer "
                "has the roots of AWS, Supabase and Neon. To trust another CA, set it to the "
                "path of that CA's file, or of the system's (in Lambda "
                "/etc/pki/tls/certs/ca-bundle.crt)"
            )
        elif not _is_file(text):
            self.problems.append(f"PGSSLROOTCERT is {_shown(text)}, which is not a file")
        return Path(text)

    def _ca_pem(self) -> str | None:
        text = self.environ.get("LAMBDA_PG_CA_PEM") or None
        if text is not None and "-----BEGIN CERTIFICATE-----" not in text:
            self.problems.append("LAMBDA_PG_CA_PEM holds no certificate in PEM form")
        return text

    def _port(self, name: str, text: str | None) -> int | None:
        if text is None:
            return None
        if _is_whole(text) and 1 <= int(text) <= 65535:
            return int(text)
        self.problems.append(f"{name} is {_shown(text)}, not a port from 1 to 65535")
        return None

    def _count(self, name: str) -> int | None:
        text = self._text(name)
        if text is None:
            return None
        if _is_whole(text) and 1 <= int(text) <= 100:
            return int(text)
        self.problems.append(f"{name} is {_shown(text)}, not a whole number from 1 to 100")
        return None

    def _seconds(self, name: str, longest: float) -> float | None:
        text = self._text(name)
        if text is None:
            return None
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if 0 < seconds <= longest:
            return seconds
        self.problems.append(
            f"{name} is {_shown(text)}, not a number of seconds above 0 and at most {longest:g}"
        )
        return None

    def _choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        text = self._text(name)
        if text is None or text in allowed:
            return text
        listed = ", ".join(map(repr, allowed))
        self.problems.append(f"{name} is {_shown(text)}, not one of {listed}")
        return None

    def _flag(self, name: str) -> bool:
        return self._choice(name, ("0", "1")) == "1"

    def _text(self, name: str) -> str | None:
        """Return a variable, or None if it is empty or cannot be right."""
        text = self.environ.get(name) or None
        if text is None:
            return None
        if not text.isprintable():
            self.problems.append(f"{name} holds a character that cannot be printed")
            return None
        if "://" in text:
            # Not quoted: it may hold a password.
            self.problems.append(f"{name} holds a URL: set {self.url_name} to it")
            return None
        return text

    def _in_lambda(self) -> bool:
        return "AWS_LAMBDA_FUNCTION_NAME" in self.environ


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long, or a folder without access
        return False


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _shown(text: str) -> str:
    """Quote a wrong value, unless it may be a secret that was pasted into the wrong place."""
    return repr(text) if len(text) <= 80 and "@" not in text else f"{len(text)} characters long"
