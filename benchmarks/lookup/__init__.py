"""What the functions of the storm have in common: one lookup, and how it is answered.

They differ in nothing but how they come to a connection.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3

SELECT = "SELECT id, name, created_at, updated_at FROM users WHERE id = %(id)s"
SET_CLAIMS = "SELECT set_config('request.jwt.claims', %(claims)s, true)"

User = dict[str, Any]
Lookup = Callable[[uuid.UUID, str], User | None]
"""Finds a user by its id, for the subject of a verified token."""


def serve(event: dict[str, Any], lookup: Lookup) -> dict[str, Any]:
    """Answer an API's event with one user of the caller."""
    subject = event["requestContext"]["authorizer"]["jwt"]["claims"]["sub"]
    user = lookup(uuid.UUID(event["pathParameters"]["id"]), subject)
    if user is None:
        return {"statusCode": 404, "body": json.dumps({"message": "no such user"})}
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps(user, default=str),
    }


def claims_of(subject: str) -> str:
    """Write the claims for row-level security."""
    return json.dumps({"sub": subject})


def patience() -> int:
    """Return the seconds for which every way may wait: the layer's checkout timeout."""
    return int(os.environ["LAMBDA_PG_CHECKOUT_TIMEOUT"])


def connection_parameters() -> dict[str, Any]:
    """Return what psycopg needs besides libpq's variables, to connect without the layer.

    The secret is read here, at import: restored environments share what their template has read.
    """
    with closing(boto3.client("secretsmanager")) as client:
        answer = client.get_secret_value(SecretId=os.environ["LAMBDA_PG_SECRET_ARN"])
    secret = json.loads(answer["SecretString"])
    return {
        "user": secret["username"],
        "password": secret["password"],
        "sslrootcert": str(_roots()),
        "prepare_threshold": None,
        "connect_timeout": patience(),
    }


def _roots() -> Path:
    """Write the CA of the pooler's certificate where libpq reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
        file.write(os.environ["LAMBDA_PG_CA_PEM"])
    return Path(file.name)
