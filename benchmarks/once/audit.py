"""An append-only record of every change of `users`, written by the database itself.

It does not depend on what the function says: triggers note each row that a transaction inserts or
updates, with the id of the transaction. The function's role may not touch the record.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.servers.postgres import superuser_dsn

DATABASE: Final = "app"
PAUSE: Final = 0.03
"""Most seconds that a transaction sleeps after its change, and once more while it commits."""
RECOVERY: Final = 15.0
"""Seconds to wait for a server that has crashed."""

OPEN: Final = """
DROP SCHEMA IF EXISTS audit CASCADE;
CREATE SCHEMA audit;
CREATE TABLE audit.changes (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    operation text NOT NULL,
    changed jsonb NOT NULL
);
CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO audit.changes (operation, changed) VALUES (TG_OP, to_jsonb(NEW));
    PERFORM pg_sleep(TG_ARGV[0]::float * random());
    RETURN NULL;
END $$;
CREATE FUNCTION audit.linger() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_sleep(TG_ARGV[0]::float * random());
    RETURN NULL;
END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION audit.note({pause});
CREATE CONSTRAINT TRIGGER lingering AFTER INSERT OR UPDATE ON users DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION audit.linger({pause});
"""
"""A deferred trigger runs inside COMMIT, before it is certain."""
FORGET: Final = """
CREATE FUNCTION audit.forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER forgotten BEFORE INSERT ON idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION audit.forget();
"""
"""The table of keys stays empty, and nobody gets an error."""
CLOSE: Final = "DROP SCHEMA IF EXISTS audit CASCADE"


@dataclass(frozen=True)
class Change:
    """A committed change: the row after it, and the id of its transaction, modulo 2^32."""

    transaction: int
    operation: str
    row: dict[str, Any]


@contextmanager
def audited(dsn: str, *, pause: float = 0.0, forget: bool = False) -> Iterator[None]:
    """Record all changes of `users` until the block ends.

    `pause`: the most seconds that each transaction sleeps after its change, and once more inside
    COMMIT. `forget`: no key is stored, for a control.
    """
    with connected(dsn) as admin:
        admin.execute(sql.SQL(OPEN).format(pause=sql.Literal(str(pause))))
        if forget:
            admin.execute(FORGET)
    try:
        yield
    finally:
        with connected(dsn) as admin:
            admin.execute(CLOSE)


def dsn_of(cloud: LocalCloud) -> str:
    """Return the URL of the superuser of a cloud's database: row-level security stops others."""
    return superuser_dsn(cloud.folder / "postgres", cloud.status()["postgres"]["port"])


def connected(dsn: str) -> psycopg.Connection[TupleRow]:
    """Connect to the app's database as its superuser, in autocommit, as soon as it has recovered.

    Raises psycopg.OperationalError after RECOVERY seconds.
    """
    until = time.monotonic() + RECOVERY
    while True:
        try:
            return psycopg.connect(dsn, dbname=DATABASE, autocommit=True)
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def changes(dsn: str) -> list[Change]:
    """Read what was recorded, in the order in which it was written."""
    with connected(dsn) as admin:
        rows = admin.execute(
            "SELECT transaction::xid::text::bigint, operation, changed FROM audit.changes"
            " ORDER BY number"
        ).fetchall()
    return [Change(*row) for row in rows]


def count(admin: psycopg.Connection[TupleRow]) -> int:
    """Count the recorded changes."""
    row = admin.execute("SELECT count(*) FROM audit.changes").fetchone()
    return int(row[0]) if row else 0


def storing_transactions(dsn: str, owners: list[str]) -> list[int]:
    """Return the ids of the transactions that stored the keys of some owners."""
    with connected(dsn) as admin:
        rows = admin.execute(
            "SELECT xmin::text::bigint FROM idempotency_keys WHERE owner = ANY(%s::uuid[])"
            " AND expires_at > now()",
            [owners],
        ).fetchall()
    return [transaction for (transaction,) in rows]
