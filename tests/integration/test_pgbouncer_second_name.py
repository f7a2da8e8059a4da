"""The database's second name in PgBouncer: a bulkhead between the application and `/sql`."""

import concurrent.futures
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg import Database, Settings
from psycopg import sql
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.servers.passwords import machine_made_password
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Admin, end_backends, settings_for
from tests.support.load import Ledger, Requests, wait_for_each, wait_for_rows
from tests.support.servers import (
    DATABASE,
    SQL_DATABASE,
    Login,
    PoolerFixture,
    answer,
    change_password,
    create_login,
)
from tests.support.sql_server import sql_server, through
from tests.support.waiting import wait_until

QUEUE_FULL = "query_wait_timeout"
REJECTED = "login rejected"
ENOUGH = 20
"""Statements one after the other: each could have to wait for a server connection."""
ONE_SECOND = {"QUERY_WAIT_TIMEOUT": "1"}


@contextmanager
def held(pooler: PoolerFixture, login: Login, database: str, count: int) -> Iterator[None]:
    """Hold server connections of a login, each by an open transaction."""
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(pooler.connect(login, database))
            client.execute("BEGIN")
            assert answer(client) == 1
        yield


def outcomes(pooler: PoolerFixture, login: Login, database: str, count: int) -> Counter[str]:
    """Count how statements end, each through a separate connection."""
    found: Counter[str] = Counter()
    for _ in range(count):
        try:
            with pooler.connect(login, database) as client:
                answer(client)
            found["served"] += 1
        except psycopg.OperationalError as error:
            found[QUEUE_FULL if QUEUE_FULL in str(error) else str(error)] += 1
    return found


def logs_in_as(pooler: PoolerFixture, login: Login, database: str) -> bool:
    """Tell whether a new client of a login gets an answer."""
    return outcomes(pooler, login, database, 1) == {"served": 1}


# Server connections


def test_neither_name_waits_for_what_the_other_one_holds(new_pooler: PoolerFixture) -> None:
    """Both get all of their server connections at the same time, and keep them."""
    (reader,) = new_pooler.add_sql(1, pool_size=2, most=2)
    pooler = new_pooler.start(MAX_DB_CONNECTIONS="3", DEFAULT_POOL_SIZE="3", **ONE_SECOND)
    application = (pooler, pooler.login, DATABASE)
    edge = (pooler, reader, SQL_DATABASE)
    with held(*application, 3):
        assert outcomes(*application, 1) == {QUEUE_FULL: 1}, "it is not full"
        assert outcomes(*edge, ENOUGH) == {"served": ENOUGH}
        with held(*edge, 2):
            assert outcomes(*edge, 1) == {QUEUE_FULL: 1}, "it is not full"
    with held(*edge, 2):
        assert outcomes(*application, ENOUGH) == {"served": ENOUGH}


def test_under_one_name_a_busy_user_leaves_another_one_nothing(new_pooler: PoolerFixture) -> None:
    """The control: with as many server connections together as the two names have."""
    other = create_login(new_pooler.postgres, new_pooler.service, machine_made_password())
    arns = f"{new_pooler.login.arn},{other.arn}"
    pooler = new_pooler.start(
        USER_SECRET_ARNS=arns, MAX_DB_CONNECTIONS="5", DEFAULT_POOL_SIZE="5", **ONE_SECOND
    )
    with held(pooler, pooler.login, DATABASE, 5):
        assert outcomes(pooler, other, DATABASE, 2) == {QUEUE_FULL: 2}


