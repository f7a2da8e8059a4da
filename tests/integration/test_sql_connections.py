"""No connection too many: `/sql` and the application under full load, and the budget's numbers."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest
from lambda_pg import Database

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.passwords import machine_made_password
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.stage.budget import Budget, budget_of, most_tasks
from lambda_pg_cdk.stage.capacity import RESERVED
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from tests.support.layer import settings_for
from tests.support.load import Load
from tests.support.postgres import CopiedPostgres
from tests.support.servers import (
    DATABASE,
    MAJOR,
    MASTER,
    SQL_DATABASE,
    Login,
    PoolerFixture,
    SecretsService,
    change_password,
    create_login,
    pooler_in_tmp,
)
from tests.support.sql_server import Key, SqlServer, direct, event_of, sql_server, through
from tests.support.waiting import wait_until

pytestmark = pytest.mark.once

MAX_CONNECTIONS = 25
REQUESTS = 300
"""As many as there are environments."""
FEW = 6
STAGE = {
    "database": {
        "rotation": "single",
        "max_connections": MAX_CONNECTIONS,
        "other_connections": 2,
    },
    "pgbouncer": {
        "tasks": 1,
        "max_tasks": 1,
        "maximum_percent": 200,
        "max_db_connections": 2,
    },
    "sql": {"enabled": True, "roles": ["reader"], "max_db_connections": 2},
}
"""A stage that needs all of so few connections: not one is left."""

TOO_MANY = ("too many clients already", "remaining connection slots", "too many connections")


@pytest.fixture
def small(short_folder: Path, request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server with few connections, which logs whom it refuses."""
    server = CopiedPostgres(
        find_postgres(MAJOR),
        short_folder / f"small-{request.node.name}",
        port=processes.free_port(),
        max_connections=MAX_CONNECTIONS,
        durable=False,
    )
    try:
        server.start()
        server.create_master(*MASTER, DATABASE)
        change_password(server, *MASTER)
        yield server
    finally:
        server.stop()


def refusals(server: Postgres) -> int:
    """Count the clients that the server has refused for want of a connection."""
    log = server.log.read_text(errors="replace")
    return sum(log.count(f"FATAL:  {text}") for text in TOO_MANY)


@dataclass
class Peak:
    """The most backends of some users at the same moment."""

    superuser: psycopg.Connection[tuple[str, int]]
    users: tuple[str, ...]
    most: Counter[str] = field(default_factory=Counter)
    together: int = 0

    def look(self) -> None:
        """Look once."""
        query = "SELECT usename, count(*) FROM pg_stat_activity WHERE usename = ANY(%s) GROUP BY 1"
        now = Counter(dict(self.superuser.execute(query, [list(self.users)]).fetchall()))
        self.most |= now
        self.together = max(self.together, now.total())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look again and again, in a thread."""
        stop = threading.Event()

        def look_on() -> None:
            while not stop.wait(0.02):
                self.look()

        thread = threading.Thread(target=look_on)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@dataclass
class Tasks:
    """All tasks of the pooler that the budget counts, and the login of `/sql`."""

    first: PoolerFixture
    reader: Login
    ports: list[int]

    @property
    def users(self) -> tuple[str, ...]:
        """The names of all users that come through them."""
        return (self.first.login.name, self.reader.name)


@contextmanager
def running_tasks(config: Config, first: PoolerFixture, folder: Path) -> Iterator[Tasks]:
    """Start as many tasks as a rolling deployment may have, with the sizes of the stage."""
    (reader,) = first.add_sql(1, pool_size=config.sql_pool_size, most=config.sql.max_db_connections)
    first.environment |= {
        "DEFAULT_POOL_SIZE": str(config.pool_size),
        "MAX_DB_CONNECTIONS": str(config.pgbouncer.max_db_connections),
        "QUERY_WAIT_TIMEOUT": "5",  # this machine logs 300 environments in at once
    }
    first.start()
    tasks = Tasks(first, reader, [first.port])
    with ExitStack() as stack:
        for number in range(1, most_tasks(config)):
            port = processes.free_port()
            environment = first.environment | {"LISTEN_PORT": str(port)}
            pooler = Pooler(first.binary, folder / f"task-{number}", environment)
            stack.callback(pooler.kill)
            pooler.start()
            tasks.ports.append(port)
        yield tasks


@contextmanager
def sql_servers(tasks: Tasks, environments: int) -> Iterator[list[SqlServer]]:
    """Serve `/sql` through each task."""
    roles = {"reader": tasks.reader}
    endpoint = through(tasks.first) | {"PGDATABASE": SQL_DATABASE}
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                sql_server(
                    endpoint | {"PGPORT": str(port)},
                    tasks.first.service,
                    roles,
                    environments=environments,
                    LAMBDA_PG_CHECKOUT_TIMEOUT="15",
                )
            )
            for port in tasks.ports
        ]


class Busy(Load):
    """Statements that take some time: several clients need several server connections."""

    def _request(self) -> None:
        self._db.execute("SELECT pg_sleep(0.05)", idempotent=True)


@contextmanager
def application(tasks: Tasks) -> Iterator[list[Load]]:
    """Keep four environments of the application busy at each task."""
    with ExitStack() as stack:
        loads: list[Load] = []
        for port in tasks.ports * 4:
            settings = replace(settings_for(tasks.first), port=port, checkout_timeout=15.0)
            db = stack.enter_context(closing(Database(settings)))
            loads.append(stack.enter_context(Busy(db)))
        yield loads


@contextmanager
def everybody_else(server: Postgres, count: int) -> Iterator[None]:
    """Hold what the budget counts besides the pooler: migrations, rotations, administrators."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(psycopg.connect(server.dsn))
        yield


