"""What a database says about owners, and its guards, each of which can be taken away."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.errors import InsufficientPrivilege
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.servers.postgres import superuser_dsn
from tests.support.matrix import SAME

KEYS = "idempotency_keys"

INSERTS: Mapping[str, str] = {
    "users": "INSERT INTO users (owner, name) VALUES (%s, 'of another')",
    "notes": "INSERT INTO notes (owner, text) VALUES (%s, 'of another')",
    KEYS: (
        "INSERT INTO idempotency_keys (owner, id, request, status, headers, body)"
        " VALUES (%s, sha256('a'), sha256('b'), 201, '{}', '')"
    ),
}
"""Statements that make a row of an owner in each table."""

_CALLER = """
SELECT set_config('request.jwt.claims', json_build_object('sub', %s::text)::text, true),
    set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true)
"""


class Admin:
    """The superuser in the application's database of a local cloud."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Connect; it is autocommit."""
        port = cloud.status()["postgres"]["port"]
        dsn = make_conninfo(superuser_dsn(cloud.folder / "postgres", port), dbname="app")
        self.connection = psycopg.connect(dsn, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @contextmanager
    def as_caller(self, subject: str) -> Iterator[psycopg.Connection[TupleRow]]:
        """Have the rights and the claims that a function has for a caller; all is rolled back."""
        with self.connection.transaction(force_rollback=True):
            self.connection.execute("SET LOCAL ROLE lambda_pg_app")
            self.connection.execute(_CALLER, (subject,))
            yield self.connection

    @contextmanager
    def without_policies(self, table: str) -> Iterator[None]:
        """Switch row-level security of a table off."""
        change = sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY")
        name = sql.Identifier(table)
        self.connection.execute(change.format(name, sql.SQL("DISABLE")))
        try:
            yield
        finally:
            self.connection.execute(change.format(name, sql.SQL("ENABLE")))

    @contextmanager
    def open_policy(self, table: str, clause: str) -> Iterator[None]:
        """Let a clause of a table's policy, USING or WITH CHECK, be true for every row."""
        change = sql.SQL("ALTER POLICY own_rows ON {} {} ({})")
        known = sql.Identifier(table), sql.SQL(clause)
        self.connection.execute(change.format(*known, sql.SQL("true")))
        try:
            yield
        finally:
            own = sql.SQL("owner = (SELECT current_subject())")
            self.connection.execute(change.format(*known, own))

    @contextmanager
    def keys_of_anybody(self) -> Iterator[None]:
        """Let the function that claims a key find it whatever its owner is."""
        found = "SELECT pg_get_functiondef('claim_idempotency_key'::regproc)"
        ((before,),) = self.connection.execute(found).fetchall()
        after = before.replace("k.owner = caller AND ", "")
        assert after != before, "the function is not what this was made for"
        self.connection.execute(after)
        try:
            yield
        finally:
            self.connection.execute(before)


def rows_of_others(
    admin: Admin, table: str, column: str, texts: Mapping[str, str]
) -> Iterator[str]:
    """Yield the rows whose text is not their owner's; `texts` are by owner."""
    statement = sql.SQL(
        "SELECT id, owner::text, {text} FROM {table}"
        " WHERE owner::text = ANY (%s) OR {text} = ANY (%s)"
    ).format(text=sql.Identifier(column), table=sql.Identifier(table))
    row: tuple[Any, ...]
    for row in admin.connection.execute(statement, ([*texts], [*texts.values()])):
        id_, owner, said = row
        if said not in {texts.get(owner), SAME}:
            yield f"{table} {id_} of {owner} says {said!r}"


def breaches(admin: Admin, table: str, subjects: Sequence[str]) -> Iterator[str]:
    """Yield what each caller can do with each other's rows of a table; each has one."""
    for caller in subjects:
        for other in subjects:
            visible = _count(admin, table, caller, other)
            if visible != (caller == other):
                yield f"{caller} sees {visible} rows of {other}"
            if caller != other and _inserts(admin, table, caller, other):
                yield f"{caller} inserts rows of {other}"
    if visible := sum(_count(admin, table, "", each) for each in subjects):
        yield f"a caller without a subject sees {visible} rows"


def _count(admin: Admin, table: str, caller: str, owner: str) -> int:
    statement = sql.SQL("SELECT id FROM {} WHERE owner = %s LIMIT 1").format(sql.Identifier(table))
    with admin.as_caller(caller) as connection:
        return connection.execute(statement, (owner,)).rowcount


def _inserts(admin: Admin, table: str, caller: str, owner: str) -> bool:
    try:
        with admin.as_caller(caller) as connection:
            connection.execute(INSERTS[table].encode(), (owner,))
    except InsufficientPrivilege:
        return False
    return True
