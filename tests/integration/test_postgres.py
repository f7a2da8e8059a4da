"""The local PostgreSQL: what it allows, what it refuses, and how it starts and stops."""

import os
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import find_pgbouncer, has_fixes
from lambda_pg_cdk.local.install.postgres_discovery import PostgresNotFoundError, find_postgres
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.postgres import Postgres, PostgresError
from tests.support.postgres import CopiedPostgres


def fetch(dsn: str, query: str) -> tuple[object, ...]:
    """Ask for one row."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row


def test_the_master_has_what_rds_gives_and_no_more(postgres: Postgres) -> None:
    """It creates roles and databases, owns its database, sees statistics, and is no superuser."""
    assert fetch(
        postgres.dsn,
        "SELECT rolsuper, rolcreaterole, rolcreatedb, pg_has_role('pg_monitor', 'member'), "
        "(SELECT datdba = r.oid FROM pg_database WHERE datname = current_database()) "
        "FROM pg_roles r WHERE rolname = current_user",
    ) == (False, True, True, True, True)


def test_passwords_are_closed_to_the_master(postgres: Postgres) -> None:
    """As on RDS, nobody but a superuser reads password hashes."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        fetch(postgres.dsn, "SELECT rolpassword FROM pg_authid")


def test_the_slots_are_as_asked_for(postgres: Postgres) -> None:
    """max_connections is explicit, and so are the slots that applications cannot have."""
    assert fetch(
        postgres.dsn,
        "SELECT current_setting('max_connections'), "
        "current_setting('superuser_reserved_connections')",
    ) == (str(postgres.max_connections), "3")
    if postgres.binaries.major >= 16:
        assert fetch(postgres.dsn, "SELECT current_setting('reserved_connections')") == ("2",)


def test_every_login_is_by_scram_and_tcp_needs_tls(postgres: Postgres) -> None:
    """A client without TLS is refused by name, a wrong password too."""
    assert fetch(postgres.dsn, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")[0]
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(postgres.dsn, sslmode="disable")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.dsn, password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.superuser_dsn, password="wrong")


def test_a_client_that_trusts_another_authority_refuses(postgres: Postgres, tmp_path: Path) -> None:
    """verify-full means this server's CA and nothing else."""
    other = tmp_path / "other.pem"
    other.write_text(Authority.create("other").pem)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(postgres.dsn, sslrootcert=str(other))


def test_it_listens_on_loopback_only(postgres: Postgres) -> None:
    """No other machine reaches it."""
    assert postgres.pid is not None
    listening = psutil.Process(postgres.pid).net_connections("tcp")
    assert {(each.laddr.ip, each.laddr.port) for each in listening} == {
        ("127.0.0.1", postgres.port)
    }


@pytest.fixture
def other_postgres(short_folder: Path, postgres: Postgres) -> Postgres:
    """A server of one's own, not started, that a test may stop and kill."""
    folder = short_folder / f"pg-{time.monotonic_ns() % 10**6}"
    return CopiedPostgres(postgres.binaries, folder, port=processes.free_port(), durable=False)


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_keeps_port_data_and_passwords(other_postgres: Postgres, how: str) -> None:
    """A reboot and a crash end with the same server at the same address, within seconds."""
    other_postgres.start()
    try:
        other_postgres.create_master("master", 'it\'s "odd" @/%', "app")
        with psycopg.connect(other_postgres.dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
        begin = time.monotonic()
        other_postgres.restart(how)
        assert time.monotonic() - begin < 3
        assert fetch(other_postgres.dsn, "SELECT id FROM kept") == (1,)
    finally:
        other_postgres.stop()
    assert not other_postgres.running


def test_a_new_password_of_the_master_replaces_the_old_one(other_postgres: Postgres) -> None:
    """The deployed secret decides; creating the master again is no error."""
    other_postgres.start()
    try:
        other_postgres.create_master("master", "first", "app")
        old = other_postgres.dsn
        other_postgres.create_master("master", "second", "app")
        assert fetch(other_postgres.dsn, "SELECT 1") == (1,)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(old)
    finally:
        other_postgres.stop()


def test_the_database_of_another_app_does_not_take_the_first_ones_address(
    other_postgres: Postgres,
) -> None:
    """One server carries the databases of all apps in a cloud; what people use stays the same."""
    other_postgres.start()
    try:
        other_postgres.create_master("master", "first", "app")
        first = other_postgres.dsn
        other_postgres.create_master("another", "second", "another")
        assert other_postgres.dsn == first
        assert fetch(first, "SELECT current_database()") == ("app",)
        theirs = other_postgres.dsn_of("another", "second", "another")
        assert fetch(theirs, "SELECT current_user") == ("another",)
    finally:
        other_postgres.stop()


def test_a_failing_start_shows_the_log(other_postgres: Postgres) -> None:
    """The reason is in the message, not only in a file."""
    other_postgres.parameters["shared_buffers"] = "nonsense"
    with pytest.raises(PostgresError, match='invalid value for parameter "shared_buffers"'):
        other_postgres.start()


# Each way to find servers, by force, with the real ones


def test_npms_server_starts(short_folder: Path) -> None:
    """The pinned binaries of the deployed version are complete: TLS, logins, UTF-8."""
    environment = dict(os.environ, LAMBDA_PG_POSTGRES="npm")
    server = Postgres(
        find_postgres(17, environment=environment),
        short_folder / "npm",
        port=processes.free_port(),
        durable=False,
    )
    server.start()
    try:
        server.create_master("master", "secret", "app")
        assert fetch(
            server.dsn,
            "SELECT current_setting('server_version_num')::int / 10000, "
            "current_setting('server_encoding')",
        ) == (17, "UTF8")
    finally:
        server.stop()


def test_an_installed_server_starts(short_folder: Path) -> None:
    """Whatever version the machine has serves as well, from 15 on."""
    environment = dict(os.environ, LAMBDA_PG_POSTGRES="installed")
    try:
        binaries = find_postgres(17, environment=environment, report=lambda _: None)
    except PostgresNotFoundError as error:
        pytest.skip(str(error))
    server = Postgres(
        binaries, short_folder / "installed", port=processes.free_port(), durable=False
    )
    server.start()
    try:
        server.create_master("master", "secret", "app")
        assert fetch(server.dsn, "SELECT 1") == (1,)
    finally:
        server.stop()


def test_what_was_fetched_once_is_not_fetched_again(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time needs no npm, no apt and next to no time."""
    ways = {"LAMBDA_PG_POSTGRES": "npm", "LAMBDA_PG_PGBOUNCER": "debian"}
    environment = dict(os.environ) | ways
    find_postgres(17, environment=environment)
    if Path("/etc/apt").is_dir():
        assert has_fixes(find_pgbouncer(environment=environment).version)
    monkeypatch.setenv("PATH", "")
    reports: list[str] = []
    begin = time.monotonic()
    find_postgres(17, environment=ways, report=reports.append)
    if Path("/etc/apt").is_dir():
        find_pgbouncer(environment=ways, report=reports.append)
    assert time.monotonic() - begin < 1
    assert reports == []
