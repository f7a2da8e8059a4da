"""The supervisor's settings: environment variables, read and checked in one place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Where the image keeps the roots of RDS: beside this package.
BUNDLED_CA_FILE = HERE.parent / "certs" / "aws.pem"
POOL_MODES = ("transaction", "session", "statement")
# The longest path of a unix socket: 108 bytes on Linux, 104 on macOS, with the end mark.
SOCKET_PATH_LIMIT = 103
# The longest name of a database in PgBouncer and in PostgreSQL.
DATABASE_NAME_LIMIT = 63


class SettingsError(ValueError):
    """Some environment variables are missing or wrong; names each of them."""


@dataclass(frozen=True)
class PeersSettings:
    """Where the other tasks are to be found, and this one's own address."""

    namespace: str
    service: str
    interval: float
    metadata_url: str


@dataclass(frozen=True)
class MetricsSettings:
    """How often numbers are written, and what CloudWatch knows them by."""

    interval: float
    namespace: str
    pooler: str


@dataclass(frozen=True)
class SqlSettings:
    """The second name of the database, for `POST /sql`: its logins and its bounds in this task."""

    database: str
    secret_arns: tuple[str, ...]
    pool_size: int
    max_db_connections: int
    # How many of MAX_CLIENT_CONN are for this name, and not for the other one. 0: both share them.
    max_client_conn: int


@dataclass(frozen=True)
class Settings:
    """What the environment variables say; times are in seconds.

    Large because it has one attribute for each variable.
    """

    listen_addr: str
    listen_port: int
    database_host: str
    database_port: int
    database_name: str
    user_secret_arns: tuple[str, ...]
    certificate_secret_arn: str
    server_tls_ca_file: Path
    pool_mode: str
    max_client_conn: int
    default_pool_size: int
    max_db_connections: int
    query_wait_timeout: int
    idle_transaction_timeout: int
    refresh_interval: float
    drain_timeout: float
    run_dir: Path
    # None: the database has one name.
    sql: SqlSettings | None
    # None: this task is the only one.
    peers: PeersSettings | None
    # None: no numbers are wanted.
    metrics: MetricsSettings | None
    # Local mode only: how to start PgBouncer, and the account to do it as when this one is root.
    pgbouncer: tuple[str, ...]
    pgbouncer_user: str

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; raise SettingsError, which lists every problem at once."""
        reader = _Reader(environment)
        settings: dict[str, Any] = {
            "listen_addr": reader.text("LISTEN_ADDR", ADDRESS, "0.0.0.0"),  # noqa: S104 - inside a task; its security group decides
            "listen_port": reader.number("LISTEN_PORT", 1, 65535, "6432"),
            "database_host": reader.text("DATABASE_HOST", ADDRESS),
            "database_port": reader.number("DATABASE_PORT", 1, 65535, "5432"),
            "database_name": reader.text("DATABASE_NAME", IDENTIFIER),
            "user_secret_arns": reader.names("USER_SECRET_ARNS"),
            "certificate_secret_arn": reader.text("CERTIFICATE_SECRET_ARN", WORD),
            "server_tls_ca_file": reader.file("SERVER_TLS_CA_FILE", BUNDLED_CA_FILE),
            "pool_mode": reader.choice("POOL_MODE", POOL_MODES),
            "max_client_conn": reader.number("MAX_CLIENT_CONN", 1, 100_000),
            "default_pool_size": reader.number("DEFAULT_POOL_SIZE", 1, 10_000),
            "max_db_connections": reader.number("MAX_DB_CONNECTIONS", 1, 10_000),
            "query_wait_timeout": reader.number("QUERY_WAIT_TIMEOUT", 1, 5, "2"),
            "idle_transaction_timeout": reader.number("IDLE_TRANSACTION_TIMEOUT", 1, 3600, "15"),
            "refresh_interval": reader.seconds("REFRESH_INTERVAL", "30"),
            "drain_timeout": reader.seconds("DRAIN_TIMEOUT", "30"),
            "run_dir": Path(environment.get("RUN_DIR") or "/run/pgbouncer"),
            "sql": _sql(reader),
            "peers": _peers(reader),
            "metrics": _metrics(reader),
            "pgbouncer": tuple(shlex.split(environment.get("PGBOUNCER") or "/usr/sbin/pgbouncer")),
            "pgbouncer_user": environment.get("PGBOUNCER_USER", ""),
        }
        if reader.problems:
            raise SettingsError("; ".join(reader.problems))
        return _checked(cls(**settings))

    @property
    def pool_sizes(self) -> dict[str, int]:
        """The size of one user's pool, by name of the database; the application's name first."""
        sizes = {self.database_name: self.default_pool_size}
        return sizes | ({self.sql.database: self.sql.pool_size} if self.sql is not None else {})

    @property
    def socket(self) -> Path:
        """The unix socket that PgBouncer listens on."""
        return self.run_dir / f".s.PGSQL.{self.listen_port}"

    @property
    def relay(self) -> Path:
        """The unix socket that stands for this task's peers, named as PgBouncer looks for it."""
        return self.run_dir / "peers" / self.socket.name


def sql_database(name: str) -> str:
    """Return the second name of a database in PgBouncer, which is for `POST /sql`."""
    return f"{name}_sql"


def _sql(reader: _Reader) -> SqlSettings | None:
    if not reader.is_set("SQL_SECRET_ARNS"):
        return None
    return SqlSettings(
        sql_database(reader.environment.get("DATABASE_NAME", "").strip()),
        reader.names("SQL_SECRET_ARNS"),
        reader.number("SQL_POOL_SIZE", 1, 10_000),
        reader.number("SQL_MAX_DB_CONNECTIONS", 1, 10_000),
        reader.number("SQL_MAX_CLIENT_CONN", 0, 100_000, "0"),
    )


