"""What breaks when a session is shared: each row of the table in docs/pooling.md, shown.

Each test shows that a thing works on a connection of one's own, and what becomes of it through
PgBouncer in transaction mode: it works, or it gets lost, or the next client inherits it.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg import sql

from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.servers import DATABASE, PoolerFixture, SecretsService, pooler_in_tmp
from tests.support.waiting import wait_until

Client = psycopg.Connection[Any]


@dataclass
class Endpoint:
    """An address to connect to; its clients leave at the end of the test."""

    dsn: str = field(repr=False)
    clients: ExitStack

    def connect(self, options: str = "") -> Client:
        """Connect a client in autocommit that prepares nothing of itself."""
        client = psycopg.connect(
            self.dsn, autocommit=True, prepare_threshold=None, connect_timeout=10, options=options
        )
        return self.clients.enter_context(client)

    def pair(self) -> tuple[Client, Client]:
        """Connect two clients; through the pooler the second runs where the first ran last."""
        return self.connect(), self.connect()


@contextmanager
def elsewhere(other: Client) -> Iterator[None]:
    """Let `other` hold the server connection used last: whoever comes now gets another."""
    with other.transaction():
        other.execute("SELECT 1")
        yield


def value(client: Client, query: str) -> Any:
    """Return the one value of a query."""
    row = client.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(scope="module")
def shared_pooler(
    postgres: Postgres, secrets_service: SecretsService, pgbouncer_binary: PgBouncerBinary
) -> Iterator[PoolerFixture]:
    """A pooler in transaction mode with two server connections, and a login of its own."""
    with pooler_in_tmp(pgbouncer_binary, postgres, secrets_service) as pooler:
        yield pooler.start(DEFAULT_POOL_SIZE="2", MAX_DB_CONNECTIONS="2")


@pytest.fixture
def direct(shared_pooler: PoolerFixture) -> Iterator[Endpoint]:
    """The database itself."""
    login = shared_pooler.login
    with ExitStack() as clients:
        dsn = shared_pooler.postgres.dsn_of(login.name, login.password, DATABASE)
        yield Endpoint(dsn, clients)


@pytest.fixture
def pooled(shared_pooler: PoolerFixture) -> Iterator[Endpoint]:
    """The pooler, with server connections on which nobody has left anything yet."""
    shared_pooler.renew()
    with ExitStack() as clients:
        yield Endpoint(shared_pooler.dsn(), clients)


@pytest.fixture
def admin(shared_pooler: PoolerFixture) -> Iterator[Client]:
    """A superuser in the database of the tests."""
    dsn = psycopg.conninfo.make_conninfo(shared_pooler.postgres.superuser_dsn, dbname=DATABASE)
    with psycopg.connect(dsn, autocommit=True) as client:
        yield client


TIMEOUT = "SELECT current_setting('statement_timeout')"
TENANT = "SELECT current_setting('app.tenant', true)"


def test_set(direct: Endpoint, pooled: Endpoint) -> None:
    """SET stays with a session; through the pooler it gets lost, and the next client has it."""
    one, other = direct.pair()
    one.execute("SET statement_timeout = '7s'")
    assert (value(one, TIMEOUT), value(other, TIMEOUT)) == ("7s", "0")

    one, other = pooled.pair()
    one.execute("SET statement_timeout = '7s'")
    assert value(other, TIMEOUT) == "7s"
    with elsewhere(other):
        assert value(one, TIMEOUT) == "0"


def test_set_local(direct: Endpoint, pooled: Endpoint) -> None:
    """SET LOCAL ends with its transaction, wherever that runs."""
    for endpoint in (direct, pooled):
        one, other = endpoint.pair()
        with one.transaction():
            one.execute("SET LOCAL statement_timeout = '7s'")
            assert value(one, TIMEOUT) == "7s"
        assert (value(one, TIMEOUT), value(other, TIMEOUT)) == ("0", "0")


def test_reset(direct: Endpoint, pooled: Endpoint) -> None:
    """RESET and DISCARD clean a session; through the pooler they clean another one."""
    one, _ = direct.pair()
    one.execute("SET statement_timeout = '7s'")
    one.execute("RESET ALL")
    assert value(one, TIMEOUT) == "0"

    one, other = pooled.pair()
    one.execute("SET statement_timeout = '7s'")
    with elsewhere(other):
        one.execute("DISCARD ALL")
    assert value(other, TIMEOUT) == "7s"


def test_set_config(direct: Endpoint, pooled: Endpoint) -> None:
    """set_config(…, false) is SET: who comes next is taken for the same tenant."""
    one, other = direct.pair()
    one.execute("SELECT set_config('app.tenant', 'one', false)")
    assert (value(one, TENANT), value(other, TENANT)) == ("one", None)

    one, other = pooled.pair()
    one.execute("SELECT set_config('app.tenant', 'one', false)")
    assert value(other, TENANT) == "one"
    with elsewhere(other):
        assert value(one, TENANT) is None


def test_set_config_local(direct: Endpoint, pooled: Endpoint) -> None:
    """set_config(…, true) ends with its transaction; the value then is empty, not absent."""
    for endpoint in (direct, pooled):
        one, other = endpoint.pair()
        with one.transaction():
            one.execute("SELECT set_config('app.tenant', 'one', true)")
            assert value(one, TENANT) == "one"
        assert value(one, TENANT) == ""
        assert not value(other, TENANT)


def test_listen(direct: Endpoint, pooled: Endpoint, admin: Client) -> None:
    """LISTEN hears; through the pooler it hears nothing, and another client does."""
    one, _ = direct.pair()
    one.execute("LISTEN news")
    admin.execute("NOTIFY news, 'direct'")
    assert [notify.payload for notify in one.notifies(timeout=5, stop_after=1)] == ["direct"]

    one, other = pooled.pair()
    heard: dict[str, list[str]] = {"one": [], "other": []}
    one.add_notify_handler(lambda notify: heard["one"].append(notify.payload))
    other.add_notify_handler(lambda notify: heard["other"].append(notify.payload))
    one.execute("LISTEN news")
    with elsewhere(other):
        admin.execute("NOTIFY news, 'pooled'")
        one.execute("SELECT 1")
    other.execute("SELECT 1")
    assert heard == {"one": [], "other": ["pooled"]}


def test_notify(direct: Endpoint, pooled: Endpoint) -> None:
    """NOTIFY needs no session: it reaches who listens on a connection of its own."""
    for endpoint in (direct, pooled):
        listener, sender = direct.connect(), endpoint.connect()
        listener.execute("LISTEN news")
        sender.execute("SELECT pg_notify('news', 'hello')")
        assert [notify.payload for notify in listener.notifies(timeout=5, stop_after=1)] == [
            "hello"
        ]


def test_sql_prepare(direct: Endpoint, pooled: Endpoint) -> None:
    """PREPARE in SQL is lost on the way to EXECUTE, and its name is taken for the next client."""
    one, other = direct.pair()
    for client in (one, other):
        client.execute("PREPARE plan AS SELECT 1")
        assert value(client, "EXECUTE plan") == 1

    one, other = pooled.pair()
    one.execute("PREPARE plan AS SELECT 1")
    with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
        other.execute("PREPARE plan AS SELECT 2")
    assert value(other, "EXECUTE plan") == 1
    with elsewhere(other), pytest.raises(psycopg.errors.InvalidSqlStatementName):
        one.execute("EXECUTE plan")


def test_protocol_prepare(direct: Endpoint, pooled: Endpoint) -> None:
    """Statements prepared by the protocol follow their client: the pooler keeps count of them."""
    for endpoint in (direct, pooled):
        one, other = endpoint.pair()
        for _ in range(3):
            assert one.execute("SELECT 'one' || %s", ["!"], prepare=True).fetchone() == ("one!",)
            assert other.execute("SELECT 'other' || %s", ["!"], prepare=True).fetchone() == (
                "other!",
            )
        with elsewhere(other):
            assert one.execute("SELECT 'one' || %s", ["?"], prepare=True).fetchone() == ("one?",)


def test_cursor_with_hold(direct: Endpoint, pooled: Endpoint) -> None:
    """A cursor that outlives its transaction stays behind, open to whoever comes next."""
    declare = "DECLARE rows CURSOR WITH HOLD FOR SELECT generate_series(1, 3)"
    one, other = direct.pair()
    one.execute(declare)
    assert value(one, "FETCH rows") == 1

    one, other = pooled.pair()
    one.execute(declare)
    assert value(other, "FETCH rows") == 1
    with elsewhere(other), pytest.raises(psycopg.errors.InvalidCursorName):
        one.execute("FETCH rows")


def test_named_cursor(direct: Endpoint, pooled: Endpoint) -> None:
    """A cursor inside one transaction has one server connection, and works."""
    for endpoint in (direct, pooled):
        one, _ = endpoint.pair()
        with one.transaction(), one.cursor("rows") as cursor:
            cursor.execute("SELECT generate_series(1, 3)")
            assert cursor.fetchmany(2) == [(1,), (2,)]
            assert cursor.fetchall() == [(3,)]


def test_temporary_table(direct: Endpoint, pooled: Endpoint) -> None:
    """A temporary table is gone for its owner, and there for a client that never made it."""
    create = "CREATE TEMP TABLE mine AS SELECT 'secret of one' AS what"
    one, other = direct.pair()
    one.execute(create)
    assert value(one, "SELECT what FROM mine") == "secret of one"
    with pytest.raises(psycopg.errors.UndefinedTable):
        other.execute("SELECT what FROM mine")

    one, other = pooled.pair()
    one.execute(create)
    assert value(other, "SELECT what FROM mine") == "secret of one"
    with elsewhere(other), pytest.raises(psycopg.errors.UndefinedTable):
        one.execute("SELECT what FROM mine")


def test_temporary_table_on_commit_drop(direct: Endpoint, pooled: Endpoint) -> None:
    """A temporary table that its transaction drops leaves nothing behind."""
    for endpoint in (direct, pooled):
        one, other = endpoint.pair()
        with one.transaction():
            one.execute("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1 AS what")
            assert value(one, "SELECT what FROM mine") == 1
        for client in (one, other):
            with pytest.raises(psycopg.errors.UndefinedTable):
                client.execute("SELECT what FROM mine")


def test_session_advisory_lock(direct: Endpoint, pooled: Endpoint) -> None:
    """A session's advisory lock excludes nobody who shares the session, and outlives its owner."""
    one, other = direct.pair()
    one.execute("SELECT pg_advisory_lock(1)")
    assert not value(other, "SELECT pg_try_advisory_lock(1)")
    one.close()
    wait_until(lambda: value(other, "SELECT pg_try_advisory_lock(1)"))
    assert value(other, "SELECT pg_advisory_unlock(1)")

    one, next_client = pooled.pair()
    one.execute("SELECT pg_advisory_lock(1)")
    assert value(next_client, "SELECT pg_try_advisory_lock(1)")
    with elsewhere(next_client):
        assert not value(one, "SELECT pg_advisory_unlock(1)")
    one.close()
    next_client.close()
    assert not value(other, "SELECT pg_try_advisory_lock(1)")


