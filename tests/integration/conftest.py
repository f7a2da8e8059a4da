"""Real servers for the integration tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import processes
from local.pgbouncer_discovery import PgBouncerBinary, find_pgbouncer
from local.postgres import Postgres
from local.postgres_discovery import find_postgres
from tests.integration.servers import DATABASE, PoolerFixture, SecretsService

MAJOR = 17
MASTER = ("master", "canary-of-the-master")


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
    server = Postgres(
        find_postgres(MAJOR), short_folder / "pg", port=processes.free_port(), durable=False
    )
    try:
        server.start()
        server.create_master(*MASTER, DATABASE)
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
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    pooler = PoolerFixture(
        pgbouncer_binary, folder, processes.free_port(), postgres, secrets_service
    )
    yield pooler
    pooler.stop()
    for log in folder.glob("*/*.log"):
        request.node.add_report_section("teardown", f"log {log.name}", log.read_text())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pooler(new_pooler: PoolerFixture) -> PoolerFixture:
    """A fresh PgBouncer under its supervisor, verified on both hops."""
    return new_pooler.start()
