"""The examples of docs/integrations.md and docs/how-to.md, run as they stand there."""

import asyncio
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from lambda_pg import Database
from lambda_pg.sqlalchemy import database
from lambda_pg.testing import LambdaContext, Server
from shapely import Point

pytest_plugins = ["lambda_pg.testing"]

DOCUMENTED = Path(__file__).resolve().parents[1] / "documented"
LAYER = DOCUMENTED.parents[1] / "layer" / "python"


@pytest.fixture
def admin(lambda_pg_server: Server) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's connection; its tables go with the test."""
    with psycopg.connect(lambda_pg_server.url, autocommit=True) as connection:
        yield connection
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


@pytest.fixture
def example(lambda_pg_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import an example in the environment of the test."""
    monkeypatch.syspath_prepend(str(DOCUMENTED))
    imported: list[ModuleType] = []

    def load(name: str) -> ModuleType:
        imported.append(importlib.import_module(name))
        return imported[-1]

    yield load
    database().close()
    for module in imported:
        for value in vars(module).values():
            if isinstance(value, Database):
                value.close()
        del sys.modules[module.__name__]


def run(command: list[str], folder: Path) -> str:
    """Run a command that must succeed, with the layer on its path; return what it prints."""
    environment = os.environ | {"PYTHONPATH": f"{LAYER}:{folder}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_handler_s_test_runs_as_documented(tmp_path: Path) -> None:
    """Three files in an empty folder, and pytest: that is all."""
    folder = tmp_path / "project"
    shutil.copytree(DOCUMENTED / "handler_test", folder)
    assert "1 passed" in run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], folder)


def test_the_sqlalchemy_handler(
    example: Any, admin: psycopg.Connection[Any], lambda_context: LambdaContext
) -> None:
    """It answers, and answers 503 with Retry-After when the deadline has passed."""
    admin.execute("CREATE TABLE stock (sku text, units int)")
    admin.execute("INSERT INTO stock VALUES ('a', 3)")
    handler = example("sqlalchemy_handler").handler
    assert handler({"sku": "a"}, lambda_context) == {"statusCode": 200, "body": "2"}
    late = handler({"sku": "a"}, LambdaContext(seconds=0))
    assert (late["statusCode"], late["headers"]) == (503, {"Retry-After": "1"})


def test_the_django_project(
    lambda_pg_environment: None,
    admin: psycopg.Connection[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It migrates through the direct URL, and its handler reads through the other."""
    folder = tmp_path / "project"
    shutil.copytree(DOCUMENTED / "django_project", folder)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "settings")
    run([sys.executable, "-m", "django", "migrate", "--database=direct"], folder)
    probe = (
        "from handler import handler; from lambda_pg.testing import LambdaContext;"
        "print([handler({}, LambdaContext())['body'] for _ in range(2)])"
    )
    assert run([sys.executable, "-c", probe], folder) == "['1', '1']\n"


def test_the_flask_application(
    example: Any, admin: psycopg.Connection[Any], lambda_context: LambdaContext
) -> None:
    """Every invocation of one environment is served, over one connection; nothing is left open."""
    admin.execute("CREATE TABLE orders (id serial PRIMARY KEY)")
    module = example("flask_app")
    event = {"rawPath": "/orders", "httpMethod": "POST"}
    answers = [module.handler(event, lambda_context) for _ in range(5)]
    assert [answer["statusCode"] for answer in answers] == [201] * 5
    assert [json.loads(answer["body"])["orders"] for answer in answers] == [1, 2, 3, 4, 5]
    stats = database().stats()
    assert (stats["connections_num"], stats["leaks"]) == (1, 0)


def test_the_flask_application_goes_on_after_an_error(
    example: Any, admin: psycopg.Connection[Any], lambda_context: LambdaContext
) -> None:
    """A request that fails costs the next one nothing."""
    module = example("flask_app")
    event = {"rawPath": "/orders", "httpMethod": "POST"}
    assert module.handler(event, lambda_context)["statusCode"] == 500
    admin.execute("CREATE TABLE orders (id serial PRIMARY KEY)")
    assert [module.handler(event, lambda_context)["statusCode"] for _ in range(2)] == [201, 201]