def test_transaction_advisory_lock(direct: Endpoint, pooled: Endpoint) -> None:
    """A transaction's advisory lock excludes everybody else, until its end."""
    for endpoint in (direct, pooled):
        one, other = endpoint.pair()
        with one.transaction():
            one.execute("SELECT pg_advisory_xact_lock(2)")
            assert not value(other, "SELECT pg_try_advisory_xact_lock(2)")
        assert value(other, "SELECT pg_try_advisory_xact_lock(2)")


def test_startup_options(direct: Endpoint, pooled: Endpoint) -> None:
    """Options at the start are taken by the database and refused by the pooler."""
    assert value(direct.connect(options="-c statement_timeout=7s"), TIMEOUT) == "7s"
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        pooled.connect(options="-c statement_timeout=7s")


def test_currval(direct: Endpoint, pooled: Endpoint, admin: Client) -> None:
    """The last value of a sequence is lost, and the next client reads it as its own."""
    admin.execute("CREATE SEQUENCE IF NOT EXISTS tickets")
    admin.execute("GRANT USAGE ON SEQUENCE tickets TO PUBLIC")
    one, other = direct.pair()
    drawn = value(one, "SELECT nextval('tickets')")
    assert value(one, "SELECT currval('tickets')") == drawn
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        other.execute("SELECT lastval()")

    one, other = pooled.pair()
    drawn = value(one, "SELECT nextval('tickets')")
    assert value(other, "SELECT lastval()") == drawn
    with elsewhere(other), pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        one.execute("SELECT currval('tickets')")


