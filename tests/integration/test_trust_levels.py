"""What `/sql`'s trust levels can and cannot do, on each version, as RDS's master sets them up."""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg._connection import SET_CLAIMS
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, QueryCanceled

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.levels import LEVELS, group_of
from tests.support.postgres import CopiedPostgres
from tests.support.sql_levels import SQL_TIMEOUTS, Site, new_site

pytestmark = pytest.mark.once

MASTER = ("master", "canary-of-the-master")


@pytest.fixture(scope="module", params=[15, 16, 17, 18])
def server(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Postgres]:
    """A server of one version."""
    binaries = find_postgres(request.param)
    if binaries.major != request.param:
        pytest.skip(f"there is no PostgreSQL {request.param} here")
    folder = short_folder / f"levels-{request.param}"
    server = CopiedPostgres(binaries, folder, port=processes.free_port(), durable=False)
    try:
        server.start()
        server.create_master(*MASTER, "app")
        yield server
    finally:
        server.stop()


PREPARED = """
CREATE TABLE secrets (id serial PRIMARY KEY, n int);
REVOKE ALL ON secrets FROM lambda_pg_app;
CREATE FUNCTION add_secret() RETURNS void LANGUAGE sql SECURITY DEFINER
    AS 'INSERT INTO public.secrets (n) VALUES (1)';
CREATE SCHEMA billing;
CREATE TABLE billing.invoices (id serial PRIMARY KEY, n int);
"""

DECLARED = """
[writer."billing.invoices"]
verbs = ["SELECT", "INSERT", "UPDATE", "DELETE"]
"""


