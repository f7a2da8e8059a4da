"""A database to migrate, with a master user who has RDS's rights and no more."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.roles import Login, Timeouts
from lambda_pg_cdk.migrations.run import Connections, Owner, migrate
from lambda_pg_cdk.migrations.upgrade import BRANCHES, Branch, Outcome

TIMEOUTS = Timeouts(statement=7, lock=2, idle_in_transaction=20, transaction=30)
PASSWORD = "canary-Pa55word"

REVISIONS = [
    "lambda_pg_0001",
    "lambda_pg_0002",
    "lambda_pg_0003",
    "users_0001",
    "users_0002",
    "users_0003",
]
"""What base and sample apply, in this order."""

HEADS = ["lambda_pg_0003", "users_0003"]

NEXT = """
from alembic import op
revision = "{revision}"
down_revision = {down}
def upgrade():
    op.execute("CREATE TABLE made_by_{revision} (n int)")
    op.execute("REVOKE ALL ON made_by_{revision} FROM lambda_pg_app")
    op.execute("{statement}")
"""


class Target:
    """One database of the server, and its application's login."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn = make_conninfo(dsn, dbname=name)
        self.login = Login(f"app_{name}", PASSWORD)

    def migrate(
        self,
        app: Path | None = None,
        *,
        timeouts: Timeouts = TIMEOUTS,
        patience: float = 60.0,
        shared: bool = False,
        connections: Connections | None = None,
        owner: Owner | None = None,
        **options: str,
    ) -> Outcome:
        """Run the migration as the function does, with the app's own folder if there is one."""
        connection = psycopg.connect(make_conninfo(self.dsn, **options), autocommit=True)
        return migrate(
            connection,
            lambda: self.login,
            timeouts,
            [*BRANCHES, *([Branch(app)] if app else [])],
            patience=patience,
            shared=shared,
            connections=connections or Connections(),
            owner=owner,
        )

    def limits(self) -> dict[object, object]:
        """Read the limits of connections of the application's users."""
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute(
                "SELECT rolname, rolconnlimit FROM pg_roles WHERE starts_with(rolname, %s)",
                [self.login.name],
            )
            return dict(rows.fetchall())

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """Log in as the application."""
        return psycopg.connect(self.dsn, user=self.login.name, password=self.login.password)

    def tables(self) -> set[object]:
        """List the tables, as the master user."""
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return {row[0] for row in rows}


@contextmanager
def new_target(postgres: Postgres) -> Iterator[Target]:
    """Make a database, and remove it with its application's user."""
    name = f"migrated_{secrets.token_hex(4)}"
    master = str(conninfo_to_dict(postgres.dsn)["user"])
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {} OWNER {}")
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(master)))
        yield Target(postgres.dsn, name)
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        admin.execute(drop.format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(f"app_{name}")))


def add(folder: Path, revision: str, down: str | None, statement: str = "SELECT 1") -> Path:
    """Write a revision that creates a table and then runs `statement`; return its file."""
    path = folder / f"{revision[-4:]}_made.py"
    path.write_text(NEXT.format(revision=revision, down=repr(down), statement=statement))
    return path
