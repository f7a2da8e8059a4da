"""The policies that restrict a trust level of `/sql` to the rows that are declared for it."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import Connection, sql

from .declarations import AccessError, Grant
from .declared_tables import Table
from .levels import group_of


def set_policies(
    connection: Connection[Any], groups: Sequence[str], found: Sequence[tuple[Grant, Table]]
) -> None:
    """Create the declared policies, and drop others with the names that these have.

    A policy that is as declared is not recreated, because that locks its table for every reader.
    """
    rows = connection.execute(POLICIES, [list(groups)]).fetchall()
    present = {(table, group): (comment, state) for table, group, comment, state in rows}
    declared = {
        (table.name, group_of(grant.level)): grant
        for grant, table in found
        if grant.rows is not None and grant.verbs
    }
    for table, group in present.keys() - declared.keys():
        _drop_policy(connection, table, group)
    for (table, group), grant in declared.items():
        comment, state = present.get((table, group), (None, ""))
        if comment == _mark(grant, state):
            continue
        if (table, group) in present:
            _drop_policy(connection, table, group)
        _create_policy(connection, table, group, grant)


POLICIES = """
SELECT format('%%I.%%I', nspname, relname), polname::text, obj_description(p.oid, 'pg_policy'),
    concat_ws(' ', polcmd, polpermissive, polroles, pg_get_expr(polqual, polrelid),
        pg_get_expr(polwithcheck, polrelid))
FROM pg_policy AS p JOIN pg_class AS c ON c.oid = polrelid
JOIN pg_namespace AS n ON n.oid = relnamespace WHERE polname = ANY (%s)
"""
"""Policies named like the levels' groups, with their comments and PostgreSQL's form of them."""


def _mark(grant: Grant, state: str) -> str:
    """Return the comment of a policy, which shows whether condition or policy have changed."""
    digest = hashlib.sha256(f"{grant.rows}\n{state}".encode()).hexdigest()
    return f"Made by a deployment from sql_access.toml: {digest}"


def _drop_policy(connection: Connection[Any], table: str, group: str) -> None:
    statement = sql.SQL("DROP POLICY {} ON {}")
    connection.execute(statement.format(sql.Identifier(group), sql.SQL(table)))


def _create_policy(connection: Connection[Any], table: str, group: str, grant: Grant) -> None:
    name, on = sql.Identifier(group), sql.SQL(table)
    rows = sql.SQL(grant.rows or "false")
    create = sql.SQL("CREATE POLICY {} ON {} TO {} USING ({}) WITH CHECK ({})")
    try:
        connection.execute(create.format(name, on, name, rows, rows))
    except psycopg.Error as error:
        raise AccessError(
            f"{grant.place}: the condition `rows` of the level {grant.level} on the table "
            f"{grant.name} is {grant.rows!r}, and PostgreSQL rejects it: {error}. Nothing was "
            "changed"
        ) from error
    for made, policy, _, state in connection.execute(POLICIES, [[group]]).fetchall():
        if (made, policy) == (table, group):
            comment = sql.SQL("COMMENT ON POLICY {} ON {} IS {}")
            connection.execute(comment.format(name, on, sql.Literal(_mark(grant, state))))


def describe_rows(found: Sequence[tuple[Grant, Table]]) -> Iterator[str]:
    """Describe tables in which a level sees no row, or in which every caller sees every row."""
    for grant, table in found:
        if not grant.verbs:
            continue
        if table.has_rls and grant.rows is None and not table.has_policy:
            yield (
                f"{grant.place}: the table {grant.name} has no policy for {group_of(grant.level)}, "
                "so the level sees no row. Declare `rows`, a condition as in a policy's USING"
            )
        elif grant.level == "caller" and table.kind in "rp" and not table.has_rls:
            yield (
                f"{grant.place}: row-level security is off for the table {grant.name}, so every "
                f"caller sees every row. Add to a new migration: ALTER TABLE {table.name} ENABLE "
                "ROW LEVEL SECURITY; and declare `rows`"
            )
        elif grant.level == "caller" and table.kind in "vmf" and not table.is_invoker:
            yield (
                f"{grant.place}: {grant.name} is a view, a materialized view or a foreign table, "
                "which reads with its owner's rights, so every caller sees the rows that the owner "
                "sees. Let a view have its reader's rights: "
                f"ALTER VIEW {table.name} SET (security_invoker = true)"
            )


RESTRICTIVE = """
SELECT polrelid::regclass::text, polname::text FROM pg_policy
WHERE NOT polpermissive
    AND polroles && ARRAY(SELECT oid FROM pg_roles WHERE rolname = ANY (%s))
ORDER BY 1, 2
"""


def describe_restrictive(connection: Connection[Any], roles: Sequence[str]) -> Iterator[str]:
    """Describe restrictive policies that a level can drop, which would show it more rows.

    PostgreSQL takes a role out of all policies at DROP OWNED BY, for which it asks every member of
    the role, and drops those that name no other role.
    """
    for table, policy in connection.execute(RESTRICTIVE, [list(roles)]).fetchall():
        yield (
            f"the restrictive policy {policy} on {table} names a trust level of /sql, whose keys "
            "can drop it by DROP OWNED BY and then see more rows. Create it without a role (TO "
            "PUBLIC), and tell the levels apart in its condition by pg_has_role()"
        )
