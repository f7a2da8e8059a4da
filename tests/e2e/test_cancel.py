"""A cancel request through the balancer finds its statement, whichever task it comes to."""

import threading
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.cdk import application_login
from tests.support.waiting import wait_until

STATEMENTS = 6
"""As many as one task has server connections for one user: all of them may come to it."""


@pytest.mark.parametrize("tasks", [2, 3])
def test_a_cancel_reaches_its_statement(cloud: LocalCloud, tasks: int) -> None:
    """Of many statements at once, spread over the tasks, each is cancelled by its own request."""
    cloud.scale_pooler(tasks)
    until_the_tasks_know_each_other(cloud, tasks)
    with ExitStack() as ended_at_last:
        ended_at_last.callback(cloud.scale_pooler, 2)
        connections = [ended_at_last.enter_context(connect(cloud)) for _ in range(STATEMENTS)]
        ended: list[str] = []
        threads = [
            threading.Thread(target=sleep_long, args=(each, ended), daemon=True)
            for each in connections
        ]
        for thread in threads:
            thread.start()
        until_all_run(cloud)
        for connection in connections:
            connection.cancel()
        for thread in threads:
            thread.join(20)
        assert ended == ["QueryCanceled"] * STATEMENTS


def until_the_tasks_know_each_other(cloud: LocalCloud, tasks: int) -> None:
    """Wait until each has found the others: they look every few seconds."""
    for task in cloud.status()["pooler"]["tasks"]:
        with psycopg.connect(task["admin_dsn"], autocommit=True, prepare_threshold=None) as console:
            wait_until(lambda: console.execute("SHOW PEERS").rowcount == tasks, what="the peers")


def sleep_long(connection: psycopg.Connection[Any], ended: list[str]) -> None:
    """Sleep in the database for as long as its limit allows; note how that ended."""
    try:
        connection.execute("SELECT pg_sleep(9)")
        ended.append("slept")
    except psycopg.Error as error:
        ended.append(type(error).__name__)


def until_all_run(cloud: LocalCloud) -> None:
    """Wait until every statement is at work."""
    at_work = (
        "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(9)%' AND state = 'active'"
    )
    with psycopg.connect(cloud.status()["postgres"]["dsn"], autocommit=True) as admin:
        wait_until(lambda: admin.execute(at_work).rowcount >= STATEMENTS, 8, "the statements")


def connect(cloud: LocalCloud) -> psycopg.Connection[Any]:
    """Log in through the balancer, as a function does."""
    login, pooler = application_login(cloud), cloud.status()["pooler"]
    ca = cloud.client("ssm").get_parameter(Name="/lambda-pg/local/pooler/ca")["Parameter"]["Value"]
    file = cloud.folder / "pooler-ca.pem"
    file.write_text(ca)
    return psycopg.connect(
        host=pooler["host"],
        port=pooler["port"],
        dbname="app",
        user=login["username"],
        password=login["password"],
        sslmode="verify-full",
        sslrootcert=str(file),
        autocommit=True,
    )
