"""Bring roles, timeouts and schema up to date at every deployment, over the direct address.

Runs before the other functions get their new code. Its failure rolls the deployment back and its
message is what CloudFormation shows.
"""

import json
import logging
import os
from typing import Any

import boto3
from lambda_pg import Database

from migrations.roles import Login, Timeouts
from migrations.run import migrate

logger = logging.getLogger("migrate")
logger.setLevel(logging.INFO)
db = Database.from_env()


@db.bind_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Migrate, and answer with the revision reached and those applied on the way."""
    with db.connection() as connection:
        outcome = migrate(connection, read_login(), read_timeouts())
    logger.info("schema is at revision %s, applied %s", outcome.revision, outcome.applied)
    return {"revision": outcome.revision, "applied": outcome.applied}


def read_login() -> Login:
    """Fetch the application's user from its secret."""
    secrets = boto3.client("secretsmanager")
    text = secrets.get_secret_value(SecretId=os.environ["APP_SECRET_ARN"])["SecretString"]
    fields = json.loads(text)
    return Login(fields["username"], fields["password"])


def read_timeouts() -> Timeouts:
    """Read the database's timeouts from the environment, in seconds."""
    return Timeouts(
        statement=int(os.environ["STATEMENT_TIMEOUT"]),
        lock=int(os.environ["LOCK_TIMEOUT"]),
        idle_in_transaction=int(os.environ["IDLE_IN_TRANSACTION_TIMEOUT"]),
    )