def ask_all(
    servers: list[SqlServer], keys: list[list[Key]], at_once: int, requests: int = REQUESTS
) -> Counter[int]:
    """Send requests, over all keys and servers; count the statuses."""
    content = json.dumps({"query": "SELECT pg_sleep(0.05)"}).encode()

    def ask(number: int) -> int:
        round_, server = divmod(number, len(servers))
        own = keys[server]
        key = own[round_ % len(own)]
        headers = [("Host", key.host), ("Neon-Connection-String", key.connection_string)]
        answer = servers[server].invoke(event_of("POST", "/sql", headers, content))
        return int(answer["statusCode"])

    with ThreadPoolExecutor(at_once) as threads:
        return Counter(threads.map(ask, range(requests)))


def pooled(budget: Budget) -> int:
    """Return what the budget counts for PgBouncer, under both names of the database."""
    return sum(line.connections for line in budget.sums[0].lines if "PgBouncer" in line.what)


def test_three_hundred_at_once_open_what_the_budget_counts(
    small: Postgres,
    secrets_service: SecretsService,
    pgbouncer_binary: PgBouncerBinary,
    short_folder: Path,
    secrets_environment: None,
) -> None:
    """Exactly as many backends at the peak, and the database refuses no connection."""
    processes.raise_open_files_limit()
    config = load_stage("dev", STAGE)
    budget = budget_of(config)
    servers_sum = budget.sums[0]
    assert servers_sum.total == MAX_CONNECTIONS, "some are left"
    others = servers_sum.total - pooled(budget) - RESERVED
    with ExitStack() as stack:
        first = stack.enter_context(pooler_in_tmp(pgbouncer_binary, small, secrets_service))
        tasks = stack.enter_context(running_tasks(config, first, short_folder))
        servers = stack.enter_context(sql_servers(tasks, REQUESTS // len(tasks.ports)))
        keys = [[each.create_key("reader") for _ in range(3)] for each in servers]
        # The superuser who looks is one of them: PostgreSQL counts that connection like any other.
        stack.enter_context(everybody_else(small, others - 1))
        superuser = stack.enter_context(psycopg.connect(small.superuser_dsn, autocommit=True))
        peak = Peak(superuser, tasks.users)
        stack.enter_context(peak.watched())
        loads = stack.enter_context(application(tasks))
        # First each environment reads its secrets: the test's service is not Secrets Manager.
        assert ask_all(servers, keys, FEW) == {200: REQUESTS}
        statuses = ask_all(servers, keys, REQUESTS)
        wait_until(lambda: all(load.served for load in loads), 20, "the application")
        wait_until(lambda: peak.together >= pooled(budget), 20, "the peak")
    assert peak.together == pooled(budget)
    each = most_tasks(config)
    assert peak.most[tasks.first.login.name] == each * config.pgbouncer.max_db_connections
    assert peak.most[tasks.reader.name] == each * config.sql.max_db_connections
    assert statuses == {200: REQUESTS}
    assert [load.errors for load in loads] == [[]] * len(loads)
    assert refusals(small) == 0


def test_without_a_pooler_the_database_refuses_them(
    small: Postgres, secrets_service: SecretsService
) -> None:
    """The control: an environment has a connection, and there are not so many."""
    login = create_login(small, secrets_service, machine_made_password())
    environments = 2 * MAX_CONNECTIONS
    with sql_server(
        direct(small),
        secrets_service,
        {"reader": login},
        environments=environments,
        LAMBDA_PG_CHECKOUT_TIMEOUT="1",
    ) as server:
        key = server.create_key("reader")
        statuses = ask_all([server], [[key]], environments, environments)
    assert statuses[503] > 0, statuses
    assert refusals(small) > 0
