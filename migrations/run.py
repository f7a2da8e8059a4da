"""One deployment's migration: roles, timeouts and schema, under a lock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.errors import LockNotAvailable

from .access import apply_access
from .declarations import read_access
from .levels import Levels, prepare_levels
from .roles import IAM, LIMITS_TRANSACTIONS, Login, Timeouts, prepare, turn_out
from .upgrade import BRANCHES, Branch, MigrationError, Outcome, upgrade


@dataclass(frozen=True)
class Connections:
    """The numbers that the budget assumes; None is a number that this app does not set."""

    server: int | None = None
    """Connections that the server accepts."""
    login: int | None = None
    """Connections that each of the application's users may have; -1 is no limit."""


@dataclass(frozen=True)
class Owner:
    """Other ways in which the connected owner can log in."""

    check: Callable[[], None]
    """Log in again, in any possible way; raise psycopg's error if none works."""
    by_token: bool = False
    """Whether an IAM token is one of the ways."""


LOCK = 0x6C616D6264617067
"""Key of the advisory lock, 'lambdapg' as a number: one migration at a time."""

HOLDER = """
SELECT pid, application_name, client_addr, backend_start::timestamptz(0)
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND (classid::bigint << 32 | objid::bigint) = %s
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def migrate(  # noqa: PLR0913 - what a deployment says of a database, most of it optional
    connection: Connection[Any],
    read_login: Callable[[], Login],
    timeouts: Timeouts,
    branches: Sequence[Branch] = BRANCHES,
    *,
    patience: float,
    shared: bool = False,
    connections: Connections = Connections(),
    owner: Owner | None = None,
    levels: Levels | None = None,
) -> Outcome:
    """Migrate over a direct connection in autocommit, which is closed at the end.

    `owner.check` is called where the owner's login may have changed. This connection can still undo
    the change then, and does if the check fails.

    The lock lasts as long as the connection; for another one's this waits `patience` seconds. The
    login is read after that, and after a rotation's last step, for which it waits as long: a
    password that was right before may have been rotated since. Raises `MigrationError` when the
    server has fewer connections than the budget was made for (`connections.server`), when another
    migration keeps the lock, when `owner.check` fails, and when a revision or a declaration of
    `/sql`'s rights fails. Without `levels` the trust levels of `/sql` stay as they are.
    """
    by_token = owner is not None and owner.by_token
    try:
        grants = read_access([branch.folder for branch in branches])
        if connections.server is not None:
            _check_budget(connection, connections.server)
        _lift_limits(connection)
        _take_lock(connection, patience)
        newcomer = prepare(
            connection,
            read_login,
            timeouts,
            shared=shared,
            login_limit=connections.login,
            owner_by_token=by_token,
        )
        _keep_owner(connection, newcomer, owner)
        if levels is not None:
            for newcomer in prepare_levels(connection, levels, owner_by_token=by_token):
                _keep_owner(connection, newcomer, owner)
        _limit_locks(connection, timeouts.lock)
        enabled = None if levels is None else set(levels.logins)
        return upgrade(
            connection,
            branches,
            shared=shared,
            finish=lambda each: apply_access(each, enabled, grants, shared=shared),
        )
    finally:
        connection.close()


def _check_budget(connection: Connection[Any], needed: int) -> None:
    """Compare the server's max_connections with the number that the budget assumes."""
    row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
    allowed = row[0] if row else 0
    if allowed < needed:
        raise MigrationError(
            f"the server's max_connections is {allowed}; must be at least {needed}, as the budget "
            "assumes. Nothing was changed. A changed parameter group takes effect only after a "
            "reboot: reboot the database instance, then deploy again"
        )


def _keep_owner(connection: Connection[Any], user: str | None, owner: Owner | None) -> None:
    """Revoke rds_iam from a user if the owner cannot log in after the grant."""
    if user is None or owner is None:
        return
    try:
        owner.check()
    except psycopg.Error as refused:
        name = connection.info.user
        try:
            turn_out(connection, user)
        except psycopg.Error as error:
            raise MigrationError(
                f"granting {IAM} to {user} has locked the owner {name} out ({refused}), and it "
                f"could not be undone ({error}). Log in as {name} by an IAM token (aws rds "
                f"generate-db-auth-token) or as another administrator: REVOKE {IAM} FROM {user}"
            ) from refused
        raise MigrationError(
            f"after granting {IAM} to {user} the owner {name} could not log in ({refused}), so the "
            f"grant was undone. Let the function 'migrate' get tokens for {name} (rds-db:connect), "
            "with IAM authentication on at the database, and deploy again; or set rds_proxy.auth "
            "to 'secret'"
        ) from refused


def _lift_limits(connection: Connection[Any]) -> None:
    """Remove the database's limits from this session: they are for requests."""
    connection.execute("SET statement_timeout = 0")
    if connection.info.server_version >= LIMITS_TRANSACTIONS:
        connection.execute("SET transaction_timeout = 0")


def _take_lock(connection: Connection[Any], patience: float) -> None:
    _limit_locks(connection, max(patience, 0.001))  # 0 would be no limit
    try:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
    except LockNotAvailable as error:
        raise MigrationError(
            f"another migration of this database did not end within {patience:.0f} s: "
            f"{_holder(connection)}"
        ) from error


def _limit_locks(connection: Connection[Any], seconds: float) -> None:
    connection.execute(
        "SELECT set_config('lock_timeout', %s, false)", [f"{round(seconds * 1000)}ms"]
    )


def _holder(connection: Connection[Any]) -> str:
    row = connection.execute(HOLDER, [LOCK]).fetchone()
    if row is None:
        return "it has ended just now. Deploy again"
    pid, application, address, since = row
    return (
        f"process {pid} has the lock ({application or 'an application without a name'}, from "
        f"{address or 'the same machine'}, connected since {since}). Deploy again when it has "
        f"ended, or end it: SELECT pg_terminate_backend({pid})"
    )
