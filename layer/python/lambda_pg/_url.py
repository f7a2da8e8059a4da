"""A postgresql:// URL, as consoles show it and people copy it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args
from urllib.parse import unquote, urlsplit

SslMode = Literal["verify-full", "verify-ca", "require", "prefer", "allow", "disable"]
ChannelBinding = Literal["require", "prefer", "disable"]

_HOST: Final = r"[0-9A-Za-z._:-]+"
_PLACEHOLDER: Final = "[YOUR-PASSWORD]"
"""Shown by Supabase's console instead of the password."""

_UNDERSTOOD: Final = frozenset({"sslmode", "channel_binding", "options"})
_MARKS: Final = frozenset({"supa", "workaround"})
"""Added to Supabase's URLs by Vercel's integration; drivers neither understand nor need them."""

_PRISMA: Final = frozenset(
    {"pgbouncer", "connection_limit", "pool_timeout", "schema", "socket_timeout"}
    | {"statement_cache_size", "sslaccept", "sslidentity", "sslpassword"}
)
_ONE_HOST: Final = "write one, the name that follows the writer in a failover"
_NO_SOCKET: Final = "the layer connects over TCP; write a host's name (localhost on this machine)"
_ELSEWHERE: Final = {
    "application_name": "remove it and set PGAPPNAME",
    "connect_timeout": "remove it and set LAMBDA_PG_CHECKOUT_TIMEOUT",
    "dbname": "write it behind the host",
    "host": "write it before the database's name",
    "hostaddr": "write it as the host",
    "load_balance_hosts": f"remove it; of several hosts {_ONE_HOST}",
    "passfile": "remove it and write the password before the host, as user:password@host",
    "password": "write it before the host, as user:password@host",
    "port": "write it behind the host, as host:5432",
    "service": "remove it and write host, user and database into the URL",
    "sslrootcert": (
        "remove it: the layer has the roots of AWS, Supabase and Neon. For another CA set "
        "PGSSLROOTCERT to its file"
    ),
    "target_session_attrs": f"remove it; of several hosts {_ONE_HOST}",
    "user": "write it before the host",
}
"""Parameters of libpq that the layer takes in another way, and how."""


@dataclass(frozen=True)
class Url:
    """The parts of a URL that the layer understands; None where the URL has none."""

    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sslmode: SslMode | None = None
    channel_binding: ChannelBinding | None = None
    options: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Url":
        """Split a URL. Raises ValueError that names the wrong part and quotes no secret."""
        text = text.strip()
        if not text.isprintable():
            # urlsplit would drop line ends silently, also those inside a password.
            raise ValueError("holds a character that cannot be printed, a line end perhaps")
        if _PLACEHOLDER in text:
            raise ValueError(f"still holds {_PLACEHOLDER}: put the password there")
        _check_authority(text)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            # The error of urlsplit may quote the password: leave its text out.
            raise ValueError(
                "cannot be read: its port is not a number from 1 to 65535, or its password has "
                "an unescaped character: write / ? # [ ] as %2F %3F %23 %5B %5D"
            ) from None
        if parts.scheme not in {"postgres", "postgresql"}:
            raise ValueError(f"does not begin with postgresql://{_drop(parts.scheme)}")
        if parts.fragment or "@" in parts.path + parts.query:
            raise ValueError(
                "has an unescaped character in its password: write / ? # @ as %2F %3F %23 %40"
            )
        parameters = _parameters(parts.query)
        return cls(
            host=_host(parts.hostname),
            port=_port(port),
            dbname=_decoded(parts.path.lstrip("/"), "database"),
            user=_decoded(parts.username, "user"),
            password=_decoded(parts.password, "password"),
            sslmode=cast(SslMode | None, _choice(parameters, "sslmode", get_args(SslMode))),
            channel_binding=cast(
                ChannelBinding | None,
                _choice(parameters, "channel_binding", get_args(ChannelBinding)),
            ),
            options=_decoded(parameters.get("options"), "options"),
        )


def host_problem(name: str) -> str | None:
    """Return what is wrong with a host that libpq accepts and the layer does not, unquoted."""
    if "," in name:
        return f"names several hosts: {_ONE_HOST}"
    if name.startswith(("/", "@")):
        return f"names a Unix socket: {_NO_SOCKET}"
    return None


def _drop(scheme: str) -> str:
    """Say which part of a scheme to drop: SQLAlchemy's driver, or JDBC's prefix."""
    database, plus, driver = scheme.partition("+")
    if plus and database in {"postgres", "postgresql"}:
        return f": drop +{driver}, which is for SQLAlchemy"
    return ": drop jdbc:, which is for Java" if scheme == "jdbc" else ""


def _check_authority(text: str) -> None:
    """Raise for hosts where urlsplit would report a wrong port or character."""
    authority, _, rest = text.partition("://")[2].partition("/")
    if "@" in rest:
        return  # an unescaped / in the password: this is not the authority
    hosts = authority.rpartition("@")[2].partition("?")[0]
    if problem := host_problem(unquote(hosts)):
        raise ValueError(problem)


def _host(name: str | None) -> str:
    if not name:
        raise ValueError(f"names no host, which is a Unix socket for libpq: {_NO_SOCKET}")
    if not re.fullmatch(_HOST, name):
        raise ValueError("names a host with a character that no host name or address has")
    return name


def _port(number: int | None) -> int | None:
    if number == 0:
        raise ValueError("has the port 0; ports go from 1 to 65535")
    return number


def _decoded(text: str | None, part: str) -> str | None:
    """Decode %XX, without Python's error for a wrong one, which would quote it."""
    try:
        decoded = unquote(text, errors="strict") if text else None
    except UnicodeDecodeError:
        raise ValueError(f"has a {part} whose percent-encoded bytes are not UTF-8") from None
    if decoded and "\0" in decoded:
        raise ValueError(f"has a {part} with %00, which PostgreSQL cannot take")
    return decoded


def _parameters(query: str) -> Mapping[str, str]:
    """Split the query. Raises ValueError for a parameter that would be ignored.

    Only known names are quoted: after an unescaped ? in a password, others would be a part of it.
    """
    parameters = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    unknown = parameters.keys() - _UNDERSTOOD - _MARKS
    prisma = sorted(unknown & _PRISMA)
    if prisma:
        raise ValueError(f"has Prisma's {', '.join(prisma)}, which mean nothing here: remove them")
    for name in sorted(unknown & _ELSEWHERE.keys()):
        if name == "host" and (problem := host_problem(unquote(parameters[name]))):
            raise ValueError(problem)
        raise ValueError(f"has {name}: {_ELSEWHERE[name]}")
    if unknown:
        known = _listed(sorted(_UNDERSTOOD))
        raise ValueError(f"has parameters that the layer does not know: keep only {known}")
    return parameters


def _choice(parameters: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    text = parameters.get(name) or None
    if text is not None and text not in allowed:
        raise ValueError(f"has a value of {name} that is not one of {_listed(allowed)}")
    return text


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, names))
