"""The logins of `/sql`'s trust levels: created and limited, or disabled if a level is off."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from psycopg import Connection, sql
from psycopg.errors import InsufficientPrivilege

from .level_names import LEVELS
from .roles import (
    IAM,
    Login,
    LoginError,
    Timeouts,
    admit_safely,
    exists,
    find_neighbour,
    find_power,
    group_of,
    hold,
    in_database,
    let_connect,
    limit_user,
    refuse_unbound,
    set_timeouts,
    settings_of,
)

__all__ = ["LEVELS", "Levels", "group_of", "list_logins", "prepare_levels"]

logger = logging.getLogger("migrate")


@dataclass(frozen=True)
class Levels:
    """The trust levels that a stage has, and what bounds their logins."""

    logins: Mapping[str, Callable[[], Login]]
    """A function that returns a level's login, for each level. A missing level is switched off."""
    timeouts: Timeouts
    """Defaults of their sessions, which a session can change."""
    login_limit: int = -1
    """Connections that each login may have; -1 is no limit."""

    def __post_init__(self) -> None:
        """Raise `LoginError` for a level that does not exist."""
        for level in self.logins:
            if level not in LEVELS:
                raise LoginError(
                    f"the trust level is {level!r}; must be one of {', '.join(LEVELS)}"
                )


def prepare_levels(
    connection: Connection[Any], levels: Levels, *, owner_by_token: bool = False
) -> list[str]:
    """Create, limit or disable the logins of all levels, in one transaction.

    Return the users that this made members of rds_iam. Raise as `prepare` does.
    """
    newcomers: list[str | None] = []
    with connection.transaction():
        hold(connection)
        for level in LEVELS:
            if level in levels.logins:
                login = levels.logins[level]()
                newcomers.append(admit_safely(connection, login, owner_by_token=owner_by_token))
                _refuse_powers(connection, login)
                let_connect(connection, login.group)
                _limit_logins(connection, login.group, levels)
            elif exists(connection, group_of(level)):
                _shut_out(connection, group_of(level))
    return [name for name in newcomers if name is not None]


def list_logins(connection: Connection[Any], groups: Sequence[str]) -> list[str]:
    """List the logins of groups: roles that are members of one group, and of nothing else."""
    return [
        name
        for name, group, _ in _members(connection, groups)
        if find_power(connection, name, group) is None
    ]


def _refuse_powers(connection: Connection[Any], login: Login) -> None:
    """Raise `LevelLoginError` if a member of the login's group has other rights too."""
    for name, _, can_login in _members(connection, [login.group]):
        if can_login:
            refuse_unbound(connection, replace(login, name=name))


def _members(connection: Connection[Any], groups: Sequence[str]) -> list[tuple[str, str, bool]]:
    """List members with their groups, and whether they can log in."""
    return connection.execute(MEMBERS, [list(groups), IAM]).fetchall()


MEMBERS = """
SELECT member.rolname, grouped.rolname, member.rolcanlogin FROM pg_auth_members
JOIN pg_roles AS member ON member.oid = pg_auth_members.member
JOIN pg_roles AS grouped ON grouped.oid = pg_auth_members.roleid
WHERE grouped.rolname = ANY (%s) AND member.rolname NOT IN (current_user, %s)
    AND NOT member.rolsuper AND (
        member.rolcanlogin OR NOT EXISTS (
            SELECT FROM pg_auth_members AS below JOIN pg_roles AS lower ON lower.oid = below.member
            WHERE below.roleid = member.oid AND lower.rolname <> current_user
        )
    )
ORDER BY 2, 1
"""
"""Logins, also disabled ones: a role that cannot log in and has members is a group. From
PostgreSQL 16 on, the owner is a member of each role that it has created."""


def _limit_logins(connection: Connection[Any], group: str, levels: Levels) -> None:
    """Limit each login of a group; it may have changed its own defaults since the last time."""
    for name in list_logins(connection, [group]):
        try:
            with connection.transaction():
                _forget_settings(connection, name, levels.timeouts)
                set_timeouts(connection, levels.timeouts, in_database(connection, name))
                limit_user(connection, name, levels.login_limit)
        except InsufficientPrivilege as error:
            logger.warning(
                "the role %s keeps its timeouts and connection limit, because only its creator can "
                "change them (%s). Let the creator run: ALTER ROLE %s CONNECTION LIMIT %d; ALTER "
                "ROLE %s SET statement_timeout = '%ds'",
                *(name, error, name, levels.login_limit, name, levels.timeouts.statement),
            )


def _forget_settings(connection: Connection[Any], name: str, timeouts: Timeouts) -> None:
    """Remove the defaults of a login that no deployment has set: the login can set any."""
    ours = settings_of(connection, timeouts)
    foreign = [each for each in _settings(connection, name) if each not in ours]
    role = sql.SQL("ROLE {}").format(sql.Identifier(name))
    for setting, whose in product(foreign, (role, in_database(connection, name))):
        reset = sql.SQL("ALTER {} RESET {}").format(whose, sql.Identifier(setting))
        with suppress(InsufficientPrivilege), connection.transaction():  # a superuser has set it
            connection.execute(reset)
    if foreign:
        logger.warning(
            "the role %s had defaults that no deployment sets (%s); they were removed. The role "
            "itself can set them: revoke the keys of its trust level that you do not trust",
            name,
            ", ".join(foreign),
        )


def _settings(connection: Connection[Any], name: str) -> list[str]:
    """List the defaults of a role that this database's sessions have."""
    rows = connection.execute(
        "SELECT DISTINCT split_part(unnest(setconfig), '=', 1) FROM pg_db_role_setting"
        " JOIN pg_roles ON pg_roles.oid = setrole LEFT JOIN pg_database ON pg_database.oid ="
        " setdatabase WHERE rolname = %s AND (setdatabase = 0 OR datname = current_database())"
        " ORDER BY 1",
        [name],
    )
    return [str(setting) for (setting,) in rows]


def _shut_out(connection: Connection[Any], group: str) -> None:
    """Disable the logins of a group, unless another database of the server uses the group.

    The roles stay: a role cannot be dropped while it has a large object, or rights elsewhere.
    """
    database = sql.Identifier(connection.info.dbname)
    revoke = sql.SQL("REVOKE ALL ON DATABASE {} FROM {}")
    connection.execute(revoke.format(database, sql.Identifier(group)))
    if find_neighbour(connection, group) is not None:
        return
    for name in list_logins(connection, [group]):
        try:
            with connection.transaction():
                change = sql.SQL("ALTER ROLE {} NOLOGIN")
                connection.execute(change.format(sql.Identifier(name)))
        except InsufficientPrivilege as error:
            logger.warning(
                "the trust level of %s is off, but its role %s can still log in, because only its "
                "creator can change that (%s). Let the creator run: ALTER ROLE %s NOLOGIN",
                *(group, name, error, name),
            )
