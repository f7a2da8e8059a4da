"""The rights of roles on the database's objects: those to grant, to revoke, and to refuse."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, LiteralString, NamedTuple

from psycopg import Connection, sql
from psycopg.errors import InsufficientPrivilege

from .declarations import AccessError, Grant
from .declared_tables import USERS, Table
from .levels import group_of, list_logins
from .roles import GROUP

EXTENDED = """EXISTS (
    SELECT FROM pg_depend WHERE deptype = 'e' AND classid = {} AND objid = {}
)"""
"""Whether an object belongs to an extension."""

OF_EXTENSION = EXTENDED.format("'pg_class'::regclass", "c.oid")


class Right(NamedTuple):
    """One right of one role on an object, whose name is quoted as SQL needs it."""

    role: str
    kind: str
    name: str
    privilege: str

    def grant(self) -> sql.Composed:
        """Return the statement that grants it."""
        return self._statement("GRANT {} ON {} {} TO {}")

    def revoke(self) -> sql.Composed:
        """Return the statement that revokes it, also from roles to which this role granted it."""
        return self._statement("REVOKE {} ON {} {} FROM {} CASCADE")

    def _statement(self, text: LiteralString) -> sql.Composed:
        parts = map(sql.SQL, (self.privilege, self.kind, self.name))  # quoted already
        return sql.SQL(text).format(*parts, sql.Identifier(self.role))


def list_wanted(
    connection: Connection[Any], found: Sequence[tuple[Grant, Table]], enabled: Sequence[str]
) -> set[Right]:
    """Return the rights that levels should have; INSERT needs the sequences of the table."""
    wanted = set()
    for grant, table in found:
        group = group_of(grant.level)
        wanted |= {Right(group, "TABLE", table.name, verb) for verb in grant.verbs}
        if grant.verbs:
            wanted.add(Right(group, "SCHEMA", table.schema, "USAGE"))
        if "INSERT" in grant.verbs:
            wanted |= {Right(group, "SEQUENCE", name, "USAGE") for name in table.sequences}
    row = connection.execute("SELECT to_regprocedure('current_subject()')::text").fetchone()
    if row is not None and row[0] is not None:
        wanted |= {Right(group, HARMLESS, row[0], "EXECUTE") for group in enabled}
    return wanted


HARMLESS = "FUNCTION"
"""Functions that have their caller's rights; a SECURITY DEFINER one is a ROUTINE here."""

HELD = """
WITH held AS (
    SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
        format('%%I.%%I', nspname, relname) AS name, aclexplode(relacl) AS granted, '' AS columns
    FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE NOT nspname ~ '^(pg_|information_schema$)'
    UNION ALL
    SELECT 'TABLE', format('%%I.%%I', nspname, relname), aclexplode(attacl),
        format(' (%%I)', attname)
    FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
    JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE NOT nspname ~ '^(pg_|information_schema$)'
    UNION ALL
    SELECT 'SCHEMA', quote_ident(nspname), aclexplode(nspacl), '' FROM pg_namespace
    UNION ALL
    SELECT CASE WHEN prosecdef THEN 'ROUTINE' ELSE 'FUNCTION' END, oid::regprocedure::text,
        aclexplode(proacl), ''
    FROM pg_proc
    UNION ALL
    SELECT 'FOREIGN DATA WRAPPER', quote_ident(fdwname), aclexplode(fdwacl), ''
    FROM pg_foreign_data_wrapper
    UNION ALL
    SELECT 'FOREIGN SERVER', quote_ident(srvname), aclexplode(srvacl), '' FROM pg_foreign_server
    UNION ALL
    SELECT 'LARGE OBJECT', oid::text, aclexplode(lomacl), '' FROM pg_largeobject_metadata
    UNION ALL
    SELECT 'DATABASE', quote_ident(datname), aclexplode(datacl), '' FROM pg_database
    WHERE datname = current_database()
)
SELECT rolname, kind, name, (granted).privilege_type || columns, (granted).is_grantable FROM held
JOIN pg_roles ON pg_roles.oid = (granted).grantee
WHERE rolname = ANY (%(roles)s) AND (granted).privilege_type <> 'CONNECT'
"""
"""Rights that were granted to the roles directly."""


