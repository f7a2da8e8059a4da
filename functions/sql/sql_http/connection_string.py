"""The connection string in a request's header: key, host and database."""

from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from .errors import RequestError

SCHEMES = ("postgres", "postgresql")

FORM = "the header Neon-Connection-String must be postgresql://KEYID:SECRET@host/database"

REMEMBERED = 100
"""Connection strings that an environment remembers after parsing."""


class ConnectionString(NamedTuple):
    """The parts of a connection string. Nothing connects to the host: it is only compared."""

    user: str
    password: str | None
    host: str
    database: str

    def __repr__(self) -> str:
        """Show no part: every one may be a secret in the wrong place."""
        return "ConnectionString(…)"


@lru_cache(REMEMBERED)
def parse(text: str) -> ConnectionString:
    """Take a connection string apart. Raises RequestError, which quotes no part of it."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        raise RequestError(FORM)
    rest = rest.partition("#")[0].partition("?")[0]
    authority, _, path = rest.partition("/")
    login, at, endpoint = authority.rpartition("@")
    user, colon, password = login.partition(":")
    if not at or not user:
        raise RequestError(f"{FORM}: it has no user")
    return ConnectionString(
        _decoded(user), _decoded(password) if colon else None, _host(endpoint), _decoded(path)
    )


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except ValueError:  # its arguments hold the text; a lone surrogate is one, too
        raise RequestError(f"{FORM}: a percent-encoded part is not UTF-8") from None


def _host(endpoint: str) -> str:
    """Return the name in lower case, without the port."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or port.endswith("]"):  # an IPv6 address without a port
        host, port = endpoint, ""
    if not host or (port and not (port.isascii() and port.isdigit())):
        raise RequestError(f"{FORM}: it has no host, or a port that is not a number")
    return host.lower()


def is_allowed(host: str, domain: str, allowed: Collection[str]) -> bool:
    """Tell whether a client may name a host: the request's, or one of `allowed`.

    Any `NAME.X` is allowed for a request to `api.X` or `apiauth.X`: the driver derives these from
    the host of the connection string.
    """
    if host == domain or host in allowed:
        return True
    first, _, parent = domain.partition(".")
    return first in {"api", "apiauth"} and host.partition(".")[2] == parent != ""
