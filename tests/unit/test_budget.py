"""The connection budget: what counts, and what a stage over it is told."""

import random
from typing import Any

import pytest

from stacks.budget import (
    Budget,
    BudgetError,
    Client,
    Line,
    Sum,
    budget_of,
    rolling_tasks,
)
from stacks.config import Config
from stacks.synthesis import COMBINATIONS, stages

Chance = random.Random
USERS = Client("users", 50)


def budget(stage: str = "dev", *clients: Client, **override: object) -> Budget:
    """Add up a stage with some settings changed."""
    return budget_of(Config.of_stage(stage, override), clients)


def server(found: Budget) -> Sum:
    """Take the sum of server connections."""
    (each,) = (each for each in found.sums if each.kind == "server connection")
    return each


@pytest.mark.parametrize("stage", stages())
def test_every_stage_of_cdk_json_fits(stage: str) -> None:
    """No stage as committed can exhaust its database."""
    budget(stage).check()


def test_a_deployment_doubles_the_tasks_that_autoscaling_may_have_made() -> None:
    """Old and new tasks run side by side, and those of the deployment before may still drain."""
    first = server(budget("dev")).lines[0]
    assert first.connections == (3 * 2 + 3) * 15
    assert "6 tasks during a deployment (3 at 200 %) and 3 that drain" in first.what


@pytest.mark.parametrize(
    ("tasks", "percent", "running"), [(1, 200, 2), (2, 150, 3), (3, 150, 4), (1, 150, 1)]
)
def test_ecs_rounds_the_upper_limit_down(tasks: int, percent: int, running: int) -> None:
    """As the service scheduler does."""
    assert rolling_tasks(tasks, percent) == running


def test_the_last_connection_may_be_used_and_no_more() -> None:
    """A sum equal to the limit is accepted, one more is not."""
    assert Sum("x", (Line("a", 60), Line("b", 40)), 100, "limit").fits
    assert not Sum("x", (Line("a", 60), Line("b", 41)), 100, "limit").fits
    exact = server(budget("dev")).total
    budget("dev", database={"max_connections": exact}).check()
    with pytest.raises(BudgetError, match=r"are 1 more than database\.max_connections"):
        budget("dev", database={"max_connections": exact - 1}).check()


REFUSALS: dict[str, tuple[dict[str, Any], tuple[Client, ...], str]] = {
    "too many server connections": (
        {"pgbouncer": {"max_db_connections": 20}},
        (),
        """\
stage 'dev': the server connections that can exist are 44 more than database.max_connections:
     180  PgBouncer: 6 tasks during a deployment (3 at 200 %) and 3 that drain from the one \
before, x 20 over all users
       2  migrations, over the direct address
       2  a rotation
       5  administrators
       5  reserved by PostgreSQL and RDS for superusers
     194  all together
     150  database.max_connections
The smallest change that fits: pgbouncer.max_db_connections = 15 (it is 20); or \
database.max_connections = 194 (it is 150); or pgbouncer.max_tasks = 2 (it is 3).""",
    ),
    "an instance too small for its default": (
        {"database": {"instance_class": "t4g.micro", "max_connections": None}},
        (),
        """\
stage 'dev': the server connections that can exist are 70 more than RDS's default for t4g.micro, \
less than the least it may be:
     135  PgBouncer: 6 tasks during a deployment (3 at 200 %) and 3 that drain from the one \
before, x 15 over all users
       2  migrations, over the direct address
       2  a rotation
       5  administrators
       5  reserved by PostgreSQL and RDS for superusers
     149  all together
      79  RDS's default for t4g.micro, less than the least it may be
The smallest change that fits: pgbouncer.max_db_connections = 7 (it is 15); or \
database.max_connections = 149 (it is 79).""",
    ),
    "a proxy that may open everything": (
        {"pooler": "rds-proxy", "rds_proxy": {"max_connections_percent": 100}},
        (),
        """\
stage 'dev': the server connections that can exist are 14 more than database.max_connections:
     150  RDS Proxy: 100 % of 150
       2  migrations, over the direct address
       2  RDS Proxy's own
       5  administrators
       5  reserved by PostgreSQL and RDS for superusers
     164  all together
     150  database.max_connections
The smallest change that fits: rds_proxy.max_connections_percent = 90 (it is 100).""",
    ),
    "too many clients": (
        {"functions": {"other_clients": 100}},
        (Client("users", 1000), Client("orders", 10, slots=2, processes=3)),
        """\
stage 'dev': the client connections that can exist are 220 more than PgBouncer's clients: \
pgbouncer.max_client_conn x 1 tasks, with one away:
    2000  users: 1000 environments x 1 processes x 1 slots x 2 versions during a deployment
     120  orders: 10 environments x 3 processes x 2 slots x 2 versions during a deployment
     100  functions of other apps
    2220  all together
    2000  PgBouncer's clients: pgbouncer.max_client_conn x 1 tasks, with one away
The smallest change that fits: pgbouncer.max_client_conn = 2220 (it is 2000); or \
the concurrency of users = 890 (it is 1000).""",
    ),
    "sessions": (
        {"pgbouncer": {"pool_mode": "session"}, "functions": {"other_clients": 0}},
        (Client("users", 20),),
        """\
stage 'dev': the sessions that can exist are 25 more than server connections for sessions: \
15 x 1 tasks, with one away:
      40  users: 20 environments x 1 processes x 1 slots x 2 versions during a deployment
       0  functions of other apps
      40  all together
      15  server connections for sessions: 15 x 1 tasks, with one away
The smallest change that fits: the concurrency of users = 7 (it is 20).""",
    ),
    "a plan with few clients": (
        {**COMBINATIONS["external"], "functions": {"other_clients": 10}},
        (Client("users", 150),),
        """\
stage 'dev': the client connections that can exist are 110 more than external.max_clients:
     300  users: 150 environments x 1 processes x 1 slots x 2 versions during a deployment
      10  functions of other apps
     310  all together
     200  external.max_clients
The smallest change that fits: the concurrency of users = 95 (it is 150); or \
external.max_clients = 310 (it is 200).""",
    ),
}
