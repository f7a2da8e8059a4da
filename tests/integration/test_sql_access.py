"""The project's declarations of what `/sql`'s trust levels may do, as deployments apply them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.declarations import AccessError
from lambda_pg_cdk.migrations.levels import LEVELS, group_of
from lambda_pg_cdk.migrations.roles import (
    LevelLoginError,
    Login,
    LoginError,
    NeighbourError,
    UnboundLoginError,
    admit,
)
from lambda_pg_cdk.migrations.upgrade import MigrationError
from tests.support.sql_levels import PASSWORD, READ, Site, new_site

pytestmark = pytest.mark.once


@pytest.fixture
def site(postgres: Postgres, tmp_path: Path) -> Iterator[Site]:
    """A database that is not deployed yet; its project has one table."""
    with new_site(postgres, tmp_path) as made:
        made.add_orders()
        yield made


def test_rights_are_given_changed_and_taken(site: Site) -> None:
    """As the file says at each deployment."""
    site.declare('[writer.orders]\nverbs = ["SELECT", "INSERT"]')
    site.deploy()
    assert site.may("writer") == {"SELECT", "INSERT"}
    assert site.may("reader") == site.may("caller") == set()
    with site.connect("writer") as writer:
        writer.execute("INSERT INTO orders (n) VALUES (1)")  # with its sequence
    site.declare('[writer.orders]\nverbs = ["UPDATE"]' + READ)
    site.deploy()
    assert site.may("writer") == {"UPDATE"}
    assert site.may("reader") == {"SELECT"}
    with site.connect("writer") as writer, pytest.raises(InsufficientPrivilege):
        writer.execute("SELECT nextval('orders_id_seq')")
    site.declare("")
    site.deploy()
    assert site.may("writer") == site.may("reader") == set()
    assert site.may("reader", "users") == {"SELECT"}  # the sample's file


def test_what_was_granted_by_hand_is_revoked(site: Site) -> None:
    """To a group or to a login: on tables, columns, schemas, functions, sequences, the database."""
    site.declare(READ)
    site.deploy()
    login = site.logins["reader"].name
    site.run(
        "CREATE SCHEMA other",
        "CREATE TABLE other.things (n int, m int)",
        f"GRANT ALL ON orders TO {login}",
        "GRANT SELECT ON orders TO lambda_pg_sql_reader WITH GRANT OPTION",
        "GRANT ALL ON other.things TO lambda_pg_sql_reader",
        "GRANT UPDATE (n) ON other.things TO lambda_pg_sql_reader WITH GRANT OPTION",
        "GRANT ALL ON SCHEMA other TO lambda_pg_sql_reader",
        f"GRANT ALL ON SEQUENCE orders_id_seq TO {login}",
        f"GRANT ALL ON DATABASE {site.database} TO {login}",
        "CREATE FUNCTION powerful() RETURNS int LANGUAGE sql SECURITY DEFINER RETURN 1",
        "GRANT EXECUTE ON FUNCTION powerful TO lambda_pg_sql_reader",
    )
    with site.connect("reader") as reader:
        writer = sql.Identifier(site.logins["writer"].name)
        reader.execute(sql.SQL("GRANT SELECT ON orders TO {}").format(writer))
    site.deploy()
    assert site.may("writer") == set()
    assert site.may("reader") == {"SELECT"}
    with site.connect("reader", autocommit=True) as reader:
        passed_on = "SELECT has_table_privilege('orders', 'SELECT WITH GRANT OPTION')"
        assert reader.execute(passed_on).fetchone() == (False,)
        for attack in (
            "SELECT * FROM other.things",
            "UPDATE other.things SET n = 1",
            "SELECT nextval('orders_id_seq')",
            "CREATE TABLE other.mine (n int)",
            "CREATE TEMP TABLE mine (n int)",
            "CREATE SCHEMA mine",
            "SELECT powerful()",
        ):
            with pytest.raises(InsufficientPrivilege):
                reader.execute(attack.encode())


def test_a_project_may_grant_functions_that_have_their_caller_s_rights(site: Site) -> None:
    """They can do nothing that the level cannot, and policies need them."""
    site.deploy()
    site.add(
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1;"
        "REVOKE EXECUTE ON FUNCTION mine FROM PUBLIC;"
        "GRANT EXECUTE ON FUNCTION mine TO lambda_pg_sql_caller"
    )
    for _ in range(2):
        site.deploy()
        with site.connect("caller") as caller:
            assert caller.execute("SELECT mine()").fetchone() == (1,)
    with site.connect("reader") as reader, pytest.raises(InsufficientPrivilege):
        reader.execute("SELECT mine()")


def test_a_second_deployment_changes_nothing(site: Site) -> None:
    """No table is locked for a policy or a right that is as declared."""
    site.declare(READ)
    site.deploy()
    reader = site.connect("reader")
    with reader:
        reader.execute("SELECT * FROM users, orders")  # a lock that a new policy would wait for
        before = catalogue(site)
        site.deploy()
        assert catalogue(site) == before


def catalogue(site: Site) -> list[Any]:
    """Read the versions of rows that rights and policies are in; public is every deployment's."""
    with site.superuser() as admin:
        return admin.execute(
            "SELECT 'table', oid, xmin FROM pg_class UNION ALL SELECT 'policy', oid, xmin"
            " FROM pg_policy UNION ALL SELECT 'schema', oid, xmin FROM pg_namespace"
            " WHERE nspname !~ '^(pg_|public$)' UNION ALL SELECT 'function', oid, xmin FROM pg_proc"
            " ORDER BY 1, 2"
        ).fetchall()