def set_rights(
    connection: Connection[Any],
    roles: Sequence[str],
    enabled: Sequence[str],
    wanted: Collection[Right],
) -> None:
    """Grant what is missing, and revoke the rest as far as the owner can.

    Rights that are as declared are not touched. `refuse_others` finds what could not be revoked.
    """
    held = set()
    for *right, grantable in connection.execute(HELD, {"roles": list(roles)}).fetchall():
        found = Right(*right)
        if found in wanted and not grantable:
            held.add(found)
        elif found.kind != HARMLESS or found.role not in enabled:
            with suppress(InsufficientPrivilege), connection.transaction():
                connection.execute(found.revoke())
    for missing in sorted(set(wanted) - held):
        connection.execute(missing.grant())


EFFECTIVE = f"""
SELECT role.rolname, format('%%I.%%I', n.nspname, c.relname), privilege
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
    pg_roles AS role, unnest(%(privileges)s::text[]) AS privilege
WHERE {USERS} AND role.rolname = ANY (%(roles)s)
    AND (privilege <> 'SELECT' OR NOT {OF_EXTENSION})
    AND (
        has_table_privilege(role.oid, c.oid, privilege)
        OR privilege IN ('SELECT', 'INSERT', 'UPDATE')
            AND has_any_column_privilege(role.oid, c.oid, privilege)
    )
UNION ALL
SELECT role.rolname, format('%%I.%%I', n.nspname, c.relname), privilege
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
    pg_roles AS role, unnest(ARRAY['USAGE', 'UPDATE']) AS privilege
WHERE NOT n.nspname ~ '^(pg_|information_schema$)' AND role.rolname = ANY (%(roles)s)
    AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(role.oid, c.oid, privilege) END
ORDER BY 2, 1, 3
"""  # noqa: S608 - constants of this module
"""What roles can do with tables and sequences, from PUBLIC or any other grant. Some extensions let
PUBLIC read their tables, which is necessary: SELECT on those is left out."""

PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER")

MAINTAINS = 170000
"""The first server version with the privilege MAINTAIN: to lock, vacuum and refresh."""

CREATING = """
SELECT role.rolname, quote_ident(nspname), pg_get_userbyid(nspowner)
FROM pg_namespace, pg_roles AS role
WHERE role.rolname = ANY (%(roles)s) AND NOT nspname ~ '^pg_(toast_)?temp_'
    AND has_schema_privilege(role.oid, pg_namespace.oid, 'CREATE')
ORDER BY 2, 1
"""


def refuse_others(
    connection: Connection[Any],
    roles: Sequence[str],
    enabled: Sequence[str],
    wanted: Collection[Right],
) -> None:
    """Raise `AccessError` if a level's role can do more than is declared."""
    maintain = connection.info.server_version >= MAINTAINS
    privileges = [*PRIVILEGES, *["MAINTAIN"] * maintain]
    asked = {"roles": list(roles), "privileges": privileges}
    declared = {(right.role, right.name, right.privilege) for right in wanted}
    groups = {name: group for group in enabled for name in list_logins(connection, [group])}
    found = connection.execute(EFFECTIVE, asked).fetchall()
    for role, table, privilege in sorted(found, key=lambda row: row[0] not in enabled):
        if (groups.get(role, role), table, privilege) not in declared:
            raise AccessError(
                f"the role {role} has {privilege} on {table}, which no file declares, and the "
                "migration cannot revoke it: PUBLIC has it, or another role than the owner has "
                f"granted it. Declare it, or add to a new migration: REVOKE ALL ON {table} FROM "
                f"PUBLIC, {role}; GRANT {privilege} ON {table} TO {GROUP} (for a sequence, ON "
                "SEQUENCE)"
            )
    for role, schema, owner in connection.execute(CREATING, asked).fetchall():
        raise AccessError(
            f"the role {role} can create objects in the schema {schema}, and the migration cannot "
            f"revoke that. Let its owner {owner} run: REVOKE CREATE ON SCHEMA {schema} FROM "
            f"PUBLIC, {role}; and grant it to the roles that need it"
        )