def test_the_sqlmodel_handler(
    example: Any, admin: psycopg.Connection[Any], lambda_context: LambdaContext
) -> None:
    """Its queries come back as models, in one invocation after the other."""
    admin.execute("CREATE TABLE orders (id int)")
    admin.execute("INSERT INTO orders VALUES (1), (2)")
    handler = example("sqlmodel_handler").handler
    for _ in range(2):
        assert handler({}, lambda_context) == {"statusCode": 200, "body": "[1, 2]"}


def test_the_alembic_project(
    lambda_pg_environment: None,
    lambda_pg_server: Server,
    admin: psycopg.Connection[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It migrates by the direct URL, there and back; the other URL is not used."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    folder = tmp_path / "alembic"
    shutil.copytree(DOCUMENTED / "alembic_project", folder)
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = .\n")
    run([sys.executable, "-m", "alembic", "upgrade", "head"], folder)
    assert admin.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    assert admin.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    run([sys.executable, "-m", "alembic", "downgrade", "base"], folder)
    assert admin.execute("SELECT to_regclass('orders')").fetchone() == (None,)


def test_the_pool_s_style(example: Any, admin: psycopg.Connection[Any]) -> None:
    """The three ways of psycopg_pool do what they did."""
    admin.execute("CREATE TABLE users (name text)")
    admin.execute("CREATE TABLE accounts (name text, balance int CHECK (balance >= 0))")
    admin.execute("INSERT INTO accounts VALUES ('ann', 10), ('bob', 0)")
    style = example("pool_style")
    style.load([("bob",), ("ann",)])
    assert style.names() == ["ann", "bob"]
    style.move("ann", "bob", 4)
    with pytest.raises(psycopg.errors.CheckViolation):
        style.move("ann", "bob", 100)
    balances = admin.execute("SELECT name, balance FROM accounts ORDER BY name").fetchall()
    assert balances == [("ann", 6), ("bob", 4)]


@pytest.fixture
def layers_logger() -> Iterator[logging.Logger]:
    """The layer's logger, which is afterwards as it was: other tests' output is elsewhere."""
    logger = logging.getLogger("lambda_pg")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


def test_the_powertools_handler(
    example: Any,
    admin: psycopg.Connection[Any],
    lambda_context: LambdaContext,
    capsys: pytest.CaptureFixture[str],
    layers_logger: logging.Logger,
) -> None:
    """The layer's events are lines of the handler's log, with its service and its request."""
    admin.execute("CREATE TABLE orders (id int)")
    module = example("powertools_handler")
    assert module.handler({}, lambda_context)["body"] == "0"
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'lambda_pg'"
    )
    assert module.handler({}, lambda_context)["body"] == "0"
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (event,) = [line for line in lines if line.get("event") == "replaced"]
    assert event["service"] == "orders"
    assert event["function_request_id"] == lambda_context.aws_request_id
    assert lines[-1]["database"]["connections_lost"] == 1


def stand_in(admin: psycopg.Connection[Any], name: str) -> None:
    """Make a type that is text in the database: its extension is on few machines."""
    admin.execute(f"CREATE TYPE {name}")
    for function, takes, gives in (("in", "cstring", name), ("out", name, "cstring")):
        admin.execute(
            f"CREATE FUNCTION {name}_{function}({takes}) RETURNS {gives}"
            f" LANGUAGE internal IMMUTABLE STRICT AS 'text{function}'"
        )
    admin.execute(f"CREATE TYPE {name} (INPUT = {name}_in, OUTPUT = {name}_out, LIKE = text)")


def test_the_types_handler(
    example: Any, admin: psycopg.Connection[Any], lambda_context: LambdaContext
) -> None:
    """Each type comes as Python's, on the first connection and on one that replaces it."""
    if admin.execute("SELECT FROM pg_available_extensions WHERE name = 'hstore'").fetchone():
        admin.execute("CREATE EXTENSION hstore SCHEMA public")
    else:
        stand_in(admin, "hstore")
    admin.execute("CREATE TYPE status AS ENUM ('open', 'paid')")
    admin.execute("CREATE TYPE price AS (amount numeric, currency text)")
    admin.execute(
        "CREATE TABLE invoices (status status, total price, labels hstore, document json)"
    )
    admin.execute(
        "INSERT INTO invoices VALUES ('paid', (9.95, 'EUR'), '\"a\"=>\"b\"', '{\"vat\": 0.1}')"
    )
    module = example("types_handler")
    for _ in range(2):
        assert module.handler({}, lambda_context) == {
            "status": module.Status.PAID,
            "total": Decimal("9.95"),
            "labels": {"a": "b"},
            "document": {"vat": Decimal("0.1")},
        }
        module.db.close()


def test_the_vectors(example: Any, admin: psycopg.Connection[Any]) -> None:
    """A vector comes as pgvector's; the type itself, which sends text, stands in here."""
    stand_in(admin, "vector")
    admin.execute("CREATE TABLE items (id int, embedding vector)")
    admin.execute("INSERT INTO items VALUES (1, '[1.5,2]')")
    assert example("vectors").embedding(1).to_list() == [1.5, 2.0]


def test_the_shapes(example: Any, admin: psycopg.Connection[Any]) -> None:
    """A geometry comes as a shape; the type itself, which sends its WKB in hex, stands in here."""
    stand_in(admin, "geometry")
    admin.execute("CREATE TABLE places (name text, outline geometry)")
    admin.execute("INSERT INTO places VALUES ('here', %s::text::geometry)", [Point(1, 2).wkb_hex])
    assert example("shapes").outline("here") == Point(1, 2)


@pytest.fixture
def closed_loop() -> Iterator[None]:
    """Give Mangum the loop that it otherwise makes and leaves open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


def test_the_fastapi_application(
    example: Any,
    admin: psycopg.Connection[Any],
    lambda_context: LambdaContext,
    closed_loop: None,
) -> None:
    """Each invocation is served over one connection, and one past its deadline is answered when."""
    admin.execute("CREATE TABLE orders (id int)")
    admin.execute("INSERT INTO orders VALUES (1), (2)")
    module = example("fastapi_app")
    for _ in range(3):
        answer = module.handler(REQUEST, lambda_context)
        assert (answer["statusCode"], answer["body"]) == (200, "[[1],[2]]")
    late = module.handler(REQUEST, LambdaContext(seconds=0))
    assert (late["statusCode"], late["headers"]["retry-after"]) == (503, "1")
    stats = module.db.stats()
    assert (stats["connections_num"], stats["leaks"]) == (1, 0)


REQUEST = {
    "version": "2.0",
    "rawPath": "/orders",
    "rawQueryString": "",
    "headers": {},
    "requestContext": {"http": {"method": "GET", "path": "/orders", "sourceIp": "127.0.0.1"}},
    "isBase64Encoded": False,
}
"""What API Gateway sends, as far as an adapter to ASGI reads it."""


def test_the_rows_as_dictionaries(example: Any) -> None:
    """A row has the names of its columns, by each verb that reads."""
    db, query = example("dict_rows").db, "SELECT 1 AS id, 995 AS total"
    with db.connection() as connection:
        rows = [connection.execute(query).fetchone()]
    with db.transaction() as connection:
        rows.append(connection.execute(query).fetchone())
    rows.append(db.run_transaction(lambda connection: connection.execute(query).fetchone()))
    rows.append(db.execute(query).fetchone())
    assert rows == [{"id": 1, "total": 995}] * 4


def test_the_second_database(
    example: Any,
    admin: psycopg.Connection[Any],
    lambda_context: LambdaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is read and the other is written in one invocation."""
    admin.execute("CREATE DATABASE reports")
    try:
        monkeypatch.setenv("REPORTS_HOST", admin.info.host)
        monkeypatch.setenv("REPORTS_PORT", str(admin.info.port))
        monkeypatch.setenv("REPORTS_DATABASE", "reports")
        admin.execute("CREATE TABLE orders (total int)")
        admin.execute("INSERT INTO orders VALUES (995), (5)")
        module = example("second_database")
        module.reports.execute("CREATE TABLE totals (total int)")
        module.handler({}, lambda_context)
        assert module.reports.execute("SELECT total FROM totals").fetchall() == [(1000,)]
        assert admin.execute("SELECT to_regclass('totals')").fetchone() == (None,)
    finally:
        admin.execute("DROP DATABASE reports WITH (FORCE)")
