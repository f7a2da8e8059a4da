"""Roles, the application's login and the database's timeouts.

A deployment sets all of them again; a rotation lets one login in. Both work over psycopg alone.

The master user of RDS is no superuser. It has CREATEROLE and owns the database, which is all that
is needed here on PostgreSQL 15 and, where a role's creator gets its ADMIN OPTION, on 16 and newer.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, LiteralString

from psycopg import Connection, sql

GROUP = "lambda_pg_app"
"""Holds the grants and is named by the policies; cannot log in, so that logins come and go."""

IAM = "rds_iam"
"""RDS's own role: its members log in with a token of IAM's, and with nothing else."""

LOCK = 0x6C616D6264617072
"""Key of the advisory lock, 'lambdapr' as a number: who changes a role that another transaction is
changing gets "tuple concurrently updated", and a rotation may meet a deployment."""

LIMITS_TRANSACTIONS = 170000
"""The first server version that has transaction_timeout."""

logger = logging.getLogger("migrate")


@dataclass(frozen=True)
class Login:
    """The application's user; without a password it logs in by IAM."""

    name: str
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Timeouts:
    """Limits of every session of the database, in seconds; 0 is none.

    PostgreSQL knows one for whole transactions from 17 on.
    """

    statement: int
    lock: int
    idle_in_transaction: int
    transaction: int = 0


class UnboundLoginError(ValueError):
    """The application's user would see every row, whatever the policies say."""


def prepare(
    connection: Connection[Any], login: Login, timeouts: Timeouts, *, shared: bool = False
) -> None:
    """Create or alter everything, in one transaction; raise `UnboundLoginError`.

    In a database that is `shared` with others nothing changes for them: it stays open to whom it
    was, and the limits are the login's own.
    """
    with connection.transaction():
        admit(connection, login)
        _check_bound(connection, login)
        _open_database(connection, shared=shared)
        _limit(connection, timeouts, login.name if shared else None)


def _check_bound(connection: Connection[Any], login: Login) -> None:
    unbound = connection.execute(
        "SELECT FROM pg_roles WHERE rolname = %s AND (rolsuper OR rolbypassrls)", [login.name]
    )
    if unbound.fetchone() is not None:
        raise UnboundLoginError(
            f"the application logs in as {login.name}, whom row-level security does not bind "
            "(superuser or BYPASSRLS): every caller would see everybody's rows. Give the "
            "application a user of its own"
        )


def admit(connection: Connection[Any], login: Login) -> None:
    """Let a login in, new or not, as a member of the group, in one transaction."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        _create(connection, GROUP, sql.SQL("NOLOGIN"))
        _create(connection, login.name, sql.SQL("LOGIN"))
        if login.password is None:
            _let_in_by_iam(connection, login.name)
        else:
            _let_in_by_password(connection, login.name, login.password)
        _run(connection, "GRANT {} TO {}", GROUP, login.name)


def is_member(connection: Connection[Any], name: str, group: str) -> bool:
    """Tell whether a role is there and was made a member of a group."""
    found = connection.execute(
        "SELECT FROM pg_auth_members"
        " JOIN pg_roles AS member ON member.oid = pg_auth_members.member"
        " JOIN pg_roles AS grouped ON grouped.oid = pg_auth_members.roleid"
        " WHERE member.rolname = %s AND grouped.rolname = %s",
        [name, group],
    )
    return found.fetchone() is not None


def exists(connection: Connection[Any], name: str) -> bool:
    """Tell whether there is a role of that name."""
    found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name])
    return found.fetchone() is not None


def _create(connection: Connection[Any], name: str, kind: sql.SQL) -> None:
    verb = sql.SQL("ALTER ROLE {} {}" if exists(connection, name) else "CREATE ROLE {} {}")
    connection.execute(verb.format(sql.Identifier(name), kind))


def _let_in_by_password(connection: Connection[Any], name: str, password: str) -> None:
    """Send the SCRAM verifier instead of the password: statements may be logged."""
    verifier = connection.pgconn.encrypt_password(
        password.encode(), name.encode(), b"scram-sha-256"
    )
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
    connection.execute(statement.format(sql.Identifier(name), verifier.decode()))
    if is_member(connection, name, IAM):
        _run(connection, "REVOKE {} FROM {}", IAM, name)


def _let_in_by_iam(connection: Connection[Any], name: str) -> None:
    if exists(connection, IAM):
        _run(connection, "GRANT {} TO {}", IAM, name)
    else:
        logger.warning(
            "this server has no role %s, so %s cannot log in by IAM: it is not RDS", IAM, name
        )


def _open_database(connection: Connection[Any], *, shared: bool) -> None:
    """Let the group in, and nobody else unless the database is shared."""
    database = connection.info.dbname
    if not shared:
        _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", database)
    _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", database, GROUP)
    _run(connection, "GRANT USAGE ON SCHEMA public TO {}", GROUP)


def _limit(connection: Connection[Any], timeouts: Timeouts, only: str | None) -> None:
    """Set timeouts on the database: on a role, the second user of a rotation would lack them.

    Where others use the database too, they are set for one role in it: nothing rotates that.
    """
    limits = {
        "statement_timeout": timeouts.statement,
        "lock_timeout": timeouts.lock,
        "idle_in_transaction_session_timeout": timeouts.idle_in_transaction,
    }
    if connection.info.server_version >= LIMITS_TRANSACTIONS:
        limits["transaction_timeout"] = timeouts.transaction
    database = sql.Identifier(connection.info.dbname)
    whose = sql.SQL("DATABASE {}").format(database)
    if only is not None:
        whose = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(only), database)
    for name, seconds in limits.items():
        statement = sql.SQL("ALTER {} SET {} = {}")
        connection.execute(statement.format(whose, sql.Identifier(name), f"{seconds}s"))


def _run(connection: Connection[Any], statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
