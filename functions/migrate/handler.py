"""Bring roles, timeouts and schema up to date at every deployment, over the direct address.

Runs before the other functions get their new code. Its failure rolls the deployment back and its
message is what CloudFormation shows.
"""

import json
import logging
import os
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
from lambda_pg import Database

from migrations.roles import Login, Timeouts
from migrations.run import migrate

ANSWERING = 2.0
"""Seconds kept back from the wait for another migration, to tell who it was."""

logger = logging.getLogger("migrate")
logger.setLevel(logging.INFO)
EXTERNAL = "PGHOST" not in os.environ
"""Whether the database is somebody else's, and a secret with two URLs says where it is."""

db = Database.from_env(direct=EXTERNAL)


@db.bind_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Migrate, and answer with the revision reached and those applied on the way."""
    patience = context.get_remaining_time_in_millis() / 1000 - ANSWERING
    with db.connection() as connection:
        outcome = migrate(
            connection, read_login, read_timeouts(), patience=patience, shared=EXTERNAL
        )
    logger.info("schema is at revision %s, applied %s", outcome.revision, outcome.applied)
    return {"revision": outcome.revision, "applied": outcome.applied}


def read_login() -> Login:
    """Name the application's user: APP_USER logs in by IAM, another one is in a secret."""
    if user := os.environ.get("APP_USER"):
        return Login(user)
    if EXTERNAL:
        return login_of(read_secret("LAMBDA_PG_SECRET_ARN")["url"])
    fields = read_secret("APP_SECRET_ARN")
    return Login(fields["username"], fields["password"])


def read_secret(variable: str) -> dict[str, Any]:
    """Read a secret as JSON."""
    secrets = boto3.client("secretsmanager")
    fields: dict[str, Any] = json.loads(
        secrets.get_secret_value(SecretId=os.environ[variable])["SecretString"]
    )
    return fields


def login_of(url: str) -> Login:
    """Take the user and the password out of the pooled URL.

    Supabase's pooler takes `role.project` as the user, of which the database knows the role.
    """
    parts = urlsplit(url)
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    if (parts.hostname or "").endswith(".pooler.supabase.com"):
        name = name.rpartition(".")[0]
    return Login(name, password)


def read_timeouts() -> Timeouts:
    """Read the database's timeouts from the environment, in seconds."""
    return Timeouts(
        statement=int(os.environ["STATEMENT_TIMEOUT"]),
        lock=int(os.environ["LOCK_TIMEOUT"]),
        idle_in_transaction=int(os.environ["IDLE_IN_TRANSACTION_TIMEOUT"]),
        transaction=int(os.environ.get("TRANSACTION_TIMEOUT", "0")),
    )
