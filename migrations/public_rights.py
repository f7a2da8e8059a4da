"""What PUBLIC may do in a database, and so `/sql`'s trust levels too."""

from collections.abc import Iterator, Sequence
from typing import Any

from psycopg import Connection, sql

from .declarations import AccessError
from .rights import EXTENDED, Right
from .roles import GROUP

CLOSABLE = f"""
SELECT p.oid::regprocedure::text FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
WHERE prosecdef AND NOT nspname ~ '^(pg_|information_schema$)' AND pg_has_role(proowner, 'USAGE')
    AND NOT {EXTENDED.format("'pg_proc'::regclass", "p.oid")} AND EXISTS (
        SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) AS granted
        WHERE granted.grantee = 0
    )
ORDER BY 1
"""  # noqa: S608 - constants of this module


def close_functions(connection: Connection[Any]) -> Iterator[str]:
    """Revoke EXECUTE on SECURITY DEFINER functions from PUBLIC; the application keeps it."""
    names = [str(name) for (name,) in connection.execute(CLOSABLE)]
    for name in names:
        connection.execute(Right(GROUP, "ROUTINE", name, "EXECUTE").grant())
        revoke = sql.SQL("REVOKE EXECUTE ON ROUTINE {} FROM PUBLIC")
        connection.execute(revoke.format(sql.SQL(name)))
    if names:
        yield (
            f"EXECUTE on the SECURITY DEFINER functions {', '.join(names)} was revoked from "
            f"PUBLIC, since /sql's callers must not have it, and granted to {GROUP}. Grant it to "
            "other roles that call them"
        )


def close_schemas(connection: Connection[Any]) -> Iterator[str]:
    """Revoke CREATE from PUBLIC, which has it on `public` in databases upgraded from version 14."""
    rows = connection.execute(
        "SELECT quote_ident(nspname) FROM pg_namespace, aclexplode(nspacl) AS granted"
        " WHERE granted.grantee = 0 AND granted.privilege_type = 'CREATE'"
        " AND pg_has_role(nspowner, 'USAGE')"
    )
    for (name,) in rows.fetchall():
        revoke = sql.SQL("REVOKE CREATE ON SCHEMA {} FROM PUBLIC")
        connection.execute(revoke.format(sql.SQL(name)))
        yield (
            f"CREATE on the schema {name} was revoked from PUBLIC, since /sql's callers must not "
            "have it. Grant it to the roles that need it"
        )


OPEN = """
SELECT role.rolname, p.oid::regprocedure::text
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace, pg_roles AS role
WHERE prosecdef AND role.rolname = ANY (%(roles)s) AND nspname <> 'pg_catalog'
    AND has_function_privilege(role.oid, p.oid, 'EXECUTE')
    AND has_schema_privilege(role.oid, n.oid, 'USAGE')
ORDER BY 1, 2
"""


def describe_open(
    connection: Connection[Any], enabled: Sequence[str], *, shared: bool
) -> Iterator[str]:
    """Describe what the levels have from PUBLIC.

    Raise `AccessError` for CREATE, and for TEMP in a database that is not `shared`.
    """
    asked = {"roles": list(enabled)}
    for role, name in connection.execute(OPEN, asked).fetchall():
        yield (
            f"the role {role} may execute the SECURITY DEFINER function {name}, which has its "
            f"owner's rights. Let its owner run: REVOKE EXECUTE ON ROUTINE {name} FROM PUBLIC, "
            f"{role}; and grant it to the roles that need it"
        )
    rows = connection.execute(
        "SELECT rolname, privilege FROM pg_roles, unnest(ARRAY['TEMP', 'CREATE']) AS privilege"
        " WHERE rolname = ANY (%(roles)s)"
        " AND has_database_privilege(oid, current_database(), privilege) ORDER BY 1, 2",
        asked,
    )
    for role, privilege in rows.fetchall():
        text = (
            f"the role {role} has {privilege} on the database, as PUBLIC has: REVOKE {privilege} "
            f"ON DATABASE {connection.info.dbname} FROM PUBLIC, {role}; and grant it to the roles "
            "that need it"
        )
        if not shared or privilege == "CREATE":
            raise AccessError(f"{text}. The rights of the trust levels were not changed")
        yield text


LARGE_OBJECTS = """
SELECT rolname, count(*) FROM pg_largeobject_metadata JOIN pg_roles ON pg_roles.oid = lomowner
WHERE rolname = ANY (%s) GROUP BY 1 ORDER BY 1
"""


def describe_large_objects(connection: Connection[Any], roles: Sequence[str]) -> Iterator[str]:
    """Describe the levels' large objects: only a superuser can revoke that right from PUBLIC."""
    for role, number in connection.execute(LARGE_OBJECTS, [list(roles)]).fetchall():
        yield (
            f"the role {role} has {number} large objects, which a key of its trust level has "
            "written. Find the key in the log of /sql, and give it registered statements or revoke "
            "it. Then remove the objects of pg_largeobject_metadata whose owner is that role, by "
            "lo_unlink(oid) as that role"
        )
