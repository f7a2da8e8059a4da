"""What `/sql`'s trust levels can and cannot do, on each version, as RDS's master sets them up."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.levels import LEVELS, group_of
from tests.support.postgres import CopiedPostgres
from tests.support.sql_levels import Site, new_site

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


@pytest.fixture(scope="module")
def deployed(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with the sample's declarations, two rows, and what attacks need; tests leave it."""
    with new_site(server, tmp_path_factory.mktemp("levels")) as site:
        site.add("CREATE TABLE secrets (n int)")
        site.add("REVOKE ALL ON secrets FROM lambda_pg_app")
        site.add(
            "CREATE FUNCTION add_secret() RETURNS void LANGUAGE sql SECURITY DEFINER"
            " AS 'INSERT INTO public.secrets VALUES (1)'"
        )
        site.deploy()
        with site.superuser() as admin:
            for name in ("ada", "bob"):
                insert = "INSERT INTO users (owner, name) VALUES (%s, %s)"
                admin.execute(insert, [uuid.uuid4(), name])
        yield site


def test_smoke(deployed: Site) -> None:
    with deployed.connect("reader") as c:
        assert c.execute("select count(*) from users").fetchone() == (2,)