@pytest.mark.parametrize(("pool_size", "ending"), [(2, "served"), (3, QUEUE_FULL)])
def test_a_role_whose_pool_is_a_part_leaves_another_role_served(
    new_pooler: PoolerFixture, pool_size: int, ending: str
) -> None:
    """Within the second name; and nothing is left where one role's pool is all of it."""
    reader, writer = new_pooler.add_sql(2, pool_size=pool_size, most=3)
    pooler = new_pooler.start(**ONE_SECOND)
    with held(pooler, reader, SQL_DATABASE, pool_size):
        assert outcomes(pooler, reader, SQL_DATABASE, 1) == {QUEUE_FULL: 1}, "it is not full"
        assert outcomes(pooler, writer, SQL_DATABASE, 2) == {ending: 2}


def test_the_second_name_pools_by_transaction_always(new_pooler: PoolerFixture) -> None:
    """Where the application's sessions keep their server connections, those of `/sql` do not."""
    (reader,) = new_pooler.add_sql(1, pool_size=1, most=1)
    pooler = new_pooler.start(POOL_MODE="session", **ONE_SECOND)
    with pooler.connect(reader, SQL_DATABASE) as idle:
        assert answer(idle) == 1
        assert outcomes(pooler, reader, SQL_DATABASE, 1) == {"served": 1}


# Client connections


@pytest.mark.parametrize("first", [DATABASE, SQL_DATABASE])
def test_a_name_whose_places_are_taken_leaves_those_of_the_other_one(
    new_pooler: PoolerFixture, first: str
) -> None:
    """Each is refused at its own bound, and the other one still gets all of its places."""
    (reader,) = new_pooler.add_sql(1, pool_size=1, most=1)
    pooler = new_pooler.start(MAX_CLIENT_CONN="5", SQL_MAX_CLIENT_CONN="2")
    clients: list[psycopg.Connection[Any]] = []

    def enters(login: Login, database: str) -> bool:
        try:
            clients.append(stack.enter_context(pooler.connect(login, database)))
        except psycopg.OperationalError as error:
            refusal = "client connections exceeded|no more connections allowed"
            assert re.search(refusal, str(error))  # noqa: PT017 - wait_until calls this
            return False
        return True

    with ExitStack() as stack:
        names = [(pooler.login, DATABASE, 3), (reader, SQL_DATABASE, 2)]
        for login, database, places in sorted(names, key=lambda each: each[1] != first):
            for _ in range(places):
                # The supervisor may have a place for a moment.
                wait_until(partial(enters, login, database))
            assert not enters(login, database)
        assert [answer(client) for client in clients] == [1] * 5


# Logins


def test_the_users_of_each_name_are_rejected_at_the_other_one(new_pooler: PoolerFixture) -> None:
    """An unknown user gets the answer of a wrong password, at both names."""
    (reader,) = new_pooler.add_sql(1, pool_size=2, most=4)
    pooler = new_pooler.start()
    stranger = Login("stranger", "unknown", "")
    for login, database, own in (
        (pooler.login, SQL_DATABASE, DATABASE),
        (reader, DATABASE, SQL_DATABASE),
    ):
        assert logs_in_as(pooler, login, own)
        with pytest.raises(psycopg.OperationalError, match=REJECTED):
            pooler.connect(login, database)
        with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
            pooler.connect(stranger, own)


def test_a_rotation_of_one_of_several_secrets_leaves_the_others_alone(
    new_pooler: PoolerFixture,
) -> None:
    """The old and the new login of the rotated one work, at the second name only."""
    reader, writer = new_pooler.add_sql(2, pool_size=1, most=3)
    pooler = new_pooler.start(REFRESH_INTERVAL="0.3")
    clone = create_login(pooler.postgres, pooler.service, machine_made_password())
    with pooler.connect(writer, SQL_DATABASE) as other, pooler.connect() as application:
        pooler.service.put(reader.arn, {"username": clone.name, "password": clone.password})
        wait_until(lambda: logs_in_as(pooler, clone, SQL_DATABASE), 10, "the second login")
        for login, database in (
            (reader, SQL_DATABASE),
            (writer, SQL_DATABASE),
            (pooler.login, DATABASE),
        ):
            assert logs_in_as(pooler, login, database)
        with pytest.raises(psycopg.OperationalError, match=REJECTED):
            pooler.connect(clone, DATABASE)
        assert answer(other) == answer(application) == 1
        changed = replace(reader, password=machine_made_password())
        change_password(pooler.postgres, reader.name, changed.password)
        pooler.service.put(reader.arn, {"username": reader.name, "password": changed.password})
        wait_until(lambda: logs_in_as(pooler, changed, SQL_DATABASE), 10, "the changed password")
        assert logs_in_as(pooler, clone, SQL_DATABASE)
        assert answer(other) == answer(application) == 1