# Errors


def test_a_table_of_another_owner_is_refused(site: Site) -> None:
    """The migration could not grant it."""
    site.deploy()
    with site.superuser() as admin:
        admin.execute("ALTER TABLE orders OWNER TO CURRENT_USER")
    site.declare(READ)
    with pytest.raises(AccessError, match=r"orders belongs to .* it to the level reader"):
        site.deploy()


def test_what_another_role_has_granted_is_refused(site: Site) -> None:
    """The owner cannot revoke it."""
    site.declare(READ)
    site.deploy()
    with site.superuser() as admin:
        admin.execute("CREATE TABLE foreign_table (n int)")
        admin.execute("GRANT SELECT ON foreign_table TO lambda_pg_sql_caller")
    with pytest.raises(AccessError, match=r"lambda_pg_sql_caller has SELECT on .*foreign_table"):
        site.deploy()


def test_public_creates_nothing_in_the_schema_of_an_old_database(site: Site) -> None:
    """PostgreSQL 14 and older let it; an upgrade keeps that."""
    with site.superuser() as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    told = site.deploy().warnings
    assert any(each.startswith("CREATE on the schema public was revoked") for each in told)
    assert site.deploy().warnings == []
    with site.connect("reader") as reader, pytest.raises(InsufficientPrivilege):
        reader.execute("CREATE TABLE mine (n int)")
    with site.superuser() as admin:
        admin.execute("CREATE SCHEMA foreign_schema")
        admin.execute("GRANT CREATE ON SCHEMA foreign_schema TO PUBLIC")
    with pytest.raises(AccessError, match="can create objects in the schema foreign_schema"):
        site.deploy()


@pytest.mark.parametrize("shared", [False, True])
def test_a_security_definer_function_is_the_application_s(site: Site, shared: bool) -> None:
    """New ones too, at the next deployment; in a shared database the warning alone says so."""
    site.deploy(shared=shared)
    site.add(
        "CREATE FUNCTION powerful() RETURNS int LANGUAGE sql SECURITY DEFINER RETURN 1;"
        "CREATE PROCEDURE doing() LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC SELECT 1; END"
    )
    told = "\n".join(site.deploy(shared=shared).warnings)
    for name in ("powerful()", "doing()"):
        assert name in told
    assert ("was revoked from PUBLIC" in told) is not shared
    with site.connect("app") as app:
        assert app.execute("SELECT powerful()").fetchone() == (1,)
    with site.connect("reader") as reader:
        if shared:
            assert reader.execute("SELECT powerful()").fetchone() == (1,)
        else:
            for statement in ("SELECT powerful()", "CALL doing()"):
                with pytest.raises(InsufficientPrivilege), reader.transaction():
                    reader.execute(statement)
            assert "powerful" not in "".join(site.deploy().warnings)


