"""A login with a way round row-level security is refused, on each version of PostgreSQL."""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.roles import GROUP, Login, Timeouts, UnboundLoginError
from lambda_pg_cdk.migrations.run import migrate
from tests.support.postgres import CopiedPostgres

MASTER = "master"
PASSWORD = "canary-Pa55word"
TIMEOUTS = Timeouts(statement=7, lock=2, idle_in_transaction=20)
OPTIONS = 160000
"""The first server version whose memberships have INHERIT and SET."""

POWERS = {
    "is a superuser": "ALTER ROLE {power} SUPERUSER",
    "has BYPASSRLS": "ALTER ROLE {power} BYPASSRLS",
    "has CREATEROLE": "ALTER ROLE {power} CREATEROLE",
    "has REPLICATION": "ALTER ROLE {power} REPLICATION",
    "owns table ": "CREATE TABLE {power} (n int); ALTER TABLE {power} OWNER TO {power}",
    "owns function ": (
        "CREATE FUNCTION {power}() RETURNS int LANGUAGE sql RETURN 1;"
        " ALTER FUNCTION {power} OWNER TO {power}"
    ),
    "owns schema ": "CREATE SCHEMA {power} AUTHORIZATION {power}",
    "owns database ": "ALTER DATABASE {database} OWNER TO {power}",
    "pg_read_all_data by": "GRANT pg_read_all_data TO {power}",
    "pg_execute_server_program by": "GRANT pg_execute_server_program TO {power}",
    "rds_superuser by": "GRANT rds_superuser TO {power}",
    "is the owner": "GRANT {master} TO {power}",
}
"""What makes a role one that the policies do not bind, by what the error says of it."""

WAYS = {
    "directly": "GRANT {power} TO {login}",
    "by another role": "GRANT {power} TO {between}; GRANT {between} TO {login}",
    "by the group": "GRANT {power} TO {group}",
    "to grant": "GRANT {power} TO {login} WITH ADMIN OPTION",
    "only to become": "GRANT {power} TO {login} WITH INHERIT FALSE, SET TRUE",
    "only to inherit": "GRANT {power} TO {login} WITH INHERIT TRUE, SET FALSE",
    "only to grant": "GRANT {power} TO {login} WITH INHERIT FALSE, SET FALSE, ADMIN TRUE",
}
"""How a login becomes a member; those with "only" are of PostgreSQL 16 and newer."""