def _peers(reader: _Reader) -> PeersSettings | None:
    namespace, service = reader.pair("PEERS_NAMESPACE", "PEERS_SERVICE", WORD)
    interval = reader.seconds("PEERS_INTERVAL", "5")
    if not namespace or not service:
        return None
    # Set by the agent of ECS in every container.
    metadata_url = reader.text("ECS_CONTAINER_METADATA_URI_V4", HTTP)
    return PeersSettings(namespace, service, interval, metadata_url)


def _metrics(reader: _Reader) -> MetricsSettings | None:
    pooler = reader.optional("METRICS_POOLER", METRIC)
    namespace = reader.text("METRICS_NAMESPACE", METRIC, "LambdaPg")
    interval = reader.seconds("METRICS_INTERVAL", "60", off="0")
    return MetricsSettings(interval, namespace, pooler) if pooler and interval else None


def _checked(settings: Settings) -> Settings:
    """Check what depends on more than one variable."""
    longest = settings.socket if settings.peers is None else settings.relay
    if len(str(longest)) > SOCKET_PATH_LIMIT:
        raise SettingsError(
            f"RUN_DIR is too long: the socket {longest} has {len(str(longest))} "
            f"characters, and {SOCKET_PATH_LIMIT} is the most"
        )
    if settings.sql is not None:
        _check_sql(settings, settings.sql)
    return settings


def _check_sql(settings: Settings, sql: SqlSettings) -> None:
    if len(sql.database) > DATABASE_NAME_LIMIT:
        raise SettingsError(
            f"DATABASE_NAME is too long: its second name, {sql.database}, has {len(sql.database)} "
            f"characters, and {DATABASE_NAME_LIMIT} is the most"
        )
    if sql.max_client_conn >= settings.max_client_conn:
        raise SettingsError(
            f"SQL_MAX_CLIENT_CONN is {sql.max_client_conn}, but must be less than MAX_CLIENT_CONN "
            f"({settings.max_client_conn}): the rest is for the application"
        )
    if shared := set(sql.secret_arns) & set(settings.user_secret_arns):
        raise SettingsError(
            f"SQL_SECRET_ARNS and USER_SECRET_ARNS both have {', '.join(sorted(shared))}: "
            "each login is for one of the database's two names"
        )


# Nothing that could end a value in PgBouncer's configuration: no space, quote or line break.
ADDRESS = re.compile(r"[0-9A-Za-z.:*_-]+")
IDENTIFIER = re.compile(r"[A-Za-z_][0-9A-Za-z_$-]*")
WORD = re.compile(r"\S+")
HTTP = re.compile(r"https?://\S+")
# What CloudWatch takes for a namespace and for a dimension's value; "AWS/" is its own.
METRIC = re.compile(r"(?!AWS/)[0-9A-Za-z][0-9A-Za-z._/#:-]{0,254}")


class _Reader:
    """Reads variables, and notes each problem instead of stopping at the first."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[str] = []

    def text(self, name: str, allowed: re.Pattern[str], default: str = "") -> str:
        """Read a text that matches a pattern as a whole."""
        value = self._value(name, default)
        if value and not allowed.fullmatch(value):
            self._refuse(name, value, f"text like {allowed.pattern}")
        return value

    def optional(self, name: str, allowed: re.Pattern[str]) -> str:
        """Read a text that may be missing."""
        return self.text(name, allowed) if self.is_set(name) else ""

    def pair(self, first: str, second: str, allowed: re.Pattern[str]) -> tuple[str, str]:
        """Read two texts of which both or neither must be there."""
        for one, other in ((first, second), (second, first)):
            if self.is_set(one) and not self.is_set(other):
                self.problems.append(f"{one} is set, but not {other}: set both or neither")
        return self.optional(first, allowed), self.optional(second, allowed)

    def number(self, name: str, least: int, most: int, default: str = "") -> int:
        """Read a whole number in a range."""
        allowed = f"a whole number from {least} to {most}"
        return int(self._number(name, int, (least, most), allowed, default))

    def seconds(self, name: str, default: str, *, off: str = "") -> float:
        """Read a time; where `off` is a value, it is another one that is allowed and means 0."""
        if off and self._value(name, default) == off:
            return 0.0
        allowed = "a number of seconds from 0.05 to 3600" + (f", or {off}" if off else "")
        return float(self._number(name, float, (0.05, 3600), allowed, default))

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """Read one of some words; the first is the default."""
        value = self._value(name, allowed[0])
        if value not in allowed:
            self._refuse(name, value, " or ".join(allowed))
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """Read a list of words with commas between them."""
        return tuple(filter(None, map(str.strip, self._value(name, "").split(","))))

    def file(self, name: str, default: Path) -> Path:
        """Read the path of a file that must be there."""
        path = Path(self._value(name, str(default)))
        if not path.is_file():
            self._refuse(name, str(path), "the path of a file that exists")
        return path

    def is_set(self, name: str) -> bool:
        """Tell whether a variable has a value."""
        return bool(self.environment.get(name, "").strip())

    def _value(self, name: str, default: str) -> str:
        value = self.environment.get(name, "").strip() or default
        if not value:
            self.problems.append(f"{name} is missing")
        return value

    def _number(
        self,
        name: str,
        convert: Callable[[str], Any],
        limits: tuple[float, float],
        allowed: str,
        default: str,
    ) -> float:
        value = self._value(name, default)
        try:
            number = convert(value)
        except ValueError:
            number = None
        if number is not None and limits[0] <= number <= limits[1]:
            return float(number)
        if value:
            self._refuse(name, value, allowed)
        return limits[0]

    def _refuse(self, name: str, value: str, allowed: str) -> None:
        self.problems.append(f"{name} is {value!r}, but must be {allowed}")
