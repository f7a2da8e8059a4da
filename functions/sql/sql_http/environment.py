"""What an execution environment keeps between requests: keys, databases, connections."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lambda_pg import Database

from .keys import Keys, read_secret
from .service import Service
from .settings import SqlSettings, login_of


def open_service(environ: Mapping[str, str]) -> Service:
    """Read the settings; nothing else is read or opened before a request needs it."""
    settings = SqlSettings.from_env(environ)
    read: Callable[[], str] = partial(read_secret, settings.keys_arn)
    keys = Keys(read, settings.rules, lifetime=settings.key_lifetime)
    return Service(settings, keys, partial(_open_role, environ, settings.roles))


def _open_role(environ: Mapping[str, str], roles: Mapping[str, str], role: str) -> Database[Any]:
    return Database(login_of(environ, roles[role]))