def test_an_unreadable_secret_of_sql_does_not_keep_the_application_waiting(
    new_pooler: PoolerFixture,
) -> None:
    """Its roles are waited for, but not for long; they are served as soon as it is readable."""
    reader, writer = new_pooler.add_sql(2, pool_size=1, most=3)
    new_pooler.service.put(reader.arn, {"username": reader.name})
    new_pooler.environment |= {"METRICS_POOLER": "test", "METRICS_INTERVAL": "0.2"}
    new_pooler.prepare(REFRESH_INTERVAL="0.3").launch()
    wait_until(lambda: new_pooler.log.count("waiting 1 s for users") > 1, 20, "a second look")
    assert "(none yet)" in new_pooler.log
    assert not new_pooler.process.alive.exists(), "it is ready without a user"
    wait_until(new_pooler.process.answers, 60, "a start without the reader")
    assert f"starting without the users of {reader.arn}" in new_pooler.log
    assert '"UnreadableSecrets": 1' in new_pooler.log
    assert logs_in_as(new_pooler, new_pooler.login, DATABASE)
    assert logs_in_as(new_pooler, writer, SQL_DATABASE)
    new_pooler.service.put(reader.arn, {"username": reader.name, "password": reader.password})
    wait_until(lambda: logs_in_as(new_pooler, reader, SQL_DATABASE), 10, "the reader")


# The end


@pytest.fixture
def master(postgres: Postgres) -> Iterator[Admin]:
    """The master's connection, with a table that everybody may write to."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE counter (n int)")
        connection.execute("GRANT ALL ON counter TO PUBLIC")
        yield connection
        connection.execute("DROP TABLE counter")


def insert_until_refused(pooler: PoolerFixture, login: Login, database: str) -> tuple[int, str]:
    """Insert row after row; return the number of acknowledged ones, and what ended it."""
    acknowledged = 0
    with pooler.connect(login, database) as connection:
        try:
            while True:
                connection.execute("INSERT INTO counter VALUES (1)")
                acknowledged += 1
        except psycopg.OperationalError as error:
            return acknowledged, str(error)


def rows(master: Admin) -> int:
    """Count the rows that were inserted."""
    row = master.execute("SELECT count(*) FROM counter").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("without", ["nobody", "application"])
def test_a_drain_leaves_no_statement_in_doubt_under_either_name(
    new_pooler: PoolerFixture, master: Admin, without: str
) -> None:
    """One transaction of the supervisor is enough for both, under the name that has a server."""
    (reader,) = new_pooler.add_sql(1, pool_size=4, most=4)
    pooler = new_pooler.start(MAX_DB_CONNECTIONS="4", DEFAULT_POOL_SIZE="4")
    logins = [(reader, SQL_DATABASE)] * 8
    if without == "application":
        bar(pooler)
    else:
        logins += [(pooler.login, DATABASE)] * 8
    with concurrent.futures.ThreadPoolExecutor(len(logins)) as threads:
        clients = [threads.submit(insert_until_refused, pooler, *login) for login in logins]
        wait_until(lambda: rows(master) > 500, 20, "clients at work")
        pooler.process.terminate()
        ended = [client.result(30) for client in clients]
    assert pooler.process.wait(20) == 0
    assert "draining without a transaction" not in pooler.log
    assert [text for _, text in ended if "server shutting down" not in text] == []
    assert sum(count for count, _ in ended) == rows(master)


def bar(pooler: PoolerFixture) -> None:
    """Keep the application's login from the server."""
    with psycopg.connect(pooler.postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(pooler.login.name)))
    end_backends(pooler)


