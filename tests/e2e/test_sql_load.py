"""`users` and POST /sql under full load, side by side: neither waits for what the other one holds.

Each has a name of the database in PgBouncer (docs/decisions/0049). PgBouncer counts, for each name,
how long clients have waited for a server connection: not a microsecond, if one was always idle. The
control, both under one name, is in tests/integration/test_pgbouncer_second_name.py.
"""

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.rows import dict_row

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.daemon.deployments import stage_settings
from lambda_pg_cdk.local.http.caller import Answer, call
from tests.support.api_load import Load, repeated
from tests.support.sql_cloud import superuser
from tests.support.sql_load import SqlClients, clients_of
from tests.support.waiting import wait_until

USERS, SQL = "app", "app_sql"
SLEEP = "SELECT pg_sleep(0.3)"
SLOW = """
CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(0.3);
    RETURN true;
END $$;
GRANT EXECUTE ON FUNCTION slow TO PUBLIC;
CREATE POLICY slow ON users AS RESTRICTIVE FOR SELECT USING (slow());
"""
"""Makes each read of a user take its time: then few clients keep every server connection busy."""
NOT_SLOW = "DROP POLICY slow ON users; DROP FUNCTION slow"

USERS_CLIENTS = 24
"""More than twice the server connections of both tasks."""
SQL_CLIENTS = 15
"""Each role has one server connection in each task."""
SQL_ENVIRONMENTS = 18
FEW = 10
"""Requests of the one that must not wait, one after the other, while the other one is full."""


@pytest.fixture(scope="module")
def user(cloud: LocalCloud) -> tuple[str, str]:
    """A user of the sample: its path, and the token of its owner."""
    token = cloud.token(str(uuid.uuid4()))
    return call(cloud.url, "POST", "/users", token, {"name": "Ada"}).headers["location"], token


@pytest.fixture(scope="module")
def clients(cloud: LocalCloud, user: tuple[str, str]) -> Iterator[SqlClients]:
    """Clients of each role; every read of a user is slow until the module ends."""
    found = clients_of(cloud)
    with psycopg.connect(superuser(cloud), autocommit=True) as admin:
        admin.execute(SLOW)
        yield found
        admin.execute(NOT_SLOW)


@contextmanager
def users_load(cloud: LocalCloud, user: tuple[str, str]) -> Iterator[Load]:
    """Keep all server connections of the application busy."""
    path, token = user
    cloud.environments("users", USERS_CLIENTS)
    seen = Load()

    def read() -> None:
        seen.count("users", call(cloud.url, "GET", path, token))

    with repeated([read] * USERS_CLIENTS):
        yield seen


@contextmanager
def sql_load(cloud: LocalCloud, clients: SqlClients) -> Iterator[Load]:
    """Keep all server connections of all roles busy.

    An environment's connection stays at the task that the balancer chose by chance. Each client
    changes between the roles at random, so no role keeps to environments that all chose one task.
    """
    cloud.environments("sql", SQL_ENVIRONMENTS)
    seen = Load()
    asks: dict[str, Callable[[], Answer]] = {
        "reader": partial(clients.reader.ask, SLEEP),
        "writer": partial(clients.writer.ask, SLEEP),
        "caller": clients.registered_read,
    }

    def ask_as_any_role() -> None:
        role = random.choice(list(asks))  # noqa: S311 - no secret
        seen.count(role, asks[role]())

    with repeated([ask_as_any_role] * SQL_CLIENTS):
        yield seen


class Counts(NamedTuple):
    """What PgBouncer has counted for a name, at all tasks together."""

    waited: int
    """Microseconds that clients have waited for a server connection."""
    transactions: int


def counts(cloud: LocalCloud, name: str) -> Counts:
    """Read the counts of a name."""
    rows = [row for row in shown(cloud, "STATS") if row["database"] == name]
    columns = ("total_wait_time", "total_xact_count")
    return Counts(*(sum(row[column] for row in rows) for column in columns))


def queued(cloud: LocalCloud, name: str) -> int:
    """Count the clients of a name that wait for a server connection now."""
    return sum(row["cl_waiting"] for row in shown(cloud, "POOLS") if row["database"] == name)