def test_in_a_shared_database_public_keeps_its_rights(site: Site) -> None:
    """A warning names them, because the levels have them too."""
    told = "\n".join(site.deploy(shared=True).warnings)
    assert "has TEMP on the database" in told
    with psycopg.connect(site.dsn) as owner:
        public = "SELECT has_database_privilege('public', current_database(), 'TEMP')"
        assert owner.execute(public).fetchone() == (True,)


# Rows


def test_a_level_sees_the_rows_that_are_declared(site: Site) -> None:
    """Nothing without a policy; a changed condition changes it; one that is gone is dropped."""
    site.add("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
    site.declare(READ)
    warnings = site.deploy().warnings
    assert any("[reader.orders]" in each and "sees no row" in each for each in warnings)
    site.run("INSERT INTO orders (n) SELECT generate_series(1, 10)")
    for rows, seen in (("n > 4", 6), ("n > 8", 2), (None, 0), ("true", 10)):
        site.declare(READ + (f'rows = "{rows}"' if rows else ""))
        site.deploy()
        with site.connect("reader") as reader:
            assert reader.execute("SELECT count(*) FROM orders").fetchone() == (seen,)


def test_a_policy_that_was_changed_by_hand_is_made_again(site: Site) -> None:
    """Its comment alone does not say that it is as declared."""
    site.add("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
    site.declare(READ + 'rows = "n > 8"')
    site.deploy()
    site.run(
        "INSERT INTO orders (n) SELECT generate_series(1, 10)",
        "ALTER POLICY lambda_pg_sql_reader ON orders USING (true)",
    )
    site.deploy()
    with site.connect("reader") as reader:
        assert reader.execute("SELECT count(*) FROM orders").fetchone() == (2,)


def test_a_caller_s_table_without_row_level_security_is_told(site: Site) -> None:
    """And a view, which has its owner's rights unless it says otherwise."""
    site.add("CREATE VIEW view AS SELECT * FROM orders")
    site.declare('[caller.orders]\nverbs = ["SELECT"]\n[caller.view]\nverbs = ["SELECT"]' + READ)
    told = site.deploy().warnings
    assert any("[caller.orders]" in each and "row-level security is off" in each for each in told)
    assert any("[caller.view]" in each and "security_invoker" in each for each in told)
    assert not any("[reader.orders]" in each for each in told)


# Levels that are off


def test_a_level_that_is_switched_off_cannot_log_in(site: Site) -> None:
    """Neither user of its rotation; its group has nothing; on again, everything is as before."""
    site.declare(READ)
    site.deploy()
    reader = site.logins["reader"]
    clone = Login(f"{reader.name}_clone", PASSWORD, group=reader.group)
    with psycopg.connect(site.dsn, autocommit=True) as master:
        admit(master, clone, like=reader.name)
    site.deploy(["writer"])
    for login in (reader, clone):
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            psycopg.connect(site.dsn, user=login.name, password=login.password)
    site.connect("writer").close()
    with psycopg.connect(site.dsn) as owner:
        for right in (
            "has_table_privilege(%s, 'orders', 'SELECT')",
            "has_database_privilege(%s, current_database(), 'CONNECT')",
        ):
            row = owner.execute(f"SELECT {right}".encode(), [group_of("reader")]).fetchone()
            assert row == (False,)
        policies = owner.execute(
            "SELECT DISTINCT polname::text FROM pg_policy"
            " WHERE polrelid IN ('users'::regclass, 'notes'::regclass) ORDER BY 1"
        ).fetchall()
        assert policies == [("lambda_pg_sql_writer",), ("own_rows",)]
        left = owner.execute(
            "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_shdepend JOIN pg_database"
            " ON pg_database.oid = dbid WHERE refobjid = %s::regrole"
            " AND datname = current_database()",
            [group_of("reader")],
        )
        assert left.fetchall() == []
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(clone.name)))
    site.deploy()
    assert site.may("reader") == {"SELECT"}


