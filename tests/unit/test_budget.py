"""The connection budget: what counts, and the message for a stage over it."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_pg_cdk.stage.budget import (
    MIGRATIONS,
    PROXY,
    ROTATION,
    Budget,
    BudgetError,
    Cap,
    Client,
    Line,
    Sum,
    allowance_of,
    budget_of,
    login_limit,
    rolling_tasks,
    sql_clients,
)
from lambda_pg_cdk.stage.capacity import RESERVED, max_connections
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.tools.synth import COMBINATIONS, stages

Chance = random.Random
USERS = Client("users", 50)
FREE = Client("users", Cap.POOLER_LIMIT)
SERVER = "server connection"
SMALL = {"cpu": 256, "memory": 512}


def budget(stage: str = "dev", *clients: Client, **override: object) -> Budget:
    """Add up a stage with some settings changed."""
    return budget_of(load_stage(stage, override), clients)


def server(found: Budget) -> Sum:
    """Take the sum of server connections."""
    (each,) = (each for each in found.sums if isinstance(each, Sum) and each.kind == SERVER)
    return each


@pytest.mark.parametrize("stage", stages())
def test_every_stage_of_cdk_json_fits(stage: str) -> None:
    """No stage as committed can exhaust its database."""
    budget(stage).check()


def test_a_deployment_doubles_the_tasks_that_autoscaling_may_have_made() -> None:
    """Old and new tasks run side by side, and those of the deployment before may still drain."""
    first = server(budget("dev")).lines[0]
    assert first.connections == (3 * 2 + 3) * 15
    assert "6 tasks during a deployment (3 at 200 %) + 3 tasks of the previous" in first.what


def test_postgresql_limits_each_user_to_its_part_of_the_pooler_s_line() -> None:
    """Both users of a rotation together stay within the line, with backends nobody waits for."""
    line = server(budget("dev")).lines[0].connections
    limit = login_limit(load_stage("dev"))
    assert limit == (3 * 2 + 3) * (15 // 2)
    assert line - 9 <= 2 * limit <= line
    single = load_stage("dev", {"database": {"rotation": "single"}})
    assert login_limit(single) == line


@given(st.integers(2, 4000))
def test_no_user_of_a_rotation_can_take_all_server_connections(size: int) -> None:
    """The pools of both fit into the bound that they share, so each has a part for itself."""
    config = load_stage("dev", {"pgbouncer": {"max_db_connections": size}})
    assert 1 <= config.pool_size < size
    assert 2 * config.pool_size <= size


@pytest.mark.parametrize(
    "override", [{"baseline": True}, {"pooler": "rds-proxy"}, COMBINATIONS["external"]]
)
def test_others_have_no_limit(override: dict[str, Any]) -> None:
    """The control of the storm shows a function without a budget; other poolers have their own."""
    assert login_limit(load_stage("dev", override)) == -1


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
    with pytest.raises(BudgetError, match=rf"is {exact}; must be at most {exact - 1} "):
        budget("dev", database={"max_connections": exact - 1}).check()


REFUSALS: dict[str, tuple[dict[str, Any], tuple[Client, ...], str]] = {
    "too many server connections": (
        {"pgbouncer": {"max_db_connections": 20}},
        (),
        """\
stage 'dev': the number of server connections that can exist is 194; must be at most 150 \
(database.max_connections):
     180  PgBouncer: (6 tasks during a deployment (3 at 200 %) + 3 tasks of the previous \
deployment that still drain) x 20 connections of a task, all users together
       2  migrations, over the direct URL
       2  a rotation
       5  administrators
       5  reserved by PostgreSQL and RDS for superusers
     194  total
     150  database.max_connections
The smallest change that fits: set pgbouncer.max_db_connections to 15 (now 20); or set \
database.max_connections to 194 (now 150); or set pgbouncer.max_tasks to 2 (now 3).""",
    ),
    "an instance too small for its default": (
        {"database": {"instance_class": "t4g.micro", "max_connections": None}},
        (),
        """\
