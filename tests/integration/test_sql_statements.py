"""Statements that a real client sends are collected, and then suffice for it; keys are revoked."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from lambda_pg_cdk.functions.sql.sql_http.statements import load_statements
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.tools.sql_statements import Collection, server
from tests.support import clients
from tests.support.clients import Door, run
from tests.support.servers import DATABASE, Login, SecretsService, create_login
from tests.support.sql_server import Key, direct, sql_server
from tests.support.waiting import wait_until

DRIVER = ("run_driver.mjs", "@neondatabase/serverless")


@pytest.fixture(scope="module")
def login(postgres: Postgres, secrets_service: SecretsService) -> Login:
    """A login for all roles: what a role may do is tested elsewhere."""
    return create_login(postgres, secrets_service, "canary-of-statements")


@pytest.fixture
def tables(postgres: Postgres, login: Login, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the tables that programs fill to the login, and remove them."""
    filled = clients.TABLES.replace("lambda_pg_sql_writer", login.name)
    monkeypatch.setattr(clients, "TABLES", filled)
    yield
    with psycopg.connect(database_of(postgres), autocommit=True) as admin:
        admin.execute(clients.NO_TABLES)


def database_of(postgres: Postgres) -> str:
    """Return the address of the superuser in the application's database."""
    return make_conninfo(postgres.superuser_dsn, dbname=DATABASE)


@contextmanager
def collecting(to: str, file: Path, *, reads: bool = False) -> Iterator[str]:
    """Pass requests on to a URL while the file collects them; yield the URL for clients."""
    with server(to, Collection(file, reads=reads), 0) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/sql"
        listening.shutdown()


def door(key: Key, endpoint: str, postgres: Postgres) -> Door:
    """Lead a client's program to an endpoint."""
    return Door(key.connection_string, endpoint, database_of(postgres))


@pytest.mark.once
def test_what_was_collected_suffices_for_the_same_client(
    postgres: Postgres,
    secrets_service: SecretsService,
    login: Login,
    tables: None,
    tmp_path: Path,
) -> None:
    """With a key for the collected texts only, the driver gets every value that it got before."""
    file = tmp_path / "folder" / "statements.json"
    roles = {"reader": login}
    with sql_server(direct(postgres), secrets_service, roles) as free:
        key = free.create_key("reader")
        with collecting(free.url, file) as endpoint:
            before = run(door(key, endpoint, postgres), *DRIVER)
    succeeded = {name for name, each in before.checks.items() if "error" not in each}
    assert len(succeeded) > 10
    with sql_server(
        direct(postgres), secrets_service, roles, SQL_STATEMENTS=str(file)
    ) as registered:
        key = registered.create_key("reader", statements=True)
        after = run(door(key, registered.url, postgres), *DRIVER)
        refused = registered.post({"query": "SELECT 'never sent before'"}, key)
    assert {name for name, each in after.checks.items() if "error" not in each} >= succeeded
    assert (refused.status, refused.body["code"]) == (400, "42501")
    text = file.read_text()
    assert key.secret not in text
    assert not any(each["reads"] for each in json.loads(text).values() if isinstance(each, dict))


def test_a_failed_statement_is_not_collected(
    postgres: Postgres, secrets_service: SecretsService, login: Login, tmp_path: Path
) -> None:
    """Nor is one twice; what the file has already, and its names, stay."""
    file = tmp_path / "statements.json"
    file.write_text('{"mine": {"sql": "SELECT 1", "reads": true}}')
    with sql_server(direct(postgres), secrets_service, {"reader": login}) as free:
        key = free.create_key("reader")
        with collecting(free.url, file, reads=True) as endpoint:
            free.port = urlsplit(endpoint).port or 0  # what it is asked now is collected
            for query in ("SELECT 1", "SELECT 2", "SELECT 2", "SELECT nothing", "  "):
                free.post({"query": query}, key)
            free.post({"queries": [{"query": "SELECT 3"}, {"query": "SELECT $1::int"}]}, key)
            free.post({"query": "SELECT $1::int", "params": ["4"]}, key)
            free.post(
                {"queries": [{"query": "SELECT 5"}, {"query": "SELECT $1::int", "params": [6]}]},
                key,
            )
            free.post({"query": "SELECT 7"})
            free.post(b"not JSON", key)
            preflight = free.send("OPTIONS", b"", {})
    assert preflight.status == 200
    entries = json.loads(file.read_text())
    assert entries.pop("mine") == {"sql": "SELECT 1", "reads": True}
    assert [each["sql"] for each in entries.values()] == [
        *("SELECT 2", "SELECT $1::int", "SELECT 5")
    ]
    assert load_statements(file).reads("SELECT 5")


def test_a_revoked_key_is_refused_within_its_lifetime(
    postgres: Postgres, secrets_service: SecretsService, login: Login
) -> None:
    """Through the whole function; another key is served on, and a new one."""
    lifetime = 2.0
    with sql_server(
        direct(postgres), secrets_service, {"reader": login}, SQL_KEY_LIFETIME=str(lifetime)
    ) as served:
        key, other = served.create_key("reader"), served.create_key("reader")
        assert served.post({"query": "SELECT 1"}, key).status == 200
        served.revoke(key)
        revoked_at, last = time.time(), 0.0

        def is_refused() -> bool:
            nonlocal last
            asked_at, answer = time.time(), served.post({"query": "SELECT 1"}, key)
            if answer.status == 200:
                last = asked_at
            return bool(answer.body.get("code") == "28P01")

        wait_until(is_refused, what="the revoked key to be refused")
        assert last <= revoked_at + lifetime
        assert served.post({"query": "SELECT 1"}, other).status == 200
        new = served.create_key("reader")
        wait_until(
            lambda: served.post({"query": "SELECT 1"}, new).status == 200, what="the new key"
        )


def test_another_key_s_statement_is_refused(
    postgres: Postgres, secrets_service: SecretsService, login: Login, tmp_path: Path
) -> None:
    """Each key sends the statements that it names, alone or in a batch, and no others."""
    file = tmp_path / "statements.json"
    file.write_text('{"one": "SELECT 1", "two": "SELECT 2"}')
    with sql_server(
        direct(postgres), secrets_service, {"reader": login}, SQL_STATEMENTS=str(file)
    ) as served:
        key = served.create_key("reader", statements=["one"])
        one, two = {"query": "SELECT 1"}, {"query": "SELECT 2"}
        answers = [served.post(body, key) for body in (one, two, {"queries": [one, two]})]
    assert [each.status for each in answers] == [200, 400, 400]
    assert [each.body.get("code") for each in answers] == [None, "42501", "42501"]
