"""Real servers for the integration tests."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg import Database, Settings
from lambda_pg._login import Configure
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary, find_pgbouncer
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.clocks import Clock
from tests.support.control_plane import ControlPlane
from tests.support.keyed import Keyed, keyed_database
from tests.support.layer import APPLICATION, PASSWORD, Admin, Open
from tests.support.postgres import CopiedPostgres
from tests.support.servers import (
    DATABASE,
    MAJOR,
    MASTER,
    PoolerFixture,
    SecretsService,
    change_password,
    hash_once,
    pooler_in_tmp,
)
from tests.support.switchover import Pair, running_pair


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a short path, for sockets, that servers of another account can enter."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(short_folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL server with TLS and a CA of its own; `.dsn` is its master user's.

    It is not durable: nothing here asks whether data survives a crash of the machine.
    """
    server = CopiedPostgres(
        find_postgres(MAJOR), short_folder / "pg", port=processes.free_port(), durable=False
    )
    try:
        server.start()
        server.create_master(*MASTER, DATABASE)
        change_password(server, *MASTER)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def secrets_service() -> Iterator[SecretsService]:
    """Secrets Manager, at an address of its own."""
    service = SecretsService()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def pgbouncer_binary() -> PgBouncerBinary:
    """The PgBouncer that local mode would use."""
    return find_pgbouncer()


@pytest.fixture
def new_pooler(
    request: pytest.FixtureRequest,
    postgres: Postgres,
    secrets_service: SecretsService,
    pgbouncer_binary: PgBouncerBinary,
) -> Iterator[PoolerFixture]:
    """A pooler with a login and a certificate of its own that is not started yet."""
    with pooler_in_tmp(pgbouncer_binary, postgres, secrets_service) as pooler:
        yield pooler
        pooler.stop()
        report_logs(request, pooler)


def report_logs(request: pytest.FixtureRequest, pooler: PoolerFixture) -> None:
    """Show the logs of a pooler beside a test that fails."""
    for log in pooler.folder.parent.glob("*/*.log"):
        request.node.add_report_section(
            "teardown", f"log {log.name}", log.read_text(errors="replace")
        )


@pytest.fixture
def pooler(new_pooler: PoolerFixture) -> PoolerFixture:
    """A fresh PgBouncer under its supervisor, verified on both hops."""
    return new_pooler.start()


@pytest.fixture(scope="module")
def module_pooler(
    postgres: Postgres, secrets_service: SecretsService, pgbouncer_binary: PgBouncerBinary
) -> Iterator[PoolerFixture]:
    """A pooler for the tests of a module that leave it as it is; a start takes half a second."""
    with pooler_in_tmp(pgbouncer_binary, postgres, secrets_service) as pooler:
        yield pooler.start()


@pytest.fixture
def kept_pooler(
    request: pytest.FixtureRequest, module_pooler: PoolerFixture
) -> Iterator[PoolerFixture]:
    """The module's pooler, with server connections on which nobody has left anything yet."""
    if module_pooler.process.running:
        module_pooler.renew()
    else:  # a test has failed before it started the pooler again
        module_pooler.start()
    yield module_pooler
    report_logs(request, module_pooler)


@pytest.fixture
def admin(postgres: Postgres) -> Iterator[Admin]:
    """A superuser's connection, for looking and for killing; one table for the test's rows."""
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as connection:
        hash_once(connection)
        connection.execute(f"CREATE ROLE layer_test LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE TABLE counter (n int)")
        connection.execute("GRANT ALL ON counter TO layer_test")
        yield connection
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE counter")
        connection.execute("DROP ROLE layer_test")


@pytest.fixture
def settings(postgres: Postgres, admin: Admin) -> Settings:
    """Where the server is, as a URL would say it."""
    return Settings(
        host="127.0.0.1",
        port=postgres.port,
        dbname="postgres",
        user="layer_test",
        password=PASSWORD,
        sslrootcert=postgres.ca_file,
        application_name=APPLICATION,
    )


@pytest.fixture
def open_database(settings: Settings) -> Iterator[Open]:
    """Make databases with other settings than the defaults; they are closed at the end."""
    with ExitStack() as opened:

        def make(*, configure: Configure | None = None, **changes: Any) -> Database[TupleRow]:
            database = Database(replace(settings, **changes), configure=configure)
            opened.callback(database.close)
            return database

        yield make


@pytest.fixture
def db(open_database: Open) -> Database[TupleRow]:
    """A database with the defaults of the layer."""
    return open_database()


@pytest.fixture(scope="module")
def deployed_keyed(
    postgres: Postgres, secrets_service: SecretsService, pgbouncer_binary: PgBouncerBinary
) -> Iterator[Keyed]:
    """A deployed database behind a pooler with two server connections."""
    with keyed_database(postgres, secrets_service, pgbouncer_binary, server_connections=2) as made:
        yield made


@pytest.fixture
def keyed(deployed_keyed: Keyed) -> Iterator[Keyed]:
    """The same for a caller that has no row yet; what a test opens there is closed."""
    deployed_keyed.subject = uuid.uuid4()
    yield deployed_keyed
    deployed_keyed.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the wall's for new connections, and for the databases that it governs."""
    clock = Clock()
    monkeypatch.setattr("lambda_pg._login.time", clock)
    return clock


@pytest.fixture
def secrets_environment(secrets_service: SecretsService, monkeypatch: pytest.MonkeyPatch) -> None:
    """What leads the layer to the test's Secrets Manager."""
    for name, value in secrets_service.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def server_pair() -> Iterator[Pair]:
    """Two servers for all tests: each test leaves one of them the primary, with a standby."""
    with running_pair() as pair:
        yield pair


@pytest.fixture
def pair(server_pair: Pair) -> Pair:
    """The servers without a row; the address leads to the primary."""
    server_pair.move_address()
    with server_pair.superuser(server_pair.primary) as admin:
        admin.execute("TRUNCATE counter")
    return server_pair


@pytest.fixture(scope="session")
def running_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for all tests."""
    plane = ControlPlane(tmp_path_factory.mktemp("plane"))
    yield plane
    plane.close()


@pytest.fixture
def plane(running_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane, with nothing noted yet; its stacks end with the test."""
    running_plane.daemon.reset()
    yield running_plane
    for stack in running_plane.inventory().stacks():
        running_plane.delete(stack)
