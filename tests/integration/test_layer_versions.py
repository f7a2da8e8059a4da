"""The layer's verbs on each supported version of PostgreSQL, and the refusal of an older one."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg import ConfigurationError, Database, Settings
from lambda_pg._connector import OLDEST_SERVER
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import PASSWORD
from tests.support.postgres import CopiedPostgres

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


@pytest.mark.parametrize("server", [OLDEST_SERVER - 1], indirect=True)
def test_an_older_server_is_refused_by_its_version(db: Database[TupleRow]) -> None:
    """Before any statement; the connection is closed and its slot is free."""
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"PostgreSQL 12\.\d+; lambda_pg needs 13"):
            db.execute("SELECT 1")
    assert db.stats()["pool_size"] == 0