stage 'dev': the number of server connections that can exist is 149; must be at most 79 (lower \
bound of RDS's default for t4g.micro):
     135  PgBouncer: (6 tasks during a deployment (3 at 200 %) + 3 tasks of the previous \
deployment that still drain) x 15 connections of a task, all users together
       2  migrations, over the direct URL
       2  a rotation
       5  administrators
       5  reserved by PostgreSQL and RDS for superusers
     149  total
      79  lower bound of RDS's default for t4g.micro
The smallest change that fits: set pgbouncer.max_db_connections to 7 (now 15); or set \
database.max_connections to 149 (now 79).""",
    ),
    "a proxy that may open everything": (
        {"pooler": "rds-proxy", "rds_proxy": {"max_connections_percent": 100}},
        (),
        """\
stage 'dev': the number of server connections that can exist is 164; must be at most 150 \
(database.max_connections):
     150  RDS Proxy: 100 % of 150
       2  migrations, over the direct URL
       2  RDS Proxy itself
       5  administrators
       5  reserved by PostgreSQL and RDS for superusers
     164  total
     150  database.max_connections
The smallest change that fits: set rds_proxy.max_connections_percent to 90 (now 100).""",
    ),
    "too many clients": (
        {"functions": {"other_clients": 100}},
        (Client("users", 1000), Client("orders", 10, slots=2, processes=3)),
        """\
stage 'dev': the number of client connections that can exist is 2220; must be at most 2000 \
(pgbouncer.max_client_conn x 1 tasks, while one is down):
    2000  users: 1000 environments x 1 processes x 1 slots x 2 versions during a deployment
     120  orders: 10 environments x 3 processes x 2 slots x 2 versions during a deployment
     100  functions of other apps
    2220  total
    2000  pgbouncer.max_client_conn x 1 tasks, while one is down
The smallest change that fits: set pgbouncer.max_client_conn to 2220 (now 2000); or set the \
concurrency of users to 890 (now 1000); or set pgbouncer.tasks to 3 (now 2).""",
    ),
    "sessions": (
        {"pgbouncer": {"pool_mode": "session"}, "functions": {"other_clients": 0}},
        (Client("users", 20),),
        """\
stage 'dev': the number of sessions that can exist is 40; must be at most 7 (server connections: \
7 x 1 tasks, while one is down):
      40  users: 20 environments x 1 processes x 1 slots x 2 versions during a deployment
       0  functions of other apps
      40  total
       7  server connections: 7 x 1 tasks, while one is down
The smallest change that fits: set the concurrency of users to 3 (now 20).""",
    ),
    "too many logins at once": (
        {"pgbouncer": SMALL},
        (FREE, Client("health", Cap.POOLER_LIMIT)),
        """\
stage 'dev': the time for all logins that can start at once is 11.2; must be at most 3 seconds \
(functions.checkout_timeout):
    1300  users: no reservation, 1300 new environments x 1 processes x 1 slots
    1300  health: no reservation, 1300 new environments x 1 processes x 1 slots
      50  functions of other apps
    -650  answered 503: PgBouncer accepts 2000 clients
    2000  total
    2000  on the busiest of 1 tasks, while one is down
   11200  milliseconds for these: 1.4 ms of a core each, pgbouncer.cpu is 256 of 1024
    3000  functions.checkout_timeout in milliseconds
The smallest change that fits: set functions.checkout_timeout to 12 (now 3); or set pgbouncer.cpu \
(with at least twice as much pgbouncer.memory) to 1024 (now 256).""",
    ),
    "logins of a few slots each, at three tasks": (
        {"pgbouncer": {**SMALL, "tasks": 3, "max_tasks": 3}},
        (Client("users", 600, slots=2),),
        """\
stage 'dev': the time for all logins that can start at once is 3.9; must be at most 3 seconds \
(functions.checkout_timeout):
    1200  users: 600 new environments x 1 processes x 2 slots
      50  functions of other apps
    1250  total
     696  on the busiest of 2 tasks, while one is down
    3898  milliseconds for these: 1.4 ms of a core each, pgbouncer.cpu is 256 of 1024
    3000  functions.checkout_timeout in milliseconds
The smallest change that fits: set the concurrency of users to 448 (now 600); or set \
functions.checkout_timeout to 4 (now 3); or set pgbouncer.cpu (with at least twice as much \
pgbouncer.memory) to 512 (now 256).""",
    ),
    "logins of a function without a reservation": (
        {"pgbouncer": SMALL},
        (FREE,),
        """\
stage 'dev': the time for all logins that can start at once is 7.6; must be at most 3 seconds \
(functions.checkout_timeout):
    1300  users: no reservation, 1300 new environments x 1 processes x 1 slots
      50  functions of other apps
    1350  total
    1350  on the busiest of 1 tasks, while one is down
    7560  milliseconds for these: 1.4 ms of a core each, pgbouncer.cpu is 256 of 1024
    3000  functions.checkout_timeout in milliseconds
The smallest change that fits: set the new environments of users, by a reservation, to 485 (now \
1300); or set functions.checkout_timeout to 12 (now 3); or set pgbouncer.cpu (with at least twice \
as much pgbouncer.memory) to 1024 (now 256).""",
    ),
    "a plan with few clients": (
        {**COMBINATIONS["external"], "functions": {"other_clients": 10}},
        (Client("users", 150),),
        """\
stage 'dev': the number of client connections that can exist is 310; must be at most 200 \
(external.max_clients):
     300  users: 150 environments x 1 processes x 1 slots x 2 versions during a deployment
      10  functions of other apps
     310  total
     200  external.max_clients
The smallest change that fits: set the concurrency of users to 95 (now 150); or set \
external.max_clients to 310 (now 200).""",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_refusal_shows_the_arithmetic_and_the_smallest_change(name: str) -> None:
    """Each group on a separate line, the sum, the limit and what to change."""
    override, clients, expected = REFUSALS[name]
    with pytest.raises(BudgetError) as refused:
        budget("dev", *clients, **override).check()
    assert str(refused.value) == expected


@pytest.mark.parametrize("name", [name for name in REFUSALS if name != "sessions"])
def test_each_change_that_is_named_really_fits_and_the_one_before_does_not(name: str) -> None:
    """What the message says to do, done."""
    override, clients, _ = REFUSALS[name]
    found = budget("dev", *clients, **override)
    for setting, value, before in remedies(found):
        assert applied(found, setting, value).fits
        assert not applied(found, setting, value_before(setting, value, before)).fits


def value_before(setting: str, value: int, current: int) -> int:
    """Go back by one step: a task's sizes are each twice the one before."""
    if setting.startswith("pgbouncer.cpu"):
        return value // 2
    return value + (1 if value < current else -1)


def remedies(found: Budget) -> Iterator[tuple[str, int, int]]:
    """Read the changes out of a message."""
    with pytest.raises(BudgetError) as refused:
        found.check()
    _, _, advice = str(refused.value).partition("The smallest change that fits: ")
    for each in advice.rstrip(".").split("; or "):
        setting, _, values = each.removeprefix("set ").partition(" to ")
        value, _, before = values.partition(" (now ")
        yield setting, int(value), int(before.rstrip(")"))


def applied(found: Budget, setting: str, value: int) -> Budget:
    """Do one change."""
    if " of " in setting:
        name = setting.partition(" of ")[2].removesuffix(", by a reservation,")
        changed = [replace(c, concurrency=value) if c.name == name else c for c in found.clients]
        return budget_of(found.config, changed)
    section, _, field = setting.partition(" (")[0].partition(".")
    part = replace(getattr(found.config, section), **{field: value})
    return budget_of(replace(found.config, **{section: part}), found.clients)


def test_where_nothing_fits_no_setting_is_named() -> None:
    """The message does not send anybody the wrong way."""
    with pytest.raises(BudgetError, match="No single change fits"):
        budget("dev", Client("a", Cap.POOLER_LIMIT), pgbouncer={"pool_mode": "session"}).check()


def test_sessions_fit_where_every_client_has_a_server_connection() -> None:
    """Session pooling is refused only where it can leave somebody waiting for ever."""
    alone = {"pgbouncer": {"pool_mode": "session"}, "functions": {"other_clients": 0}}
    budget("dev", Client("users", 3), **alone).check()
    with pytest.raises(BudgetError, match="the number of sessions that can exist"):
        budget("dev", Client("users", 4), **alone).check()


def test_a_function_without_a_reservation_takes_what_is_left() -> None:
    """It adds nothing to the sum: the pooler refuses what is too much."""
    found = budget("dev", Client("users", Cap.POOLER_LIMIT))
    found.check()
    assert (
        "users: no reservation, uses the remaining connections, then answers 503" in found.explain()
    )


def test_all_sums_are_shown() -> None:
    """`make budget` prints what can exist, and what can log in at once."""
    shown = budget("dev", FREE, Client("health", Cap.POOLER_LIMIT)).explain()
    kinds = [block.partition("\n")[0] for block in shown.split("\n\n")]
    assert kinds == ["server connections", "client connections", "logins"]
    assert "2800  milliseconds for these" in shown


def test_a_change_that_breaks_another_sum_is_no_remedy() -> None:
    """More clients for each task would fit, and could not all log in."""
    override = {"pgbouncer": {**SMALL, "max_client_conn": 500}, "functions": {"other_clients": 0}}
    found = budget("dev", Client("users", 350), FREE, **override)
    with pytest.raises(BudgetError, match="client connections") as refused:
        found.check()
    assert "max_client_conn =" not in str(refused.value)


def test_one_task_may_be_away() -> None:
    """The clients of three tasks fit into two."""
    override = {
        "pgbouncer": {"tasks": 3, "max_client_conn": 100},
        "functions": {"other_clients": 0},
    }
    budget("dev", Client("users", 100), **override).check()
    with pytest.raises(BudgetError, match="x 2 tasks, while one is down"):
        budget("dev", Client("users", 101), **override).check()


def test_each_task_keeps_places_for_the_clients_of_sql() -> None:
    """All of them may reach one task, and the others must fit beside them at every task."""
    override = {
        "pgbouncer": {"tasks": 3, "max_client_conn": 100, "max_db_connections": 8},
        "functions": {"other_clients": 0},
        "sql": {"enabled": True, "reserved_concurrency": 10},
    }
    sql = Client("sql", 10)
    assert sql_clients(load_stage("dev", override)) == sql.connections == 20
    budget("dev", Client("users", 80), sql, **override).check()
    with pytest.raises(BudgetError, match=r"- 20 reserved for /sql\) x 2 tasks, while one is down"):
        budget("dev", Client("users", 81), sql, **override).check()


def test_other_apps_get_what_the_stage_keeps_for_them() -> None:
    """Functions of another app are compared with functions.other_clients."""
    config = load_stage("dev", {"functions": {"other_clients": 100}})
    allowance_of(config, [Client("orders", 50)]).check()
    with pytest.raises(
        BudgetError, match=r"is 102; must be at most 100 .functions.other_clients of the stage"
    ):
        allowance_of(config, [Client("orders", 51)]).check()


def test_the_baseline_is_outside() -> None:
    """The control of the storm has no budget: that is what it shows."""
    assert budget("local", baseline=True).sums == budget("local", baseline=False).sums


def test_tokens_need_no_rotation() -> None:
    """Where nobody has a password, nothing rotates one."""
    lines = [line.what for line in server(budget("dev", pooler="rds-proxy")).lines]
    assert "a rotation" not in lines


# What can really happen, played through


@given(
    tasks=st.integers(2, 8),
    extra=st.integers(0, 6),
    per_task=st.integers(2, 60),
    rotation=st.sampled_from(["alternating", "single"]),
    percent=st.sampled_from([150, 200]),
    accepted=st.integers(20, 1000),
    others=st.integers(2, 20),
    seed=st.integers(0, 2**32),
)
def test_no_accepted_stage_can_be_exhausted(
    tasks: int,
    extra: int,
    per_task: int,
    rotation: str,
    percent: int,
    accepted: int,
    others: int,
    seed: int,
) -> None:
    """Both users of a rotation open all that they can, in the middle of a deployment.

    Clients vanish meanwhile, and leave backends at work of which the pooler knows nothing.
    """
    override = {
        "pgbouncer": {
            "tasks": tasks,
            "max_tasks": min(8, tasks + extra),
            "max_db_connections": per_task,
            "maximum_percent": percent,
        },
        "database": {
            "instance_class": "r7g.24xlarge",
            "max_connections": accepted,
            "other_connections": others,
            "rotation": rotation,
        },
    }
    found = budget("dev", USERS, **override)
    peak = simulate(found.config, Chance(seed), users=2 if rotation == "alternating" else 1)
    if found.fits:
        assert peak <= accepted - RESERVED
    if server(found).total <= accepted:
        # The arithmetic is no more careful than the worst that can happen, but for a half.
        assert peak + RESERVED > server(found).total - running_tasks(found.config) * 2


def running_tasks(config: Config) -> int:
    """Play ECS in the middle of a deployment."""
    settings = config.pgbouncer
    running = settings.max_tasks
    allowed = settings.max_tasks * settings.maximum_percent // 100
    while running + 1 <= allowed:
        running += 1
    return running + settings.max_tasks  # of the deployment before, which still drain


def simulate(config: Config, chance: Chance, users: int) -> int:
    """Open server connections in any order until no task may open another; return their peak.

    Plays ECS, PgBouncer's rules (a limit for each user's pool, one for all), PostgreSQL's limit of
    a user, clients that vanish, and everybody else. It shares no line with the budget's sum.
    """
    backends: Counter[int] = Counter()
    tasks = [Counter[int]() for _ in range(running_tasks(config))]
    for _ in range(6 * len(tasks) * config.pgbouncer.max_db_connections):
        task, user = chance.choice(tasks), chance.randrange(users)
        if chance.random() < 0.5 and task[user]:
            task[user] -= 1  # its client has gone: the pooler forgets it, the backend works on
        if task[user] >= config.pool_size:
            continue
        if task.total() >= config.pgbouncer.max_db_connections:
            continue
        if backends[user] < login_limit(config):
            task[user] += 1
            backends[user] += 1
    return backends.total() + MIGRATIONS + ROTATION + config.database.other_connections


@given(
    percent=st.integers(1, 100),
    accepted=st.integers(20, 5000),
)
def test_no_accepted_proxy_can_exhaust_the_database(percent: int, accepted: int) -> None:
    """RDS Proxy opens its share; the rest is enough for everybody else."""
    found = budget(
        "dev",
        pooler="rds-proxy",
        rds_proxy={"max_connections_percent": percent, "max_idle_percent": 0},
        database={"max_connections": accepted, "instance_class": "r7g.24xlarge"},
    )
    others = MIGRATIONS + PROXY + found.config.database.other_connections
    used = accepted * percent / 100 + others
    if found.fits:
        assert used + RESERVED <= accepted


@given(
    clients=st.lists(
        st.builds(
            Client,
            name=st.just("f"),
            concurrency=st.integers(1, 300),
            slots=st.integers(1, 3),
            processes=st.integers(1, 3),
        ),
        max_size=4,
    ),
    tasks=st.integers(1, 4),
    limit=st.integers(10, 2000),
)
def test_no_accepted_fleet_is_refused_by_the_pooler(
    clients: list[Client], tasks: int, limit: int
) -> None:
    """Old and new environments of all functions connect while one task is away."""
    found = budget(
        "dev",
        *clients,
        pgbouncer={
            "tasks": tasks,
            "max_tasks": 4,
            "max_client_conn": limit,
            "max_db_connections": 5,
        },
    )
    environments = [client for client in clients for _ in range(2 * int(str(client.concurrency)))]
    connections = sum(client.slots * client.processes for client in environments)
    if found.fits:
        assert connections <= limit * max(tasks - 1, 1)


def test_the_limit_is_the_parameter_group_s_or_the_formula_s() -> None:
    """A setting beats what the size would have."""
    given_, source = max_connections(load_stage("dev"))
    assert (given_, source) == (150, "database.max_connections")
