"""How functions without the layer log in."""

import json
import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3

from benchmarks.lookup import patience


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
