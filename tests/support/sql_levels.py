"""A deployed database with `/sql`'s trust levels, by a master user with RDS's rights."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.levels import LEVELS, Levels, group_of
from lambda_pg_cdk.migrations.roles import Login, Timeouts
from lambda_pg_cdk.migrations.run import migrate
from lambda_pg_cdk.migrations.upgrade import BRANCHES, Branch, Outcome

TIMEOUTS = Timeouts(statement=7, lock=2, idle_in_transaction=20, transaction=30)
SQL_TIMEOUTS = Timeouts(statement=5, lock=1, idle_in_transaction=3, transaction=6)
PASSWORD = "canary-Pa55word"

READ = """
[reader.orders]
verbs = ["SELECT"]
"""
"""Declares what a reader may do with the table of `Site.add_orders`."""

REVISION = """
from alembic import op
revision = "{revision}"
down_revision = {down}
def upgrade():
    op.execute({statement!r})
"""


class Site:
    """One database of a server with the app's login, a login for each level, and an app's files."""

    def __init__(self, postgres: Postgres, name: str, folder: Path) -> None:
        self.postgres, self.database, self.folder = postgres, name, folder
        self.dsn = make_conninfo(postgres.dsn, dbname=name)
        self.app = Login(f"app_{name}", PASSWORD)
        self.logins = {
            level: Login(f"{level}_{name}", PASSWORD, group=group_of(level)) for level in LEVELS
        }

    def deploy(
        self,
        levels: Sequence[str] | None = LEVELS,
        *,
        shared: bool = False,
        timeouts: Timeouts = SQL_TIMEOUTS,
        limit: int = 5,
    ) -> Outcome:
        """Migrate as the master does, with these levels; None leaves all as they are."""
        read = {level: partial(self.logins.__getitem__, level) for level in levels or ()}
        given = None if levels is None else Levels(read, timeouts, limit)
        return migrate(
            psycopg.connect(self.dsn, autocommit=True),
            lambda: self.app,
            TIMEOUTS,
            [*BRANCHES, Branch(self.folder)],
            patience=60,
            shared=shared,
            levels=given,
        )

    def declare(self, text: str) -> None:
        """Write the project's declarations."""
        (self.folder / "sql_access.toml").write_text(text)

    def add(self, statement: str) -> None:
        """Add a revision to the project."""
        number = len(list(self.folder.glob("*.py"))) + 1
        down = repr(f"{number - 1:04}") if number > 1 else None
        text = REVISION.format(revision=f"{number:04}", down=down, statement=statement)
        (self.folder / f"{number:04}_made.py").write_text(text)

    def add_orders(self) -> None:
        """Add a table that is not for functions."""
        self.add("CREATE TABLE orders (id serial PRIMARY KEY, owner uuid, n int)")
        self.add("REVOKE ALL ON orders FROM lambda_pg_app")

    def may(self, level: str, table: str = "orders") -> set[str]:
        """List what a level's login may do with a table."""
        with self.connect(level) as connection:
            rows = connection.execute(
                "SELECT privilege FROM unnest(%s::text[]) AS privilege"
                " WHERE has_table_privilege(%s, privilege)",
                [["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"], table],
            )
            return {str(row[0]) for row in rows}

    def connect(self, who: str, **options: Any) -> psycopg.Connection[Any]:
        """Log in as the level, or as `app`."""
        login = self.app if who == "app" else self.logins[who]
        return psycopg.connect(self.dsn, user=login.name, password=login.password, **options)

    def run(self, *statements: str) -> None:
        """Run statements as the owner, each by itself."""
        with psycopg.connect(self.dsn, autocommit=True) as owner:
            for statement in statements:
                owner.execute(statement.encode())

    def superuser(self) -> psycopg.Connection[Any]:
        """Log in as the server's superuser."""
        dsn = make_conninfo(self.postgres.superuser_dsn, dbname=self.database)
        return psycopg.connect(dsn, autocommit=True)


@contextmanager
def new_site(postgres: Postgres, folder: Path) -> Iterator[Site]:
    """Make a database of the master's, and remove it with its users."""
    name = f"levels_{secrets.token_hex(4)}"
    master = str(conninfo_to_dict(postgres.dsn)["user"])
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {} OWNER {}")
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(master)))
        try:
            yield Site(postgres, name, folder)
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            admin.execute(drop.format(sql.Identifier(name)))
            users = admin.execute(
                "SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [f"%{name}%"]
            ).fetchall()
            for (user,) in users:
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))