def shown(cloud: LocalCloud, what: str) -> Iterator[dict[str, Any]]:
    """Return what the console of each task shows."""
    for task in cloud.status()["pooler"]["tasks"]:
        with psycopg.connect(task["admin_dsn"], autocommit=True) as console:
            yield from psycopg.ClientCursor(console, row_factory=dict_row).execute(f"SHOW {what}")


def held(cloud: LocalCloud) -> Counter[str]:
    """Count the statements that run at this moment in PostgreSQL: the application's, and /sql's."""
    query = """
        SELECT CASE WHEN usename ~ '^sql_' THEN 'sql' ELSE 'users' END, count(*)
        FROM pg_stat_activity WHERE wait_event = 'PgSleep' GROUP BY 1
    """
    with psycopg.connect(superuser(cloud)) as admin:
        return Counter(dict(admin.execute(query).fetchall()))


def most(cloud: LocalCloud) -> dict[str, int]:
    """Return the server connections of all users' pools: the other half is for a rotation."""
    stage, tasks = stage_settings(PROJECT, {}), len(cloud.status()["pooler"]["tasks"])
    roles = len(stage.sql.roles)
    return {"users": tasks * stage.pool_size, "sql": tasks * stage.sql_pool_size * roles}


@pytest.fixture(scope="module")
def peak(
    cloud: LocalCloud, user: tuple[str, str], clients: SqlClients
) -> tuple[Counter[str], list[str]]:
    """Both under full load, until each holds all of its server connections at the same moment.

    What was answered, and what failed. From then on all server connections are open.
    """
    with users_load(cloud, user) as users, sql_load(cloud, clients) as sql:
        wait_until(lambda: held(cloud) == most(cloud), 60, "the server connections of both")
        users.wait_for_more()
        sql.wait_for_more()
    return users.answered + sql.answered, users.failed + sql.failed


def test_each_gets_all_of_its_server_connections_beside_the_other_one(
    cloud: LocalCloud, peak: tuple[Counter[str], list[str]]
) -> None:
    """Within the budget, and every request of both is answered."""
    answered, failed = peak
    assert failed == []
    assert set(answered) == {"users", "reader", "writer", "caller"}
    assert sum(most(cloud).values()) <= cloud.status()["pooler"]["max_server_connections"]


def test_sql_waits_for_no_server_connection_while_users_holds_all_of_its(
    cloud: LocalCloud, user: tuple[str, str], clients: SqlClients, peak: object
) -> None:
    """By every role; and `users` is full: its own clients wait."""
    asks = (
        partial(clients.reader.ask, "SELECT 1"),
        partial(clients.writer.ask, "SELECT 1"),
        clients.registered_read,
    )
    with users_load(cloud, user) as busy:
        wait_until(lambda: held(cloud)["users"] == most(cloud)["users"] and queued(cloud, USERS))
        users, sql = counts(cloud, USERS), counts(cloud, SQL)
        answers = [ask().status for ask in asks for _ in range(FEW)]
        assert counts(cloud, SQL).waited == sql.waited
        assert counts(cloud, SQL).transactions >= sql.transactions + len(answers)
        assert counts(cloud, USERS).waited > users.waited, "it is not full"
    assert Counter(answers) == {200: FEW * len(asks)}
    assert busy.failed == []


def test_users_waits_for_no_server_connection_while_sql_holds_all_of_its(
    cloud: LocalCloud, user: tuple[str, str], clients: SqlClients, peak: object
) -> None:
    """The other way round; and `/sql` is full."""
    path, token = user
    with sql_load(cloud, clients) as busy:
        wait_until(lambda: held(cloud)["sql"] == most(cloud)["sql"] and queued(cloud, SQL))
        users, sql = counts(cloud, USERS), counts(cloud, SQL)
        answers = [call(cloud.url, "GET", path, token).status for _ in range(FEW)]
        assert counts(cloud, USERS).waited == users.waited
        assert counts(cloud, USERS).transactions >= users.transactions + len(answers)
        assert counts(cloud, SQL).waited > sql.waited, "it is not full"
    assert Counter(answers) == {200: FEW}
    assert busy.failed == []
