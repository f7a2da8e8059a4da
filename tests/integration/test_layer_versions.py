"""The layer's verbs on each supported version of PostgreSQL, and the refusal of an older one."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg import ConfigurationError, Database, Settings
from lambda_pg._connector import OLDEST_SERVER
from lambda_pg._profiles import ProfileName
from lambda_pg.text import Limits, Statement
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import PASSWORD
from tests.support.postgres import CopiedPostgres

LIMITS = Limits(rows=1000, bytes=1_000_000)
CLAIMS = "SELECT current_setting('request.jwt.claims')::jsonb->>'sub'"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Postgres]:
    """A server of one version."""
    binaries = find_postgres(request.param)
    if binaries.major != request.param < 15:
        pytest.skip(f"PostgreSQL {request.param} is pinned for Linux on x86_64 only")
    assert binaries.major == request.param
    folder = short_folder / f"version-{request.param}"
    server = CopiedPostgres(binaries, folder, port=processes.free_port(), durable=False)
    try:
        server.start()
        with psycopg.connect(server.superuser_dsn, autocommit=True) as admin:
            admin.execute(f"CREATE ROLE layer_test LOGIN PASSWORD '{PASSWORD}'")
            admin.execute("CREATE TABLE counter (n int)")
            admin.execute("GRANT ALL ON counter TO layer_test")
        yield server
    finally:
        server.stop()


@pytest.fixture
def db(server: Postgres) -> Iterator[Database[TupleRow]]:
    """The layer there."""
    settings = Settings(
        host="127.0.0.1",
        port=server.port,
        dbname="postgres",
        user="layer_test",
        password=PASSWORD,
        sslrootcert=server.ca_file,
    )
    with closing(Database(settings)) as db:
        yield db


def insert(connection: psycopg.Connection[Any]) -> None:
    """Write as a unit of work."""
    connection.execute("INSERT INTO counter VALUES (1)")


@pytest.mark.parametrize("server", range(OLDEST_SERVER, 19), indirect=True)
def test_every_verb_on_every_version(db: Database[TupleRow]) -> None:
    """Statements, claims, transactions with the id of what they wrote."""
    assert db.execute("SELECT 1").fetchone() == (1,)
    assert db.execute(CLAIMS, claims={"sub": "a"}).fetchone() == ("a",)
    db.run_transaction(insert)
    with db.transaction() as connection:
        insert(connection)
    with db.connection() as lent:
        lent.cursor().executemany("INSERT INTO counter VALUES (%s)", [(2,), (3,)])
    assert db.execute("SELECT count(*) FROM counter").fetchone() == (4,)


LEFT = [
    *("SET lock_timeout = 7777", "SET LOCAL lock_timeout TO DEFAULT", "SET search_path = pg_temp"),
    *("CREATE TEMP TABLE mine (n int)", "LISTEN news", "PREPARE mine AS SELECT 1"),
    *("DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "SELECT pg_advisory_lock(7)"),
]
THERE = """SELECT current_setting('lock_timeout'), to_regclass('pg_temp.mine'),
 current_setting('search_path'), (SELECT count(*) FROM pg_listening_channels()),
 (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors WHERE is_holdable),
 (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
 pg_backend_pid()::text"""


@pytest.mark.parametrize("server", range(OLDEST_SERVER, 19), indirect=True)
@pytest.mark.parametrize("profile", ["direct", "pgbouncer"])
def test_no_state_of_foreign_statements_stays_on_any_version(
    db: Database[TupleRow], profile: ProfileName
) -> None:
    """By either way to end it, after a success and after an error."""
    with closing(Database(replace(db._settings, profile=profile))) as other:
        process = other.execute("SELECT pg_backend_pid()::text").fetchone()
        assert process is not None
        clean = ("0", None, '"$user", public', 0, 0, 0, 0, *process)
        assert other.execute(THERE).fetchone() == clean
        statements = [Statement(each) for each in [*LEFT, "SELECT pg_backend_pid()"]]
        (*_, last) = other.run_text(statements, limits=LIMITS)
        assert last.rows == [process]
        assert other.execute(THERE).fetchone() == clean
        with pytest.raises(psycopg.errors.DivisionByZero):
            other.run_text([*statements, Statement("SELECT 1/0")], limits=LIMITS)
        assert other.execute(THERE).fetchone() == clean
        (written,) = other.run_text([Statement("INSERT INTO counter VALUES (1)")], limits=LIMITS)
        assert written.tag == "INSERT 0 1"


@pytest.mark.parametrize("server", [OLDEST_SERVER - 1], indirect=True)
def test_an_older_server_is_refused_by_its_version(db: Database[TupleRow]) -> None:
    """Before any statement; the connection is closed and its slot is free."""
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"PostgreSQL 12\.\d+; lambda_pg needs 13"):
            db.execute("SELECT 1")
    assert db.stats()["pool_size"] == 0
