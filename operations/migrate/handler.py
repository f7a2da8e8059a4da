"""Bring roles, timeouts and schema up to date over the direct URL.

CloudFormation runs it in a deployment that changes this function's version: its code, with the
migrations in it, its settings or published values. In another one it does not run. It comes before
the other functions get their new code; its failure rolls the deployment back and its message is
what CloudFormation shows.
"""

import json
import logging
import os
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import psycopg
from lambda_pg import ConfigurationError, CredentialsError, Database, Settings

from lambda_pg_cdk.migrations.levels import Levels, group_of
from lambda_pg_cdk.migrations.roles import Login, LoginError, Timeouts
from lambda_pg_cdk.migrations.run import Connections, Owner, migrate
from lambda_pg_cdk.migrations.upgrade import BRANCHES, Branch

ANSWERING = 2.0
"""Seconds left after the wait for another migration, to report which one it was."""

logger = logging.getLogger("migrate")
logger.setLevel(logging.INFO)
EXTERNAL = "PGHOST" not in os.environ
"""Whether the database belongs to an external pooler, whose secret has its URLs."""

SHARED = EXTERNAL or os.environ.get("SHARED_DATABASE") == "1"
"""Whether others use the database too: nothing may change for them."""

OWNER_BY_TOKEN = os.environ.get("OWNER_BY_TOKEN") == "1"
"""Whether the owner can log in by a token too. If the application does, RDS may accept nothing else
from the owner, which created the application's user and so is a member of it."""

MANY_ROUNDS = os.environ.get("MANY_ROUNDS") == "1"
"""Whether the application's password is hashed in more rounds than the layer needs."""

OWN = Branch(Path(__file__).resolve().parent / "migrations")
"""The app's own migrations: the files of the project's folder, in this function's zip."""

AS_IT_IS = {"LAMBDA_PG_PROFILE": "direct", "LAMBDA_PG_ALLOW_UNVERIFIED_TLS": "1"}
"""Settings that accept every URL that can be read: here it only names the login."""

NO_TIMEOUTS = Timeouts(statement=0, lock=0, idle_in_transaction=0)
"""For a stage without /sql: no login has them."""

settings = Settings.from_env(direct=EXTERNAL)
db = Database(settings)


@db.bind_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Migrate; return the revisions that were reached, those that were applied, and warnings."""
    patience = context.get_remaining_time_in_millis() / 1000 - ANSWERING
    with ExitStack() as stack:
        outcome = migrate(
            log_in(stack, db),
            read_login,
            read_timeouts(),
            [*BRANCHES, OWN],
            patience=patience,
            shared=SHARED,
            connections=Connections(
                server=read_number("MAX_CONNECTIONS"), login=read_number("LOGIN_LIMIT")
            ),
            owner=Owner(check_owner, OWNER_BY_TOKEN),
            levels=read_levels(),
        )
    logger.info("schema is at %s, applied %s", ", ".join(outcome.revisions), outcome.applied)
    for warning in outcome.warnings:
        logger.warning("%s", warning)
    return asdict(outcome)


def log_in(stack: ExitStack, database: Database) -> psycopg.Connection[Any]:
    """Connect as the owner until the stack ends: by password, or by token if allowed."""
    try:
        return stack.enter_context(database.connection())
    except CredentialsError as refused:
        if not OWNER_BY_TOKEN:
            raise
        logger.info("the owner's password is not taken, trying a token: %s", refused)
        by_token = with_tokens()
        stack.callback(by_token.close)
        return stack.enter_context(by_token.connection())


def with_tokens() -> Database:
    """Make a second client of the database: the same owner, by tokens of this function's role."""
    owner = read_secret("LAMBDA_PG_SECRET_ARN")["username"]
    region = settings.region or os.environ.get("AWS_REGION")
    return Database(replace(settings, secret_arn=None, user=owner, auth="iam", region=region))


def check_owner() -> None:
    """Log in again over a new connection; raises psycopg's error if that fails."""
    with ExitStack() as stack:
        again = Database(settings)
        stack.callback(again.close)
        log_in(stack, again).execute("SELECT 1")


def read_login() -> Login:
    """Return the application's login: APP_USER with IAM tokens, or the secret's user."""
    if user := os.environ.get("APP_USER"):
        return Login(user)
    if EXTERNAL:
        return login_of(read_secret("LAMBDA_PG_SECRET_ARN").get("url"))
    return user_of(read_secret("APP_SECRET_ARN"))


def read_levels() -> Levels:
    """Return /sql's trust levels: SQL_ROLES has each one's secret, or its user with IAM tokens.

    Without SQL_ROLES all levels are off.
    """
    roles: dict[str, str] = json.loads(os.environ.get("SQL_ROLES") or "{}")
    timeouts = Timeouts(**json.loads(os.environ["SQL_TIMEOUTS"])) if roles else NO_TIMEOUTS
    readers = {level: partial(read_level, level, place) for level, place in roles.items()}
    return Levels(readers, timeouts, read_number("SQL_LOGIN_LIMIT") or -1)


def read_level(level: str, place: str) -> Login:
    """Return the login of a trust level, by its secret's ARN or its user's name."""
    group = group_of(level)
    if not place.startswith("arn:"):
        return Login(place, group=group)
    fields = read_fields(place)
    if "url" in fields:
        return replace(login_of(fields["url"]), group=group)
    return replace(user_of(fields), group=group)


def user_of(fields: dict[str, Any]) -> Login:
    """Return the user and the password of a secret's fields."""
    user, password = fields.get("username") or "", fields.get("password") or ""
    return Login(user, password, many_rounds=MANY_ROUNDS)


def read_secret(variable: str) -> dict[str, Any]:
    """Read the secret whose ARN is in a variable."""
    return read_fields(os.environ[variable])


def read_fields(arn: str) -> dict[str, Any]:
    """Read a secret as JSON."""
    secrets = boto3.client("secretsmanager")
    fields: dict[str, Any] = json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])
    return fields


def login_of(url: object) -> Login:
    """Return user and password of the pooled URL; raise `LoginError`, which quotes none of them.

    For Supabase's pooler the user is `role.project`; the database knows the role only.
    """
    if not isinstance(url, str) or not url:
        raise LoginError("the secret's field 'url' is no text: write a postgresql:// URL there")
    try:
        pooled = Settings.from_env({**AS_IT_IS, "DATABASE_URL": url})
    except ConfigurationError as error:
        raise LoginError(str(error).replace("DATABASE_URL", "the secret's field 'url'")) from None
    name = pooled.user or ""
    if (pooled.host or "").endswith(".pooler.supabase.com"):
        name = name.rpartition(".")[0] or name
    if not name or not pooled.password:
        raise LoginError("the secret's field 'url' names no user or no password: write both there")
    return Login(name, pooled.password, borrowed=True)


def read_timeouts() -> Timeouts:
    """Read the database's timeouts from the environment, in seconds."""
    return Timeouts(
        statement=int(os.environ["STATEMENT_TIMEOUT"]),
        lock=int(os.environ["LOCK_TIMEOUT"]),
        idle_in_transaction=int(os.environ["IDLE_IN_TRANSACTION_TIMEOUT"]),
        transaction=int(os.environ.get("TRANSACTION_TIMEOUT", "0")),
    )


def read_number(variable: str) -> int | None:
    """Read a number of connections; None if this app does not set it."""
    text = os.environ.get(variable)
    return int(text) if text else None
