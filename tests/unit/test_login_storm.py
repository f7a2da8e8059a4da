"""A login storm, simulated: what the budget accepts loses nobody, and what it refuses does.

Environments come at Lambda's rate, a load balancer gives each login to one of the tasks by chance,
and a task does the steps of all its logins in the order in which they arrive, as PgBouncer's loop
does, with its share of a core. Not in it: the milliseconds of the network and of the clients, the
statements that follow, and clients over the pooler's limit.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lambda_pg_cdk.stage.budget import LOGIN_MILLISECONDS, Cap, Client, LoginStorm, budget_of
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage

BURST = 1000
REFILL = 100.0
"""Lambda's rate: so many environments of a function at once, and then so many a second."""

PLAYED = 30.0
"""Seconds in which environments come."""

STEPS = (0.05, 0.55, 0.1, 0.1, 0.15, 0.05)
"""Parts of a login: SSLRequest, the handshake's two flights, and SCRAM's three."""

FREE = Client("users", Cap.POOLER_LIMIT)
HEALTH = Client("health", Cap.POOLER_LIMIT)


def storm_of(config: Config, clients: Sequence[Client]) -> LoginStorm:
    """Take the budget's sum of logins."""
    (found,) = (each for each in budget_of(config, clients).sums if isinstance(each, LoginStorm))
    return found


def arrivals(config: Config, clients: Sequence[Client]) -> list[float]:
    """Return when logins come, in seconds from the first, as many as the pooler has places for."""
    times = [0.0] * config.functions.other_clients
    for client in clients:
        for each in environments(client):
            times += [each] * client.processes * client.slots
    return sorted(times)[: serving(config) * config.pgbouncer.max_client_conn]


def environments(client: Client) -> Iterator[float]:
    """Start environments as fast as Lambda does: a bucket of tokens that is full at first."""
    wanted = float("inf") if isinstance(client.concurrency, Cap) else client.concurrency
    at, started = 0.0, 0
    while started < wanted and at < PLAYED:
        yield at
        started += 1
        at = max(0.0, (started + 1 - BURST) / REFILL)


def serving(config: Config) -> int:
    """Count the tasks that serve while one is away."""
    return config.pgbouncer.tasks - 1 or 1


def waits(config: Config, clients: Sequence[Client], chance: random.Random) -> Iterator[float]:
    """Yield how many seconds each login takes."""
    tasks: list[list[float]] = [[] for _ in range(serving(config))]
    for each in arrivals(config, clients):
        chance.choice(tasks).append(each)
    for times in tasks:
        yield from _at_task(times, config.pgbouncer.cpu / 1024)


def _at_task(times: list[float], core: float) -> Iterator[float]:
    coming, loop, now = deque(times), deque[tuple[float, int]](), 0.0
    while coming or loop:
        if not loop:
            now = max(now, coming[0])
        while coming and coming[0] <= now:
            loop.append((coming.popleft(), 0))
        began, step = loop.popleft()
        now += STEPS[step] * LOGIN_MILLISECONDS / 1000 / core
        if step + 1 < len(STEPS):
            loop.append((began, step + 1))
        else:
            yield now - began


def lost(config: Config, clients: Sequence[Client], seed: int = 0) -> int:
    """Count the logins that take longer than the checkout timeout."""
    timeout = config.functions.checkout_timeout
    chance = random.Random(seed)  # noqa: S311 - repeatable is what it must be
    return sum(each > timeout + 1e-6 for each in waits(config, clients, chance))


def stage(**override: Any) -> Config:
    """Change the stage `dev`, without clients of other apps unless these are said."""
    functions = {"other_clients": 0, **override.pop("functions", {})}
    return load_stage("dev", {**override, "functions": functions})


