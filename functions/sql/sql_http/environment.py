"""What an execution environment keeps between requests: keys, databases, connections."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lambda_pg import Database, SharedSlots

from .keys import Keys, read_secret
from .service import Service
from .settings import SqlSettings, login_of


def open_service(environ: Mapping[str, str]) -> Service:
    """Read the settings; nothing is fetched or opened before a request needs it.

    The logins of the trust levels share the environment's slots, which the budget counts.
    """
    settings = SqlSettings.from_env(environ)
    logins = {role: login_of(environ, value) for role, value in settings.roles.items()}
    slots = SharedSlots(min(login.slots for login in logins.values()))

    def open_role(role: str) -> Database[Any]:
        return Database(logins[role], slots=slots)

    read: Callable[[], str] = partial(read_secret, settings.keys_arn)
    keys = Keys(read, settings.rules, lifetime=settings.key_lifetime)
    return Service(settings, keys, open_role)
