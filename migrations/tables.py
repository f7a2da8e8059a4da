"""Tables that functions cannot use, and tables whose rows every caller sees."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from .roles import GROUP

OWN = """
c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT n.nspname ~ '^(pg_|information_schema$)'
    AND pg_has_role(c.relowner, 'USAGE') AND c.oid IS DISTINCT FROM to_regclass('alembic_version')
    AND NOT EXISTS (
        SELECT FROM pg_depend WHERE deptype = 'e' AND (
            classid = 'pg_class'::regclass AND objid = c.oid
            OR classid = 'pg_namespace'::regclass AND objid = n.oid
        )
    )
"""
"""The owner's tables, without Alembic's and those of extensions."""

FOUND = f"""
SELECT c.oid::regclass::text AS name, quote_ident(n.nspname) AS schema,
    has_schema_privilege(app.oid, n.oid, 'USAGE') AS has_schema,
    has_any_column_privilege(app.oid, c.oid, 'SELECT, INSERT, UPDATE')
        OR has_table_privilege(app.oid, c.oid, 'DELETE') AS has_grant,
    c.relacl IS NULL AND NOT c.relispartition AND c.oid <> ALL (%(others)s::oid[]) AS needs_grant,
    c.relrowsecurity AS has_rls,
    EXISTS (
        SELECT FROM pg_policy, unnest(polroles) AS role WHERE polrelid = c.oid AND polpermissive
            AND (role = 0 OR pg_has_role(app.oid, nullif(role, 0), 'USAGE'))
    ) AS has_policy,
    EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'owner' AND attnum > 0
            AND atttypid = 'uuid'::regtype AND NOT attisdropped
    ) AS has_owner,
    ARRAY (
        SELECT s.oid::regclass::text FROM pg_depend JOIN pg_class AS s ON s.oid = objid
        WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
            AND refobjid = c.oid AND deptype = 'a' AND CASE WHEN s.relkind = 'S'
                THEN NOT has_sequence_privilege(app.oid, s.oid, 'USAGE, UPDATE') END
        ORDER BY 1
    ) AS sequences,
    has_any_column_privilege(app.oid, c.oid, 'INSERT') AS may_insert
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace, pg_roles AS app
WHERE {OWN} AND app.rolname = %(group)s ORDER BY n.nspname, c.relname
"""  # noqa: S608 - constants of this module
"""What the application may do with each table.

The first GRANT or REVOKE gives a table its list of privileges (relacl; PostgreSQL, "Privileges"),
so a REVOKE from the application's group says that a table is not for functions. A partition is read
through its table, with the rights and policies of that one.
"""


OWNED = "owner = (SELECT current_subject())"


@dataclass(frozen=True)
class Table:
    """One row of `FOUND`; names are quoted as SQL needs them."""

    name: str
    schema: str
    has_schema: bool
    has_grant: bool
    needs_grant: bool
    has_rls: bool
    has_policy: bool
    has_owner: bool
    sequences: list[str]
    may_insert: bool


def list_tables(connection: Connection[Any]) -> frozenset[int]:
    """Return the object ids of the owner's tables."""
    listed = "SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
    rows = connection.execute(f"{listed} WHERE {OWN}")
    return frozenset(int(oid) for (oid,) in rows)


def find_warnings(connection: Connection[Any], others: Collection[int] = ()) -> list[str]:
    """Describe each table that lacks a grant, row-level security or a policy, with the remedy.

    `others` are tables that need no grant: they were there before, in a database of several users.
    """
    with connection.cursor(row_factory=class_row(Table)) as cursor:
        cursor.execute(FOUND, {"group": GROUP, "others": list(others)})
        return [text for table in cursor.fetchall() if (text := describe(table))]


def describe(table: Table) -> str:
    """Return what is wrong with a table and the SQL to add, or nothing."""
    if not table.has_grant and not table.needs_grant:
        return ""
    wrong: list[tuple[str, str]] = []
    if not table.has_grant:
        wrong.append(
            (
                "functions may not use it, they get 'permission denied'",
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table.name} TO {GROUP};",
            )
        )
    if not table.has_schema:
        wrong.append(
            (
                f"functions may not use its schema {table.schema}",
                f"GRANT USAGE ON SCHEMA {table.schema} TO {GROUP};",
            )
        )
    if table.sequences and (table.may_insert or not table.has_grant):
        names = ", ".join(table.sequences)
        wrong.append(
            (
                f"functions may not use its sequence {names}, so they cannot insert",
                f"GRANT USAGE ON SEQUENCE {names} TO {GROUP};",
            )
        )
    wrong += _about_rows(table)
    if not wrong:
        return ""
    problems, statements = zip(*wrong, strict=True)
    text = f"table {table.name}: {'; '.join(problems)}. Add to a new migration: "
    text += " ".join(statements)
    if not table.has_grant:
        text += f" Or, if functions do not use it: REVOKE ALL ON {table.name} FROM {GROUP};"
    return text


def _about_rows(table: Table) -> list[tuple[str, str]]:
    policy = (
        f"CREATE POLICY own_rows ON {table.name} TO {GROUP} USING ({OWNED}) WITH CHECK ({OWNED});"
        if table.has_owner
        else f"CREATE POLICY all_rows ON {table.name} TO {GROUP} USING (true);"
    )
    switch = f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY;"
    if not table.has_rls:
        add = switch if table.has_policy else f"{switch} {policy}"
        return [("row-level security is off, so every caller sees every row", add)]
    if not table.has_policy:
        return [(f"it has no policy for {GROUP}, so functions see no row", policy)]
    return []