@pytest.fixture(scope="module")
def deployed(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with the sample's declarations and the project's, and two rows; tests leave it."""
    with new_site(server, tmp_path_factory.mktemp("levels")) as site:
        site.add(PREPARED)
        site.declare(DECLARED)
        site.deploy()
        insert = "INSERT INTO users (owner, name) VALUES (gen_random_uuid(), '{}')"
        with site.superuser() as admin:
            for name in ("ada", "bob"):
                admin.execute(insert.format(name).encode())
        yield site


WAYS = {
    "SET TRANSACTION READ WRITE": ["SET TRANSACTION READ WRITE"],
    "COMMIT": ["COMMIT"],
    "COMMIT AND CHAIN": ["COMMIT AND CHAIN", "SET TRANSACTION READ WRITE"],
    "RESET": ["RESET transaction_read_only"],
    "set_config": ["SELECT set_config('transaction_read_only', NULL, true)"],
}
"""Ways around READ ONLY."""

WRITES = [
    "INSERT INTO users (owner, name) VALUES (gen_random_uuid(), 'eve')",
    "UPDATE users SET name = name",
    "DELETE FROM users WHERE name = 'eve'",
]


CLOSED = {"RESET", "set_config"}
"""Ways that PostgreSQL itself refuses from version 16 on."""


def go_around(connection: psycopg.Connection[Any], way: str, write: str) -> None:
    """Write in a transaction that began as READ ONLY."""
    for statement in ["BEGIN READ ONLY", *WAYS[way], write]:
        connection.execute(statement.encode())


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_does_not_write_around_read_only(deployed: Site, way: str) -> None:
    """The right is missing, whatever the transaction says. A writer gets through (the control)."""
    with (
        deployed.connect("reader", autocommit=True) as reader,
        deployed.connect("writer", autocommit=True) as writer,
    ):
        for write in WRITES:
            if way in CLOSED and reader.info.server_version >= 160000:
                with pytest.raises(FeatureNotSupported, match="cannot be reset"):
                    go_around(reader, way, write)
                reader.execute("ROLLBACK")
                continue
            with pytest.raises(InsufficientPrivilege, match="denied for table users"):
                go_around(reader, way, write)
            reader.execute("ROLLBACK")
            go_around(writer, way, write)
            writer.execute("ROLLBACK")
            writer.execute("DELETE FROM users WHERE name = 'eve'")


FORBIDDEN = {
    "a temporary table": "CREATE TEMP TABLE mine (n int)",
    "a temporary table by SELECT": "SELECT 1 AS n INTO TEMP mine",
    "a temporary view": "CREATE TEMP VIEW mine AS SELECT 1",
    "a temporary function": "CREATE FUNCTION pg_temp.mine() RETURNS int RETURN 1",
    "a table": "CREATE TABLE mine (n int)",
    "a function": "CREATE FUNCTION public.mine() RETURNS int RETURN 1",
    "a type": "CREATE TYPE public.mine AS (n int)",
    "a schema": "CREATE SCHEMA mine",
    "a role": "CREATE ROLE mine",
    "an extension": "CREATE EXTENSION file_fdw",
    "another table": "SELECT * FROM secrets",
    "another schema": "SELECT * FROM billing.invoices",
    "a sequence": "SELECT nextval('secrets_id_seq')",
    "a lock of rows": "SELECT * FROM users FOR UPDATE",
    "a lock of the table": "BEGIN; LOCK TABLE users IN EXCLUSIVE MODE",
    "a truncation": "TRUNCATE users",
    "a SECURITY DEFINER function": "SELECT add_secret()",
    "the writer's group": "SET ROLE lambda_pg_sql_writer",
    "the caller's group": "SET ROLE lambda_pg_sql_caller",
    "the application's group": "SET ROLE lambda_pg_app",
    "the owner": "SET ROLE master",
    "another session user": "SET SESSION AUTHORIZATION master",
    "a policy": "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
    "a file": "SELECT pg_read_file('/etc/hostname')",
    "a program": "COPY users TO PROGRAM 'cat'",
    "a column": "COMMENT ON COLUMN users.name IS 'mine'",
    "another role's defaults": "ALTER ROLE lambda_pg_app SET work_mem = '1GB'",
    "its own limit": "ALTER ROLE CURRENT_USER CONNECTION LIMIT 100",
    "its own powers": "ALTER ROLE CURRENT_USER CREATEROLE",
    "another backend": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE usename = 'master'",
}


def test_a_reader_does_nothing_but_read_what_is_declared(
    deployed: Site, subtests: pytest.Subtests
) -> None:
    """Everything else is refused by PostgreSQL itself."""
    with (
        psycopg.connect(deployed.dsn) as _,  # the owner's backend, which one attack is about
        deployed.connect("reader", autocommit=True) as reader,
    ):
        for attack, statement in FORBIDDEN.items():
            with subtests.test(attack):
                assert reader.execute("SELECT count(*) FROM users").fetchone() == (2,)
                with pytest.raises(InsufficientPrivilege):
                    reader.execute(statement.encode())
            reader.execute("ROLLBACK")  # one attack begins a transaction


def test_levels_are_members_of_their_own_group_only(deployed: Site) -> None:
    """No level can become another one, nor the application."""
    for level in LEVELS:
        with deployed.connect(level, autocommit=True) as connection:
            row = connection.execute(
                "SELECT array_agg(rolname::text) FROM pg_roles"
                " WHERE pg_has_role(oid, 'MEMBER') AND rolname <> current_user"
            ).fetchone()
            assert row == ([group_of(level)],)


def test_a_writer_has_its_verbs_and_the_sequence(deployed: Site) -> None:
    """And neither TRUNCATE nor another table."""
    with deployed.connect("writer", autocommit=True) as writer:
        writer.execute("INSERT INTO billing.invoices (n) VALUES (1)")
        writer.execute("UPDATE billing.invoices SET n = 2")
        assert writer.execute("SELECT n FROM billing.invoices").fetchone() == (2,)
        writer.execute("DELETE FROM billing.invoices")
        for statement in (
            "TRUNCATE billing.invoices",
            "SELECT setval('billing.invoices_id_seq', 1)",
            "SELECT * FROM secrets",
            "SELECT add_secret()",
            "CREATE TEMP TABLE mine (n int)",
        ):
            with pytest.raises(InsufficientPrivilege):
                writer.execute(statement)


def test_a_caller_reaches_its_own_rows_only(deployed: Site) -> None:
    """By the claims of the transaction; without them it sees nothing."""
    mine = uuid.uuid4()
    with deployed.connect("caller") as caller:
        assert caller.execute("SELECT count(*) FROM users").fetchone() == (0,)
        caller.execute(SET_CLAIMS.replace(b"$1", b"%s"), [json.dumps({"sub": str(mine)})])
        caller.execute("INSERT INTO users (name) VALUES ('me')")
        assert caller.execute("SELECT name FROM users").fetchall() == [("me",)]
        with pytest.raises(InsufficientPrivilege, match="row-level security"):
            caller.execute("INSERT INTO users (owner, name) VALUES (%s, 'other')", [uuid.uuid4()])


@pytest.mark.parametrize("level", LEVELS)
def test_no_level_reaches_the_answers_of_functions(deployed: Site, level: str) -> None:
    """Neither the table of idempotency keys nor the function that claims one."""
    claims = [json.dumps({"sub": str(uuid.uuid4())})]
    with deployed.connect(level, autocommit=True) as connection:
        for statement, what in {
            "SELECT FROM idempotency_keys": "table",
            "DELETE FROM idempotency_keys": "table",
            "UPDATE idempotency_keys SET expires_at = now()": "table",
            "INSERT INTO idempotency_keys (owner) VALUES (current_subject())": "table",
            "SELECT claim_idempotency_key(gen_random_uuid(), '', 1, false)": "function",
            "SELECT store_idempotent_answer(NULL, '', '', 1::int2, '{}', '')": "function",
        }.items():
            with connection.transaction(force_rollback=True):
                connection.execute(SET_CLAIMS.replace(b"$1", b"%s"), claims)
                denied = f"permission denied for {what}"
                with pytest.raises(InsufficientPrivilege, match=denied), connection.transaction():
                    connection.execute(statement.encode())


def test_each_login_has_timeouts_and_a_limit_of_connections(deployed: Site) -> None:
    """Defaults of the session, which it can change; the limit it cannot."""
    with deployed.connect("reader", autocommit=True) as reader:
        for name, value in {
            "statement_timeout": "5s",
            "lock_timeout": "1s",
            "idle_in_transaction_session_timeout": "3s",
            "client_connection_check_interval": "100ms",
        }.items():
            assert reader.execute(f"SHOW {name}".encode()).fetchone() == (value,)
        shown = reader.execute("SELECT current_setting('transaction_timeout', true)").fetchone()
        assert shown == ("6s" if reader.info.server_version >= 170000 else None,)
        limit = "SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user"
        assert reader.execute(limit).fetchone() == (5,)
        reader.execute("SET statement_timeout = 0")
        assert reader.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_a_statement_ends_at_the_level_s_timeout(deployed: Site) -> None:
    """Where the session has left it as it is."""
    deployed.deploy(timeouts=replace(SQL_TIMEOUTS, statement=1))
    try:
        with deployed.connect("reader") as reader:
            assert reader.execute("SHOW statement_timeout").fetchone() == ("1s",)
            with pytest.raises(QueryCanceled):
                reader.execute("SELECT pg_sleep(60)")
    finally:
        deployed.deploy()


def test_more_connections_than_the_limit_are_refused(deployed: Site) -> None:
    """So a level leaves the others their places."""
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(deployed.connect("reader"))
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            deployed.connect("reader")
        deployed.connect("writer").close()


def test_a_reader_sees_no_statement_of_another_role(deployed: Site) -> None:
    """It sees those of the same level, whose callers share the login."""
    with (
        deployed.connect("writer") as writer,
        deployed.connect("reader") as other,
        deployed.connect("reader") as reader,
    ):
        writer.execute("SELECT 'of the writer'")
        other.execute("SELECT 'of a reader'")
        rows = reader.execute(
            "SELECT usename::text, query FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND usename LIKE %s",
            [f"%{deployed.database}"],
        )
        assert dict(rows.fetchall()) == {
            deployed.logins["writer"].name: "<insufficient privilege>",
            deployed.logins["reader"].name: "SELECT 'of a reader'",
        }


# What PostgreSQL lets every role do


def test_large_objects_are_told_and_a_superuser_can_close_them(deployed: Site) -> None:
    """RDS's master cannot revoke them from PUBLIC: the migration counts what was written."""
    with deployed.connect("reader", autocommit=True) as reader:
        reader.execute("BEGIN READ ONLY")
        reader.execute("SET TRANSACTION READ WRITE")
        written = reader.execute("SELECT lo_from_bytea(0, 'eve')").fetchone()
        assert written is not None
        reader.execute("COMMIT")
    try:
        told = [each for each in deployed.deploy().warnings if "large objects" in each]
        assert len(told) == 1
        assert deployed.logins["reader"].name in told[0]
    finally:
        with deployed.connect("reader", autocommit=True) as reader:
            reader.execute("SELECT lo_unlink(%s)", written)
    assert not [each for each in deployed.deploy().warnings if "large objects" in each]
    functions = documented_large_object_functions()
    with deployed.superuser() as admin, deployed.connect("reader", autocommit=True) as reader:
        admin.execute(f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC".encode())
        try:
            for statement in (
                "SELECT lo_from_bytea(0, 'eve')",
                "SELECT lo_creat(-1)",
                "SELECT lo_create(0)",
                "SELECT lo_put(1, 0, 'eve')",
                "SELECT lo_unlink(1)",
            ):
                with pytest.raises(InsufficientPrivilege, match="permission denied for function"):
                    reader.execute(statement)
        finally:
            admin.execute(f"GRANT EXECUTE ON FUNCTION {functions} TO PUBLIC".encode())


def documented_large_object_functions() -> str:
    """Take the functions from the statement that the documentation gives a superuser."""
    page = (PROJECT / "docs" / "operations.md").read_text()
    found = re.search(r"REVOKE EXECUTE ON FUNCTION (lo_creat.*?) FROM PUBLIC", page, re.DOTALL)
    assert found is not None
    return found[1]


def test_what_a_login_has_changed_of_itself_is_put_right(
    deployed: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL lets each role set its password and its defaults: a deployment sets them again."""
    changes = (
        "ALTER ROLE CURRENT_USER SET statement_timeout = 0",
        f"ALTER ROLE CURRENT_USER IN DATABASE {deployed.database} SET statement_timeout = 0",
        f"ALTER ROLE CURRENT_USER IN DATABASE {deployed.database} SET search_path = eve",
        "ALTER ROLE CURRENT_USER SET row_security = off",
        "ALTER ROLE CURRENT_USER PASSWORD 'eve'",
    )
    with deployed.connect("reader", autocommit=True) as reader:
        for change in changes:
            reader.execute(change.encode())
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        deployed.connect("reader")
    deployed.deploy()
    with deployed.connect("reader") as reader:
        assert reader.execute("SHOW statement_timeout").fetchone() == ("5s",)
        assert reader.execute("SHOW row_security").fetchone() == ("on",)
        assert reader.execute("SELECT count(*) FROM users").fetchone() == (2,)
    assert "row_security, search_path" in caplog.text


FOR_ITS_GROUP = [
    "SET ROLE lambda_pg_sql_reader",
    "SELECT lo_create(4242)",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "REVOKE SELECT ON users FROM lambda_pg_sql_reader",
]
"""What PostgreSQL lets a member do for its group; the last one is a warning, and has no effect."""


def rights(site: Site) -> tuple[bool, list[str]]:
    """Tell whether readers may select, and list all policies of the table."""
    with site.superuser() as admin:
        row = admin.execute(
            "SELECT has_table_privilege('lambda_pg_sql_reader', 'users', 'SELECT'),"
            " array_agg(policyname::text ORDER BY policyname) FROM pg_policies"
            " WHERE tablename = 'users'"
        ).fetchone()
    assert row is not None
    return bool(row[0]), list(row[1])


def test_what_a_reader_makes_for_its_group_does_not_stop_a_deployment(deployed: Site) -> None:
    """Large objects and default privileges: no policy depends on them."""
    before = rights(deployed)
    with deployed.connect("reader", autocommit=True) as reader:
        for statement in FOR_ITS_GROUP:
            reader.execute(statement.encode())
        try:
            told = deployed.deploy().warnings
        finally:
            reader.execute("SELECT lo_unlink(4242)")
            reader.execute("ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM PUBLIC")
    assert rights(deployed) == before
    assert len([each for each in told if "role lambda_pg_sql_reader has 1 large" in each]) == 1


def test_a_reader_can_drop_its_own_policies_and_sees_less(deployed: Site) -> None:
    """A deployment creates them again, and warns of restrictive ones."""
    before = rights(deployed)
    mine = "lambda_pg_sql_reader"
    with deployed.superuser() as admin, deployed.connect("reader", autocommit=True) as reader:
        admin.execute(
            f"CREATE POLICY hidden ON users AS RESTRICTIVE TO {mine} USING (false)".encode()
        )
        told = [each for each in deployed.deploy().warnings if "restrictive policy" in each]
        assert len(told) == 1
        assert "hidden on users" in told[0]
        reader.execute(f"DROP OWNED BY {mine}".encode())
        assert rights(deployed) == (True, [name for name in before[1] if name != mine])
        assert reader.execute("SELECT count(*) FROM users").fetchone() == (0,)
        assert not [each for each in deployed.deploy().warnings if "restrictive" in each]
        assert rights(deployed) == before
        assert reader.execute("SELECT count(*) FROM users").fetchone() == (2,)


def test_advisory_locks_remain(deployed: Site) -> None:
    """PUBLIC has them, too; the end of a request's flight releases them."""
    with deployed.connect("reader") as reader:
        assert reader.execute("SELECT pg_try_advisory_lock(1)").fetchone() == (True,)
