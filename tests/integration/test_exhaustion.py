"""What clients that vanish, and busy ones, leave of the database for everybody else."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import psycopg
import pytest
from lambda_pg import Database, DeadlineExceededError
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from lambda_pg_cdk.migrations import roles
from lambda_pg_cdk.migrations.roles import CLIENT_CHECK, Timeouts
from lambda_pg_cdk.migrations.run import Connections, migrate
from tests.support import layer
from tests.support.layer import SLEEP, busy_clients, count_served, pool_sizes, settings_for
from tests.support.servers import Login, PoolerFixture, SecretsService, create_login
from tests.support.waiting import wait_until

TIMEOUTS = Timeouts(statement=60, lock=5, idle_in_transaction=60, transaction=60)
POOL = 4
VANISHED = 24
LIMIT = 10

COMPUTE = "DO $$ BEGIN RAISE NOTICE 'at work'; LOOP PERFORM 1; END LOOP; END $$"
"""Says when it is at work, as SLEEP does."""


@dataclass
class Deployed:
    """A migrated database, the pooler in front of it, and a superuser who looks."""

    name: str
    pooler: PoolerFixture
    superuser: psycopg.Connection[Any]

    def start(self, **changes: str) -> None:
        """Start the pooler."""
        sizes = {"DEFAULT_POOL_SIZE": str(POOL), "MAX_DB_CONNECTIONS": str(2 * POOL)}
        self.pooler.start(DATABASE_NAME=self.name, **sizes | changes)

    def migrate(self, login_limit: int = -1) -> None:
        """Migrate as a deployment does, with a limit of connections for each user."""
        login = self.pooler.login
        migrate(
            psycopg.connect(self.pooler.postgres.dsn, dbname=self.name, autocommit=True),
            lambda: roles.Login(login.name, login.password),
            TIMEOUTS,
            patience=60.0,
            connections=Connections(login=login_limit),
        )

    def reset_check(self) -> None:
        """Have statements go on without a look at their client, as PostgreSQL does by default."""
        statement = sql.SQL("ALTER DATABASE {} RESET {}")
        names = map(sql.Identifier, (self.name, CLIENT_CHECK[0]))
        self.superuser.execute(statement.format(*names))

    def vanish(self, statement: str) -> bool:
        """Have a client vanish in the middle of a statement; tell whether that was at work."""
        return layer.vanish(self.pooler.connect(dbname=self.name), statement)

    def backends(self) -> int:
        """Count the backends of the application's user."""
        row = self.superuser.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [self.pooler.login.name]
        ).fetchone()
        assert row is not None
        return int(row[0])

    def at_work(self) -> int:
        """Count those of them that are in a statement."""
        row = self.superuser.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'active'",
            [self.pooler.login.name],
        ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def deployed(new_pooler: PoolerFixture) -> Iterator[Deployed]:
    """A database that is not migrated yet, with a login that the migration makes."""
    postgres, name = new_pooler.postgres, f"exhausted_{secrets.token_hex(4)}"
    login = Login(f"app_{name}", "canary-Pa55word", "")
    login.arn = new_pooler.service.create({"username": login.name, "password": login.password})
    new_pooler.login = login
    new_pooler.environment["USER_SECRET_ARNS"] = login.arn
    owner = str(conninfo_to_dict(postgres.dsn)["user"])
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as superuser:
        create = sql.SQL("CREATE DATABASE {} OWNER {}")
        superuser.execute(create.format(sql.Identifier(name), sql.Identifier(owner)))
        yield Deployed(name, new_pooler, superuser)
        new_pooler.stop()
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        superuser.execute(drop.format(sql.Identifier(name)))
        superuser.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(login.name)))


# Clients that vanish


@pytest.mark.parametrize("statement", [SLEEP, COMPUTE], ids=["sleeps", "computes"])
def test_the_backend_of_a_client_that_vanished_ends(deployed: Deployed, statement: str) -> None:
    """Long before statement_timeout, whether it waits or computes."""
    deployed.migrate()
    deployed.start()
    for _ in range(POOL):
        assert deployed.vanish(statement)
    wait_until(lambda: deployed.at_work() == 0, 10, "the end of the statements")