def insert_slowly(db: Database[TupleRow], number: int) -> None:
    """Write one row by a statement that is under way most of the time."""
    db.execute("INSERT INTO counter SELECT %s FROM pg_sleep(0.1)", [number])


def sql_settings(pooler: PoolerFixture, login: Login, port: int) -> Settings:
    """Say what the stacks say to the function `sql`."""
    return replace(settings_for(pooler), dbname=SQL_DATABASE, secret_arn=login.arn, port=port)


def test_a_rolling_replacement_fails_no_request_under_either_name(
    new_pooler: PoolerFixture,
    master: Admin,
    short_folder: Path,
    secrets_environment: None,
) -> None:
    """The next task serves both names before the old one drains."""
    (reader,) = new_pooler.add_sql(1, pool_size=4, most=4)
    old = new_pooler.start()
    environment = old.environment | {"LISTEN_PORT": str(processes.free_port())}
    following = Pooler(old.binary, short_folder / "next", environment)
    with ExitStack() as stack:
        address = stack.enter_context(FaultProxy("127.0.0.1", old.port))
        stack.callback(following.kill)
        edge = stack.enter_context(closing(Database(sql_settings(old, reader, address.port))))
        own = replace(settings_for(old), port=address.port)
        application = stack.enter_context(closing(Database(own)))
        ledgers = [Ledger(application, insert_slowly, 0), Ledger(edge, insert_slowly, 1_000_000)]
        for ledger in ledgers:
            stack.enter_context(ledger)
        wait_for_rows(ledgers)
        following.start()
        address.server = ("127.0.0.1", following.port)
        assert old.process.stop() == 0
        wait_for_rows(ledgers)
    for ledger in ledgers:
        assert (ledger.errors, ledger.unknown, ledger.refused) == ([], [], 0)
    assert rows(master) == sum(len(ledger.acknowledged) for ledger in ledgers)


def test_a_rolling_replacement_fails_no_request_of_sql(
    new_pooler: PoolerFixture, master: Admin, short_folder: Path
) -> None:
    """Through the function, with keys of two roles; each write is there once."""
    reader, writer = new_pooler.add_sql(2, pool_size=2, most=3)
    old = new_pooler.start()
    with ExitStack() as poolers, ExitStack() as stack:
        address = stack.enter_context(FaultProxy("127.0.0.1", old.port))
        endpoint = through(old) | {"PGDATABASE": SQL_DATABASE, "PGPORT": str(address.port)}
        roles = {"reader": reader, "writer": writer}
        served = stack.enter_context(sql_server(endpoint, old.service, roles, environments=4))
        asked = {"reader": "SELECT count(*) FROM counter, pg_sleep(0.1)"}
        asked["writer"] = "INSERT INTO counter SELECT 1 FROM pg_sleep(0.1)"
        loads = {
            role: [Requests(served.asking(served.create_key(role), asked[role])) for _ in range(2)]
            for role in roles
        }
        every = [*loads["reader"], *loads["writer"]]
        for load in every:
            stack.enter_context(load)
        wait_for_each(every, 5)
        running = old.process
        for number in range(2):
            port = processes.free_port()
            environment = old.environment | {"LISTEN_PORT": str(port)}
            following = Pooler(old.binary, short_folder / f"following-{number}", environment)
            poolers.callback(following.kill)
            following.start()
            address.server = ("127.0.0.1", port)
            assert running.stop() == 0
            running = following
            wait_for_each(every, 5)
    assert [load.errors for load in every] == [[]] * len(every)
    assert rows(master) == sum(load.served for load in loads["writer"])