def test_nextval(direct: Endpoint, pooled: Endpoint, admin: Client) -> None:
    """Drawing from a sequence needs no session, and RETURNING gives what was drawn."""
    admin.execute("DROP TABLE IF EXISTS numbered")
    admin.execute("CREATE TABLE numbered (id bigserial, name text)")
    admin.execute("GRANT ALL ON numbered TO PUBLIC")
    admin.execute("GRANT ALL ON SEQUENCE numbered_id_seq TO PUBLIC")
    drawn = []
    for endpoint in (direct, pooled):
        for client in endpoint.pair():
            drawn.append(value(client, "SELECT nextval('numbered_id_seq')"))
            drawn.append(value(client, "INSERT INTO numbered (name) VALUES ('x') RETURNING id"))
    assert drawn == list(range(1, 9))


def test_load(
    direct: Endpoint, pooled: Endpoint, admin: Client, shared_pooler: PoolerFixture
) -> None:
    """A library is loaded into one server process: the client that comes there has it too."""
    loaded = "SELECT count(*) > 0 FROM pg_settings WHERE name LIKE 'plpgsql.%'"
    login = sql.Identifier(shared_pooler.login.name)
    admin.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(login))  # others may load plugins only
    try:
        one, other = direct.pair()
        one.execute("LOAD 'plpgsql'")
        assert (value(one, loaded), value(other, loaded)) == (True, False)

        one, other = pooled.pair()
        one.execute("LOAD 'plpgsql'")
        assert value(other, loaded)
        with elsewhere(other):
            assert not value(one, loaded)
    finally:
        admin.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(login))


def test_cancel(direct: Endpoint, pooled: Endpoint, admin: Client) -> None:
    """A cancel request ends the running statement, and no other client's."""
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    )
    for endpoint in (direct, pooled):
        one, other = endpoint.pair()
        errors: list[Exception] = []
        thread = threading.Thread(target=run, args=(one, "SELECT pg_sleep(60)", errors))
        thread.start()
        wait_until(lambda: value(admin, sleeping) == 1)
        with other.transaction():
            other.execute("SELECT 1")
            one.cancel_safe(timeout=5)
            thread.join(10)
            assert value(other, "SELECT 2") == 2
        assert [type(error) for error in errors] == [psycopg.errors.QueryCanceled]
        assert value(admin, sleeping) == 0


def run(client: Client, query: str, errors: list[Exception]) -> None:
    """Run a statement that is expected to fail, in a thread."""
    try:
        client.execute(query)
    except psycopg.Error as error:
        errors.append(error)
