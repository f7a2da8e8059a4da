"""What a deployment refuses of `/sql`'s declarations, of rights and of logins: nothing changes."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.declarations import AccessError
from lambda_pg_cdk.migrations.roles import LevelLoginError, admit
from tests.support.sql_levels import READ, Site, new_site

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def deployed(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A deployed database: a deployment takes a fifth of a second of processor."""
    with new_site(postgres, tmp_path_factory.mktemp("deployed")) as made:
        made.add_orders()
        made.declare(READ)
        made.deploy()
        yield made


@pytest.fixture
def site(deployed: Site) -> Iterator[Site]:
    """The database; the project's files are as before after the test."""
    files = set(deployed.folder.glob("*.py"))
    yield deployed
    for added in set(deployed.folder.glob("*.py")) - files:
        added.unlink()
    deployed.declare(READ)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[reader.nothing]\nverbs = ["SELECT"]', "the table nothing, which does not exist"),
        ('[reader."other.orders"]\nverbs = ["SELECT"]', "other.orders, which does not exist"),
        ('[reader.pg_class]\nverbs = ["SELECT"]', "the table pg_class, which does not exist"),
        (READ + 'rows = "true"', "no row-level security"),
        ('[reader.users]\nverbs = ["SELECT"]\nrows = "no_column = 1"', "PostgreSQL rejects it"),
    ],
)
def test_a_declaration_that_cannot_be_applied_changes_nothing(
    site: Site, text: str, told: str
) -> None:
    """Neither rights nor schema: revisions and rights are one transaction."""
    site.add("CREATE TABLE later (n int)")
    site.declare('[writer.orders]\nverbs = ["SELECT"]\n' + text)
    with pytest.raises(AccessError) as caught:
        site.deploy()
    for part in (told, "sql_access.toml, [reader.", "reader", "othing was changed"):
        assert part in str(caught.value)
    assert site.may("reader") == {"SELECT"}
    assert site.may("writer") == set()
    with psycopg.connect(site.dsn) as owner:
        assert owner.execute("SELECT to_regclass('later')").fetchone() == (None,)


PUBLIC = {
    "UPDATE ON orders": r"UPDATE on public\.orders",
    "UPDATE (n) ON orders": r"UPDATE on public\.orders",
    "USAGE ON SEQUENCE orders_id_seq": r"USAGE on public\.orders_id_seq",
    "MAINTAIN ON orders": r"MAINTAIN on public\.orders",
}


@pytest.mark.parametrize("right", PUBLIC)
def test_what_public_may_do_must_be_declared(site: Site, right: str) -> None:
    """Every level would have it; the migration takes nothing from others."""
    site.run(f"GRANT {right} TO PUBLIC")
    try:
        told = f"{PUBLIC[right]}, which no file declares.*REVOKE ALL ON"
        with pytest.raises(AccessError, match=told):
            site.deploy()
    finally:
        site.run(f"REVOKE {right} FROM PUBLIC")


def test_without_levels_public_may_do_anything(site: Site) -> None:
    """Then nobody is in danger."""
    site.run(*(f"GRANT {right} TO PUBLIC" for right in PUBLIC))
    try:
        site.deploy(())
    finally:
        site.run(*(f"REVOKE {right} FROM PUBLIC" for right in PUBLIC))
        site.deploy()


POWERS = {
    "another level": (
        "GRANT lambda_pg_sql_writer TO {user}",
        "REVOKE lambda_pg_sql_writer FROM {user}",
    ),
    "another level by its login": ("GRANT {writer} TO {user}", "REVOKE {writer} FROM {user}"),
    "another level by its group": (
        "GRANT lambda_pg_sql_writer TO lambda_pg_sql_reader",
        "REVOKE lambda_pg_sql_writer FROM lambda_pg_sql_reader",
    ),
    "the application": ("GRANT lambda_pg_app TO {user}", "REVOKE lambda_pg_app FROM {user}"),
    "a predefined role": ("GRANT pg_monitor TO {user}", "REVOKE pg_monitor FROM {user}"),
    "CREATEDB": ("ALTER ROLE {user} CREATEDB", "ALTER ROLE {user} NOCREATEDB"),
    "BYPASSRLS": ("ALTER ROLE {user} BYPASSRLS", "ALTER ROLE {user} NOBYPASSRLS"),
    "a table": ("ALTER TABLE orders OWNER TO {user}", "ALTER TABLE orders OWNER TO {master}"),
}
"""What gives a login more rights, and what takes them again."""


@pytest.mark.parametrize("power", POWERS)
def test_a_level_s_login_has_its_group_and_nothing_else(site: Site, power: str) -> None:
    """A deployment and a rotation refuse it."""
    names = {level: login.name for level, login in site.logins.items()}
    names |= {"user": names["reader"], "master": str(conninfo_to_dict(site.dsn)["user"])}
    more, less = (each.format(**names).encode() for each in POWERS[power])
    with site.superuser() as admin:
        admin.execute(more)
        try:
            with pytest.raises(LevelLoginError, match="has more rights than its group"):
                site.deploy()
            with (
                psycopg.connect(site.dsn, autocommit=True) as master,
                pytest.raises(LevelLoginError),
            ):
                admit(master, site.logins["reader"])
        finally:
            admin.execute(less)


def test_what_was_refused_has_left_the_deployment_as_it_was(site: Site) -> None:
    """The control of the tests above: it is a deployment's, so each of them began with one."""
    site.deploy()
    assert site.may("reader") == {"SELECT"}