class Site:
    """A deployed database, and statements of its superuser about the roles of one test."""

    def __init__(self, postgres: Postgres, database: str) -> None:
        self.dsn = make_conninfo(postgres.dsn, dbname=database)
        self._admin_dsn = make_conninfo(postgres.superuser_dsn, dbname=database)
        suffix = secrets.token_hex(4)
        self.login = Login(f"borrowed_{suffix}", PASSWORD, borrowed=True)
        self.names = {
            "power": f"power_{suffix}",
            "between": f"between_{suffix}",
            "login": self.login.name,
            "group": GROUP,
            "database": database,
            "master": MASTER,
        }

    def run(self, statements: str) -> None:
        """Run statements as the superuser, with the names of the roles filled in."""
        with psycopg.connect(self._admin_dsn, autocommit=True) as admin:
            for statement in statements.format(**self.names).split(";"):
                admin.execute(statement.encode())

    def migrate(self, login: Login | None = None) -> None:
        """Deploy as the master does, into a database that is shared."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        migrate(connection, lambda: login or self.login, TIMEOUTS, patience=30, shared=True)

    def connect(self) -> psycopg.Connection[Any]:
        """Log in as the application."""
        return psycopg.connect(self.dsn, user=self.login.name, password=PASSWORD)


@pytest.fixture(scope="module", params=[15, 16, 17, 18])
def server(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Postgres]:
    """A server of one version, with a database that has been deployed once."""
    binaries = find_postgres(request.param)
    if binaries.major != request.param:
        pytest.skip(f"there is no PostgreSQL {request.param} here")
    folder = short_folder / f"members-{request.param}"
    server = CopiedPostgres(binaries, folder, port=processes.free_port(), durable=False)
    try:
        server.start()
        server.create_master(MASTER, PASSWORD, "app")
        site = Site(server, "app")
        site.migrate(Login("first", PASSWORD))
        yield server
    finally:
        server.stop()


@pytest.fixture
def site(server: Postgres) -> Iterator[Site]:
    """The roles of one test, which end with it."""
    site = Site(server, "app")
    site.run("CREATE ROLE {power}; CREATE ROLE {between}")
    site.run(f"CREATE ROLE {{login}} LOGIN PASSWORD '{PASSWORD}'")
    try:
        yield site
    finally:
        site.run("ALTER DATABASE {database} OWNER TO {master}")
        for role in ("{power}", "{between}", "{login}"):
            site.run(f"DROP OWNED BY {role}; DROP ROLE {role}")


def groups_of(site: Site) -> set[str]:
    """List the roles of which the login is a direct member."""
    with psycopg.connect(site.dsn) as connection:
        rows = connection.execute(
            "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = %s::regrole",
            [site.login.name],
        )
        return {row[0] for row in rows}


def has_options(site: Site) -> bool:
    """Tell whether memberships have INHERIT and SET there."""
    with psycopg.connect(site.dsn) as connection:
        return connection.info.server_version >= OPTIONS


@pytest.mark.parametrize("power", POWERS)
def test_a_member_of_a_role_that_no_policy_binds_is_refused(site: Site, power: str) -> None:
    """The error says by which way and why; nothing was changed."""
    site.run(POWERS[power])
    site.run(WAYS["directly"])
    with pytest.raises(UnboundLoginError) as refused:
        site.migrate()
    way = f"({site.login.name} → {site.names['power']}"
    assert way in str(refused.value)
    assert power.removesuffix(" by") in str(refused.value)
    assert groups_of(site) == {site.names["power"]}


@pytest.mark.parametrize("way", WAYS)
def test_each_kind_of_membership_counts(site: Site, way: str) -> None:
    """Directly or not, with the options of PostgreSQL 16; what the error says to do helps."""
    if way.startswith("only") and not has_options(site):
        pytest.skip("memberships have no options before PostgreSQL 16")
    site.run("ALTER ROLE {power} BYPASSRLS")
    site.run(WAYS[way])
    with pytest.raises(UnboundLoginError, match="has BYPASSRLS") as refused:
        site.migrate()
    remedy = re.search(r"\((REVOKE [^)]+)\)", str(refused.value))
    assert remedy is not None
    site.run(remedy[1])
    site.migrate()
    assert GROUP in groups_of(site)


@pytest.mark.parametrize(
    "power",
    ["has CREATEROLE", "has REPLICATION", "has BYPASSRLS", "is a superuser"],
)
@pytest.mark.parametrize("role", ["login", "group"])
def test_a_power_of_the_login_or_the_group_counts(site: Site, power: str, role: str) -> None:
    """No membership is needed for it, or that in the group, which every deployment makes."""
    site.run(POWERS[power].replace("{power}", f"{{{role}}}"))
    try:
        with pytest.raises(UnboundLoginError, match=power):
            site.migrate()
    finally:
        site.run("ALTER ROLE {group} NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOREPLICATION")


def test_the_owner_of_a_table_with_policies_is_refused(site: Site) -> None:
    """It can switch them off. Tables without policies are somebody's own affair."""
    site.run("CREATE TABLE {power} (n int); ALTER TABLE {power} OWNER TO {login}")
    site.migrate()
    site.run("ALTER TABLE {power} ENABLE ROW LEVEL SECURITY")
    with pytest.raises(UnboundLoginError, match=r"owns the table power_\w+, whose policies"):
        site.migrate()


def test_roles_without_power_do_not_matter(site: Site) -> None:
    """Grants are what roles are for."""
    site.run("CREATE TABLE {between} (n int); GRANT SELECT ON {between} TO {power}")
    site.run("GRANT pg_monitor TO {power}; GRANT {power} TO {between}; GRANT {between} TO {login}")
    try:
        site.migrate()
    finally:
        site.run("DROP TABLE {between}")


def read_as_the_owner(connection: psycopg.Connection[Any], site: Site) -> int:
    """Switch the policies off, read, and leave no trace."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"SET ROLE {MASTER}")
        connection.execute("ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
        return count(connection)


def read_as_a_power(connection: psycopg.Connection[Any], site: Site) -> int:
    """Read as a role that the policies do not bind."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"SET ROLE {site.names['power']}")
        return count(connection)


def count(connection: psycopg.Connection[Any]) -> int:
    """Count the users that can be seen."""
    row = connection.execute("SELECT count(*) FROM users").fetchone()
    assert row is not None
    return int(row[0])


ATTACKS: dict[str, tuple[str, Callable[[psycopg.Connection[Any], Site], int]]] = {
    "a member of the tables' owner": ("GRANT {master} TO {login}", read_as_the_owner),
    "a member of a role with BYPASSRLS": (
        "ALTER ROLE {power} BYPASSRLS; GRANT {group} TO {power}; GRANT {power} TO {login}",
        read_as_a_power,
    ),
}


@contextmanager
def somebody_s_row(site: Site) -> Iterator[None]:
    """Write a row that belongs to a subject."""
    site.run("INSERT INTO users (owner, name) VALUES (gen_random_uuid(), 'somebody')")
    try:
        yield
    finally:
        site.run("DELETE FROM users")


@pytest.mark.parametrize("attack", ATTACKS)
def test_nobody_reads_another_subject_s_row_by_set_role(site: Site, attack: str) -> None:
    """The attack works for a login like that, which is why it is not let in."""
    statements, read = ATTACKS[attack]
    with somebody_s_row(site):
        site.migrate()
        with site.connect() as connection:
            assert count(connection) == 0
        site.run(statements)
        with site.connect() as connection:
            assert count(connection) == 0
            assert read(connection, site) == 1
        with pytest.raises(UnboundLoginError, match="by membership"):
            site.migrate()
