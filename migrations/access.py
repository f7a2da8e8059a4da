"""Give each trust level of `/sql` what the project declares, and revoke everything else."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import Connection

from .declarations import AccessError, Grant
from .declared_tables import find_tables
from .levels import LEVELS, group_of, list_logins
from .policies import describe_restrictive, describe_rows, set_policies
from .public_rights import (
    close_functions,
    close_schemas,
    describe_large_objects,
    describe_open,
)
from .rights import list_wanted, refuse_others, set_rights
from .roles import exists


def apply_access(
    connection: Connection[Any],
    levels: Collection[str] | None,
    grants: Sequence[Grant],
    *,
    shared: bool,
) -> list[str]:
    """Apply the declarations for these levels inside the open transaction; return warnings.

    The groups of all other levels lose what they have; without `levels` nothing changes. Raise
    `AccessError` before any change for a table that does not exist, and after it if a level can do
    more than is declared: then roll back. In a database that is `shared`, PUBLIC keeps its rights.
    """
    groups = [group for level in LEVELS if exists(connection, group := group_of(level))]
    if levels is None or not groups:
        return []
    mine = [grant for grant in grants if grant.level in levels]
    try:
        return list(_apply(connection, groups, sorted(map(group_of, levels)), mine, shared))
    except psycopg.Error as error:
        raise AccessError(
            f"the rights of /sql's trust levels could not be set, and nothing was changed: {error}"
        ) from error


def _apply(
    connection: Connection[Any],
    groups: list[str],
    enabled: list[str],
    grants: list[Grant],
    shared: bool,
) -> Iterator[str]:
    found = find_tables(connection, grants)
    roles = [*groups, *list_logins(connection, groups)]
    wanted = list_wanted(connection, found, enabled)
    set_rights(connection, roles, enabled, wanted)
    set_policies(connection, groups, found)
    if enabled:
        if not shared:
            yield from close_functions(connection)
            yield from close_schemas(connection)
        roles = [role for role in roles if role not in groups or role in enabled]
        refuse_others(connection, roles, enabled, wanted)
        yield from describe_open(connection, enabled, shared=shared)
        yield from describe_rows(found)
        yield from describe_restrictive(connection, roles)
        yield from describe_large_objects(connection, roles)
