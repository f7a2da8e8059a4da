"""What the console reads from real servers."""

import threading
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest

from lambda_pg_cdk.console.readers import Database, PoolerTask
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import (
    ADMINISTRATOR_RESERVED,
    SUPERUSER_RESERVED,
    Postgres,
)
from tests.support.postgres import CopiedPostgres
from tests.support.servers import MAJOR, PoolerFixture

MOST = 12


@pytest.fixture
def small(short_folder: Path) -> Postgres:
    """A server of the test's own that is soon full, and not started yet."""
    return CopiedPostgres(
        find_postgres(MAJOR),
        short_folder / "small",
        port=processes.free_port(),
        max_connections=MOST,
        durable=False,
    )


def test_it_counts_backends_but_not_itself_also_when_the_server_is_full(small: Postgres) -> None:
    """And goes on after the server has been away."""
    with closing(Database(small.folder, small.port)) as reader, ExitStack() as others:
        small.start()
        try:
            small.create_master("master", "secret", "app")
            none = {"total": 0, "active": 0}
            processes.wait_until(lambda: reader.read() == none, 10, "only the console is there")
            count = fill(small, others)
            own = 1
            assert count == MOST - SUPERUSER_RESERVED - ADMINISTRATOR_RESERVED - own
            assert reader.read()["total"] == count
            reader.close()
            assert reader.read()["total"] == count, "a full server lets it in anew"
            small.restart()
            with pytest.raises(psycopg.OperationalError):
                reader.read()
            assert reader.read() == {"total": 0, "active": 0}
        finally:
            small.stop()


def fill(server: Postgres, opened: ExitStack) -> int:
    """Connect as the master user until there is no slot left; return how many there were."""
    for count in range(MOST):
        try:
            connection = psycopg.connect(server.dsn)
        except psycopg.OperationalError:
            return count
        opened.callback(connection.close)
    raise AssertionError("the server never was full")


def test_it_sees_lent_and_free_connections_and_the_queue(new_pooler: PoolerFixture) -> None:
    """With one server connection the second client waits."""
    new_pooler.start(DEFAULT_POOL_SIZE="1", MAX_DB_CONNECTIONS="1", QUERY_WAIT_TIMEOUT="5")
    with (
        closing(PoolerTask(new_pooler.process.admin_dsn)) as reader,
        new_pooler.connect() as first,
        new_pooler.connect() as second,
    ):
        first.execute("SELECT 1")
        quiet = reader.read()
        assert (quiet["cl_waiting"], quiet["sv_active"], quiet["sv_free"]) == (0, 0, 1)
        assert quiet["max_client_conn"] == 2000
        with first.transaction():
            first.execute("SELECT 1")
            waiting = threading.Thread(target=second.execute, args=("SELECT 1",))
            waiting.start()
            processes.wait_until(lambda: reader.read()["longest_wait"] > 0.05, 10, "a client waits")
            found = reader.read()
        waiting.join()
    assert (found["cl_active"], found["cl_waiting"]) == (1, 1)
    assert (found["sv_active"], found["sv_free"]) == (1, 0)
