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
    """Create the policies that are declared, and drop the others of the same names.

    One that is as declared is left: to create a policy locks its table against every reader.
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
"""Policies of the levels' names, with their comments and what PostgreSQL has made of them."""


def _mark(grant: Grant, state: str) -> str:
    """Return the comment of a policy, which tells whether condition or policy have changed."""
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
    """Describe tables of which a level sees no row, and those of which a caller sees every row."""
    for grant, table in found:
        if not grant.verbs:
            continue
        if table.has_rls and grant.rows is None and not table.has_policy:
            yield (
                f"{grant.place}: the table {grant.name} has no policy for {group_of(grant.level)}, "
                "so the level sees no row. Declare `rows`, a condition like those of its policies"
            )
        elif grant.level == "caller" and table.kind in "rp" and not table.has_rls:
            yield (
                f"{grant.place}: row-level security is off for the table {grant.name}, so every "
                f"caller sees every row. Add to a new migration: ALTER TABLE {table.name} ENABLE "
                "ROW LEVEL SECURITY; and declare `rows`"
            )
        elif grant.level == "caller" and table.kind in "vmf" and not table.is_invoker:
            yield (
                f"{grant.place}: {grant.name} is not a table, and has its owner's rights, so every "
                "caller sees the rows that its owner sees. Let a view have its reader's rights: "
                f"ALTER VIEW {table.name} SET (security_invoker = true)"
            )


RESTRICTIVE = """
SELECT format('%%I.%%I', nspname, relname), quote_ident(polname), quote_ident(rolname)
FROM pg_policy JOIN pg_class AS c ON c.oid = polrelid
JOIN pg_namespace AS n ON n.oid = relnamespace JOIN pg_roles AS role ON role.oid = ANY (polroles)
WHERE NOT polpermissive AND rolname = ANY (%s) ORDER BY 1, 2, 3
"""


def describe_restrictive(connection: Connection[Any], roles: Sequence[str]) -> Iterator[str]:
    """Describe policies that a level could drop to see more rows.

    DROP OWNED BY takes a role from all policies that name it, whoever owns their tables.
    """
    for table, policy, role in connection.execute(RESTRICTIVE, [list(roles)]).fetchall():
        yield (
            f"the restrictive policy {policy} on {table} names {role}, so a key of that level can "
            f"remove it: DROP OWNED BY {role}. Let it be TO PUBLIC, with pg_has_role('{role}', "
            "'USAGE') in its condition"
        )