SIZES = st.sampled_from([(256, 512), (512, 1024), (1024, 2048)])
CLIENTS = st.lists(
    st.builds(
        Client,
        name=st.just("f"),
        concurrency=st.one_of(st.just(Cap.POOLER_LIMIT), st.integers(1, 1500)),
        slots=st.integers(1, 2),
        processes=st.integers(1, 2),
    ),
    min_size=1,
    max_size=3,
)


@given(
    clients=CLIENTS,
    tasks=st.integers(1, 5),
    size=SIZES,
    timeout=st.integers(2, 19),
    limit=st.integers(100, 3000),
    others=st.integers(0, 300),
    seed=st.integers(0, 2**32),
)
@example([FREE], 3, (1024, 2048), 2, 3000, 2300, 1)
@example([FREE, FREE, FREE], 2, (256, 512), 15, 5000, 0, 1)
@example([FREE, Client("f", Cap.POOLER_LIMIT, processes=2)], 5, (256, 512), 5, 875, 0, 30)
def test_what_the_budget_accepts_loses_nobody(
    clients: list[Client],
    tasks: int,
    size: tuple[int, int],
    timeout: int,
    limit: int,
    others: int,
    seed: int,
) -> None:
    """What is too much without the spread over tasks and what comes later does."""
    cpu, memory = size
    config = stage(
        pgbouncer={
            "tasks": tasks,
            "max_tasks": 5,
            "cpu": cpu,
            "memory": memory,
            "max_client_conn": limit,
        },
        functions={"checkout_timeout": timeout, "other_clients": others},
    )
    found = storm_of(config, clients)
    failed = lost(config, clients, seed)
    if found.fits:
        assert failed == 0
    at_once = sum(each == 0 for each in arrivals(config, clients))
    if at_once / serving(config) * LOGIN_MILLISECONDS / 1000 * 1024 / cpu > timeout:
        assert failed > 0


@pytest.mark.parametrize("cpu", [512, 1024])
@pytest.mark.parametrize("count", [1, 100, 999])
def test_the_last_login_ends_when_the_sum_says(count: int, cpu: int) -> None:
    """To the millisecond, where one task serves."""
    config, clients = stage(pgbouncer={"cpu": cpu}), [Client("users", count)]
    chance = random.Random(0)  # noqa: S311 - nothing to choose
    last = max(waits(config, clients, chance)) * 1000
    assert last <= storm_of(config, clients).milliseconds + 1e-6 < last + 1


def test_a_quarter_of_a_core_loses_most_of_a_storm_and_dev_nobody() -> None:
    """As `dev` was, and as it is: 2,000 environments and one task of two."""
    clients, small = [FREE, HEALTH], {"cpu": 256, "memory": 512}
    assert lost(load_stage("dev", {"pgbouncer": small}), clients) > 1000
    assert lost(load_stage("dev"), clients) == 0


def test_a_deployment_brings_each_environment_of_a_reservation_once() -> None:
    """Those of the version before are logged in already; their connections count elsewhere."""
    client = Client("users", 600)
    assert storm_of(stage(), [client]).total == 600
    assert client.connections == 1200


def test_lambda_starts_a_thousand_environments_of_each_function_at_once() -> None:
    """And a hundred more in each second that the first ones may wait."""
    wide = {"max_client_conn": 10_000}
    assert storm_of(stage(pgbouncer=wide), [Client("users", 3000), FREE]).total == 2600
    patient = {"checkout_timeout": 11}
    assert storm_of(stage(pgbouncer=wide, functions=patient), [Client("users", 3000)]).total == 2100


def test_more_than_the_pooler_accepts_cannot_log_in() -> None:
    """Its client limit is the cap of functions without a reservation."""
    config = stage(pgbouncer={"max_client_conn": 1500})
    assert storm_of(config, [FREE, HEALTH]).total == 1500


def test_other_poolers_have_no_such_sum() -> None:
    """What a login costs RDS Proxy is not known."""
    kinds = {each.kind for each in budget_of(stage(pooler="rds-proxy"), [FREE]).sums}
    assert kinds == {"server connection"}
