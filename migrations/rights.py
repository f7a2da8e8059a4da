"""The rights of roles on the database's objects: those to grant, to revoke, and to refuse."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

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
    """One right of one role: on TABLE, SEQUENCE, SCHEMA, ROUTINE or DATABASE."""

    role: str
    kind: str
    name: str
    privilege: str

    def statement(self, verb: str, preposition: str) -> sql.Composed:
        """Return the GRANT or REVOKE; the name is quoted already."""
        text = "{} {} ON {} {} {} {}"
        parts = [verb, self.privilege, self.kind, self.name, preposition]
        return sql.SQL(text).format(*map(sql.SQL, parts), sql.Identifier(self.role))


def list_wanted(
    connection: Connection[Any], found: Sequence[tuple[Grant, Table]], enabled: Sequence[str]
) -> set[Right]:
    """Return what the levels should have; an insert needs the sequences of the table."""
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
        wanted |= {Right(group, "ROUTINE", row[0], "EXECUTE") for group in enabled}
    return wanted


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
    SELECT 'ROUTINE', oid::regprocedure::text, aclexplode(proacl), '' FROM pg_proc WHERE prosecdef
    UNION ALL
    SELECT 'FOREIGN SERVER', quote_ident(srvname), aclexplode(srvacl), '' FROM pg_foreign_server
    UNION ALL
    SELECT 'LARGE OBJECT', oid::text, aclexplode(lomacl), '' FROM pg_largeobject_metadata
    UNION ALL
    SELECT 'DATABASE', quote_ident(datname), aclexplode(datacl), '' FROM pg_database
    WHERE datname = current_database()
)
SELECT rolname, kind, name, (granted).privilege_type || columns FROM held
JOIN pg_roles ON pg_roles.oid = (granted).grantee
WHERE rolname = ANY (%(roles)s) AND (granted).privilege_type <> 'CONNECT'
"""
"""What was granted to roles themselves. Functions with their caller's rights give none."""


def revoke_others(
    connection: Connection[Any], roles: Sequence[str], wanted: Collection[Right]
) -> None:
    """Revoke what is not wanted, as far as the owner can: `refuse_others` finds the rest."""
    for row in connection.execute(HELD, {"roles": list(roles)}).fetchall():
        right = Right(*row)
        if right not in wanted:
            with suppress(InsufficientPrivilege), connection.transaction():
                connection.execute(right.statement("REVOKE", "FROM"))


EFFECTIVE = f"""
SELECT role.rolname, format('%%I.%%I', n.nspname, c.relname), privilege
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
    pg_roles AS role,
    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS privilege
WHERE {USERS} AND role.rolname = ANY (%(roles)s)
    AND (privilege <> 'SELECT' OR NOT {OF_EXTENSION})
    AND (
        has_table_privilege(role.oid, c.oid, privilege)
        OR privilege IN ('SELECT', 'INSERT', 'UPDATE')
            AND has_any_column_privilege(role.oid, c.oid, privilege)
    )
ORDER BY 2, 1, 3
"""  # noqa: S608 - constants of this module
"""What roles can do with tables, by PUBLIC and by any path. Extensions open what they have to."""

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
    asked = {"roles": [*enabled, *(set(roles) - set(enabled))]}
    declared = {(right.role, right.name, right.privilege) for right in wanted}
    groups = {name: group for group in enabled for name in list_logins(connection, [group])}
    for role, table, privilege in connection.execute(EFFECTIVE, asked).fetchall():
        if (groups.get(role, role), table, privilege) not in declared:
            raise AccessError(
                f"the role {role} has {privilege} on the table {table}, which no file declares, "
                "and the migration cannot revoke it: PUBLIC has it, or another role than the "
                "table's owner has granted it. Declare it, or add to a new migration: REVOKE ALL "
                f"ON {table} FROM PUBLIC, {role}; GRANT {privilege} ON {table} TO {GROUP}"
            )
    for role, schema, owner in connection.execute(CREATING, asked).fetchall():
        raise AccessError(
            f"the role {role} can create objects in the schema {schema}, and the migration cannot "
            f"revoke that. Let its owner {owner} run: REVOKE CREATE ON SCHEMA {schema} FROM "
            f"PUBLIC, {role}; and grant it to the roles that need it"
        )
