"""The settings of `/sql`, read once from environment variables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lambda_pg import ConfigurationError, Settings

from .callers import KeyLimits, StageRules
from .statements import NONE, load_statements


class SqlSettings(NamedTuple):
    """The settings of `POST /sql`; durations are seconds."""

    roles: Mapping[str, str]
    """By trust level: the ARN of its login's secret or, with IAM tokens, its database user."""
    databases: frozenset[str]
    """Names of the database that a connection string may have."""
    keys_arn: str
    key_lifetime: float
    hosts: frozenset[str]
    """Hosts that a connection string may have, in addition to the request's."""
    origins: frozenset[str]
    """Origins whose pages may send requests; `*` stands for every origin."""
    gzip: bool
    rules: StageRules

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "SqlSettings":
        """Read SQL_*. Raises ConfigurationError that names what is missing or wrong."""
        try:
            return cls._read(environ)
        except KeyError as error:
            raise ConfigurationError([f"{error.args[0]} is not set"]) from error
        except (OSError, ValueError) as error:
            raise ConfigurationError([str(error)]) from error

    @classmethod
    def _read(cls, environ: Mapping[str, str]) -> "SqlSettings":
        roles: dict[str, str] = json.loads(environ["SQL_ROLES"])
        database = environ["SQL_DATABASE"]
        path = environ.get("SQL_STATEMENTS")
        limits = KeyLimits(
            rows=int(environ["SQL_MAX_ROWS"]),
            bytes=int(environ["SQL_MAX_BYTES"]),
            statements=int(environ["SQL_MAX_STATEMENTS"]),
            request_bytes=int(environ["SQL_MAX_REQUEST_BYTES"]),
        )
        statements = load_statements(Path(path)) if path else NONE
        return cls(
            roles=roles,
            databases=frozenset({database, environ.get("PGDATABASE", database)}),
            keys_arn=environ["SQL_KEYS_SECRET_ARN"],
            key_lifetime=float(environ["SQL_KEY_LIFETIME"]),
            hosts=_listed(environ, "SQL_HOSTS"),
            origins=_listed(environ, "SQL_ORIGINS"),
            gzip=environ.get("SQL_GZIP") == "1",
            rules=StageRules(frozenset(roles), database, limits, statements),
        )


def _listed(environ: Mapping[str, str], name: str) -> frozenset[str]:
    return frozenset(filter(None, environ.get(name, "").lower().split(",")))


def login_of(environ: Mapping[str, str], value: str) -> Settings:
    """Return the layer's settings for a trust level's login. Raises ConfigurationError."""
    name = "PGUSER" if environ.get("LAMBDA_PG_AUTH") == "iam" else "LAMBDA_PG_SECRET_ARN"
    return Settings.from_env({**environ, name: value})
