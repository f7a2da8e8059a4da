"""The control of the storm: a function without pool and pooler.

A new connection to the database itself for each request. Deployed only where a stage asks
for it, and outside the connection budget on purpose: it must fail under load.
"""

import json
import os
import uuid
from contextlib import closing
from typing import Any

import boto3
import psycopg
from psycopg.rows import dict_row


def fetch_secret() -> dict[str, str]:
    """Read the credentials."""
    with closing(boto3.client("secretsmanager")) as client:
        answer = client.get_secret_value(SecretId=os.environ["LAMBDA_PG_SECRET_ARN"])
    fields: dict[str, str] = json.loads(answer["SecretString"])
    return fields


secret = fetch_secret()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return one user of the caller, over a connection made for this request."""
    claims = event["requestContext"]["authorizer"]["jwt"]["claims"]
    user = lookup(uuid.UUID(event["pathParameters"]["id"]), claims["sub"])
    if user is None:
        return {"statusCode": 404, "body": json.dumps({"message": "no such user"})}
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps(user, default=str),
    }


def lookup(user_id: uuid.UUID, subject: str) -> dict[str, Any] | None:
    """Connect, query and close; endpoint and TLS come from libpq's variables."""
    with psycopg.connect(
        user=secret["username"], password=secret["password"], row_factory=dict_row
    ) as connection:
        connection.execute(
            "SELECT set_config('request.jwt.claims', %s, true),"
            " set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true)",
            [json.dumps({"sub": subject})],
        )
        return connection.execute(
            "SELECT id, name, created_at, updated_at FROM users WHERE id = %s", [user_id]
        ).fetchone()
