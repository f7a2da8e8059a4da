"""Roles, the application's login and the database's timeouts: set again at every deployment.

The master user of RDS is no superuser. It has CREATEROLE and owns the database, which is all that
is needed here on PostgreSQL 15 and, where a role's creator gets its ADMIN OPTION, on 16 and newer.
"""

from dataclasses import dataclass, field
from typing import Any, LiteralString

from psycopg import Connection, sql

GROUP = "lambda_pg_app"
"""Holds the grants and is named by the policies; cannot log in, so that logins come and go."""


@dataclass(frozen=True)
class Login:
    """The application's user."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Timeouts:
    """Limits of every session of the database, in seconds."""

    statement: int
    lock: int
    idle_in_transaction: int


def prepare(connection: Connection[Any], login: Login, timeouts: Timeouts) -> None:
    """Create or alter everything, in one transaction."""
    with connection.transaction():
        _create(connection, GROUP, sql.SQL("NOLOGIN"))
        _create(connection, login.name, sql.SQL("LOGIN"))
        _set_password(connection, login)
        _run(connection, "GRANT {} TO {}", GROUP, login.name)
        _open_database(connection)
        _limit(connection, timeouts)


def _create(connection: Connection[Any], name: str, kind: sql.SQL) -> None:
    found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    verb = sql.SQL("CREATE ROLE {} {}" if found is None else "ALTER ROLE {} {}")
    connection.execute(verb.format(sql.Identifier(name), kind))


def _set_password(connection: Connection[Any], login: Login) -> None:
    """Send the SCRAM verifier instead of the password: statements may be logged."""
    verifier = connection.pgconn.encrypt_password(
        login.password.encode(), login.name.encode(), b"scram-sha-256"
    )
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
    connection.execute(statement.format(sql.Identifier(login.name), verifier.decode()))


def _open_database(connection: Connection[Any]) -> None:
    """Let the group in, and nobody else."""
    database = connection.info.dbname
    _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", database)
    _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", database, GROUP)
    _run(connection, "GRANT USAGE ON SCHEMA public TO {}", GROUP)


def _limit(connection: Connection[Any], timeouts: Timeouts) -> None:
    """Set timeouts on the database: on a role, the second user of a rotation would lack them."""
    for name, seconds in {
        "statement_timeout": timeouts.statement,
        "lock_timeout": timeouts.lock,
        "idle_in_transaction_session_timeout": timeouts.idle_in_transaction,
    }.items():
        statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
        database = sql.Identifier(connection.info.dbname)
        connection.execute(statement.format(database, sql.Identifier(name), f"{seconds}s"))


def _run(connection: Connection[Any], statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