def test_a_deployment_without_sql_makes_nothing(site: Site) -> None:
    """No role, no right and no warning."""
    site.declare(READ)
    with psycopg.connect(site.dsn) as owner:
        count = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'lambda_pg_sql%'"
        before = owner.execute(count).fetchone()
        assert site.deploy(()).warnings == []
        assert owner.execute(count).fetchone() == before


def test_a_deployment_that_knows_no_levels_leaves_them(site: Site) -> None:
    """As lambda_pg_tables, the fixture for tests of apps."""
    site.declare(READ)
    site.deploy()
    site.declare("")
    site.deploy(None)
    assert site.may("reader") == {"SELECT"}


# Logins


def test_a_login_of_one_level_is_not_let_into_another(site: Site) -> None:
    """Nor is the application's user."""
    site.deploy()
    for user in (site.logins["writer"].name, site.app.name):
        site.logins["reader"] = Login(user, PASSWORD, group=group_of("reader"))
        with pytest.raises(LoginError):
            site.deploy()


def test_the_second_user_of_a_rotation_has_its_group_and_nothing_else(site: Site) -> None:
    """A deployment checks it too, although the secret does not name it."""
    site.deploy()
    reader = site.logins["reader"]
    with psycopg.connect(site.dsn, autocommit=True) as master:
        admit(master, replace(reader, name=f"{reader.name}_clone"), like=reader.name)
    with site.superuser() as admin:
        admin.execute(f"GRANT lambda_pg_sql_writer TO {reader.name}_clone".encode())
    with pytest.raises(LevelLoginError, match=f"logs in as {reader.name}_clone, which has more"):
        site.deploy()


def test_a_group_in_a_level_keeps_its_own_rights(site: Site) -> None:
    """It is not a login: its members may have the rights of a level, and more."""
    site.declare(READ)
    site.deploy()
    group, person = f"group_{site.database}", f"person_{site.database}"
    with site.superuser() as admin:
        for statement in (
            f"CREATE ROLE {group}",
            f"CREATE ROLE {person} LOGIN IN ROLE {group}",
            f"GRANT lambda_pg_sql_reader TO {group}",
            f"GRANT DELETE ON orders TO {group}",
        ):
            admin.execute(statement.encode())
        site.deploy()
        right = "SELECT has_table_privilege(%s, 'orders', 'DELETE')"
        assert admin.execute(right, [person]).fetchone() == (True,)


def test_the_application_is_no_member_of_a_level(site: Site) -> None:
    """The application would have the rights of the level too."""
    site.deploy()
    with site.superuser() as admin:
        admin.execute(f"GRANT lambda_pg_sql_writer TO {site.app.name}".encode())
    with pytest.raises(UnboundLoginError, match="is the group of other logins"):
        site.deploy()


def test_another_database_of_the_server_keeps_its_levels(
    site: Site, postgres: Postgres, tmp_path: Path
) -> None:
    """Two lambda-pg on one server are refused; one without /sql disables no login."""
    site.deploy()
    with new_site(postgres, tmp_path) as other:
        with pytest.raises(NeighbourError):
            other.deploy()
        with site.superuser() as admin:
            revoke = sql.SQL("REVOKE ALL ON DATABASE {} FROM lambda_pg_app")
            admin.execute(revoke.format(sql.Identifier(site.database)))
        other.deploy(())
        with pytest.raises(NeighbourError, match="lambda_pg_sql_reader also has rights"):
            other.deploy()
    for level in LEVELS:
        site.connect(level).close()


def test_an_unknown_level_is_refused(site: Site) -> None:
    """The message lists the levels."""
    site.logins["admin"] = Login("admin", PASSWORD)
    with pytest.raises(LoginError, match="'admin'; must be one of reader, writer, caller"):
        site.deploy(["admin"])


def test_errors_are_a_migration_s() -> None:
    """The function and the tools catch them as such."""
    assert issubclass(AccessError, MigrationError)
