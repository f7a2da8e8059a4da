"""The tables that files declare for `/sql`'s trust levels, as the database has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from .declarations import AccessError, Grant
from .levels import group_of

USERS = "c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT n.nspname ~ '^(pg_|information_schema$)'"
"""Tables, views and foreign tables that are not the server's."""


@dataclass(frozen=True)
class Table:
    """What the catalogue has of a declared table; names are quoted as SQL needs them."""

    oid: int
    name: str
    schema: str
    kind: str
    is_ours: bool
    owner: str
    has_rls: bool
    is_invoker: bool
    has_policy: bool
    sequences: list[str]


FOUND = f"""
SELECT c.oid::int8 AS oid, format('%%I.%%I', n.nspname, c.relname) AS name,
    quote_ident(n.nspname) AS schema, c.relkind::text AS kind,
    pg_has_role(c.relowner, 'USAGE') AS is_ours, pg_get_userbyid(c.relowner) AS owner,
    c.relrowsecurity AS has_rls,
    coalesce('security_invoker=true' = ANY (c.reloptions), false)
        OR coalesce('security_invoker=on' = ANY (c.reloptions), false) AS is_invoker,
    EXISTS (
        SELECT FROM pg_policy, unnest(polroles) AS role WHERE polrelid = c.oid AND polpermissive
            AND polname <> %(group)s
            AND (role = 0 OR role = (SELECT oid FROM pg_roles WHERE rolname = %(group)s))
    ) AS has_policy,
    ARRAY (
        SELECT format('%%s.%%I', s.relnamespace::regnamespace, s.relname)
        FROM pg_depend JOIN pg_class AS s ON s.oid = objid
        WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
            AND refobjid = c.oid AND deptype = 'a' AND s.relkind = 'S'
        ORDER BY 1
    ) AS sequences
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE {USERS} AND n.nspname = %(schema)s AND c.relname = %(table)s
"""  # noqa: S608 - constants of this module


def find_tables(connection: Connection[Any], grants: Sequence[Grant]) -> list[tuple[Grant, Table]]:
    """Find each declared table; raise `AccessError` for those that cannot be granted."""
    pairs = []
    with connection.cursor(row_factory=class_row(Table)) as cursor:
        for grant in grants:
            asked = {
                "group": group_of(grant.level),
                "schema": grant.schema,
                "table": grant.table,
            }
            table = cursor.execute(FOUND, asked).fetchone()
            if problem := _problem(grant, table):
                raise AccessError(f"{grant.place}: {problem}. Nothing was changed")
            assert table is not None  # noqa: S101 - a missing table is a problem
            pairs.append((grant, table))
    return pairs


def _problem(grant: Grant, table: Table | None) -> str:
    if table is None:
        return (
            f"the level {grant.level} is given the table {grant.name}, which does not exist "
            f"in the schema {grant.schema}. Correct the name, or add a migration that creates it"
        )
    if not table.is_ours:
        return (
            f"the table {grant.name} belongs to {table.owner}, so the migration cannot grant it to "
            f"the level {grant.level}. Remove the entry, or make the migration's user a member of "
            f"{table.owner}"
        )
    if grant.rows is not None and not table.has_rls:
        return (
            f"the table {grant.name} has no row-level security, so `rows` would not restrict the "
            f"level {grant.level}. Remove `rows`, or add to a new migration: ALTER TABLE "
            f"{table.name} ENABLE ROW LEVEL SECURITY"
        )
    return ""