def test_a_pooler_replaces_what_it_has_forgotten(deployed: Deployed) -> None:
    """The control: without the look at the client, backends pile up over the pooler's bound."""
    deployed.migrate()
    deployed.reset_check()
    deployed.start()
    for _ in range(VANISHED):
        assert deployed.vanish(SLEEP)
    assert deployed.at_work() == VANISHED > 2 * POOL


def test_a_limit_holds_also_for_backends_whose_client_has_gone(deployed: Deployed) -> None:
    """Nothing that clients or the pooler do takes more of the database than the budget counts."""
    deployed.migrate(LIMIT)
    deployed.reset_check()
    deployed.start()
    with ThreadPoolExecutor(VANISHED) as threads:
        seen = list(threads.map(lambda _: vanish(deployed), range(VANISHED)))
    assert seen.count(True) == LIMIT
    assert deployed.at_work() == LIMIT


def vanish(deployed: Deployed) -> bool:
    """Have a client vanish that may also be refused."""
    try:
        return deployed.vanish(SLEEP)
    except psycopg.OperationalError:
        return False


def test_a_user_over_its_limit_is_served_when_abandoned_backends_have_ended(
    deployed: Deployed, secrets_environment: None
) -> None:
    """A limit that is used up by abandoned backends is an absence of some tenths of a second."""
    deployed.migrate(POOL)
    deployed.start()
    with closing(Database(replace(settings_for(deployed.pooler), dbname=deployed.name))) as db:
        for _ in range(3):
            for _ in range(POOL):
                vanish(deployed)
            assert db.execute("SELECT 1", idempotent=True).fetchone() == (1,)


@pytest.mark.parametrize("profile", ["pgbouncer", "rds-proxy"])
def test_a_statement_that_its_deadline_cuts_leaves_no_backend_at_work(
    deployed: Deployed, secrets_environment: None, profile: Literal["pgbouncer", "rds-proxy"]
) -> None:
    """A cancel through the pooler ends it; where none is sent (RDS Proxy's profile), the look."""
    deployed.migrate()
    if profile == "pgbouncer":
        deployed.reset_check()
    deployed.start()
    settings = replace(settings_for(deployed.pooler), dbname=deployed.name, profile=profile)
    with closing(Database(settings)) as db:
        with db.deadline(2), pytest.raises(DeadlineExceededError):
            db.execute("SELECT pg_sleep(300)")
        wait_until(lambda: deployed.at_work() == 0, 10, "the end of the statement")


# A second user


def served_beside_busy_clients(
    pooler: PoolerFixture, service: SecretsService, changes: dict[str, str]
) -> int:
    """Count which of 8 new environments of a second user are served within checkout timeout."""
    first, second = pooler.login, create_login(pooler.postgres, service, "second")
    pooler.start(USER_SECRET_ARNS=f"{first.arn},{second.arn}", **changes)
    with busy_clients(pooler.connect):
        return count_served(replace(settings_for(pooler), secret_arn=second.arn))


def test_a_second_user_is_served_beside_busy_clients_of_the_first(
    new_pooler: PoolerFixture, secrets_service: SecretsService, secrets_environment: None
) -> None:
    """Each of a rotation's users has server connections that the other one cannot take."""
    sizes = pool_sizes(POOL, "alternating")
    assert served_beside_busy_clients(new_pooler, secrets_service, sizes) == 8


def test_a_second_user_starves_where_one_can_take_all(
    new_pooler: PoolerFixture, secrets_service: SecretsService, secrets_environment: None
) -> None:
    """The control: PgBouncer shares max_db_connections among users without fairness."""
    sizes = pool_sizes(POOL, "alternating") | {"DEFAULT_POOL_SIZE": str(POOL)}
    assert served_beside_busy_clients(new_pooler, secrets_service, sizes) < 4
