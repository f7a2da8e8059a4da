"""A load on the deployed POST /sql: every role, by keys and by tokens."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import psycopg

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.functions.sql.sql_http.keys import PAUSE
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.daemon.deployments import stage_settings
from lambda_pg_cdk.local.http.caller import Answer, call
from tests.support.api_load import Load, repeated
from tests.support.sql_cloud import create_key, superuser, token_api, token_variables

INSERT: Final = "INSERT INTO users (owner, name) VALUES ($1, 'Ada')"
KINDS: Final = ("reader", "writer", "batch", "caller")
BY_KEYS: Final = 3
"""Requests of a round that one route throttles: the caller's goes to another API."""


@dataclass(frozen=True)
class SqlClient:
    """A client of POST /sql: where it sends statements, and what says who it is."""

    url: str
    headers: Mapping[str, str] = field(repr=False)

    def ask(self, query: str, *params: str) -> Answer:
        """Send one statement."""
        return self.send({"query": query, "params": params})

    def send(self, body: object) -> Answer:
        """Send a request."""
        return call(self.url, "POST", "/sql", body=body, headers=self.headers)


@dataclass(frozen=True)
class SqlClients:
    """A client of each role; the caller may send `registered` only, for the row of `user`."""

    reader: SqlClient
    writer: SqlClient
    caller: SqlClient
    registered: str
    user: str

    def registered_read(self) -> Answer:
        """Have the caller read its row."""
        return self.caller.ask(self.registered, self.user)


def clients_of(cloud: LocalCloud) -> SqlClients:
    """Create keys for both roles that have them, and a token with a user."""
    variables = token_variables(cloud)
    by_token = {
        "Authorization": f"Bearer {variables['TOKEN']}",
        **_header("postgresql://a@127.0.0.1/app"),
    }
    reader, writer = (
        SqlClient(cloud.url, _header(create_key(cloud, role))) for role in ("reader", "writer")
    )
    caller = SqlClient(token_api(cloud)["url"], by_token)
    time.sleep(PAUSE)  # an environment that has just read the table looks for a new key after that
    return SqlClients(reader, writer, caller, variables["REGISTERED"], variables["USER_ID"])


def _header(connection_string: str) -> dict[str, str]:
    return {"Neon-Connection-String": connection_string}


@contextmanager
def sql_load(cloud: LocalCloud, clients: int = 4) -> Iterator[Load]:
    """Read, write and send batches by each role from several clients until the block ends.

    Together they send half of what the route's throttle lets through.
    Nothing may be lost or done twice: a write is neither idempotent nor is its key one that says
    that writes may be retried.
    """
    cloud.environments("sql", clients)
    of, seen, owner = clients_of(cloud), Load(), str(uuid.uuid4())
    rest = clients * BY_KEYS / (stage_settings(PROJECT, {}).sql.rate_limit / 2)
    with repeated([partial(_round, of, owner, seen, rest)] * clients):
        seen.wait_for_all(len(KINDS))
        yield seen
    with psycopg.connect(superuser(cloud)) as admin:
        found = admin.execute("SELECT count(*) FROM users WHERE owner = %s", [owner]).fetchone()
    assert found == (seen.answered["writer"] + 2 * seen.answered["batch"],)


def _round(of: SqlClients, owner: str, seen: Load, rest: float) -> None:
    insert = {"query": INSERT, "params": [owner]}
    seen.count("reader", of.reader.ask("SELECT count(*) FROM users WHERE owner = $1", owner))
    seen.count("writer", of.writer.send(insert))
    seen.count("batch", of.writer.send({"queries": [insert, insert]}))
    seen.count("caller", of.registered_read())
    time.sleep(rest)


def secrets_of_roles(cloud: LocalCloud) -> dict[str, str]:
    """Return the ARN of the secret of each role."""
    functions = cloud.client("lambda").list_functions()["Functions"]
    variables = (one.get("Environment", {}).get("Variables", {}) for one in functions)
    found: dict[str, Any] = next(
        json.loads(each["SQL_ROLES"]) for each in variables if "SQL_KEYS_SECRET_ARN" in each
    )
    return found
