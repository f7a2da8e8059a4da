"""Run-time settings: read once from the environment, checked as a whole, never a secret."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast, get_args
from urllib.parse import unquote, urlsplit

from lambda_pg._errors import ConfigurationError

Profile = Literal["direct", "pgbouncer"]
SslMode = Literal["verify-full", "verify-ca", "require", "prefer", "allow", "disable"]

AWS_ROOTS: Final = Path(__file__).parent / "certs" / "aws.pem"
PASSWORD_IN_ENVIRONMENT: Final = "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT"  # noqa: S105  # a setting's name
INSECURE_TLS: Final = "LAMBDA_PG_ALLOW_UNVERIFIED_TLS"


@dataclass(frozen=True)
class Settings:
    """Where the database is and how to wait for it; durations are seconds.

    Without a secret, `user` and `password` are those of the URL (PGUSER beats it); with one they
    come from the secret. Without `host` the secret must name one.
    """

    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    secret_arn: str | None = None
    profile: Profile = "direct"
    sslmode: SslMode = "verify-full"
    sslrootcert: Path | None = None
    ca_pem: str | None = field(default=None, repr=False)
    application_name: str = "lambda_pg"
    checkout_timeout: float = 3.0
    idle_check_after: float = 30.0
    slots: int = 1

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read PG*, LAMBDA_PG_* and, without PGHOST and a secret, DATABASE_URL.

        Raises ConfigurationError that names every wrong variable, never a password.
        """
        reader = _Reader(os.environ if environ is None else environ)
        settings = reader.settings()
        if reader.problems:
            raise ConfigurationError(reader.problems)
        return settings


class _Reader:
    """Collect settings and every problem found on the way."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def settings(self) -> Settings:
        secret_arn = self.environ.get("LAMBDA_PG_SECRET_ARN") or None
        url = self._url() if secret_arn is None else _NO_URL
        host = self.environ.get("PGHOST") or url.host
        if secret_arn is None and host is None:
            self.problems.append(
                "no database: set LAMBDA_PG_SECRET_ARN to the ARN of a secret, or, outside Lambda, "
                "DATABASE_URL to postgresql://user@host/db"
            )
        return Settings(
            host=host,
            port=self._port() or url.port,
            dbname=self.environ.get("PGDATABASE") or url.dbname,
            user=self.environ.get("PGUSER") or url.user,
            password=url.password,
            secret_arn=secret_arn,
            profile=cast(Profile, self._choice("LAMBDA_PG_PROFILE", get_args(Profile), "direct")),
            sslmode=self._sslmode(url),
            sslrootcert=self._root_certificate(),
            ca_pem=self._ca_pem(),
            application_name=self.environ.get("PGAPPNAME") or "lambda_pg",
            checkout_timeout=self._seconds("LAMBDA_PG_CHECKOUT_TIMEOUT", 3.0),
            idle_check_after=self._seconds("LAMBDA_PG_IDLE_CHECK_AFTER", 30.0),
            slots=self._count("LAMBDA_PG_SLOTS", 1),
        )

    def _url(self) -> "_Url":
        text = self.environ.get("DATABASE_URL", "")
        if not text:
            return _NO_URL
        try:
            url = _Url.parse(text)
        except ValueError as error:
            self.problems.append(
                f"DATABASE_URL {error}; the form is postgresql://user@host:5432/db"
            )
            return _NO_URL
        if url.password and self._in_lambda() and not self._allowed(PASSWORD_IN_ENVIRONMENT):
            self.problems.append(
                "DATABASE_URL holds a password and is an environment variable of a function: "
                "everyone who may read its configuration can read it. Put the URL into a secret "
                f"and set LAMBDA_PG_SECRET_ARN, or accept it with {PASSWORD_IN_ENVIRONMENT}=1"
            )
        return url

    def _sslmode(self, url: "_Url") -> SslMode:
        text = self._choice("PGSSLMODE", get_args(SslMode), url.sslmode or "verify-full")
        if text not in get_args(SslMode):
            self.problems.append(
                f"DATABASE_URL has an sslmode that is not one of {_listed(get_args(SslMode))}"
            )
        elif text != "verify-full" and not self._allowed(INSECURE_TLS):
            self.problems.append(
                f"PGSSLMODE is {text!r}, which does not verify who answers; use 'verify-full', "
                f"or accept it with {INSECURE_TLS}=1"
            )
        return cast(SslMode, text)

    def _root_certificate(self) -> Path | None:
        text = self.environ.get("PGSSLROOTCERT")
        if not text:
            return None
        if not Path(text).is_file():
            self.problems.append(f"PGSSLROOTCERT is {text!r}: there is no such file")
        return Path(text)

    def _ca_pem(self) -> str | None:
        text = self.environ.get("LAMBDA_PG_CA_PEM") or None
        if text is not None and "-----BEGIN CERTIFICATE-----" not in text:
            self.problems.append("LAMBDA_PG_CA_PEM holds no certificate in PEM form")
        return text

    def _port(self) -> int | None:
        text = self.environ.get("PGPORT")
        if not text:
            return None
        if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
            return int(text)
        self.problems.append(f"PGPORT is {text!r}, not a port from 1 to 65535")
        return None

    def _count(self, name: str, default: int) -> int:
        text = self.environ.get(name) or str(default)
        if text.isascii() and text.isdigit() and 1 <= int(text) <= 100:
            return int(text)
        self.problems.append(f"{name} is {text!r}, not a whole number from 1 to 100")
        return default

    def _seconds(self, name: str, default: float) -> float:
        text = self.environ.get(name) or str(default)
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if 0 < seconds <= 900:
            return seconds
        self.problems.append(f"{name} is {text!r}, not a number of seconds above 0 and at most 900")
        return default

    def _choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        text = self.environ.get(name) or default
        if text in allowed or text == default:
            return text
        self.problems.append(f"{name} is {text!r}, not one of {_listed(allowed)}")
        return default

    def _in_lambda(self) -> bool:
        return "AWS_LAMBDA_FUNCTION_NAME" in self.environ

    def _allowed(self, name: str) -> bool:
        return self.environ.get(name) == "1"


@dataclass(frozen=True)
class _Url:
    """The parts of a postgresql:// URL that the layer understands."""

    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sslmode: str | None = None

    @classmethod
    def parse(cls, text: str) -> "_Url":
        """Split a URL; raises ValueError whose text names the part and holds no secret."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            # The error of urlsplit may quote the password: leave its text out.
            raise ValueError("cannot be read: is there a port that is no number?") from None
        if parts.fragment or "@" in parts.path + parts.query:
            raise ValueError(
                "has an unescaped character in its password: write / ? # @ as %2F %3F %23 %40"
            )
        if parts.scheme not in {"postgres", "postgresql"}:
            raise ValueError("does not begin with postgresql://")
        if not parts.hostname:
            raise ValueError("names no host")
        return cls(
            host=parts.hostname,
            port=port,
            dbname=unquote(parts.path.lstrip("/")) or None,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            sslmode=cls._sslmode(parts.query),
        )

    @staticmethod
    def _sslmode(query: str) -> str | None:
        options = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
        if options.keys() - {"sslmode"}:
            # Not quoted: of a password with an unescaped ? it would be a part.
            raise ValueError("has parameters other than sslmode, the only one understood")
        return options.get("sslmode")


_NO_URL: Final = _Url()


def _listed(allowed: tuple[str, ...]) -> str:
    return ", ".join(map(repr, allowed))
