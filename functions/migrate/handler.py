"""Bring roles, timeouts and schema up to date over the direct address.

CloudFormation runs it in a deployment that changes this function's version: its code, with the
migrations in it, its settings or published values. In another one it does not run. It comes before
the other functions get their new code; its failure rolls the deployment back and its message is
what CloudFormation shows.
"""

import json
import logging
import os
from typing import Any

import boto3
from lambda_pg import CredentialsError, Database
from lambda_pg._url import Url

from migrations.roles import IAM, Login, LoginError, Timeouts
from migrations.run import migrate
from migrations.upgrade import MigrationError

ANSWERING = 2.0
"""Seconds kept back from the wait for another migration, to tell who it was."""

logger = logging.getLogger("migrate")
logger.setLevel(logging.INFO)
EXTERNAL = "PGHOST" not in os.environ
"""Whether the database is somebody else's, and a secret with two URLs says where it is."""

SHARED = EXTERNAL or os.environ.get("SHARED_DATABASE") == "1"
"""Whether others use the database too, for whom nothing may change."""

db = Database.from_env(direct=EXTERNAL)


@db.bind_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Migrate, and answer with the revision reached and those applied on the way."""
    patience = context.get_remaining_time_in_millis() / 1000 - ANSWERING
    with db.connection() as connection:
        outcome = migrate(
            connection,
            read_login,
            read_timeouts(),
            patience=patience,
            shared=SHARED,
            max_connections=read_number("MAX_CONNECTIONS"),
            login_limit=read_number("LOGIN_LIMIT"),
        )
    if user := os.environ.get("APP_USER"):
        check_owner(user)
    logger.info("schema is at revision %s, applied %s", outcome.revision, outcome.applied)
    return {"revision": outcome.revision, "applied": outcome.applied}


def check_owner(user: str) -> None:
    """Log in once more: whoever made a role is its member, and so perhaps one of IAM's users."""
    try:
        with db.connection() as connection:
            connection.execute("SELECT 1")
    except CredentialsError as error:
        raise MigrationError(
            f"the schema is up to date, but granting {IAM} to {user} has locked the owner's "
            f"password login out ({error}). Log in as the owner by a token of IAM's (aws rds "
            f"generate-db-auth-token) or as another administrator, and REVOKE {IAM} FROM {user}. "
            "Then have the application log in by password, not by IAM, and deploy again"
        ) from error


def read_login() -> Login:
    """Name the application's user: APP_USER logs in by IAM, another one is in a secret."""
    if user := os.environ.get("APP_USER"):
        return Login(user)
    if EXTERNAL:
        return login_of(read_secret("LAMBDA_PG_SECRET_ARN").get("url"))
    fields = read_secret("APP_SECRET_ARN")
    return Login(fields.get("username") or "", fields.get("password") or "")


def read_secret(variable: str) -> dict[str, Any]:
    """Read a secret as JSON."""
    secrets = boto3.client("secretsmanager")
    fields: dict[str, Any] = json.loads(
        secrets.get_secret_value(SecretId=os.environ[variable])["SecretString"]
    )
    return fields


def login_of(url: object) -> Login:
    """Take the user and the password out of the pooled URL; raise `LoginError` without any of it.

    Supabase's pooler takes `role.project` as the user, of which the database knows the role.
    """
    try:
        parts = Url.parse(url if isinstance(url, str) else "")
    except ValueError as error:
        raise LoginError(f"the secret's field 'url' {error}") from None
    name = parts.user or ""
    if (parts.host or "").endswith(".pooler.supabase.com"):
        name = name.rpartition(".")[0] or name
    if not name or not parts.password:
        raise LoginError("the secret's field 'url' names no user or no password: write both there")
    return Login(name, parts.password, borrowed=True)


def read_timeouts() -> Timeouts:
    """Read the database's timeouts from the environment, in seconds."""
    return Timeouts(
        statement=int(os.environ["STATEMENT_TIMEOUT"]),
        lock=int(os.environ["LOCK_TIMEOUT"]),
        idle_in_transaction=int(os.environ["IDLE_IN_TRANSACTION_TIMEOUT"]),
        transaction=int(os.environ.get("TRANSACTION_TIMEOUT", "0")),
    )


def read_number(variable: str) -> int | None:
    """Read a number of connections; None where it is not ours to say."""
    text = os.environ.get(variable)
    return int(text) if text else None
