"""The function that the examples deploy, with their environment, through a real PgBouncer."""

import importlib
import json
import sys
import uuid
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import psycopg
import pytest
from lambda_pg.testing import LambdaContext
from psycopg import sql

from tests.support import examples
from tests.support.servers import DATABASE, PoolerFixture

OWNER, USER = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture
def user(pooler: PoolerFixture) -> Iterator[None]:
    """One user, shown to its owner only."""
    dsn = psycopg.conninfo.make_conninfo(pooler.postgres.superuser_dsn, dbname=DATABASE)
    login = sql.Identifier(pooler.login.name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE users (id uuid, owner text, name text)")
        connection.execute(sql.SQL("GRANT SELECT ON users TO {}").format(login))
        connection.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
        connection.execute(
            "CREATE POLICY own ON users USING"
            " (owner = current_setting('request.jwt.claims', true)::json ->> 'sub')"
        )
        connection.execute("INSERT INTO users VALUES (%s, %s, 'ann')", (USER, OWNER))
        yield
        connection.execute("DROP TABLE users")


@pytest.fixture
def module(
    pooler: PoolerFixture, secrets_environment: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """examples/handler.py, imported with what an example sets where the pooler is this one."""
    published = {
        **examples.VALUES,
        "/lambda-pg/dev/pooler/host": "127.0.0.1",
        "/lambda-pg/dev/pooler/port": str(pooler.port),
        "/lambda-pg/dev/pooler/ca": pooler.authority.pem,
        "/lambda-pg/dev/pooler/secret-arn": pooler.login.arn,
        "/lambda-pg/dev/database/name": DATABASE,
    }
    for name, value in examples.sam(published).environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(examples.EXAMPLES))
    imported = importlib.import_module("handler")
    yield imported
    imported.db.close()
    del sys.modules["handler"]


def test_the_function_reads_its_row(module: ModuleType, user: None) -> None:
    """It shows a user to its owner, and to nobody else."""
    found = module.handler({"id": USER, "sub": OWNER}, LambdaContext())
    assert (found["statusCode"], body(found)) == (200, {"name": "ann"})
    assert module.handler({"id": USER, "sub": USER}, LambdaContext())["statusCode"] == 404


def test_the_function_says_when_to_come_back(
    module: ModuleType, pooler: PoolerFixture, user: None
) -> None:
    """Without a pooler it answers 503 with Retry-After, and serves again with the next one."""
    event = {"id": USER, "sub": OWNER}
    assert module.handler(event, LambdaContext())["statusCode"] == 200
    pooler.process.kill()
    away = module.handler(event, LambdaContext())
    assert (away["statusCode"], away["headers"]["Retry-After"]) == (503, "1")
    pooler.start()
    assert module.handler(event, LambdaContext())["statusCode"] == 200


def body(answer: dict[str, Any]) -> Any:
    """Read what an answer holds."""
    return json.loads(answer["body"])
