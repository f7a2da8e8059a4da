"""One deployment's migration: roles, timeouts and schema, under a lock."""

from pathlib import Path
from typing import Any

from psycopg import Connection

from migrations.roles import Login, Timeouts, prepare
from migrations.upgrade import SCRIPTS, Outcome, upgrade

LOCK = 0x6C616D6264617067
"""Key of the advisory lock, 'lambdapg' as a number: one migration at a time."""


def migrate(
    connection: Connection[Any], login: Login, timeouts: Timeouts, scripts: Path = SCRIPTS
) -> Outcome:
    """Migrate over a direct connection in autocommit, which is closed at the end.

    The lock lasts as long as the connection. Raise `MigrationError` when a revision fails.
    """
    try:
        # The database's own limits are for requests, not for this session.
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET lock_timeout = 0")
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{timeouts.lock}s"])
        prepare(connection, login, timeouts)
        return upgrade(connection, scripts)
    finally:
        connection.close()
